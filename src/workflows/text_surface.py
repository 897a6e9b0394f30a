"""What a text's surface alone makes alike: the control for similarity between two models.

Models with random weights that differ in everything still have the same neighbours, as many as
trained ones: both mix the tokens of the same prefix, and rows whose prefixes have tokens in common
come out alike. So similarity counts as far as it exceeds that with such a mixture, in which every
token has a random vector.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.aligned_batch import TokenBatch

_WIDTH = 128
# How much the last token weighs against the sum of the prefix over the root of its length.
_LAST = (0.3, 1.0, 3.0)


def text_surfaces(
    tokens: TokenBatch, places: Int[Tensor, " rows"], seed: int
) -> tuple[Float[Tensor, "rows width"], ...]:
    """Return some mixtures of random token vectors at the given tokens.

    Args:
        tokens: Texts; the same token has the same vector in every batch.
        places: Tokens by their places in ``tokens.input_ids.flatten()``.
        seed: Draws the vectors.
    """
    vectors = _vectors(tokens.input_ids, seed) * tokens.attention_mask[..., None]
    lengths = torch.arange(1, tokens.input_ids.shape[1] + 1)[:, None]
    prefix = vectors.cumsum(dim=1) / lengths.sqrt()
    return tuple((weight * vectors + prefix).flatten(0, 1)[places] for weight in _LAST)


def _vectors(ids: Int[Tensor, "texts tokens"], seed: int) -> Float[Tensor, "texts tokens width"]:
    """Return a random vector a token, which depends on seed and token alone."""
    distinct, places = torch.unique(ids, return_inverse=True)
    drawn = torch.stack(
        [
            torch.randn(_WIDTH, generator=torch.Generator().manual_seed(seed * 1_000_003 + token))
            for token in distinct.tolist()
        ]
    )
    return drawn[places]
