"""How an update is carried between the leading singular subspaces of two weights."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LowRank
from ..alignment import TruncatedSvd
from ..exceptions import ConfigurationError


@runtime_checkable
class Projection(Protocol):
    """One way to carry an update between singular subspaces."""

    same_shapes: bool
    """Whether it is defined only where the source's and the target's weight have one shape."""

    def __call__(self, source: TruncatedSvd, target: TruncatedSvd, update: LowRank) -> LowRank:
        """Return the update in the target's leading subspaces, of the same rank."""
        ...


class Filtered:
    r"""``U_t U_t^T dW V_t V_t^T``: what of the update lies in the target's leading subspaces.

    This is Cross-LoRA's equation 7 as printed. Its alignment ``P U_s ~ U_t`` has the minimum-norm
    solution ``P = U_t U_s^T``, so that the aligned basis ``P U_s`` is ``U_t`` itself and nothing of
    the source's weights is left in it; the formula is then that of LoRA-X, and multiplies
    matrices that fit only where both weights have one shape.

    Source: LoRA-X (Farhadzadeh et al., ICLR 2025, arXiv 2501.16559). It transfers only modules
    whose subspaces are alike enough; here that similarity is reported and no module is left out.
    """

    same_shapes = True

    def __call__(self, source: TruncatedSvd, target: TruncatedSvd, update: LowRank) -> LowRank:
        """Return the filtered update."""
        b = target.U @ (target.U.mT @ update.B)
        a = (update.A @ target.V) @ target.V.mT
        return LowRank(a, b, update.scale)


class Typed:
    """``B_t = U_t (U_s^T B_s)``, ``A_t = (A_s V_s) V_t^T``: defined whatever the widths.

    Singular vectors are paired by the order of their singular values alone, with the signs that
    the SVD happened to give them.
    """

    same_shapes = False

    def __call__(self, source: TruncatedSvd, target: TruncatedSvd, update: LowRank) -> LowRank:
        """Return the update with the source's singular vectors replaced by the target's."""
        k = min(source.S.numel(), target.S.numel())
        b = target.U[:, :k] @ (source.U[:, :k].mT @ update.B)
        a = (update.A @ source.V[:, :k]) @ target.V[:, :k].mT
        return LowRank(a, b, update.scale)


class SignFixed(Typed):
    """The same, with the signs of each pair ``(u_i, v_i)`` fixed first.

    The largest entry of every left singular vector is made positive. That removes the accident of
    the SVD; it does not make the paired vectors mean the same.
    """

    def __call__(self, source: TruncatedSvd, target: TruncatedSvd, update: LowRank) -> LowRank:
        """Return the update with the source's singular vectors replaced by the target's."""
        return super().__call__(with_fixed_signs(source), with_fixed_signs(target), update)


def with_fixed_signs(svd: TruncatedSvd) -> TruncatedSvd:
    """Return the same factorisation, the largest entry of each left singular vector positive."""
    negative = -svd.U.amin(dim=0) > svd.U.amax(dim=0)
    signs = torch.where(negative, -1.0, 1.0).to(svd.U)
    return svd._replace(U=svd.U * signs, V=svd.V * signs)


VARIANTS: dict[str, Projection] = {
    "lora_x": Filtered(),
    "paper": Filtered(),
    "typed": Typed(),
    "sign_fixed": SignFixed(),
}


def projection_named(name: str) -> Projection:
    """Return a variant of Cross-LoRA.

    Raises:
        ConfigurationError: there is no such variant.
    """
    if name not in VARIANTS:
        raise ConfigurationError(
            f"mapper.variant is {name!r}; it takes one of {', '.join(VARIANTS)} "
            "(sign_fixed is the default)"
        )
    return VARIANTS[name]


def subspace_similarity(
    one: Float[Tensor, "dim k"], other: Float[Tensor, "dim k"]
) -> Float[Tensor, ""]:
    """Return the mean squared cosine of the principal angles, ``|one^T other|_F^2 / k``.

    1 for equal subspaces, ``k / dim`` for random ones. Source: LoRA-X, 2025, its module filter.
    """
    return (one.mT @ other).square().sum() / one.shape[1]
