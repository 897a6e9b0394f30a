"""Activations of base models at chosen modules and tokens: of one, of a pair, and kept on disk."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
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
from .hooks import Tap

Activations = dict[Tap, Tensor]
"""One matrix (tokens x width) a tap, in the order of the tokens that were asked for."""


class _Enough(Exception):  # noqa: N818 - no error: the deepest tap has been read
    """Ends a forward pass of which nothing more is needed."""


def activations(
    network: PreTrainedModel,
    tokens: TokenBatch,
    places: Int[Tensor, " rows"],
    taps: Iterable[Tap],
) -> Mapping[Tap, Float[Tensor, "rows _"]]:
    """Return what flows through the taps at the given tokens; an attached adapter takes part.

    The head is never run, nor any layer above the deepest tap. What comes back is a copy of the
    chosen rows: nothing of the other tokens stays in memory.

    Args:
        network: The model.
        tokens: Texts as it reads them.
        places: Tokens by their places in ``tokens.input_ids.flatten()``.
        taps: Where to read.
    """
    wanted = set(taps)
    found: Activations = {}
    if not wanted:
        return found
    chosen = places.to(network.device)

    def keep(tap: Tap, activation: Tensor) -> None:
        found[tap] = rows_at(activation, chosen)
        if len(found) == len(wanted):
            raise _Enough

    # no_grad and not inference_mode, whose tensors autograd refuses when something is trained
    # on them later.
    with ExitStack() as hooks, torch.no_grad(), suppress(_Enough):
        for tap in wanted:
            hooks.callback(hooked(network, tap, partial(keep, tap)).remove)
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


def rows_at(
    activation: Float[Tensor, "texts tokens width"], places: Int[Tensor, " rows"]
) -> Float[Tensor, "rows width"]:
    """Return a copy of the rows at some places of the flattened batch."""
    return activation.flatten(0, 1).index_select(0, places)


def hooked(network: PreTrainedModel, tap: Tap, keep: Callable[[Tensor], None]) -> RemovableHandle:
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


def readings(
    network: PreTrainedModel,
    tokens: TokenBatch,
    places: Int[Tensor, " rows"],
    taps: Iterable[Tap],
) -> Mapping[Tap, Float[Tensor, "rows _"]]:
    """Return what :func:`activations` does, and gradients where a tap asks for them.

    The gradients are those of the log-likelihood of what lies between a text's first and last
    aligned tokens, so that both models say how likely the same characters are. To first order the
    inner product with the gradient is what a change of a module's output does to that likelihood:
    gradients say which directions of two models have the same effect, whether or not activations
    ever vary along them.

    Args:
        network: The model; an attached adapter takes part.
        tokens: Texts as it reads them.
        places: Tokens by their places in ``tokens.input_ids.flatten()``, in rising order.
        taps: Where to read.
    """
    wanted = set(taps)
    asked = {tap for tap in wanted if tap.place == "gradient"}
    if not asked:
        return activations(network, tokens, places, wanted)
    # With gradients the whole network runs anyway: the activations are read on the way.
    outputs = {Tap(tap.layer, "output", tap.role): tap for tap in asked}
    kept: dict[Tap, Tensor] = {}
    at = places.to(network.device)
    with ExitStack() as hooks:
        # No parameter takes a gradient: they begin at the embeddings.
        embedding: Any = network.get_input_embeddings()
        root = embedding.register_forward_hook(lambda *args: args[-1].detach().requires_grad_())
        hooks.callback(root.remove)
        for tap in (wanted - asked) | set(outputs):
            hooks.callback(hooked(network, tap, partial(kept.__setitem__, tap)).remove)
        with torch.enable_grad():
            hidden = _run(network, tokens)
        rise = _likelihood_gradient(network, tokens, at, hidden.detach())
        found = torch.autograd.grad(hidden, [kept[tap] for tap in outputs], rise, allow_unused=True)
    read: Activations = {
        outputs[tap]: rows_at(torch.zeros_like(kept[tap]) if grad is None else grad, at)
        for tap, grad in zip(outputs, found, strict=True)
    }
    return read | {tap: rows_at(kept[tap].detach(), at) for tap in wanted - asked}


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


Progress = Callable[[int], None]
"""Called with the number of finished batches."""


class PairedActivations(NamedTuple):
    """What two models hold at the same tokens of the same texts.

    Attributes:
        source: The source model's activations, a row a token.
        target: The target model's, row by row paired with them.
        batch: What they were computed from.
    """

    source: Activations
    target: Activations
    batch: AlignedBatch


class PairedCapture:
    """Runs both base models over aligned batches, one batch at a time.

    Args:
        source: The source model; an adapter that is attached to it takes part.
        target: The target model, likewise.
    """

    def __init__(self, source: PreTrainedModel, target: PreTrainedModel) -> None:
        self._source = source
        self._target = target

    @property
    def device(self) -> torch.device:
        """Where the source model is, and with it the target's."""
        return self._source.device

    def run(
        self,
        batches: Iterable[AlignedBatch],
        source_taps: Iterable[Tap],
        target_taps: Iterable[Tap],
        *,
        skip: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[PairedActivations]:
        """Yield the activations of each batch.

        Args:
            batches: The texts, in a fixed order.
            source_taps: Where to read the source model.
            target_taps: Where to read the target model.
            skip: So many leading batches are passed over, and no model is run on them.
            progress: Called when the receiver has done with a batch, and once with ``skip``.
        """
        source_taps, target_taps = tuple(source_taps), tuple(target_taps)
        if progress is not None and skip:
            progress(skip)
        for done, batch in enumerate(islice(batches, skip, None), start=skip + 1):
            yield PairedActivations(
                dict(readings(self._source, batch.source, batch.source_places, source_taps)),
                dict(readings(self._target, batch.target, batch.target_places, target_taps)),
                batch,
            )
            if progress is not None:
                progress(done)


_BYTES = 2  # of a bfloat16


class ActivationCache:
    """Rows of bfloat16 in one file a label, written once from the first to the last.

    Rows are read through a memory map: what is read stays in the system's page cache, and not in
    the process. How far the writing has come is kept after each batch lies on disk, so that a
    process that is stopped goes on from the last whole batch.

    Args:
        cache: Folder of the :class:`~loraport.store.Store`.
        key: All that the rows depend on.
        widths: How wide the rows of each label are, such as ``source.3.q.input``.
        rows: How many there will be of each.

    Attributes:
        widths: The same.
        rows: The same.
        folder: Where the files lie.
        done: How many rows are written.

    Raises:
        ConfigurationError: there is nothing to write.
        OutputError: the disk has too little room, or the folder is forbidden.
    """

    def __init__(self, cache: Path, key: Key, widths: Mapping[str, int], rows: int) -> None:
        self.widths, self.rows, self.done = dict(widths), rows, 0
        self._store, self._key = Store(cache), key
        self._maps: dict[str, Tensor] = {}
        folder = self._store.working_folder(key) if rows > 0 and widths else None
        if folder is None:
            raise ConfigurationError(
                f"the activations have {rows} rows of {len(widths)} modules, but a cache takes at "
                "least one of each; give a corpus with more text, or more modules"
            )
        self.folder = folder
        sizes = [(self._file(label), self._size(label)) for label in widths]
        if all(file.is_file() and file.stat().st_size == size for file, size in sizes):
            self.done = self._store.get(key) or 0
            return
        self._store.put(key, 0)  # first: without the files nothing counts as written
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
        capture: PairedCapture,
        batches: Iterable[AlignedBatch],
        source_taps: Iterable[Tap],
        target_taps: Iterable[Tap],
        *,
        progress: Progress | None = None,
    ) -> None:
        """Write the rows that are not there yet; no model is run for those that are.

        Args:
            capture: Runs the models.
            batches: All of the texts, in the order they always have.
            source_taps: Read in the source model; their rows get the label ``tap.label_on``.
            target_taps: Read in the target model.
            progress: Called with the number of finished batches.

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
        skip = ends.index(self.done)
        if self.complete:
            return
        for read in capture.run(held, source_taps, target_taps, skip=skip, progress=progress):
            rows = {tap.label_on("source"): x for tap, x in read.source.items()}
            rows |= {tap.label_on("target"): x for tap, x in read.target.items()}
            self.write(rows)

    def write(self, batch: Mapping[str, Float[Tensor, "rows _"]]) -> None:
        """Write the next rows of all labels, equally many of each.

        Raises:
            ConfigurationError: they are not those of all labels, or too many.
            OutputError: the disk is full.
        """
        (count,) = {len(rows) for rows in batch.values()}
        found = {label: rows.shape[1] for label, rows in batch.items()}
        if found != self.widths or self.done + count > self.rows:
            raise ConfigurationError(
                f"{self.folder} was given {count} rows of {len(found)} modules, but takes the "
                f"rows from {self.done} to {self.rows} of the {len(self.widths)} modules that it "
                "was made for; remove the folder if the corpus has changed"
            )
        with writing(self.folder):
            for label, rows in batch.items():
                content = rows.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
                with self._file(label).open("r+b") as file:
                    file.seek(self.done * self.widths[label] * _BYTES)
                    file.write(content.numpy().data)
                    file.flush()
                    os.fsync(file.fileno())
        self._store.put(self._key, self.done + count)
        self.done += count

    def read(self, label: str, index: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Return chosen rows of a label as float32; read them once all are written."""
        if label not in self._maps:
            shape = (self.rows, self.widths[label])
            mapped = np.memmap(self._file(label), np.int16, "c", shape=shape)
            self._maps[label] = torch.from_numpy(mapped)
        return self._maps[label].index_select(0, index).view(torch.bfloat16).float()

    def _file(self, label: str) -> Path:
        return self.folder / f"{label}.bf16"

    def _size(self, label: str) -> int:
        return self.rows * self.widths[label] * _BYTES
