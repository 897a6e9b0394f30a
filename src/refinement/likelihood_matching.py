"""How far the chunk likelihoods of two models are apart."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# So near to 1 float32 no longer holds 1 - p; gradients stop there.
_SUREST = -1e-6


def binary_divergence(
    teacher: Float[Tensor, "*shape"], student: Float[Tensor, "*shape"], temperature: float
) -> Float[Tensor, "*shape"]:
    """Return the Kullback-Leibler divergence between "this chunk" and "any other one".

    Each chunk likelihood p gives the distribution ``(p**(1/temperature), 1 - p**(1/temperature))``.
    The divergence falls as 1 / temperature where that is high, so it is multiplied by it; the
    strength of the gradient then hardly depends on the temperature. With a temperature near
    infinity it is ``a log(a / b) - a + b``, where a and b are the negative log-likelihoods: the
    likelihoods of chunks of any length are matched. At 1 only likely chunks count.

    Args:
        teacher: Log-likelihoods, in nats.
        student: Log-likelihoods of the same chunks.
        temperature: At least 1.

    Source: Minixhofer et al., 2025 (arXiv 2503.20083), approximate likelihood matching with the
    KL divergence; their code has the temperature 100.
    """
    log_p = (teacher / temperature).clamp(max=_SUREST)
    log_q = (student / temperature).clamp(max=_SUREST)
    other_p, other_q = (torch.log(-torch.expm1(x)) for x in (log_p, log_q))
    same = log_p.exp() * (log_p - log_q)
    return temperature * (same + other_p.exp() * (other_p - other_q))


class ChunkAgreement(NamedTuple):
    """How alike two models find the same continuations.

    Attributes:
        gap: Mean absolute difference of the log-likelihoods of a chunk, in nats.
        divergence: Mean binary divergence of a chunk at temperature 1, in nats.
        cross_entropy: Mean negative log-likelihood that the student gives to a chunk of what
            the teacher wrote, in nats.
        chunks: Over how many chunks.
    """

    gap: float
    divergence: float
    cross_entropy: float
    chunks: int

    @classmethod
    def of(
        cls,
        teacher: Sequence[Float[Tensor, " _"]],
        student: Sequence[Float[Tensor, " _"]],
    ) -> "ChunkAgreement":
        """Compare the log-likelihoods of the chunks of some texts, at least one."""
        expected, found = torch.cat(list(teacher)).double(), torch.cat(list(student)).double()
        return cls(
            float((expected - found).abs().mean()),
            float(binary_divergence(expected, found, 1.0).mean()),
            float(-found.mean()),
            len(found),
        )
