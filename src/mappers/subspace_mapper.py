"""What the mappers through singular subspaces have in common."""

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment import TruncatedSvd
from ..exceptions import ConfigurationError
from .projections import Projection, subspace_similarity
from .site_pairs import SitePairs
from .weight_mapper import WeightMapper


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
