"""Which dimensions of two residual streams correspond, seen in the embeddings of shared tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...alignment.axis_plan import Aligner, AxisPlan
from ...alignment.unit_similarity import UnitSimilarity
from ..shared_tokens import shared_tokens
from ..weight_mapper import BasePair
from .axis import Axis


def residual_axis(pair: BasePair, tokens: int, align: Aligner) -> Axis:
    """Match the dimensions by how the embeddings of shared tokens correlate.

    With an RMSNorm's gain in front of every reader, the symmetries of a residual stream are the
    signed permutations: dimensions are matched by the absolute value of their correlation, and a
    pair that is correlated negatively gets the sign -1.

    Args:
        pair: The base models.
        tokens: How many shared tokens to use at most.
        align: Makes a plan of the absolute correlations.

    Raises:
        ModelError: the tokenizers share too few strings.
    """
    ours, theirs = shared_tokens(pair.source, pair.target, tokens)
    one = _standardised(pair.source.embedding()[ours].to(pair.device))
    other = _standardised(pair.target.embedding()[theirs].to(pair.device))
    correlation = one.mT @ other
    similarity = UnitSimilarity(
        correlation.abs(), one.square().sum(dim=0), other.square().sum(dim=0)
    )
    plan = align(similarity)
    signs = torch.where(correlation < 0, -1.0, 1.0)
    facts = {"shared_tokens": len(ours), **plan.statistics(similarity)}
    return Axis(AxisPlan(plan.joint * signs), facts)


def _standardised(embedding: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
    """Return the columns without their means and at norm 1; 0 where a column is constant."""
    centred = embedding.float() - embedding.float().mean(dim=0)
    norms = torch.linalg.norm(centred, dim=0)
    return torch.where(norms > 0, centred / norms, 0.0)
