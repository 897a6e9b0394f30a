"""How likely a base model finds each of a few labels behind a prompt, in one forward pass.

The labels' tokens form a tree behind the prompt, and only the positions that predict one of them
meet the head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ..data.prompts import (
    PromptSpec,
    answer_tokens,
    left_padded,
    pad_token,
    positions,
    prompt_tokens,
)
from ..exceptions import DataError
from .architectures import attention_windows
from .loading import BaseModel, say_beyond_window

LOGIT_POSITIONS = 256
"""Positions whose logits are held at once: 268 MB for a vocabulary of 262,144."""


def picked_logits(
    network: PreTrainedModel, pick: Callable[[Tensor], Tensor], **inputs: Any
) -> Tensor:
    """Return a causal language model's logits at some of its positions.

    The others never meet the head, which with a vocabulary of 262,144 words costs more than all
    layers of a small model. The architecture's own forward pass is used, so that its scaling and
    capping of logits hold.

    Args:
        network: The model; PEFT's modules in it, or an attached adapter, take part.
        pick: Takes what the head shall read from the last hidden states (rows x tokens x width).
        inputs: What the model reads: ``input_ids``, ``attention_mask``, ``position_ids``.
    """

    def picked(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (pick(arguments[0]), *arguments[1:])

    head: Any = network.get_output_embeddings()
    handle = head.register_forward_pre_hook(picked)
    try:
        logits: Tensor = network(**inputs, use_cache=False).logits
    finally:
        handle.remove()
    return logits


def last_logits(
    network: PreTrainedModel, positions: int, **inputs: Any
) -> Float[Tensor, "rows positions vocabulary"]:
    """Return :func:`picked_logits` at the last ``positions`` of every row, at least 1."""
    # The cut leaves a tensor with gaps between rows, for which torch multiplies each row by the
    # head on its own: measured nine times slower on 32 rows than one product of all rows.
    return picked_logits(network, lambda states: states[:, -positions:].contiguous(), **inputs)


_ROOT = -1


class _Step(NamedTuple):
    """One token of a label: predicted behind ``parent``, a node of the tree."""

    parent: int
    token: int


@dataclass(frozen=True)
class LabelTree:
    """The labels' tokens as a tree, whose nodes are the beginnings that labels go on from.

    A model that reads a prompt and then all nodes, each of which sees the prompt and its own
    ancestors only, gives the likelihood of every label exactly, also where labels have several
    tokens or share their first ones. No key-value cache is copied for each label, and labels of
    one token add nothing to the prompt.

    Attributes:
        tokens: Of each node; the prompt's end is not a node.
        parents: The node before each node, or -1 where that is the prompt's end.
        steps: For each label, the node behind which each of its tokens is predicted.
        ends: For each label the node of its last token, where a longer label goes on from it and
            answers exclude each other; None otherwise.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    steps: tuple[tuple[_Step, ...], ...]
    ends: tuple[int | None, ...]

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]], *, exclusive: bool = False) -> "LabelTree":
        """Return the tree of labels that are given by their tokens, each at least one.

        ``exclusive`` labels are answers: one that begins another is the answer only where the text
        does not go on to the other. Else a label that begins another is never less likely than it.
        """
        places: dict[_Step, int] = {}
        steps = []
        for label in labels:
            path, parent = [], _ROOT
            for place, token in enumerate(label):
                step = _Step(parent, token)
                path.append(step)
                if place < len(label) - 1:
                    parent = places.setdefault(step, len(places))
            steps.append(tuple(path))
        nodes = tuple(places)
        return cls(
            tuple(node.token for node in nodes),
            tuple(node.parent for node in nodes),
            tuple(steps),
            tuple(places.get(path[-1]) if exclusive else None for path in steps),
        )

    @property
    def size(self) -> int:
        """Number of nodes; 0 where every label is a single token."""
        return len(self.tokens)

    def depths(self) -> Int[Tensor, " nodes"]:
        """Return how many tokens behind the prompt's last token each node stands, from 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == _ROOT else depths[parent] + 1)
        return torch.tensor(depths, dtype=torch.long)

    def ancestry(self) -> Bool[Tensor, "nodes nodes"]:
        """Return which nodes each node sees: itself and its ancestors."""
        sees = torch.eye(self.size, dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != _ROOT:
                sees[node] |= sees[parent]
        return sees

    def log_likelihoods(
        self, logits: Float[Tensor, "rows positions vocabulary"]
    ) -> Float[Tensor, "rows labels"]:
        """Return the total log-likelihood of each label in float32.

        Of an exclusive label that begins others it is that of the text beginning with it and with
        none of those.

        Args:
            logits: Of the prompt's last token and of all nodes, in this order.
        """
        logits = logits.float()
        normaliser = logits.logsumexp(dim=-1)
        log_p = logits.log_softmax(dim=-1) if any(end is not None for end in self.ends) else logits
        totals = []
        for path, end in zip(self.steps, self.ends, strict=True):
            behind = torch.tensor([step.parent + 1 for step in path], device=logits.device)
            tokens = torch.tensor([step.token for step in path], device=logits.device)
            totals.append((logits[:, behind, tokens] - normaliser[:, behind]).sum(dim=1))
            if end is not None:
                totals[-1] = totals[-1] + self._left(end, log_p)
        return torch.stack(totals, dim=1)

    def _left(
        self, node: int, log_p: Float[Tensor, "rows positions vocabulary"]
    ) -> Float[Tensor, " rows"]:
        """Return the log-probability that what follows a node becomes no longer label."""
        here = log_p[:, node + 1]
        longer = sorted({s.token for path in self.steps for s in path if s.parent == node})
        parts = [here.index_fill(1, torch.tensor(longer, device=here.device), -torch.inf)]
        for child, (parent, token) in enumerate(zip(self.parents, self.tokens, strict=True)):
            # At the end of a longer label that one is reached.
            if parent == node and child not in self.ends:
                parts.append((here[:, token] + self._left(child, log_p))[:, None])
        return torch.cat(parts, dim=1).logsumexp(dim=1)


class TreeInputs(NamedTuple):
    """What a model reads: left-padded prompts, each followed by the tree's nodes."""

    input_ids: Int[Tensor, "rows tokens"]
    position_ids: Int[Tensor, "rows tokens"]
    sees: Bool[Tensor, "rows tokens tokens"]


