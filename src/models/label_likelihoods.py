"""How likely a base model finds each of a few labels behind a prompt."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.answers import answer_tokens, left_padded, positions, prompt_tokens
from ..data.question import Question
from .base import BaseModel
from .label_tree import LabelTree, attention_masks, behind_prompts
from .logits import LOGIT_POSITIONS, last_logits


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


def label_tree(base: BaseModel, question: Question) -> LabelTree:
    """Return the tree of the question's labels in the model's tokens."""
    return LabelTree.of(list(answer_tokens(base.tokenizer, question).values()))


def batch_log_likelihoods(
    base: BaseModel, tree: LabelTree, prompts: Sequence[Sequence[int]]
) -> Float[Tensor, "rows labels"]:
    """Return the total log-likelihood of every label behind each prompt, in one forward pass.

    Gradients flow to whatever in the network takes them.

    Args:
        base: The model, with what is attached to it.
        tree: The labels.
        prompts: Their tokens.
    """
    network, device = base.network, base.network.device
    ids, mask = left_padded(prompts, int(base.tokenizer.pad_token_id))
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
    question: Question,
    texts: Sequence[str],
    *,
    batch_tokens: int = 4096,
    batch_rows: int = 256,
) -> Float[Tensor, "texts labels"]:
    """Return the total log-likelihood of every label for every text's prompt, in float32.

    Exact for labels of several tokens and for labels that begin alike. Prompts of like length go
    through the model together; neither the batches nor the padding change a number.

    Args:
        base: The model, with what is attached to it.
        question: What is asked of each text.
        texts: The texts.
        batch_tokens: Tokens a forward pass, padding included; bounds memory and sets the speed.
        batch_rows: Rows a forward pass at most.
    """
    prompts = prompt_tokens(base.tokenizer, question, texts)
    tree = label_tree(base, question)
    lengths = [len(prompt) + tree.size for prompt in prompts]
    scores = torch.empty(len(prompts), len(question.labels))
    most = max(1, min(batch_rows, LOGIT_POSITIONS // (1 + tree.size)))
    for places in length_batches(lengths, batch_tokens, most):
        batch = batch_log_likelihoods(base, tree, [prompts[place] for place in places])
        scores[places] = batch.cpu()
    return scores
