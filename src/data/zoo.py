"""Zoos: paired adapters of the same tasks for the source and for the target."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..adapters import LoraAdapter, read_adapter
from ..exceptions import AdapterError
from ..files import write_whole

SIDES = ("source", "target")
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class Zoo:
    """Two folders of PEFT adapters, paired by the names of their subfolders.

    Attributes:
        source: Folder with one adapter a task, trained on the source model.
        target: The same for the target model.
    """

    source: Path
    target: Path

    @classmethod
    def open(cls, folder: str | Path) -> "Zoo":
        """Open a zoo of the layout ``<folder>/source/<task>`` and ``<folder>/target/<task>``.

        Raises:
            AdapterError: the folder has no such layout.
        """
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
        present = {"source": _adapters(self.source), "target": _adapters(self.target)}
        wanted = sorted(set().union(*present.values())) if names is None else list(names)
        for name in wanted:
            for side in SIDES:
                if name not in present[side]:
                    raise AdapterError(self._missing(name, side, present))
        pairs = ZooPairs(
            {name: read_adapter(present["source"][name]) for name in wanted},
            {name: read_adapter(present["target"][name]) for name in wanted},
        )
        for side, adapters in (("source", pairs.source), ("target", pairs.target)):
            _check_one_base(side, adapters)
        return pairs

    def _missing(self, name: str, side: str, present: Mapping[str, Mapping[str, Path]]) -> str:
        folder = self.source if side == "source" else self.target
        other = "target" if side == "source" else "source"
        if name in present[other]:
            return (
                f"the {other} adapter {name} has no partner: {folder} has no adapter of that name; "
                f"a zoo takes both: train it with anchors.py side={side} tasks.names=[{name}], or "
                "leave the task out by tasks.names"
            )
        return (
            f"the zoo has no adapter {name}; it has {', '.join(self.names()) or 'none'}: train it "
            f"with anchors.py tasks.names=[{name}], or leave it out by tasks.names"
        )


@dataclass(frozen=True, eq=False)
class ZooPairs:
    """The adapters of a zoo, read: task name to adapter, for each side."""

    source: Mapping[str, LoraAdapter]
    target: Mapping[str, LoraAdapter]


def _adapters(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise AdapterError(f"{folder} does not exist; it takes a folder of PEFT adapters")
    return {path.name: path for path in folder.iterdir() if (path / "adapter_config.json").exists()}


def _check_one_base(side: str, adapters: Mapping[str, LoraAdapter]) -> None:
    bases: dict[str, str] = {}
    for name, adapter in adapters.items():
        bases.setdefault(adapter.base_model, name)
    if len(bases) > 1:
        (one, name), (other, other_name) = list(bases.items())[:2]
        raise AdapterError(
            f"the {side} adapter {other_name} was trained on {other}, but {name} on {one}; a zoo "
            "takes one base model a side: move one of them away or leave it out by tasks.names"
        )


def write_manifest(folder: Path, facts: Mapping[str, object]) -> None:
    """Write ``manifest.json``: the given facts, and the SHA-256 of each adapter's weights."""
    hashes = {
        f"{side}/{path.name}": {"sha256": _sha256(path / WEIGHTS_FILE)}
        for side in SIDES
        if (folder / side).is_dir()
        for path in sorted(_adapters(folder / side).values())
    }
    text = json.dumps({**facts, "adapters": hashes}, indent=1, sort_keys=True) + "\n"
    write_whole(folder / "manifest.json", text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
