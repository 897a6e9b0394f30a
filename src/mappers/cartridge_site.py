"""What one source site does at one target site, behind projection heads."""

from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import LowRank, Site
from .projection_head import ProjectionHead


class CartridgeSite(nn.Module):
    """What one source site does at one target site.

    ``weight * (U(y + s B A x) - U(y))`` with ``x = D(x_T)``, ``y = W_S x + b_S``: the target's
    input is read as the source would have it, the frozen adapter acts, and the change that it
    makes of the source's output is written as the target would have it.

    Args:
        source: The source site.
        target: The target site.
        weight: Of what this source site gives.
        reader: D, from the target module's input to the source's.
        writer: U, from the source module's output to the target's.
        module_weight: ``W_S``.
        module_bias: ``b_S``.
        update: The source adapter's update there.
    """

    module_weight: Tensor
    module_bias: Tensor
    A: Tensor
    B: Tensor

    def __init__(
        self,
        source: Site,
        target: Site,
        weight: float,
        reader: ProjectionHead,
        writer: ProjectionHead,
        module_weight: Float[Tensor, "out in"],
        module_bias: Float[Tensor, " out"],
        update: LowRank,
    ) -> None:
        super().__init__()
        self.source, self.target, self.weight = source, target, weight
        self.reader, self.writer = reader, writer
        self.register_buffer("module_weight", module_weight)
        self.register_buffer("module_bias", module_bias)
        self.register_buffer("A", update.A.float())
        self.register_buffer("B", update.B.float() * update.scale)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Return the change of the target module's output at its input ``x``."""
        read = self.reader(x)
        before = nn.functional.linear(read, self.module_weight, self.module_bias)
        change = read @ self.A.mT @ self.B.mT
        written: Tensor = self.writer(before + change) - self.writer(before)
        return self.weight * written

    def description(self) -> dict[str, object]:
        """Return as plain data what the tensors do not say."""
        return {"source": self.source.label, "target": self.target.label, "weight": self.weight}