def behind_prompts(
    tree: LabelTree,
    input_ids: Int[Tensor, "rows prompt"],
    attention_mask: Int[Tensor, "rows prompt"],
) -> TreeInputs:
    """Return the tree's nodes behind each prompt, and which token sees which."""
    rows, width = input_ids.shape
    real = attention_mask.bool()
    lengths = attention_mask.sum(dim=1, keepdim=True)
    nodes = torch.tensor(tree.tokens, dtype=torch.long).expand(rows, -1)
    total = width + tree.size
    sees = torch.zeros(rows, total, total, dtype=torch.bool)
    sees[:, :width, :width] = torch.ones(width, width, dtype=torch.bool).tril() & real[:, None]
    sees[:, width:, :width] = real[:, None]
    sees[:, width:, width:] = tree.ancestry()
    return TreeInputs(
        torch.cat([input_ids, nodes], dim=1),
        torch.cat([positions(attention_mask), lengths - 1 + tree.depths()], dim=1),
        sees,
    )


def attention_masks(
    inputs: TreeInputs, config: PretrainedConfig, dtype: torch.dtype, device: torch.device
) -> Tensor | Mapping[str, Tensor]:
    """Return additive masks, one for each kind of layer where an architecture mixes kinds.

    Masks of four dimensions are used as they are, so a sliding window has to be cut here: a
    token sees those that are fewer than ``sliding_window`` positions before it.
    """

    def additive(sees: Bool[Tensor, "rows tokens tokens"]) -> Tensor:
        mask = torch.zeros(sees.shape, dtype=dtype)
        return mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None].to(device)

    distance = inputs.position_ids[:, :, None] - inputs.position_ids[:, None]
    masks = {
        kind: additive(inputs.sees if window is None else inputs.sees & (distance < window))
        for kind, window in attention_windows(config).items()
    }
    return masks.get("", masks)


def length_batches(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[list[int]]:
    """Give the places of rows in batches of like length, longest first.

    A batch has at most ``rows`` rows and, padded to its longest, at most ``tokens`` tokens; a
    row that is longer than that goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    while order:
        count = max(1, min(rows, tokens // max(lengths[order[0]], 1)))
        yield order[:count]
        order = order[count:]


def check_labels(base: BaseModel, prompt_spec: PromptSpec) -> None:
    """Raise DataError where two labels are the same tokens for a model."""
    names: dict[tuple[int, ...], str] = {}
    for label, tokens in answer_tokens(base.tokenizer, prompt_spec).items():
        other = names.setdefault(tuple(tokens), label)
        if other != label:
            raise DataError(
                f"the labels {other!r} and {label!r} are the same tokens for {base.name}, so that "
                "it cannot tell them apart; choose other words for them in prompt.labels"
            )


def label_tree(base: BaseModel, question: PromptSpec) -> LabelTree:
    """Return the tree of the question's labels in the model's tokens.

    Raises:
        DataError: two labels are the same tokens for the model.
    """
    check_labels(base, question)
    return LabelTree.of(list(answer_tokens(base.tokenizer, question).values()), exclusive=True)


def batch_log_likelihoods(
    base: BaseModel, tree: LabelTree, prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "rows labels"]:
    """Return the total log-likelihood of every label behind each prompt, in one forward pass.

    Gradients flow to whatever in the network takes them.
    """
    network, device = base.network, base.network.device
    ids, mask = left_padded(prompts, pad_token(base.tokenizer))
    if tree.size == 0:
        masks: object = mask.to(device)
        places = positions(mask)
    else:
        inputs = behind_prompts(tree, ids, mask)
        ids, places = inputs.input_ids, inputs.position_ids
        masks = attention_masks(inputs, network.config, network.dtype, device)
    logits = last_logits(
        network,
        1 + tree.size,
        input_ids=ids.to(device),
        attention_mask=masks,
        position_ids=places.to(device),
    )
    return tree.log_likelihoods(logits)


@torch.inference_mode()
def log_likelihoods(
    base: BaseModel,
    question: PromptSpec,
    texts: Sequence[str],
    *,
    batch_tokens: int = 4096,
    batch_rows: int = 256,
) -> Float[Tensor, "texts labels"]:
    """Return the total log-likelihood of every label for every text's prompt, in float32.

    Exact for labels of several tokens and for labels that begin alike; one that begins another is
    the answer where the text does not go on to that one. Prompts of like length go through the
    model together: at most ``batch_rows``, with ``batch_tokens`` tokens, padding included, which
    bounds memory and sets the speed. Neither changes a number.
    """
    prompts = prompt_tokens(base.tokenizer, question, texts)
    tree = label_tree(base, question)
    lengths = [len(prompt) + tree.size for prompt in prompts]
    say_beyond_window(base, lengths, "scoring labels")
    scores = torch.empty(len(prompts), len(question.labels))
    most = max(1, min(batch_rows, LOGIT_POSITIONS // (1 + tree.size)))
    for places in length_batches(lengths, batch_tokens, most):
        batch = batch_log_likelihoods(base, tree, [prompts[place] for place in places])
        scores[places] = batch.cpu()
    return scores
