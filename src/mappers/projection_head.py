"""Projection heads: from one model's activations to another's."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """``head(x) = M x + b + W2 gelu(W1 rmsnorm(x))``: a linear skip and a small MLP.

    The MLP starts at zero, so that a head begins as its skip.

    Args:
        width: Of what it takes.
        out: Of what it gives.
        hidden: Of the MLP; 0 leaves it out.
        generator: Draws ``W1``.
    """

    def __init__(self, width: int, out: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.skip = _blank(width, out)
        self.inner = _blank(width, hidden) if hidden else None
        self.outer = _blank(hidden, out, bias=False) if hidden else None
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)
        if self.inner is not None and self.outer is not None:
            nn.init.normal_(self.inner.weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(self.inner.bias)
            nn.init.zeros_(self.outer.weight)

    def start(self, matrix: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> None:
        """Set the skip."""
        with torch.no_grad():
            self.skip.weight.copy_(matrix)
            self.skip.bias.copy_(bias)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Project rows."""
        projected: Tensor = self.skip(x)
        if self.inner is None or self.outer is None:
            return projected
        scaled = x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
        return projected + self.outer(nn.functional.gelu(self.inner(scaled)))


def _blank(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """Return a layer whose weights are still to be set.

    A usual one draws them from the global generator; one without memory draws nothing.
    """
    return nn.Linear(width, out, bias=bias, device="meta").to_empty(device="cpu")
