"""How much of a target model has a counterpart in a source model, as it is kept on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..reporting.compatibility_record import CompatibilityRecord


@dataclass(frozen=True)
class Compatibility:
    """How much of a target model has a counterpart in a source model.

    Attributes:
        similarity: Calibrated mutual k-NN of every target layer with every source layer.
        coverage: Share of the target's layers with a counterpart.
        identification: Share of the layers that their counterparts lead back to.
        rows: Aligned word ends that were compared.
    """

    similarity: tuple[tuple[float, ...], ...]
    coverage: float
    identification: float
    rows: int

    @classmethod
    def read(cls, path: Path) -> "Compatibility | None":
        """Return what is kept in a file; None where there is none, or a damaged one."""
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(tuple(map(float, row)) for row in kept.pop("similarity"))
            return cls(similarity=rows, **kept)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Keep it in a file.

        Raises:
            OutputError: the file cannot be written.
        """
        write_whole(path, json.dumps(asdict(self)) + "\n")

    def record(self, minimum: float, *, force: bool) -> CompatibilityRecord:
        """Return what reports hold of it."""
        return CompatibilityRecord(
            coverage=self.coverage,
            minimum=minimum,
            identification=self.identification,
            rows=self.rows,
            forced=force and self.coverage < minimum,
        )
