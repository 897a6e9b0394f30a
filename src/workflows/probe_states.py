"""The residual streams of two models where both have read the same text up to a word's end."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.aligned_batch import AlignedBatch
from ..data.text_corpus import TextCorpus
from ..models import BaseModel
from ..models.paired_capture import PairedCapture
from ..models.taps import Tap
from .text_surface import text_surfaces

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, eq=False)
class ProbeStates:
    """Paired rows, one matrix a layer.

    Attributes:
        source: The source's residual stream behind each layer.
        target: The target's, row by row paired with it.
        source_surfaces: What the source's tokens alone would give, without any model.
        target_surfaces: The same of the target's tokens.
        tokens: The target's token of each row.
        documents: The text of each row.
        aligned: How many word ends there were to choose rows from.
    """

    source: tuple[Float[Tensor, "rows source"], ...]
    target: tuple[Float[Tensor, "rows target"], ...]
    source_surfaces: tuple[Float[Tensor, "rows surface"], ...]
    target_surfaces: tuple[Float[Tensor, "rows surface"], ...]
    tokens: Int[Tensor, " rows"]
    documents: Int[Tensor, " rows"]
    aligned: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.tokens)


def read_probe_states(
    source: BaseModel,
    target: BaseModel,
    corpus: TextCorpus,
    *,
    rows: int,
    per_token: int,
    seed: int,
    progress: Progress,
) -> ProbeStates:
    """Run both models over the probe texts and keep some rows of every layer's residual stream.

    Args:
        source: The source model.
        target: The target model.
        corpus: The texts, as both read them.
        rows: Keep at most so many.
        per_token: Keep at most so many with the same token on both sides.
        seed: Draws the rows.
        progress: Is told how many texts are read.
    """
    batches = list(corpus.train_dataloader())
    ids = (
        torch.cat([b.source.input_ids.flatten()[b.source_places] for b in batches]),
        torch.cat([b.target.input_ids.flatten()[b.target_places] for b in batches]),
    )
    documents = torch.cat([batch.documents for batch in batches])
    chosen = chosen_rows(ids[0], ids[1], documents, rows=rows, per_token=per_token, seed=seed)
    kept = list(_restricted(batches, chosen))
    taps = [[Tap.residual(layer) for layer in range(m.sites.layers)] for m in (source, target)]
    found: tuple[list[list[Tensor]], ...] = ([[] for _ in taps[0]], [[] for _ in taps[1]])
    capture = PairedCapture(source.network, target.network)
    for done, states in enumerate(capture.run(kept, *taps)):
        progress("reading probes", done, len(kept))
        for layers, of_side, read in zip(found, taps, (states.source, states.target), strict=True):
            for rows_of, tap in zip(layers, of_side, strict=True):
                rows_of.append(read[tap].float().cpu())
    progress("reading probes", len(kept), len(kept))
    return ProbeStates(
        source=tuple(torch.cat(rows_of) for rows_of in found[0]),
        target=tuple(torch.cat(rows_of) for rows_of in found[1]),
        source_surfaces=_joined([text_surfaces(b.source, b.source_places, seed) for b in kept]),
        target_surfaces=_joined([text_surfaces(b.target, b.target_places, seed) for b in kept]),
        tokens=ids[1][chosen],
        documents=documents[chosen],
        aligned=len(chosen),
    )


def _joined(batches: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def chosen_rows(
    source_tokens: Int[Tensor, " aligned"],
    target_tokens: Int[Tensor, " aligned"],
    documents: Int[Tensor, " aligned"],
    *,
    rows: int,
    per_token: int,
    seed: int,
) -> Bool[Tensor, " aligned"]:
    """Choose rows of as many different tokens and texts as there are.

    Two models that have learnt nothing still hold the same token, or tokens of the same text,
    as more alike than others. So each token is chosen once, of as many texts as possible, before
    any is chosen twice.

    Args:
        source_tokens: The source's token of each aligned word end.
        target_tokens: The target's.
        documents: The text that it is of.
        rows: Choose at most so many.
        per_token: Choose at most so many of the same tokens.
        seed: Of the order in which they are looked at.
    """
    tokens = zip(source_tokens.tolist(), target_tokens.tolist(), strict=True)
    candidates = list(zip(tokens, documents.tolist(), strict=True))
    order = list(range(len(candidates)))
    random.Random(f"probe rows {seed}").shuffle(order)
    counts: tuple[Counter[object], ...] = (Counter(), Counter())
    chosen = torch.zeros(len(candidates), dtype=torch.bool)
    left, most = rows, max(Counter(documents.tolist()).values(), default=0)
    for level in range(1, max(most, per_token) + 1):
        limits = (min(level, per_token), level)
        skipped = []
        for place in order:
            keys = candidates[place]
            free = all(c[k] < m for c, k, m in zip(counts, keys, limits, strict=True))
            if left == 0 or not free:
                skipped.append(place)
                continue
            for count, key in zip(counts, keys, strict=True):
                count[key] += 1
            chosen[place] = True
            left -= 1
        order = skipped
    return chosen


def _restricted(
    batches: list[AlignedBatch], chosen: Bool[Tensor, " aligned"]
) -> list[AlignedBatch]:
    """Return the batches with the chosen rows alone, and without batches that have none."""
    kept, begin = [], 0
    for batch in batches:
        mask = chosen[begin : begin + len(batch.documents)]
        begin += len(mask)
        if mask.any():
            kept.append(
                batch._replace(
                    source_places=batch.source_places[mask],
                    target_places=batch.target_places[mask],
                    documents=batch.documents[mask],
                )
            )
    return kept
