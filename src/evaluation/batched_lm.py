"""lm-eval's model interface over batched likelihoods; to be imported only where lm-eval is there.

What lm-eval's HF backend does with tokens, chat templates and generation stays as it is; only
how requests go through the network is another: texts that begin alike are one tree, which the
network reads in a single pass, and the head is asked at the tokens before each scored token only.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.models.huggingface import HFLM
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.prompts import pad_token
from ..exceptions import DataError
from ..models.likelihood import LOGIT_POSITIONS, LabelTree, TreeInputs, attention_masks
from ..models.loading import BaseModel, say_beyond_window

# A continuation's total log-likelihood, and whether greedy decoding would write it.
Answer = tuple[float, bool]


class BatchedLM(HFLM):  # type: ignore[misc]
    """A base model, with what is attached to it, as lm-eval asks models.

    ``batch_tokens`` a forward pass, padding included, set speed and memory, and change no number.
    """

    def __init__(self, base: BaseModel, *, batch_tokens: int = 2048, batch_rows: int = 16) -> None:
        super().__init__(pretrained=base.network, tokenizer=base.tokenizer, batch_size=batch_rows)
        self._base, self._batch_tokens = base, batch_tokens

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[object, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[Answer]:
        """Return the answers to encoded requests ``(text, context, continuation)``, in order."""
        limit = self.max_length
        lengths = [len(context) + len(continuation) - 1 for _, context, continuation in requests]
        say_beyond_window(
            *(self._base, lengths, "the harness's questions", "they lose their beginning")
        )
        texts, counts = [], []
        for _, context, continuation in requests:
            if not context or not 0 < len(continuation) <= limit:
                raise DataError(
                    f"the continuation {self.tokenizer.decode(continuation)[:60]!r} of "
                    f"{self.tokenizer.decode(context)[-60:]!r} has {len(continuation)} tokens "
                    f"behind {len(context)} in the tokenizer of {self._base.name}, but takes 1 to "
                    f"{limit} behind at least one; leave the question out of the suite"
                )
            # A context that is too long loses its beginning.
            texts.append([*context, *continuation][-(limit + 1) :])
            counts.append(len(continuation))
        groups = [_Texts(texts[s], counts[s]) for s in _alike(texts, self._batch_tokens)]
        found: dict[int, list[Answer]] = {}
        for batch in _batches(groups, self._batch_tokens):
            answers = _answers(self._base, [groups[index] for index in batch])
            found.update(zip(batch, answers, strict=True))
        return [answer for index in range(len(groups)) for answer in found[index]]


def _alike(texts: Sequence[Sequence[int]], tokens: int) -> Iterator[slice]:
    """Give slices of texts that begin alike: choices behind one context, or the same examples.

    A text joins those before it where they share at least half of the shorter one, and the tree
    does not become larger than a batch.
    """
    start, size = 0, 0
    for index, text in enumerate(texts):
        first = texts[start]
        pairs = enumerate(zip(first, text, strict=False))
        least = min(len(first), len(text))
        shared = next((n for n, (a, b) in pairs if a != b), least)
        if index > start and (2 * shared < least or size + len(text) - shared > tokens):
            yield slice(start, index)
            start, size, shared = index, 0, 0
        size += len(text) - (shared if index > start else 0)
    if texts:
        yield slice(start, len(texts))


class _Texts:
    """Texts as one tree: what they have in common is read once.

    Attributes:
        tree: Of whole texts, contexts included; its root stands before their first token.
        steps: For each text and each of the ``scored`` tokens at its end the node that it stands
            behind, and the token.
        asked: The nodes whose logits are needed.
    """

    def __init__(self, texts: Sequence[Sequence[int]], scored: Sequence[int]) -> None:
        self.tree = LabelTree.of([list(text) for text in texts])
        self.steps = [path[-n:] for path, n in zip(self.tree.steps, scored, strict=True)]
        self.asked = sorted({step.parent for path in self.steps for step in path})


def _batches(groups: Sequence[_Texts], tokens: int) -> Iterator[list[int]]:
    """Give the indices of groups in batches of like size, largest first; a large one goes alone."""
    batch: list[int] = []
    positions = 0
    for index in sorted(range(len(groups)), key=lambda index: -groups[index].tree.size):
        width = groups[batch[0]].tree.size if batch else 0
        more = len(groups[index].asked)
        full = (len(batch) + 1) * width > tokens or positions + more > LOGIT_POSITIONS
        if batch and full:
            yield batch
            batch, positions = [], 0
        batch.append(index)
        positions += more
    if batch:
        yield batch


@torch.inference_mode()
def _answers(base: BaseModel, groups: Sequence[_Texts]) -> list[list[Answer]]:
    """Return the answers of groups that go through the network together, in float64."""
    network, device = base.network, base.network.device
    inputs = _side_by_side([group.tree for group in groups], pad_token(base.tokenizer))
    asked = [(row, node) for row, group in enumerate(groups) for node in group.asked]
    logits = _logits_at(
        network,
        torch.tensor(asked),
        input_ids=inputs.input_ids.to(device),
        attention_mask=attention_masks(inputs, network.config, network.dtype, device),
        position_ids=inputs.position_ids.to(device),
    ).float()
    index_of = {pair: index for index, pair in enumerate(asked)}
    paths = [(row, path) for row, group in enumerate(groups) for path in group.steps]
    owner = torch.tensor([index for index, (_, path) in enumerate(paths) for _ in path])
    behind = torch.tensor([index_of[row, step.parent] for row, path in paths for step in path])
    tokens = torch.tensor([step.token for _, path in paths for step in path])
    behind, tokens = behind.to(device), tokens.to(device)
    at, highest = logits[behind, tokens], logits.amax(dim=-1)
    # logsumexp, in place: the logits of a batch are the largest tensor here.
    normaliser = logits.sub_(highest[:, None]).exp_().sum(dim=-1).log_().add_(highest)
    totals = torch.zeros(len(paths), dtype=torch.float64)
    totals.index_add_(0, owner, (at - normaliser[behind]).cpu().double())
    missed = torch.zeros(len(paths)).index_add_(0, owner, (at < highest[behind]).float().cpu())
    answers = list(zip(totals.tolist(), (missed == 0).tolist(), strict=True))
    ends = list(accumulate(len(group.steps) for group in groups))
    return [answers[end - len(g.steps) : end] for g, end in zip(groups, ends, strict=True)]


def _side_by_side(trees: Sequence[LabelTree], pad_token: int) -> TreeInputs:
    """Return trees as rows, padded on the right, where nothing looks."""
    width = max(tree.size for tree in trees)
    ids = torch.full((len(trees), width), pad_token)
    positions = torch.zeros(len(trees), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : tree.size] = torch.tensor(tree.tokens)
        positions[row, : tree.size] = tree.depths() - 1
        sees[row, : tree.size, : tree.size] = tree.ancestry()
    return TreeInputs(ids, positions, sees)


def _logits_at(
    network: PreTrainedModel, asked: Int[Tensor, "asked 2"], **inputs: Any
) -> Float[Tensor, "asked vocabulary"]:
    """Return a causal language model's logits at pairs of a row and a position in it only.

    The architecture's own forward pass is used, so that its scaling and capping of logits hold.
    """

    def choose(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        rows, positions = asked.to(states.device).unbind(dim=1)
        return (states[rows, positions][None], *arguments[1:])

    head: Any = network.get_output_embeddings()
    handle = head.register_forward_pre_hook(choose)
    try:
        return network(**inputs, use_cache=False).logits[0]
    finally:
        handle.remove()
