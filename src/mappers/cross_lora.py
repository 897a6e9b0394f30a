"""How an update is carried between the leading singular subspaces of two weights."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment import TruncatedSvd
from ..exceptions import ConfigurationError
from .base import SitePairs, WeightMapper


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


# What the mappers through singular subspaces have in common.


class SubspaceMapper(WeightMapper):
    """Carries updates between the leading singular subspaces of the base weights.

    Args:
        projection: How.
        rank: Singular vectors kept of each weight, at most; 320 in Cross-LoRA.
        oversampling: Columns drawn beyond ``rank`` by the randomised SVD.
        power_iterations: Of the randomised SVD.
        seed: Of its draw.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    def __init__(
        self,
        projection: Projection,
        rank: int = 320,
        oversampling: int = 16,
        power_iterations: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("rank", rank, 1),
            ("oversampling", oversampling, 0),
            ("power_iterations", power_iterations, 0),
        ):
            if value < least:
                raise ConfigurationError(
                    f"mapper.{name} is {value}; it takes a whole number of at least {least}"
                )
        self.projection = projection
        self.rank = rank
        self.oversampling = oversampling
        self.power_iterations = power_iterations
        self.seed = seed

    def prepare(self, adapter: LoraAdapter, pairs: SitePairs) -> None:
        """Refuse widths that the projection is not defined for.

        Raises:
            ConfigurationError: two paired weights have different shapes.
        """
        if not self.projection.same_shapes:
            return
        source, target = self.pair.source, self.pair.target
        for t, s in pairs:
            if source.sites.shapes[s] != target.sites.shapes[t]:
                raise ConfigurationError(
                    f"the update U_t U_t^T dW V_t V_t^T is defined for equal shapes only, but "
                    f"{s.module_name} of {source.name} is {source.sites.shapes[s]} and "
                    f"{t.module_name} of {target.name} is {target.sites.shapes[t]}; use "
                    "mapper=cross_lora mapper.variant=typed or sign_fixed"
                )

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the projected update, and note the energy that the subspaces hold."""
        of_source, of_target = self._svd("source", source), self._svd("target", target)
        self.note(
            target,
            source_energy_kept=of_source.kept,
            target_energy_kept=of_target.kept,
            singular_vectors=min(of_source.S.numel(), of_target.S.numel()),
        )
        if of_source.U.shape == of_target.U.shape:
            similarity = subspace_similarity(of_source.U, of_target.U)
            self.note(target, output_subspace_similarity=float(similarity))
        if of_source.V.shape == of_target.V.shape:
            similarity = subspace_similarity(of_source.V, of_target.V)
            self.note(target, input_subspace_similarity=float(similarity))
        return self.projection(of_source, of_target, update)

    def _svd(self, side: str, site: Site) -> TruncatedSvd:
        pair = self.pair
        return pair.factors.svd(
            getattr(pair, side),
            site,
            rank=self.rank,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
            seed=self.seed,
            device=pair.device,
        )


# Cross-LoRA: replace the source weight's singular vectors by the target's.


class CrossLoraMapper(SubspaceMapper):
    """Carries an update from the leading singular subspaces of one weight to the other's.

    Args:
        variant: ``sign_fixed`` or ``typed`` for any shapes; ``paper`` is the printed equation,
            and ``lora_x`` the filter of LoRA-X, which is the same; both take weights of one shape.
            See :mod:`~loraport.mappers.cross_lora`.
        rank: Singular vectors kept of each weight, at most.
        oversampling: Columns drawn beyond ``rank`` by the randomised SVD.
        power_iterations: Of the randomised SVD.
        seed: Of its draw.

    Source: Cross-LoRA (Xia et al., 2025, arXiv 2508.05232), equations 1 to 7 and algorithm 1.
    """

    def __init__(
        self,
        variant: str = "sign_fixed",
        rank: int = 320,
        oversampling: int = 16,
        power_iterations: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(projection_named(variant), rank, oversampling, power_iterations, seed)
