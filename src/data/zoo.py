"""Zoos: paired adapters of the same tasks for the source and for the target.

A zoo is two folders (:class:`Zoo`), which are read (:class:`ZooPairs`), stacked
(:class:`AnchorSet`) and split into anchors and held-out tasks (:class:`AnchorPairs`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from ..adapters import AdapterStack, LoraAdapter, read_adapter
from ..adapters.peft_io import CONFIG_FILE, WEIGHTS_FILE
from ..exceptions import AdapterError, ConfigurationError
from ..files import reading, write_whole, writing

SIDES = ("source", "target")


@dataclass(frozen=True, eq=False)
class Zoo:
    """Two folders with one PEFT adapter a task, paired by the names of their subfolders."""

    source: Path
    target: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Zoo":
        """Open a zoo of the layout ``<folder>/source/<task>`` and ``<folder>/target/<task>``."""
        folder = Path(folder)
        missing = [side for side in SIDES if not (folder / side).is_dir()]
        if missing:
            raise AdapterError(
                f"{folder} is no zoo: it has no folder {' and no folder '.join(missing)}; it takes "
                "source/<task> and target/<task>: train one with anchors.py, or set "
                "paths.zoo_source and paths.zoo_target to two folders of same-named adapters"
            )
        return cls(folder / "source", folder / "target")

    def names(self) -> tuple[str, ...]:
        """Return the tasks that both sides have, in alphabetical order."""
        return tuple(sorted(set(_adapters(self.source)) & set(_adapters(self.target))))

    def read(self, names: Sequence[str] | None = None) -> "ZooPairs":
        """Read the adapters of both sides.

        Args:
            names: Which tasks; None means all, and then each adapter must have its partner.

        Raises:
            AdapterError: a partner is missing, an adapter cannot be read, or the adapters of
                one side were trained on different bases.
        """
        folders = {"source": self.source, "target": self.target}
        present = {side: _adapters(folder) for side, folder in folders.items()}
        wanted = sorted(set().union(*present.values())) if names is None else list(names)
        for side, adapters in present.items():
            if missing := [name for name in wanted if name not in adapters]:
                raise AdapterError(
                    f"the zoo has no {side} adapter {missing[0]}: {folders[side]} has "
                    f"{', '.join(sorted(adapters)) or 'none'}, and a zoo takes both sides; train "
                    f"it with anchors.py side={side} tasks.names=[{missing[0]}], or leave the task "
                    "out by tasks.names"
                )
        read = {
            side: {name: read_trained(adapters[name]) for name in wanted}
            for side, adapters in present.items()
        }
        for side, adapters_read in read.items():
            _check_one_base(side, adapters_read)
        return ZooPairs(**read)


METRICS_FILE = "metrics.json"
"""What anchors.py says of an adapter beside it: how it was trained, and its files' hashes."""


def trained_facts(folder: Path) -> dict[str, Any]:
    """Return what anchors.py said of an adapter; nothing of one from elsewhere."""
    try:
        facts = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def read_trained(folder: Path) -> LoraAdapter:
    """Read an adapter of a zoo, which must be as it was when anchors.py wrote it.

    Raises:
        AdapterError: it cannot be read, or has changed since.
    """
    adapter, known = read_adapter(folder), trained_facts(folder).get("files")
    if not isinstance(known, dict):
        return adapter
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        if sha256((folder / name).read_bytes()).hexdigest() != known.get(name):
            raise AdapterError(
                f"{folder / name} has changed since anchors.py trained it: its hash is not that in "
                f"{METRICS_FILE}; remove the folder to train it again, or {METRICS_FILE} if it was "
                "changed on purpose"
            )
    return adapter


@dataclass(frozen=True, eq=False)
class ZooPairs:
    """The adapters of a zoo, read: task name to adapter, for each side."""

    source: Mapping[str, LoraAdapter]
    target: Mapping[str, LoraAdapter]


