"""Carrying an adapter across along linear maps that are known."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Site, stacked
from ..exceptions import AdapterError
from .base import Report
from .corpus_mapper import CorpusMapper
from .fitted_maps import FittedMaps
from .pair_frame import Feed, PairFrame
from .relative_norms import RelativeNorms


class _Term(NamedTuple):
    """What one source site gives a target site, and what is known of it."""

    source: Site
    weight: float
    update: LowRank
    facts: dict[str, float]


class LinearCarrier(CorpusMapper):
    """Carries ``dW_T = sum_l w_l N_l dW_l M_l``, by its factors.

    Of a target layer that one source layer feeds with weight 1, rank and scale are the source's;
    of one that several feed, the ranks add up.

    Args:
        roles: The roles of adapters that it shall carry.
        min_r2: What a source site feeds is left out, and reported, where the held-out R^2 of
            what the adapter makes of its input there, ``1 - tr(D E D^T) / tr(D C D^T)`` with
            ``D = B A``, is at or below it; None leaves out nothing.
        match_norm: Whether each update is rescaled to be as large beside its weight as it was in
            the source.

    Attributes:
        maps: The readers and writers.
        norms: Of the two models' weights.
    """

    def __init__(self, roles: Sequence[str], min_r2: float | None, match_norm: bool) -> None:
        super().__init__(roles)
        self.min_r2, self.match_norm = min_r2, match_norm
        self.maps = FittedMaps()
        self.norms = RelativeNorms({}, {})
        self._found: Report = {}

    @property
    def fitted(self) -> bool:
        """Whether every pair of sites has its maps."""
        if self._frame is None:
            return False
        return all(
            (source, target) in self.maps.writers
            for target, feeds in self._frame.feeds().items()
            for source, _ in feeds
        )

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter, in float32.

        Raises:
            AdapterError: the adapter does not fit, or all of it is left out.
        """
        frame = self.frame
        feeds = frame.feeds_of(adapter)
        terms = {target: self._terms(adapter, target, found) for target, found in feeds.items()}
        kept = {target: [t for t in found if self._passes(t)] for target, found in terms.items()}
        mapped = {
            target: self._joined(adapter, target, found) for target, found in kept.items() if found
        }
        if not mapped:
            raise AdapterError(
                f"what the adapter of {adapter.base_model} reads is predicted from text with an "
                f"R^2 above mapper.min_r2={self.min_r2} at none of its sites; lower it, or set it "
                "to null"
            )
        used = [term.source for found in kept.values() for term in found]
        self._found = {
            **frame.dropped(adapter),
            "repeated_sites": len(used) - len(set(used)),
            "left_out": [
                f"{term.source.label} > {target.label}"
                for target, found in terms.items()
                for term in found
                if not self._passes(term)
            ],
            "sites": {
                target.label: _facts(adapter, update, kept[target])
                for target, update in mapped.items()
            },
        }
        return LoraAdapter(mapped, frame.target_name)

    def _terms(self, adapter: LoraAdapter, target: Site, feeds: Sequence[Feed]) -> list[_Term]:
        """Return what each source site gives a target site."""
        terms = []
        for source, weight in feeds:
            update = self.maps.carried(adapter[source], source, target)
            error = self.maps.reader(source, target).error
            facts = self.maps.facts(source, target)
            facts["restricted_r2"] = error.restricted_r2(_readers(adapter[source]))
            before = adapter[source].norm()
            if before > 0:
                facts["kept_norm"] = update.norm() / before
            terms.append(_Term(source, weight, update, facts))
        return terms

    def _passes(self, term: _Term) -> bool:
        return self.min_r2 is None or term.facts["restricted_r2"] > self.min_r2

    def _joined(self, adapter: LoraAdapter, target: Site, terms: Sequence[_Term]) -> LowRank:
        """Return the weighted sum of what feeds a target site."""
        if len(terms) == 1:
            update = terms[0].update.scaled(terms[0].weight)
        else:
            update = stacked([term.update for term in terms], [term.weight for term in terms])
        if not self.match_norm:
            return update
        feeds = [(term.source, term.weight) for term in terms]
        return self.norms.matched(update, target, adapter, feeds)

    def report(self) -> Report:
        """Return how well text predicts each site, and what became of the last adapter there."""
        frame = self.frame
        return {
            "roles": [role.value for role in frame.roles],
            "pairing": [[list(feed) for feed in feeds] for feeds in frame.pairing.feeds],
            "fits": {
                target.label: {s.label: self.maps.facts(s, target) for s, _ in feeds}
                for target, feeds in frame.feeds().items()
            },
            **self._found,
        }

    def fitted_state(self) -> dict[str, Any]:
        """Return maps, norms and frame."""
        norms = (self.norms.source, self.norms.target)
        return {
            "frame": self.described.state(),
            "maps": self.maps.state(),
            "norms": [{site.label: norm for site, norm in side.items()} for side in norms],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back maps, norms and frame."""
        self._frame = PairFrame.from_state(state["frame"])
        self.maps = FittedMaps.from_state(state["maps"])
        source, target = (
            {Site.from_label(label): float(norm) for label, norm in side.items()}
            for side in state["norms"]
        )
        self.norms = RelativeNorms(source, target)


def _readers(update: LowRank) -> Float[Tensor, "rank in"]:
    """Return rows that read inputs as B A does: A itself would count them by the gauge.

    With ``B = Q R``, ``|B A x| = |R A x|`` for every x.
    """
    return torch.linalg.qr(update.B.float()).R @ update.A.float()


def _facts(adapter: LoraAdapter, update: LowRank, terms: Sequence[_Term]) -> dict[str, Any]:
    """Return what the report says of a target site; of several sources their weighted means."""
    before = sum(term.weight**2 * adapter[term.source].norm() ** 2 for term in terms) ** 0.5
    facts: dict[str, Any] = {
        "source": " + ".join(term.source.label for term in terms),
        "norm": update.norm(),
        **_means(terms),
    }
    if before > 0:
        facts["kept_norm"] = update.norm() / before
    if len(terms) > 1:
        facts["feeds"] = {t.source.label: {"weight": t.weight, **t.facts} for t in terms}
    return facts


def _means(terms: Sequence[_Term]) -> dict[str, float]:
    total = sum(abs(term.weight) for term in terms) or 1.0
    names = dict.fromkeys(name for term in terms for name in term.facts)
    return {
        name: sum(abs(term.weight) * term.facts.get(name, 0.0) for term in terms) / total
        for name in names
    }
