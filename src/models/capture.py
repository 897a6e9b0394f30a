"""Activations of base models at chosen modules and tokens: of one, of a pair, and kept on disk."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters import Site
from ..data.text_corpus import AlignedBatch, TokenBatch
from ..exceptions import ConfigurationError, OutputError
from ..files import writing
from ..store import Key, Store
from .architectures import capped, layer_name
from .hooks import SIDES, Tap

_log = logging.getLogger(__name__)

Activations = dict[Tap, Tensor]
"""One matrix (tokens x width) a tap, in the order of the tokens that were asked for."""


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Compute in the dtypes that tensors have, also inside a trainer of mixed precision.

    A product of bfloat16 has 8 bits: sums over a corpus of such products give other maps.
    """
    return torch.autocast(device.type, enabled=False)


class _Enough(Exception):  # noqa: N818 - no error: the deepest tap has been read
    """Ends a forward pass of which nothing more is needed."""


def readings(
    network: PreTrainedModel,
    tokens: TokenBatch,
    places: Int[Tensor, " rows"],
    taps: Iterable[Tap],
) -> Mapping[Tap, Float[Tensor, "rows _"]]:
    """Return what flows through the taps at the given tokens; an attached adapter takes part.

    Without gradients the head is never run, nor any layer above the deepest tap. What comes back
    is a copy of the chosen rows: nothing of the other tokens stays in memory. The models compute in
    their own dtype, whatever the precision of a trainer that this is called in.

    Gradients are those of the log-likelihood of what lies between a text's first and last
    aligned tokens, so that both models say how likely the same characters are. To first order the
    inner product with the gradient is what a change of a module's output does to that likelihood:
    gradients say which directions of two models have the same effect, whether or not activations
    ever vary along them.

    Tokens are given by their places in ``tokens.input_ids.flatten()``, in rising order where a tap
    asks for gradients.
    """
    wanted = set(taps)
    at = places.to(network.device)
    if any(tap.place == "gradient" for tap in wanted):
        with without_autocast(network.device):
            return _with_gradients(network, tokens, at, wanted)
    found: Activations = {}
    if not wanted:
        return found

    def keep(tap: Tap, activation: Tensor) -> None:
        found[tap] = _rows(activation, at)
        if len(found) == len(wanted):
            raise _Enough

    # no_grad and not inference_mode, whose tensors autograd refuses when something is trained
    # on them later.
    with ExitStack() as hooks, without_autocast(at.device), torch.no_grad(), suppress(_Enough):
        for tap in wanted:
            hooks.callback(_hooked(network, tap, partial(keep, tap)).remove)
        _run(network, tokens)
    return found


def _run(network: PreTrainedModel, tokens: TokenBatch) -> Float[Tensor, "texts tokens width"]:
    """Run all but the head, and return the last hidden states."""
    states: Tensor = network.get_decoder()(
        input_ids=tokens.input_ids.to(network.device),
        attention_mask=tokens.attention_mask.to(network.device),
        use_cache=False,
    )[0]
    return states


def _rows(
    activation: Float[Tensor, "texts tokens width"], places: Int[Tensor, " rows"]
) -> Float[Tensor, "rows width"]:
    """Return a copy of the rows at some places of the flattened batch."""
    return activation.flatten(0, 1).index_select(0, places)