def _adapters(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise AdapterError(f"{folder} does not exist; it takes a folder of PEFT adapters")
    with reading(folder, "a folder of PEFT adapters", AdapterError):
        return {path.name: path for path in folder.iterdir() if (path / CONFIG_FILE).exists()}


def _check_one_base(side: str, adapters: Mapping[str, LoraAdapter]) -> None:
    bases: dict[str, str] = {}
    for name, adapter in adapters.items():
        bases.setdefault(adapter.base_model, name)
    if len(bases) > 1:
        (one, name), (other, other_name) = list(bases.items())[:2]
        raise AdapterError(
            f"the {side} adapter {other_name} was trained on {other!r}, but {name} on {one!r}; a "
            "zoo takes one base model a side: move one of them away or leave it out by tasks.names"
        )


def manifest(folder: Path, facts: Mapping[str, object]) -> str:
    """Return what ``manifest.json`` holds: facts, and the SHA-256 of each adapter's weights."""
    hashes = {
        f"{side}/{path.name}": {"sha256": sha256((path / WEIGHTS_FILE).read_bytes()).hexdigest()}
        for side in SIDES
        if (folder / side).is_dir()
        for path in sorted(_adapters(folder / side).values())
    }
    return json.dumps({**facts, "adapters": hashes}, indent=1, sort_keys=True) + "\n"


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write ``manifest.json``; one that says so already stays as it is, and needs no permission."""
    path = folder / "manifest.json"
    if path.is_file() and path.read_text(encoding="utf-8") == manifest(folder, facts):
        return
    locks = folder / ".locks"
    with writing(path):
        locks.mkdir(exist_ok=True)
        with FileLock(locks / "manifest.lock"):
            write_whole(path, manifest(folder, facts))


class AnchorBatch(NamedTuple):
    """Which anchors a step is about, by their places in :attr:`AnchorPairs.anchors`.

    The adapters themselves stay in the data module: they are in memory on every device's
    process, and copying them into every batch would cost more than the step.
    """

    places: Int[Tensor, " anchors"]


@dataclass(frozen=True, eq=False)
class AnchorSet:
    """Paired adapters, stacked: what every mapper that learns from anchors is fitted on.

    Attributes:
        names: The tasks, in the order of the stacks.
        source: The source's adapters, trained on the model ``source_base``.
        target: The target's adapters, trained on the model ``target_base``.
    """

    names: tuple[str, ...]
    source: AdapterStack
    target: AdapterStack
    source_base: str
    target_base: str

    @classmethod
    def of(cls, pairs: ZooPairs, names: Sequence[str]) -> "AnchorSet":
        """Stack the pairs of the named tasks."""
        return cls(
            tuple(names),
            AdapterStack.of({f"source/{name}": pairs.source[name] for name in names}),
            AdapterStack.of({f"target/{name}": pairs.target[name] for name in names}),
            pairs.source[names[0]].base_model,
            pairs.target[names[0]].base_model,
        )

    def select(self, places: Sequence[int]) -> "AnchorSet":
        """Return the pairs at ``places``, in that order."""
        return AnchorSet(
            tuple(self.names[place] for place in places),
            self.source.select(places),
            self.target.select(places),
            self.source_base,
            self.target_base,
        )


def _collate(places: list[int]) -> AnchorBatch:
    return AnchorBatch(torch.tensor(places))


class AnchorPairs(LightningDataModule):
    """Paired adapters, split into anchors to train on, anchors to validate on and held-out tasks.

    Args:
        zoo: The adapters.
        held_out: Tasks that no mapper may see in training; those that the zoo lacks are ignored.
        anchors: How many of the other tasks are anchors, those for validation among them; drawn by
            the seed, so that fewer are always a part of more. None takes all.
        validation: Share of the anchors that is left out of training to choose when to stop.
        folds: With k folds the held-out tasks are not ``held_out`` but the ``fold``-th part, from
            0, of all tasks, shuffled by the seed; None keeps them fixed.
        fold: Which part.
        batch_size: Anchors a step.
        seed: Of every draw and of the order of batches.

    Raises:
        ConfigurationError: fewer than two anchors are left, there are not as many as asked for,
            or the folds do not exist.
    """

    def __init__(
        self,
        zoo: ZooPairs,
        held_out: Sequence[str],
        *,
        anchors: int | None = None,
        validation: float = 0.0,
        folds: int | None = None,
        fold: int = 0,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed = batch_size, seed
        names = sorted(zoo.source)  # so that every split is the same in whatever order they come
        self.held_out = _held_out(names, held_out, folds, fold, seed)
        chosen = _drawn([name for name in names if name not in self.held_out], anchors, seed)
        left_out = round(validation * len(chosen))
        if len(chosen) - left_out < 2:
            raise ConfigurationError(
                f"of {len(names)} tasks {len(self.held_out)} are held out and {left_out} are for "
                "validation, which leaves fewer than two anchors to train on; shorten "
                "tasks.held_out, lower data.validation, raise data.anchors or add tasks to the zoo"
            )
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
        self._validation = sorted(order[:left_out].tolist())
        self._training = sorted(order[left_out:].tolist())
        self.anchors = AnchorSet.of(zoo, chosen)
        self.spare = [zoo.source[name] for name in chosen[:1]]
        self.queries: Mapping[str, LoraAdapter] = {n: zoo.source[n] for n in self.held_out}
        self.oracles: Mapping[str, LoraAdapter] = {n: zoo.target[n] for n in self.held_out}

    @property
    def training_anchors(self) -> AnchorSet:
        """The anchors that a mapper may be fitted on."""
        return self.anchors.select(self._training)

    @property
    def validation_anchors(self) -> AnchorSet | None:
        """The anchors that are left out to choose when to stop, if there are any."""
        return self.anchors.select(self._validation) if self._validation else None

    def train_dataloader(self) -> DataLoader[int]:
        """Return batches of the training anchors, shuffled by the seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader(self._training, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[int] | list[Any]:
        """Return the validation anchors in order; nothing where there are none."""
        return self._loader(self._validation) if self._validation else []

    def _loader(self, places: Sequence[int], **options: Any) -> DataLoader[int]:
        rows: Any = list(places)  # which torch takes for a data set
        return DataLoader(rows, self.batch_size, collate_fn=_collate, **options)


def _held_out(
    names: list[str], fixed: Sequence[str], folds: int | None, fold: int, seed: int
) -> tuple[str, ...]:
    """Return the fixed tasks that there are, or the tasks of one fold in the order of names."""
    if folds is None:
        return tuple(name for name in fixed if name in names)
    if not 2 <= folds <= len(names) or not 0 <= fold < folds:
        raise ConfigurationError(
            f"data.folds={folds} with data.fold={fold} does not divide {len(names)} tasks; take "
            f"2 to {len(names)} folds and a fold from 0 to one less"
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return tuple(names[index] for index in sorted(order[fold::folds]))


def _drawn(names: list[str], count: int | None, seed: int) -> list[str]:
    """Return so many of the names, in their order; all where there is no count."""
    if count is None:
        return names
    if not 2 <= count <= len(names):
        raise ConfigurationError(
            f"data.anchors={count}, but {len(names)} tasks of the zoo are not held out; it takes a "
            f"number from 2 to {len(names)}, or null for all"
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return [names[index] for index in sorted(order[:count])]
