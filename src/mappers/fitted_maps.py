"""The linear maps of inputs and outputs that carry LoRA factors from one model to another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LowRank, Site
from ..alignment.linear_maps import HeldOutError, LinearMap
from ..models.taps import INPUT_ROLE

SitePair = tuple[Site, Site]
"""A source site and the target site that it feeds."""


@dataclass(frozen=True, eq=False)
class Reader:
    """The map M of a module's inputs, ``x_S ~ M x_T``.

    Attributes:
        matrix: M, float32.
        strength: Of its ridge; None where there was none.
        r2: On held-out text.
        error: What M leaves unexplained, direction by direction.
    """

    matrix: Float[Tensor, "source target"]
    strength: float | None
    r2: float
    error: HeldOutError

    @classmethod
    def of(cls, found: LinearMap) -> "Reader":
        """Keep a map in float32 on the CPU."""
        residual, covariance = _kept(found.error.residual), _kept(found.error.covariance)
        error = HeldOutError(residual, covariance)
        return cls(_kept(found.matrix), found.strength, found.error.r2, error)


@dataclass(frozen=True, eq=False)
class Writer:
    """The map N of a module's outputs, ``dy_T ~ N dy_S``.

    Attributes:
        matrix: N, float32.
        strength: Of its ridge; None where there was none.
        r2: On held-out text.
        gradient_r2: Of the gradients that it carries back, on held-out text; None where there
            were none to look at.
    """

    matrix: Float[Tensor, "target source"]
    strength: float | None
    r2: float
    gradient_r2: float | None = None

    @classmethod
    def of(cls, found: LinearMap, gradient_r2: float | None = None) -> "Writer":
        """Keep a map in float32 on the CPU."""
        return cls(_kept(found.matrix), found.strength, found.error.r2, gradient_r2)


@dataclass
class FittedMaps:
    """Readers and writers of all pairs of sites; modules that share an input share a reader."""

    readers: dict[SitePair, Reader] = field(default_factory=dict)
    writers: dict[SitePair, Writer] = field(default_factory=dict)

    def reader(self, source: Site, target: Site) -> Reader:
        """Return the map of what two sites read."""
        return self.readers[input_pair(source, target)]

    def carried(self, update: LowRank, source: Site, target: Site) -> LowRank:
        """Return ``N B A M`` by its factors, of the update's own rank and scale."""
        a = update.A.float() @ self.reader(source, target).matrix
        return LowRank(a, self.writers[source, target].matrix @ update.B.float(), update.scale)

    def facts(self, source: Site, target: Site) -> dict[str, float]:
        """Return what was chosen and found for a pair of sites."""
        reader, writer = self.reader(source, target), self.writers[source, target]
        found = {"input_r2": reader.r2, "output_r2": writer.r2}
        if reader.strength is not None:
            found["input_strength"] = reader.strength
        if writer.strength is not None:
            found["output_strength"] = writer.strength
        if writer.gradient_r2 is not None:
            found["gradient_r2"] = writer.gradient_r2
        return found

    def state(self) -> dict[str, Any]:
        """Return everything as plain data and tensors."""
        return {
            "readers": {
                _label(pair): {
                    "matrix": reader.matrix,
                    "strength": reader.strength,
                    "r2": reader.r2,
                    "residual": reader.error.residual,
                    "covariance": reader.error.covariance,
                }
                for pair, reader in self.readers.items()
            },
            "writers": {
                _label(pair): {
                    "matrix": writer.matrix,
                    "strength": writer.strength,
                    "r2": writer.r2,
                    "gradient_r2": writer.gradient_r2,
                }
                for pair, writer in self.writers.items()
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "FittedMaps":
        """Return what :meth:`state` describes."""
        readers = {
            _pair(label): Reader(
                kept["matrix"],
                kept["strength"],
                kept["r2"],
                HeldOutError(kept["residual"], kept["covariance"]),
            )
            for label, kept in state["readers"].items()
        }
        return cls(
            readers, {_pair(label): Writer(**kept) for label, kept in state["writers"].items()}
        )


def input_pair(source: Site, target: Site) -> SitePair:
    """Return the sites by which what two sites read is named; q, k and v share it."""
    role = INPUT_ROLE[source.role]
    return Site(source.layer, role), Site(target.layer, role)


def _label(pair: SitePair) -> str:
    return " ".join(site.label for site in pair)


def _pair(label: str) -> SitePair:
    source, target = label.split()
    return Site.from_label(source), Site.from_label(target)


def _kept(matrix: Tensor) -> Tensor:
    return matrix.to("cpu", torch.float32).contiguous()
