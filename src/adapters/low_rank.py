"""Low-rank matrices as values: the weight update of one site, never materialised."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Truncation(NamedTuple):
    """A low-rank matrix cut to a rank, and the share of its squared norm that this lost."""

    matrix: "LowRank"
    lost_energy: float


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update ``scale * B @ A`` of one linear module.

    Attributes:
        A: Reads the module's input.
        B: Writes the module's output.
        scale: PEFT's ``lora_alpha / r`` (``/ sqrt(r)`` with rsLoRA), already resolved.
    """

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "out rank"]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Number of columns of B; the matrix's own rank may be lower."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``, as of the weight it updates."""
        return self.B.shape[0], self.A.shape[1]

    def to(self, dtype: torch.dtype) -> "LowRank":
        """Return the same factors in ``dtype``."""
        return LowRank(self.A.to(dtype), self.B.to(dtype), self.scale)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the update itself; for tests and small matrices only."""
        return self.scale * (self.B @ self.A)

    def inner(self, other: "LowRank") -> float:
        """Return the Frobenius inner product with another update of the same shape.

        ``<D1, D2> = s1 s2 sum((B1^T B2) * (A1 A2^T))``, in float64 and O((in + out) r^2).
        """
        left = self.B.double().mT @ other.B.double()
        right = self.A.double() @ other.A.double().mT
        return self.scale * other.scale * float((left * right).sum())

    def norm(self) -> float:
        """Return the Frobenius norm of the update."""
        return max(self.inner(self), 0.0) ** 0.5

    def scaled(self, factor: float) -> "LowRank":
        """Return ``factor`` times the update, as a change of :attr:`scale`."""
        return LowRank(self.A, self.B, self.scale * factor)

    def factors_svd(
        self,
    ) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "k in"]]:
        """Return the thin SVD of the update in float64, ``k = min(rank, out, in)``.

        By QR of both factors and the SVD of the small core, O((in + out) r^2). Signs are fixed:
        the largest entry of each left singular vector is positive.
        """
        q_b, r_b = torch.linalg.qr(self.B.double())
        q_a, r_a = torch.linalg.qr(self.A.double().mT)
        u, sigma, vt = torch.linalg.svd(self.scale * (r_b @ r_a.mT), full_matrices=False)
        u, vt = q_b @ u, vt @ q_a.mT
        peaks = u.gather(0, u.abs().argmax(dim=0, keepdim=True)).squeeze(0)
        signs = torch.where(peaks < 0, -1.0, 1.0).to(u.dtype)
        return u * signs, sigma, signs[:, None] * vt

    def truncated(self, rank: int) -> Truncation:
        """Return the nearest update of at most ``rank`` in balanced canonical form.

        The factors have ``rank`` columns even where fewer singular values are left; the rest
        are zero. Source: Eckart and Young, 1936; the canonical form is that of
        :meth:`canonical`.
        """
        u, sigma, vt = self.factors_svd()
        total = float(sigma.square().sum())
        kept = min(rank, sigma.numel())
        lost = float(sigma[kept:].square().sum())
        roots = sigma[:kept].sqrt()
        b = self.B.new_zeros(self.shape[0], rank)
        a = self.A.new_zeros(rank, self.shape[1])
        b[:, :kept] = (u[:, :kept] * roots).to(b.dtype)
        a[:kept] = (roots[:, None] * vt[:kept]).to(a.dtype)
        return Truncation(LowRank(a, b), lost / total if total > 0 else 0.0)

    def canonical(self) -> "LowRank":
        """Return the same update with balanced factors: ``B = U sqrt(S)``, ``A = sqrt(S) V^T``.

        Two pairs of factors that differ by a change of gauge ``(B G^-1, G A)`` have the same
        canonical form, up to rounding and to rotations among equal singular values.
        """
        return self.truncated(self.rank).matrix


def stacked(terms: list[LowRank], coefficients: list[float]) -> LowRank:
    """Return the exact weighted sum of updates of one shape; its rank is the sum of theirs."""
    weighted = [c * t.scale * t.B for c, t in zip(coefficients, terms, strict=True)]
    return LowRank(torch.cat([t.A for t in terms]), torch.cat(weighted, dim=1))
