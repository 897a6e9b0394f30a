"""How well heads reconstruct held-out text, before their training and after each epoch."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from .fitted_maps import SitePair
from .heads import Heads, read_label, written_label
from .reconstruction import Reconstruction


class HeadR2:
    """The R^2 of all heads on held-out text, defined as that of the linear mappers is.

    Args:
        linear: Of the skips that the heads started as, by space.
        trained: Of the heads.
    """

    def __init__(
        self, linear: Mapping[str, float] | None = None, trained: Mapping[str, float] | None = None
    ) -> None:
        self.linear, self.trained = dict(linear or {}), dict(trained or {})
        self._sums: dict[str, Reconstruction] = {}

    def begin(self) -> None:
        """Forget the rows of the epoch before."""
        self._sums = {}

    def add(self, heads: Heads, batch: Mapping[str, Tensor]) -> None:
        """Add a batch of held-out rows."""
        for label, found in heads.reconstructions(batch).items():
            self._sums[label] = self._sums[label] + found if label in self._sums else found

    def end(self, heads: Heads, summed: Callable[[Tensor], Tensor]) -> None:
        """Note what the rows say, given what sums a tensor over all devices."""
        sums = {label: found.reduced(summed) for label, found in self._sums.items()}
        self.trained = heads.r2(sums)

    def facts(self, pairs: Iterable[SitePair]) -> dict[str, Any]:
        """Return ``input_r2`` and ``output_r2`` of each pair of sites, and their means.

        Beside each stands, as ``linear_input_r2`` and ``linear_output_r2``, that of the linear
        map which the head started as.
        """
        fits: dict[str, dict[str, dict[str, float]]] = {}
        for source, target in pairs:
            found = {}
            for prefix, r2 in (("", self.trained), ("linear_", self.linear)):
                if r2:
                    found[f"{prefix}input_r2"] = r2[read_label(source, target)]
                    found[f"{prefix}output_r2"] = r2[written_label(source, target)]
            fits.setdefault(target.label, {})[source.label] = found
        every = [found for feeds in fits.values() for found in feeds.values()]
        means = {name: sum(found[name] for found in every) / len(every) for name in every[0]}
        return {"reconstruction": means, "fits": fits}

    def state(self) -> dict[str, Any]:
        """Return everything as plain data, which the constructor takes."""
        return {"linear": self.linear, "trained": self.trained}
