"""Hard matchings: the linear assignment problem."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .axis_plan import AxisPlan
from .unit_similarity import UnitSimilarity


def best_assignment(gain: Float[Tensor, "source target"]) -> Float[Tensor, "source target"]:
    """Return the 0/1 matching of greatest total gain; it is as large as the smaller side.

    Source: Crouse, 2016, as in scipy.
    """
    rows, columns = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
    matching = torch.zeros(gain.shape)
    matching[torch.from_numpy(rows), torch.from_numpy(columns)] = 1
    return matching.to(gain.device)


@dataclass(frozen=True)
class LinearAssignment:
    """Matches units one to one so that the sum of their weights' inner products is greatest.

    Where one side has more units, its least similar ones stay without a partner.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin), eq. 2.
    """

    def __call__(self, similarity: UnitSimilarity) -> AxisPlan:
        """Return the best matching."""
        return AxisPlan(best_assignment(similarity.inner))
