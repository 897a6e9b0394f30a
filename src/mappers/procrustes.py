"""Anchor-locked orthogonal Procrustes between the activations of two models."""

from dataclasses import asdict
from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import Site
from ..alignment.linear_maps import LinearMap, Rotated, SplitMoments
from ..alignment.procrustes import AnchorLocks
from ..models.capture import Activations, readings
from ..models.hooks import Tap
from ..models.statistics import TapPair
from .base import Report, check_least
from .linear_text import Gathered, LinearOptions, LinearTextMapper


class ProcrustesMapper(LinearTextMapper):
    """Carries an update by two rotations: ``dW_T = R_out^T dW_S R_in``.

    ``x_S R_in ~ x_T`` between module inputs and ``y_S R_out ~ y_T`` between centred outputs, in row
    convention. With unequal widths the rotations are partial isometries, and with fewer tokens
    than dimensions of the rank that the tokens have.

    Args:
        rule: Whether rotations are scaled, and reflections undone.
        locks: Keeps anchors on their partners' side by re-weighting, and counts those that it
            cannot keep; None for plain rotations.
        anchors: Tokens that are locked, of the first batch of the training text.
        options: See :class:`~loraport.mappers.linear_text.LinearTextMapper`.
    """

    name: ClassVar[str] = "procrustes"

    def __init__(
        self,
        *,
        rule: Rotated | None = None,
        locks: AnchorLocks | None = None,
        anchors: int = 256,
        **options: Unpack[LinearOptions],
    ) -> None:
        super().__init__(**options)
        check_least(1, anchors=anchors)
        self.rule, self.locks, self.anchors = rule or Rotated(), locks, anchors
        # The rule and the locks, which are no plain data, are in the fitted state.
        self.save_hyperparameters({"anchors": anchors})
        self._options: Report = {
            "rule": {"name": type(self.rule).__name__, **asdict(self.rule)},
            "locks": None if locks is None else asdict(locks),
        }
        self._locked: dict[str, Report] = {}
        self._anchors: tuple[Activations, ...] = ()

    def on_train_epoch_start(self) -> None:
        """Read the anchors of this epoch's layers, where any shall be locked."""
        super().on_train_epoch_start()
        if self.locks is None:
            return
        batch = next(iter(self.data.train_dataloader()))
        count = len(batch.source_places)
        # Evenly spread over the batch.
        chosen = torch.linspace(0, count - 1, min(count, self.anchors)).round().long()
        sides = (
            (self.models.source, batch.source, batch.source_places),
            (self.models.target, batch.target, batch.target_places),
        )
        self._anchors = tuple(
            dict(readings(model.network, tokens, at.cpu()[chosen], list(taps)))
            for (model, tokens, at), taps in zip(
                sides, zip(*self._totals.train.pairs, strict=True), strict=True
            )
        )

    def fit_input(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return what the rule makes of ``R_in``, from the target to the source."""
        moments = gathered.inputs(source, target)
        if self.locks is None:
            return self.rule.backward(*moments)
        taps = Tap.input(source), Tap.input(target)
        turned = self._lock(self.locks, taps, self._anchors_at(*taps), moments)
        swapped = SplitMoments(*(part.swapped() for part in moments))
        return self.rule.along(turned.mT, *swapped)

    def fit_output(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return what the rule makes of ``R_out^T``, from the source to the target."""
        moments = gathered.outputs(source, target)
        if self.locks is None:
            return self.rule.forward(*moments)
        taps = Tap.output(source), Tap.output(target)
        raw, (x, y) = gathered.train.moments(*taps), self._anchors_at(*taps)
        anchors = x - raw.x_sum / raw.rows, y - raw.y_sum / raw.rows
        turned = self._lock(self.locks, taps, anchors, moments)
        return self.rule.along(turned, *moments)

    def report(self) -> Report:
        """Return also what the rotations were asked for, and which locks were violated."""
        return {**super().report(), **self._options, "anchor_locks": self._locked}

    def fitted_state(self) -> dict[str, Any]:
        """Return also the options, and what became of the locks."""
        return {**super().fitted_state(), "options": self._options, "locked": self._locked}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back also the options, and what became of the locks."""
        super().restore(state)
        self._options, self._locked = state["options"], state["locked"]

    def _anchors_at(self, source: Tap, target: Tap) -> tuple[Tensor, Tensor]:
        return self._anchors[0][source].double(), self._anchors[1][target].double()

    def _lock(
        self,
        locks: AnchorLocks,
        taps: TapPair,
        anchors: tuple[Float[Tensor, "anchors x"], Float[Tensor, "anchors y"]],
        moments: SplitMoments,
    ) -> Float[Tensor, "x y"]:
        """Return a rotation whose anchors keep their side where they can, and note the others."""
        found = locks.rotation(moments.train, *anchors, proper=self.rule.proper)
        self._locked[" > ".join(tap.label for tap in taps)] = {
            "anchors": len(anchors[0]),
            "violated": len(found.violated),
            "rounds": found.rounds,
        }
        return found.rotation.matrix