def _hooked(network: PreTrainedModel, tap: Tap, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand what flows through a tap to ``keep`` in every forward pass, until it is removed."""
    if tap.role is None:
        layer = network.get_submodule(layer_name(tap.layer))

        def behind(_module: nn.Module, _inputs: Any, output: Any) -> None:
            keep(output[0] if isinstance(output, tuple) else output)

        return layer.register_forward_hook(behind)
    module = network.get_submodule(Site(tap.layer, tap.role).module_name)
    if tap.place == "input":
        return module.register_forward_pre_hook(lambda _module, inputs: keep(inputs[0]))
    return module.register_forward_hook(lambda _module, _inputs, output: keep(output))


# Logits of so many positions are held at once; 256 are 268 MB for a vocabulary of 262,144.
_POSITIONS = 256


def _with_gradients(
    network: PreTrainedModel, tokens: TokenBatch, at: Int[Tensor, " rows"], wanted: set[Tap]
) -> Activations:
    """Return gradients, and activations on the way: the whole network runs anyway."""
    asked = {tap for tap in wanted if tap.place == "gradient"}
    outputs = {Tap(tap.layer, "output", tap.role): tap for tap in asked}
    kept: dict[Tap, Tensor] = {}
    with ExitStack() as hooks:
        # No parameter takes a gradient: they begin at the embeddings.
        embedding: Any = network.get_input_embeddings()
        root = embedding.register_forward_hook(lambda *args: args[-1].detach().requires_grad_())
        hooks.callback(root.remove)
        for tap in (wanted - asked) | set(outputs):
            hooks.callback(_hooked(network, tap, partial(kept.__setitem__, tap)).remove)
        with torch.enable_grad():
            hidden = _run(network, tokens)
        rise = _likelihood_gradient(network, tokens, at, hidden.detach())
        found = torch.autograd.grad(hidden, [kept[tap] for tap in outputs], rise, allow_unused=True)
    read: Activations = {
        outputs[tap]: _rows(torch.zeros_like(kept[tap]) if grad is None else grad, at)
        for tap, grad in zip(outputs, found, strict=True)
    }
    return read | {tap: _rows(kept[tap].detach(), at) for tap in wanted - asked}


def _likelihood_gradient(
    network: PreTrainedModel, tokens: TokenBatch, places: Tensor, hidden: Tensor
) -> Float[Tensor, "texts tokens width"]:
    """Return the gradient of the texts' log-likelihood with respect to the last hidden states.

    A piece of the positions at a time: the logits of all of them would not fit into memory.
    """
    ids = tokens.input_ids.to(network.device)
    head: Any = network.get_output_embeddings()
    states, follows = hidden.flatten(0, 1), ids.flatten().roll(-1)
    rise = torch.zeros_like(states)
    for piece in torch.split(_predicting(places, ids.shape[1]), _POSITIONS):
        with torch.enable_grad():
            at = states[piece].requires_grad_()
            logits = capped(network.config, head(at).float())
            likelihood = -nn.functional.cross_entropy(logits, follows[piece], reduction="sum")
        rise[piece] = torch.autograd.grad(likelihood, at)[0]
    return rise.view_as(hidden)


def _predicting(places: Int[Tensor, " rows"], width: int) -> Int[Tensor, " positions"]:
    """Return the places whose next token lies between a text's first and last aligned ones."""
    texts = places // width
    new = torch.cat([texts.new_ones(1, dtype=torch.bool), texts[1:] != texts[:-1]])
    first, last = places[new], places[torch.cat([new[1:], new.new_ones(1)])]
    pieces = zip(first.tolist(), last.tolist(), strict=True)
    return torch.cat([torch.arange(start, end, device=places.device) for start, end in pieces])


ModelTaps = tuple[Iterable[Tap], Iterable[Tap]]
"""Where the source model is read, and where the target model."""


def paired_readings(
    source: PreTrainedModel,
    target: PreTrainedModel,
    batches: Iterable[AlignedBatch],
    taps: ModelTaps,
) -> Iterator[tuple[Activations, Activations]]:
    """Yield for each batch what both models hold at its paired tokens, row by row the same text."""
    source_taps, target_taps = map(tuple, taps)
    for batch in batches:
        yield (
            dict(readings(source, batch.source, batch.source_places, source_taps)),
            dict(readings(target, batch.target, batch.target_places, target_taps)),
        )


_BYTES = 2  # of a bfloat16


class ActivationCache:
    """Rows of bfloat16 in one file a label, written once from the first to the last.

    Rows are read through a memory map: what is read stays in the system's page cache, and not in
    the process. How far the writing has come is kept after each batch lies on disk, so that a
    process that is stopped goes on from the last whole batch. A checksum of each batch is verified
    here: from the first that has changed on, rows are written again.

    Args:
        cache: Folder of the :class:`~loraport.store.Store`.
        key: All that the rows depend on.
        widths: How wide the rows of each label are, such as ``source.3.q.input``.
        rows: How many there will be of each; ``done`` of them are written.

    Raises:
        ConfigurationError: there is nothing to write.
        OutputError: the disk has too little room, or the folder is forbidden.
    """

    def __init__(self, cache: Path, key: Key, widths: Mapping[str, int], rows: int) -> None:
        self.widths, self.rows, self.done = dict(widths), rows, 0
        self._store, self._key = Store(cache), key
        self._maps: dict[str, Tensor] = {}
        self._batches: list[tuple[int, str]] = []  # where each ends, and its checksum
        folder = self._store.working_folder(key) if rows > 0 and widths else None
        if folder is None:
            raise ConfigurationError(
                f"the activations have {rows} rows of {len(widths)} modules, but a cache takes at "
                "least one of each; give a corpus with more text, or more modules"
            )
        self.folder = folder
        sizes = [(self._file(label), rows * width * _BYTES) for label, width in widths.items()]
        if all(file.is_file() and file.stat().st_size == size for file, size in sizes):
            self._verify(self._store.get(key) or [])
            return
        self._store.put(key, [])  # first: without the files nothing counts as written
        needed, free = sum(size for _, size in sizes), shutil.disk_usage(folder).free
        if needed > free:
            raise OutputError(
                f"{folder} needs {needed / 1e9:.1f} GB for {rows} rows of {len(widths)} modules, "
                f"but its disk has {free / 1e9:.1f} GB free; take fewer tokens or modules, or "
                "name a folder on another disk"
            )
        with writing(folder):
            for file, size in sizes:
                with file.open("wb") as opened:
                    opened.truncate(size)

    @property
    def complete(self) -> bool:
        """Whether all rows are written."""
        return self.done == self.rows

    def fill(
        self,
        source: PreTrainedModel,
        target: PreTrainedModel,
        batches: Iterable[AlignedBatch],
        taps: ModelTaps,
    ) -> None:
        """Write the rows of all batches that are not there yet, each under its tap's ``label_on``.

        Neither model is run for what is written.

        Raises:
            ConfigurationError: they are not the batches that the cache was begun with.
            OutputError: the disk is full.
        """
        held = list(batches)
        ends = list(accumulate((len(batch.source_places) for batch in held), initial=0))
        if self.done not in ends or ends[-1] != self.rows:
            raise ConfigurationError(
                f"{self.folder} has {self.done} of {self.rows} rows, but the corpus has "
                f"{ends[-1]} in {len(held)} batches that do not end there; remove the folder if "
                "the corpus has changed"
            )
        for read in paired_readings(source, target, held[ends.index(self.done) :], taps):
            self.write(
                {
                    tap.label_on(side): rows
                    for side, found in zip(SIDES, read, strict=True)
                    for tap, rows in found.items()
                }
            )

    def write(self, batch: Mapping[str, Float[Tensor, "rows _"]]) -> None:
        """Write the next rows of all labels, equally many of each."""
        (count,) = {len(rows) for rows in batch.values()}
        digest = xxhash.xxh3_128()
        with writing(self.folder):
            for label in self.widths:
                rows = batch[label].detach().to("cpu", torch.bfloat16).contiguous()
                content = rows.view(torch.int16).numpy().data
                digest.update(content)
                with self._file(label).open("r+b") as file:
                    file.seek(self.done * self.widths[label] * _BYTES)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        self._maps.clear()
        self._batches.append((self.done + count, digest.hexdigest()))
        self._store.put(self._key, self._batches)
        self.done += count

    def _verify(self, batches: Sequence[Any]) -> None:
        """Take as written the batches, by end and checksum, before the first that has changed."""
        for end, checksum in batches:
            digest = xxhash.xxh3_128()
            for label in self.widths:
                digest.update(self._mapped(label)[self.done : end].numpy().data)
            if digest.hexdigest() != checksum:
                _log.warning(
                    "%s is damaged from row %d on; it is written again", self.folder, self.done
                )
                return
            self._batches.append((end, checksum))
            self.done = end

    def read(self, label: str, index: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Return chosen rows of a label as float32; read them once all are written."""
        return self._mapped(label).index_select(0, index).view(torch.bfloat16).float()

    def _mapped(self, label: str) -> Int[Tensor, "rows width"]:
        if label not in self._maps:
            shape = (self.rows, self.widths[label])
            mapped = np.memmap(self._file(label), np.int16, "c", shape=shape)
            self._maps[label] = torch.from_numpy(mapped)
        return self._maps[label]

    def _file(self, label: str) -> Path:
        return self.folder / f"{label}.bf16"
