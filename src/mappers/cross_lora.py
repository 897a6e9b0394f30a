"""Cross-LoRA: an update is carried between the leading singular subspaces of two weights.

With the truncated SVDs ``W_s ~ U_s S_s V_s^T`` and ``W_t ~ U_t S_t V_t^T`` of the base weights:

``typed``
    ``B_t = U_t (U_s^T B_s)``, ``A_t = (A_s V_s) V_t^T``: defined whatever the widths. Singular
    vectors are paired by the order of their singular values alone, with the signs that the SVD
    happened to give them.
``sign_fixed``
    the same after the largest entry of every left singular vector was made positive. That removes
    the accident of the SVD; it does not make the paired vectors mean the same.
``paper``
    ``U_t U_t^T dW V_t V_t^T``, equation 7 as printed. The paper's alignment ``P U_s ~ U_t`` has the
    minimum-norm solution ``P = U_t U_s^T``, so that the aligned basis ``P U_s`` is ``U_t`` itself
    and nothing of the source's weights is left in it; the formula multiplies matrices that fit
    only where both weights have one shape.
``lora_x``
    the filter of LoRA-X, which is the same formula. LoRA-X transfers only modules whose subspaces
    are alike enough; here that similarity is reported and no module is left out.

Sources: Cross-LoRA (Xia et al., 2025, arXiv 2508.05232), equations 1 to 7 and algorithm 1; LoRA-X
(Farhadzadeh et al., ICLR 2025, arXiv 2501.16559).
"""

from typing import ClassVar

import torch

from ..adapters import LowRank, Site
from ..alignment import TruncatedSvd
from ..exceptions import ConfigurationError
from .base import WeightMapper, check_least

VARIANTS = ("lora_x", "paper", "typed", "sign_fixed")


class CrossLoraMapper(WeightMapper):
    """Carries an update from the leading singular subspaces of one weight to the other's.

    Args:
        variant: ``sign_fixed`` or ``typed`` for any shapes; ``paper`` or ``lora_x`` for weights of
            one shape. See :mod:`~loraport.mappers.cross_lora`.
        rank: Singular vectors kept of each weight, at most; 320 in Cross-LoRA.
        oversampling: Columns drawn beyond ``rank`` by the randomised SVD.
        power_iterations: Of the randomised SVD.
        seed: Of its draw.
    """

    name: ClassVar[str] = "cross_lora"

    def __init__(
        self,
        variant: str = "sign_fixed",
        rank: int = 320,
        oversampling: int = 16,
        power_iterations: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ConfigurationError(
                f"mapper.variant is {variant!r}; it takes one of {', '.join(VARIANTS)} "
                "(sign_fixed is the default)"
            )
        check_least(1, rank=rank)
        check_least(0, oversampling=oversampling, power_iterations=power_iterations)
        self.variant = variant
        self.svd_options = {
            "rank": rank,
            "oversampling": oversampling,
            "power_iterations": power_iterations,
            "seed": seed,
        }

    def prepare(self, pairs: dict[Site, Site]) -> None:
        """Refuse shapes that the variant is not defined for."""
        if self.variant not in ("paper", "lora_x"):
            return
        source, target = self.pair.source, self.pair.target
        for t, s in pairs.items():
            if source.sites.shapes[s] != target.sites.shapes[t]:
                raise ConfigurationError(
                    f"the update U_t U_t^T dW V_t V_t^T is defined for equal shapes only, but "
                    f"{s.module_name} of {source.name} is {source.sites.shapes[s]} and "
                    f"{t.module_name} of {target.name} is {target.sites.shapes[t]}; use "
                    "mapper=cross_lora mapper.variant=typed or sign_fixed"
                )

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the projected update, and note the energy that the subspaces hold."""
        pair = self.pair
        of_source, of_target = (
            pair.factors.svd(weights, site, device=pair.device, **self.svd_options)
            for weights, site in ((pair.source, source), (pair.target, target))
        )
        self.note(
            target,
            source_energy_kept=of_source.kept,
            target_energy_kept=of_target.kept,
            singular_vectors=min(of_source.S.numel(), of_target.S.numel()),
        )
        for side, one, other in (
            ("output", of_source.U, of_target.U),
            ("input", of_source.V, of_target.V),
        ):
            if one.shape == other.shape:
                # The mean squared cosine of the principal angles: 1 for equal subspaces, k / dim
                # for random ones. Source: LoRA-X, its module filter.
                similarity = float((one.mT @ other).square().sum() / one.shape[1])
                self.note(target, **{f"{side}_subspace_similarity": similarity})
        return projected(self.variant, of_source, of_target, update)


def projected(variant: str, source: TruncatedSvd, target: TruncatedSvd, update: LowRank) -> LowRank:
    """Return an update in the target's leading subspaces, of the same rank and scale."""
    if variant in ("paper", "lora_x"):
        b = target.U @ (target.U.mT @ update.B)
        a = (update.A @ target.V) @ target.V.mT
        return LowRank(a, b, update.scale)
    if variant == "sign_fixed":
        source, target = with_fixed_signs(source), with_fixed_signs(target)
    k = min(source.S.numel(), target.S.numel())
    b = target.U[:, :k] @ (source.U[:, :k].mT @ update.B)
    a = (update.A @ source.V[:, :k]) @ target.V[:, :k].mT
    return LowRank(a, b, update.scale)


def with_fixed_signs(svd: TruncatedSvd) -> TruncatedSvd:
    """Return the same factorisation, the largest entry of each left singular vector positive."""
    negative = -svd.U.amin(dim=0) > svd.U.amax(dim=0)
    signs = torch.where(negative, -1.0, 1.0).to(svd.U)
    return svd._replace(U=svd.U * signs, V=svd.V * signs)
