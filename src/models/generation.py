"""What a base model writes after prompts: token by token, in batches, with a KV cache.

Not by ``transformers.generate``: its sampling draws from the global generator, while texts that a
model writes here have to be the same for the same seed whatever else has drawn in between.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.prompts import left_padded, pad_token, positions
from .loading import BaseModel, say_beyond_window


@runtime_checkable
class NextToken(Protocol):
    """How the next token is chosen."""

    def choose(self, logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
        """Return the next token of each row."""
        ...


class MostLikely:
    """The most likely token: greedy decoding."""

    def choose(self, logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
        """Return the most likely token of each row."""
        return logits.argmax(dim=-1)


class NucleusSampling:
    """A token drawn from the most likely ones that hold ``top_p`` of the probability; 1: from all.

    ``temperature`` divides the logits; the generator draws on the CPU.

    Source: Holtzman et al., 2020 (arXiv 1904.09751).
    """

    def __init__(
        self, generator: torch.Generator, *, temperature: float = 1.0, top_p: float = 0.95
    ) -> None:
        self.generator, self.temperature, self.top_p = generator, temperature, top_p

    def choose(self, logits: Float[Tensor, "rows vocabulary"]) -> Int[Tensor, " rows"]:
        """Return a drawn token for each row."""
        shares, order = (logits.float().cpu() / self.temperature).softmax(-1).sort(descending=True)
        # A token stays while those before it hold less than top_p; the first one always does.
        shares[shares.cumsum(-1) - shares >= self.top_p] = 0.0
        drawn = torch.multinomial(shares, 1, generator=self.generator)
        return order.gather(1, drawn)[:, 0].to(logits.device)


@torch.inference_mode()
def generate(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    choice: NextToken,
) -> list[list[int]]:
    """Return the tokens that the model writes after each prompt.

    All prompts, of at least one token each, go through the model together, left padded. A row ends
    with the tokenizer's end-of-text token where the model has come to its end, and else after
    ``max_new_tokens``.
    """
    network, device = base.network, base.network.device
    say_beyond_window(base, [len(prompt) + max_new_tokens for prompt in prompts], "writing answers")
    end = base.tokenizer.eos_token_id  # None: nothing ends before the last token allowed
    ids, mask = (part.to(device) for part in left_padded(prompts, pad_token(base.tokenizer)))
    position_ids, past = positions(mask), None
    written: list[Tensor] = []
    open_rows = torch.ones(len(prompts), dtype=torch.bool, device=device)
    while len(written) < max_new_tokens and bool(open_rows.any()):
        output = network(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        past = output.past_key_values
        chosen = choice.choose(output.logits[:, -1])
        written.append(chosen)
        if end is not None:
            open_rows &= chosen != end
        ids, position_ids = chosen[:, None], position_ids[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    rows = torch.stack(written, dim=1).tolist() if written else [[] for _ in prompts]
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def text_behind(base: BaseModel, prompt: Sequence[int], row: Sequence[int]) -> str:
    """Decode a row as it follows its prompt: some tokenizers drop a space at a text's start."""
    before, whole = _decoded(base, prompt), _decoded(base, [*prompt, *row])
    return whole.removeprefix(before) if whole.startswith(before) else _decoded(base, row)


def _decoded(base: BaseModel, tokens: Sequence[int]) -> str:
    text = base.tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(text)
