"""How likely a model finds each choice of many questions, each of which has its own choices."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...exceptions import DataError
from ...models.likelihood import LOGIT_POSITIONS, LabelTree, TreeInputs, attention_masks
from ...models.loading import BaseModel

Request = tuple[str, str]
"""A context and the continuation whose likelihood is asked for, as lm-eval says it."""


@dataclass(frozen=True)
class _Branches:
    """A question's texts as one tree: what they have in common is read once.

    Attributes:
        tree: Of whole texts, contexts included; its root stands before their first token.
        predicted: For each text, how many tokens its continuation has.
    """

    tree: LabelTree
    predicted: tuple[int, ...]

    @cached_property
    def steps(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each text the node behind which each token of its continuation stands, and it."""
        return tuple(
            tuple((step.parent, step.token) for step in path[-count:])
            for path, count in zip(self.tree.steps, self.predicted, strict=True)
        )

    @cached_property
    def asked(self) -> tuple[int, ...]:
        """The nodes whose logits are needed."""
        return tuple(sorted({node for path in self.steps for node, _ in path}))


@torch.inference_mode()
def choice_log_likelihoods(
    base: BaseModel, questions: Sequence[Sequence[Request]], *, batch_tokens: int = 2048
) -> list[Float[Tensor, " choices"]]:
    """Return the total log-likelihood of each question's continuations in float64.

    All texts of a question are one tree, which goes through the model in one pass: a context
    that the choices share is read once, and so is what partial evaluation has before the blank.
    The head is asked at the tokens before each token of a continuation only. Neither the batches
    nor the padding change a number.

    Args:
        base: The model, with what is attached to it.
        questions: For each its requests, a choice each.
        batch_tokens: Tokens a forward pass, padding included; a larger question goes alone.

    Raises:
        DataError: a continuation has no token, or more than the model reads at once.
    """
    branches = [_branches(base, requests) for requests in questions]
    found: dict[int, Float[Tensor, " choices"]] = {}
    for places in _batches(branches, batch_tokens):
        totals = _batch_log_likelihoods(base, [branches[place] for place in places])
        found.update(zip(places, totals, strict=True))
    return [found[place] for place in range(len(branches))]


def encoded_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Return a context's and a continuation's tokens as lm-eval 0.4.13 cuts them.

    White space at the context's end moves to the continuation; both are then encoded together,
    and cut after as many tokens as the context alone has (``TemplateLM._encode_pair``). What the
    tokenizer puts in front by itself, such as Gemma's BOS, stays.
    """
    stem = context.rstrip()
    begin: list[int] = tokenizer(stem)["input_ids"]
    whole: list[int] = tokenizer(context + continuation)["input_ids"]
    return begin, whole[len(begin) :]


def _branches(base: BaseModel, requests: Sequence[Request]) -> _Branches:
    """Return the requests as a tree; a context that is too long loses its beginning."""
    limit = int(base.network.config.max_position_embeddings)
    texts, counts = [], []
    for context, continuation in requests:
        begin, end = encoded_pair(base.tokenizer, context, continuation)
        if not begin or not 0 < len(end) <= limit:
            raise DataError(
                f"the continuation {continuation[:60]!r} of {context[-60:]!r} has {len(end)} "
                f"tokens behind {len(begin)} in the tokenizer of {base.name}, but takes 1 to "
                f"{limit} behind at least one; leave the question out of the suite's file"
            )
        texts.append([*begin, *end][-(limit + 1) :])
        counts.append(len(end))
    return _Branches(LabelTree.of(texts), tuple(counts))


def _batches(branches: Sequence[_Branches], tokens: int) -> Iterator[list[int]]:
    """Give the places of questions in batches of like size, largest first."""
    order = sorted(range(len(branches)), key=lambda place: -branches[place].tree.size)
    batch: list[int] = []
    positions = 0
    for place in order:
        width = branches[batch[0]].tree.size if batch else 0
        more = len(branches[place].asked)
        full = (len(batch) + 1) * width > tokens or positions + more > LOGIT_POSITIONS
        if batch and full:
            yield batch
            batch, positions = [], 0
        batch.append(place)
        positions += more
    if batch:
        yield batch


def _batch_log_likelihoods(
    base: BaseModel, branches: Sequence[_Branches]
) -> list[Float[Tensor, " choices"]]:
    network, device = base.network, base.network.device
    inputs = _side_by_side([branch.tree for branch in branches], int(base.tokenizer.pad_token_id))
    asked = [(row, node) for row, branch in enumerate(branches) for node in branch.asked]
    logits = _logits_at(
        network,
        torch.tensor(asked),
        input_ids=inputs.input_ids.to(device),
        attention_mask=attention_masks(inputs, network.config, network.dtype, device),
        position_ids=inputs.position_ids.to(device),
    ).float()
    place_of = {pair: place for place, pair in enumerate(asked)}
    paths = [(row, path) for row, branch in enumerate(branches) for path in branch.steps]
    owner = [place for place, (_, path) in enumerate(paths) for _ in path]
    behind = torch.tensor([place_of[row, node] for row, path in paths for node, _ in path])
    tokens = torch.tensor([token for _, path in paths for _, token in path])
    at = logits[behind.to(device), tokens.to(device)] - logits.logsumexp(dim=-1)[behind.to(device)]
    totals = torch.zeros(len(paths), dtype=torch.float64)
    totals.index_add_(0, torch.tensor(owner), at.cpu().double())
    ends = list(accumulate(len(branch.steps) for branch in branches))
    return [totals[end - len(b.steps) : end] for b, end in zip(branches, ends, strict=True)]


def _side_by_side(trees: Sequence[LabelTree], pad_token: int) -> TreeInputs:
    """Return trees as rows, padded on the right, where nothing looks."""
    width = max(tree.size for tree in trees)
    ids = torch.full((len(trees), width), pad_token)
    places = torch.zeros(len(trees), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        ids[row, : tree.size] = torch.tensor(tree.tokens)
        places[row, : tree.size] = tree.depths() - 1
        sees[row, : tree.size, : tree.size] = tree.ancestry()
    return TreeInputs(ids, places, sees)


def _logits_at(
    network: PreTrainedModel, asked: Int[Tensor, "asked 2"], **inputs: Any
) -> Float[Tensor, "asked vocabulary"]:
    """Return a causal language model's logits at pairs of a row and a place in it only.

    The architecture's own forward pass is used, so that its scaling and capping of logits hold.
    """

    def choose(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0]
        rows, places = asked.to(states.device).unbind(dim=1)
        return (states[rows, places][None], *arguments[1:])

    head: Any = network.get_output_embeddings()
    handle = head.register_forward_pre_hook(choose)
    try:
        return network(**inputs, use_cache=False).logits[0]
    finally:
        handle.remove()
