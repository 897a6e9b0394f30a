"""The steps from source adapters to one adapter of the target, without files or configurations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..adapters import LoraAdapter
from ..adapters.combined import Combined, cut
from ..adapters.combiner import Combiner
from ..exceptions import AdapterError, ConfigurationError
from ..mappers import Mapper
from ..mappers.base import Report
from ..models.sites import SiteTable

Sparsifier = Callable[[LoraAdapter], Combined]


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
            AdapterError: an adapter does not fit its model, or a factor does not fit the dtype.
        """
        mapped, reports, steps = [], [], {}
        for place, adapter in enumerate(adapters):
            made = self.mapper.map(adapter)
            reports.append(self.mapper.report())
            check_target(made, self.target, "the mapper's result")
            if self.sparsify is not None:
                sparse = self.sparsify(made)
                steps[_numbered("sparsify", place, len(adapters))] = sparse
                made = sparse.adapter
            mapped.append(made)
        for other in others:
            check_target(other, self.target, "the adapter of merge.with")
        result = mapped[0]
        if self.merge is not None and len(mapped) + len(others) > 1:
            steps["merge"] = self.merge([*mapped, *others], self.weights, self.output_rank)
            result = LoraAdapter(steps["merge"].adapter.sites, mapped[0].base_model)
        if self.output_rank is not None and any(u.rank > self.output_rank for u in result.values()):
            steps["output_rank"] = cut(result, self.output_rank)
            result = steps["output_rank"].adapter
        return Ported(self._finished(result), tuple(reports), steps)

    def _finished(self, adapter: LoraAdapter) -> LoraAdapter:
        if self.scale != 1:
            adapter = adapter.map(lambda update: update.scaled(self.scale))
        most = torch.finfo(self.dtype).max
        for site, update in adapter.items():
            if max(float(update.A.abs().max()), float(update.B.abs().max())) > most:
                raise AdapterError(
                    f"{site.module_name} has factors beyond {most:.3g}, which dtype="
                    f"{str(self.dtype).removeprefix('torch.')} cannot hold; use dtype=float32"
                )
        return adapter.map(lambda update: update.to(self.dtype))


def check_target(adapter: LoraAdapter, target: SiteTable, what: str) -> None:
    """Raise AdapterError unless an adapter's sites and shapes are modules of the target."""
    for site, update in adapter.items():
        expected = target.shapes.get(site)
        if expected != update.shape:
            found = "no such module" if expected is None else f"{expected} there"
            raise AdapterError(
                f"{what}, for {adapter.base_model or 'an unnamed model'!r}, has shape "
                f"{update.shape} at {site.module_name}, but the pair's target has {found}; choose "
                "the pair whose target it belongs to"
            )


def _numbered(name: str, place: int, count: int) -> str:
    return name if count == 1 else f"{name} {place + 1}"
