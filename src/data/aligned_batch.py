"""The same texts as two models read them, with the tokens at which both have read the same."""

from typing import NamedTuple

from jaxtyping import Int
from torch import Tensor


class TokenBatch(NamedTuple):
    """Texts as one model reads them, right padded: causal attention never sees the padding.

    Attributes:
        input_ids: Tokens, with the tokenizer's own leading ones.
        attention_mask: 1 at tokens, 0 at padding.
    """

    input_ids: Int[Tensor, "texts tokens"]
    attention_mask: Int[Tensor, "texts tokens"]


class AlignedBatch(NamedTuple):
    """Texts for both models, and where their token ends coincide.

    Attributes:
        source: As the source model reads them.
        target: As the target model reads them.
        source_places: Of each aligned token its place in ``source.input_ids.flatten()``.
        target_places: The same in the target, token by token paired with ``source_places``.
        documents: Which document of the corpus each aligned token belongs to.
    """

    source: TokenBatch
    target: TokenBatch
    source_places: Int[Tensor, " anchors"]
    target_places: Int[Tensor, " anchors"]
    documents: Int[Tensor, " anchors"]
