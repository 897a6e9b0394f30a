"""The steps from source adapters to one adapter of the target, without files or configurations."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..adapters import LoraAdapter, LowRank
from ..adapters.combined import Combined, cut
from ..adapters.combiner import Combiner
from ..adapters.sparsify import Sparsifier
from ..exceptions import AdapterError, ConfigurationError
from ..mappers import Mapper, WeightMapper
from ..mappers.base import Report
from ..models.sites import SiteTable

# Of an update's norm, that rounding its factors may change; bfloat16 changes some 0.3 %.
_ROUNDING = 1e-2


class Mapped(NamedTuple):
    """What became of one source adapter, before anything is combined.

    Attributes:
        adapter: The target's.
        report: What the mapper reports of it.
        acts: False where it is meant to do nothing.
    """

    adapter: LoraAdapter
    report: Report
    acts: bool


class Ported(NamedTuple):
    """An adapter of the target, and what was found on the way.

    Attributes:
        adapter: As it is to be written.
        mapping: What the mapper reports of each source adapter.
        steps: What each step after the mapper lost and found, by its name.
    """

    adapter: LoraAdapter
    mapping: tuple[Report, ...]
    steps: dict[str, Combined]


@dataclass(frozen=True)
class Porting:
    """Map, sparsify, merge, cut to a rank, scale, convert: in this order, each where asked for.

    Attributes:
        mapper: Turns a source adapter into one of the target.
        target: The target's modules, which the result must fit.
        sparsify: Applied to each mapped adapter.
        merge: Merges the mapped adapters and those of the target.
        weights: Of the merged adapters, the mapped ones first; None: as the combiner has it.
        output_rank: The most that a site may have.
        scale: Multiplies the result.
        dtype: Of its factors.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    mapper: Mapper
    target: SiteTable
    sparsify: Sparsifier | None = None
    merge: Combiner | None = None
    weights: Sequence[float] | None = None
    output_rank: int | None = None
    scale: float = 1.0
    dtype: torch.dtype = field(default=torch.float32)

    def __post_init__(self) -> None:
        if self.output_rank is not None and self.output_rank < 1:
            raise ConfigurationError(
                f"output_rank is {self.output_rank}; it takes a whole number of at least 1, or "
                "null for the rank that the mapper made"
            )
        if not 0 < abs(self.scale) < float("inf"):
            raise ConfigurationError(
                f"scale is {self.scale}; it takes a finite number other than 0 (mapper=noop makes "
                "an adapter that does nothing)"
            )

    def port(self, adapters: Sequence[LoraAdapter], others: Sequence[LoraAdapter] = ()) -> Ported:
        """Port source adapters, and merge them with others of the target into one.

        Raises:
            AdapterError: an adapter does not fit its model, nothing of it is left, or the dtype
                cannot hold it.
            ConfigurationError: there is no adapter, or the weights do not fit.
        """
        self.check_others(others)
        return self.combined(self.mapped(adapters), others)

    def check_others(self, others: Sequence[LoraAdapter]) -> None:
        """Raise AdapterError unless the adapters to merge with fit the target."""
        for other in others:
            check_target(other, self.target, "the adapter of merge.with")

    def mapped(self, adapters: Sequence[LoraAdapter]) -> list[Mapped]:
        """Map source adapters: the first step, which others may better before they are combined.

        Raises:
            AdapterError: an adapter does not fit its model.
            ConfigurationError: there is no adapter.
        """
        if not adapters:
            raise ConfigurationError("there is no adapter to port; adapter= takes at least one")
        acts = not isinstance(self.mapper, WeightMapper) or self.mapper.acts
        found = []
        for adapter in adapters:
            made = self.mapper.map(adapter)
            check_target(made, self.target, "the mapper's result")
            found.append(Mapped(made, self.mapper.report(), acts))
        return found

    def combined(self, mapped: Sequence[Mapped], others: Sequence[LoraAdapter] = ()) -> Ported:
        """Do everything that follows the mapper; the others are those that were checked.

        Raises:
            AdapterError: nothing is left, or the dtype cannot hold it.
            ConfigurationError: the weights do not fit.
        """
        steps, parts = {}, [one.adapter for one in mapped]
        if self.sparsify is not None:
            for place, part in enumerate(parts):
                sparse = self.sparsify(part, place=place)
                steps[_numbered("sparsify", place, len(parts))] = sparse
                parts[place] = sparse.adapter
        result = parts[0]
        several = len(parts) + len(others) > 1
        if self.merge is not None and (several or self.weights is not None):
            steps["merge"] = self.merge([*parts, *others], self.weights, self.output_rank)
            result = LoraAdapter(steps["merge"].adapter.sites, parts[0].base_model)
        if self.output_rank is not None and any(u.rank > self.output_rank for u in result.values()):
            steps["output_rank"] = cut(result, self.output_rank)
            result = steps["output_rank"].adapter
        finished = self._finished(result, acts=any(one.acts for one in mapped))
        return Ported(finished, tuple(one.report for one in mapped), steps)

    def _finished(self, adapter: LoraAdapter, acts: bool) -> LoraAdapter:
        if self.scale != 1:
            adapter = adapter.map(lambda update: update.scaled(self.scale))
        if acts and adapter.norm() == 0:
            raise AdapterError(
                "the ported adapter is zero at every site, so that it would do nothing on the "
                "target; give a source adapter that was trained, or drop less of it"
            )
        for site, update in adapter.items():
            error = _rounding_error(update, self.dtype)
            if not error <= _ROUNDING:
                raise AdapterError(
                    f"dtype={str(self.dtype).removeprefix('torch.')} cannot hold the factors of "
                    f"{site.module_name}: the update would change by {error:.1%} of its norm; use "
                    "dtype=float32"
                )
        return adapter.map(lambda update: update.to(self.dtype))


def check_target(adapter: LoraAdapter, target: SiteTable, what: str) -> None:
    """Raise AdapterError unless an adapter's sites and shapes are modules of the target."""
    misfit = target.misfit(adapter)
    if misfit is not None:
        site, found = misfit
        raise AdapterError(
            f"{what}, for {adapter.base_model or 'an unnamed model'!r}, has shape "
            f"{adapter[site].shape} at {site.module_name}, but the pair's target has {found}; "
            "choose the pair whose target it belongs to"
        )


def _rounding_error(update: LowRank, dtype: torch.dtype) -> float:
    """Return by what share of its norm an update changes in ``dtype``; NaN beyond its range."""
    rounded, norm = update.to(dtype), update.norm()
    squared = rounded.inner(rounded) - 2 * rounded.inner(update) + norm**2
    return max(squared, 0.0) ** 0.5 / norm if norm > 0 else 0.0


def _numbered(name: str, place: int, count: int) -> str:
    return name if count == 1 else f"{name} {place + 1}"
