"""Predicting and scoring the held-out tasks' adapters."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..adapters import LoraAdapter, cosine, relative_error
from ..data import AnchorPairs, Task
from ..evaluation.controls import random_adapter, swapped
from ..evaluation.score_cache import ScoreCache
from ..evaluation.scoring import TaskScore
from ..exceptions import AdapterError, ConfigurationError
from ..mappers import Mapper
from ..mappers.cartridge import CartridgeMapper
from ..mappers.mean import MeanMapper
from ..models import BaseModel
from ..models.attach import Attachable

CONTROLS = ("random", "swapped")


class Cell(NamedTuple):
    """One score that a table needs: a task under a condition."""

    task: str
    condition: str
    adapter: LoraAdapter | Attachable | None


@dataclass(frozen=True)
class Predictions:
    """The predicted adapters of the held-out tasks, and what stands beside them.

    Attributes:
        predicted: Task name to the mapper's adapter.
        mean: The anchors' mean adapter.
        oracles: Task name to the adapter that was trained on the target.
        queries: Task name to the source's adapter.
        controls: Control to task name to adapter.
        cartridges: Task name to the mapper's cartridge; none of a mapper that makes only LoRA.
    """

    predicted: Mapping[str, LoraAdapter]
    mean: LoraAdapter
    oracles: Mapping[str, LoraAdapter]
    queries: Mapping[str, LoraAdapter]
    controls: Mapping[str, Mapping[str, LoraAdapter]]
    cartridges: Mapping[str, Attachable] = field(default_factory=dict)

    def target_cells(self) -> Iterator[Cell]:
        """Give what is to be scored on the target."""
        for task in self.queries:
            yield Cell(task, "base", None)
            yield Cell(task, "mean", self.mean)
            for control, adapters in self.controls.items():
                if task in adapters:
                    yield Cell(task, control, adapters[task])
            if task in self.cartridges:
                yield Cell(task, "cartridge", self.cartridges[task])
            yield Cell(task, "predicted", self.predicted[task])
            yield Cell(task, "oracle", self.oracles[task])

    def source_cells(self) -> Iterator[Cell]:
        """Give what is to be scored on the source."""
        for task, adapter in self.queries.items():
            yield Cell(task, "source_base", None)
            yield Cell(task, "source", adapter)

    def distances(self) -> dict[str, dict[str, float]]:
        """Return how far each prediction is from the mean adapter, relative to the mean's norm."""
        return {
            task: {"distance_to_mean": relative_error(adapter, self.mean)}
            for task, adapter in self.predicted.items()
        }

    def likeness(self, task: str) -> tuple[float, float]:
        """Return the cosine of a prediction with its oracle, and its relative error."""
        oracle = self.oracles[task]
        return cosine(self.predicted[task], oracle), relative_error(self.predicted[task], oracle)


def check_controls(controls: Sequence[str]) -> None:
    """Raise ConfigurationError unless all controls exist."""
    unknown = sorted(set(controls) - set(CONTROLS))
    if unknown:
        raise ConfigurationError(
            f"evaluation.controls has {', '.join(unknown)}; it takes any of {', '.join(CONTROLS)}"
        )


def predict(mapper: Mapper, data: AnchorPairs, controls: list[str], seed: int) -> Predictions:
    """Predict every held-out task's adapter, and build the controls.

    The mean adapter is that of all anchors, with those that a mapper was validated on.
    """
    queries = dict(data.queries)
    mean = MeanMapper()
    mean.fit(data.anchors)
    made: dict[str, Mapping[str, LoraAdapter]] = {}
    if "random" in controls:
        drawn = random_adapter(data.anchors.target, data.anchors.target_base, seed)
        made["random"] = dict.fromkeys(queries, drawn)
    if "swapped" in controls:
        given = swapped(queries, data.spare)
        made["swapped"] = {task: mapper.map(adapter) for task, adapter in given.items()}
    cartridges = {}
    if isinstance(mapper, CartridgeMapper):
        cartridges = {task: mapper.cartridge(adapter) for task, adapter in queries.items()}
    return Predictions(
        predicted={task: mapper.map(adapter) for task, adapter in queries.items()},
        mean=mean.map(next(iter(queries.values()))),
        oracles=data.oracles,
        queries=queries,
        controls=made,
        cartridges=cartridges,
    )


def check_base(base: BaseModel, adapter: LoraAdapter, side: str) -> None:
    """Raise unless an adapter's sites and shapes are modules of a base model."""
    misfit = base.sites.misfit(adapter)
    if misfit is not None:
        site, found = misfit
        raise AdapterError(
            f"the {side} adapters have shape {adapter[site].shape} at {site.module_name}, but the "
            f"pair's {side} model {base.name} has {found}; the zoo was trained on "
            f"{adapter.base_model!r}: choose the pair it belongs to"
        )


def score_cells(
    scores: ScoreCache, base: BaseModel, cells: list[Cell], tasks: Mapping[str, Task]
) -> Iterator[tuple[Cell, TaskScore]]:
    """Give the score of each cell, in order."""
    for cell in cells:
        yield cell, scores.score(base, cell.adapter, tasks[cell.task])
