"""Closed-form linear transport of LoRA factors between activations of two models."""

from collections.abc import Sequence

from transformers import PretrainedConfig

from ..adapters import Role, Site
from ..alignment.linear_maps import STRENGTHS, LinearMap, Ridge
from ..models.base import BaseModel
from .corpus_mapper import ROLES
from .linear_corpus_mapper import Gathered, LinearCorpusMapper
from .matching.head_axes import HeadShape
from .matching.rope import log_frequencies
from .matching.rope_blocks import RopeBlocks, nearest_frequencies
from .strengths import finite_strengths

_TURNED = (Role.Q, Role.K)


class TransportMapper(LinearCorpusMapper):
    """Carries A and B by ridge regression between the two models' activations on text.

    ``A_T = A_S M`` with ``x_S ~ M x_T`` between module inputs, and ``B_T = N B_S`` with
    ``dy_T ~ N dy_S`` between centred outputs: the exact ridge minimiser of
    ``|dW_T x_T - N dW_S x_S|^2``.

    Args:
        roles: The roles of adapters that it shall carry.
        strengths: Ridge strengths to choose among by held-out error, for the input and the
            output of each module, relative to the mean square of a coordinate.
        rope_blocks: Whether the outputs of q and k are mapped head by head, by one scaled rotation
            of each pair of dimensions that turn together
            (:mod:`~loraport.mappers.matching.rope_blocks`).
        min_r2: See :class:`~loraport.mappers.linear_carrier.LinearCarrier`.
        match_norm: Likewise.
        memory_gb: Gigabytes that statistics may take.

    Raises:
        ConfigurationError: a role does not exist, or a strength is not positive and finite.
    """

    def __init__(
        self,
        roles: Sequence[str] = ROLES,
        strengths: Sequence[float] = STRENGTHS,
        rope_blocks: bool = False,
        min_r2: float | None = None,
        match_norm: bool = False,
        memory_gb: float = 2.0,
    ) -> None:
        super().__init__(roles, min_r2, match_norm, memory_gb)
        self.ridge = Ridge(finite_strengths(strengths))
        self.rope_blocks = rope_blocks
        self.save_hyperparameters(
            {
                "roles": [role.value for role in self.roles],
                "strengths": list(self.ridge.strengths),
                "rope_blocks": rope_blocks,
                "min_r2": min_r2,
                "match_norm": match_norm,
                "memory_gb": memory_gb,
            }
        )

    def read(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return ``X_S^T X_T (X_T^T X_T + lambda I)^-1``."""
        return self.ridge.backward(*gathered.inputs(source, target))

    def write(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return ``Y_T^T Y_S (Y_S^T Y_S + lambda I)^-1``, or rotations of pairs."""
        if not (self.rope_blocks and target.role in _TURNED):
            return self.ridge.forward(*gathered.outputs(source, target))
        moments = {
            role: gathered.outputs(Site(source.layer, role), Site(target.layer, role))
            for role in _TURNED
            if role in self.roles
        }
        return self._blocks_of(source.layer, target.layer).fit(target.role, moments)

    def _blocks_of(self, source: int, target: int) -> RopeBlocks:
        ours, theirs = (_heads(m) for m in (self.models.source, self.models.target))
        pairs = nearest_frequencies(
            log_frequencies(_config(self.models.source), source, ours.dims),
            log_frequencies(_config(self.models.target), target, theirs.dims),
        )
        return RopeBlocks(ours, theirs, pairs)


def _config(model: BaseModel) -> PretrainedConfig:
    config: PretrainedConfig = model.network.config
    return config


def _heads(model: BaseModel) -> HeadShape:
    config = _config(model)
    heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
    return HeadShape(groups, heads // groups, model.sites.shapes[Site(0, Role.Q)][0] // heads)
