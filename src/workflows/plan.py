"""What a configuration asks for after the mapper, read before anything is done."""

from dataclasses import dataclass

import torch
from omegaconf import DictConfig

from ..adapters.combiner import Combiner
from ..adapters.sparsify import Sparsifier
from ..exceptions import ConfigurationError
from ..mappers import BasePair, Mapper
from ..models.sources import DTYPES
from .building import build
from .options import listed, option, optional
from .porting import Porting


@dataclass(frozen=True)
class Plan:
    """The options of the steps after the mapper; see :class:`~loraport.workflows.porting.Porting`.

    Raises:
        ConfigurationError: an option is of the wrong kind or out of its range.
    """

    sparsify: Sparsifier | None
    merge: Combiner
    weights: list[float] | None
    output_rank: int | None
    scale: float
    dtype: torch.dtype

    @classmethod
    def of(cls, config: DictConfig) -> "Plan":
        """Read ``sparsify``, ``merge``, ``output_rank``, ``scale`` and ``dtype``."""
        dtype = option(config, "dtype", str)
        if dtype not in DTYPES:
            raise ConfigurationError(f"dtype is {dtype!r}; it takes one of {', '.join(DTYPES)}")
        weighted = config.merge.weights is not None
        return cls(
            sparsify=build(config.sparsify) if "_target_" in config.sparsify else None,
            merge=build(config.merge.method),
            weights=listed(config, "merge.weights", float) if weighted else None,
            output_rank=optional(config, "output_rank", int),
            scale=option(config, "scale", float),
            dtype=DTYPES[dtype],
        )

    def porting(self, mapper: Mapper, pair: BasePair) -> Porting:
        """Return the steps for a mapper between the models of a pair."""
        return Porting(mapper, pair.target.sites, **vars(self))
