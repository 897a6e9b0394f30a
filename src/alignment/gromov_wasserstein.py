"""Whether the rows of two spaces can be matched by their distances alone, without the pairing.

Entropic Gromov-Wasserstein transport by POT (Peyre, Cuturi and Solomon, 2016). As the rows are
paired, the plan is judged by how much of it lies on the diagonal; the bare distance does not depend
on the order of the rows.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import ot
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .coverage import row_orders
from .similarity import prepared

_STEPS = 50
_SINKHORN_STEPS = 100
_EPSILONS = (1.0, 0.5, 0.2, 0.1)
_PERMUTATIONS = 5
# Distances that are all equal cost nothing but rounding.
_LEAST_VARIANCE = 1e-6


class GromovWasserstein(NamedTuple):
    """Properties of transport plans between two spaces.

    Attributes:
        rows: How many rows were matched.
        ratio: Mean squared difference of distances under the plan that is reached from the true
            pairing, relative to the mean reached from random pairings: 1 for spaces that have
            nothing in common, 0 for the same space.
        diagonal_mass: Share of mass that joins a row to itself in the plan found without the
            pairing; by chance ``1 / rows``.
        accuracy: Share of rows whose heaviest partner in that plan is the row itself; by chance
            ``1 / rows``.
    """

    rows: int
    ratio: float
    diagonal_mass: float
    accuracy: float


def gromov_wasserstein(
    x: Float[Tensor, "rows x"],
    y: Float[Tensor, "rows y"],
    *,
    rows: int = 100,
    epsilons: Sequence[float] = _EPSILONS,
    seed: int = 0,
) -> GromovWasserstein:
    """Match the rows of two spaces by their distances.

    Distances are taken between rows with outliers clamped and of unit norm, and divided by
    their mean. In high dimensions all are nearly equal, so the entropy is weighed by their
    variance: the same strength then means the same in every space.

    The problem has many local optima, and a plan that begins at any one-to-one pairing stays
    near it, in noise as well. So what the true pairing reaches is compared with what random ones
    reach, and mass on the diagonal is counted in the plan that begins where all pairs weigh the
    same, the entropy falling step by step.

    Args:
        x: Paired rows.
        y: The same rows in another space.
        rows: At most so many are matched, drawn at random; the time grows with their cube.
        epsilons: Strengths of the entropy relative to the variance of distances, falling.
        seed: Draws rows and random pairings.
    """
    keep = row_orders(len(x), 1, seed)[0, :rows].sort().values
    n = len(keep)
    one, other = _distances(x[keep]), _distances(y[keep])
    pairing, last = np.eye(n) / n, epsilons[-1:]

    def reached(start: NDArray[np.float64]) -> float:
        return plan_distance(one, other, _annealed(one, other, start, last))

    distance = reached(pairing)
    orders = row_orders(n, _PERMUTATIONS, seed + 1).numpy()
    random = np.mean([reached(pairing[order]) for order in orders])
    plan = _annealed(one, other, np.full((n, n), 1 / n**2), epsilons)
    return GromovWasserstein(
        rows=n,
        ratio=distance / float(random) if random > 0 else 1.0,
        diagonal_mass=float(np.trace(plan) / plan.sum()),
        accuracy=float(np.mean(plan.argmax(axis=1) == np.arange(n))),
    )


def _distances(x: Float[Tensor, "rows width"]) -> NDArray[np.float64]:
    unit = prepared(x).double()
    distances = torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")
    mean = float(distances.mean())
    return np.asarray((distances / mean if mean > 0 else distances).numpy())


def _annealed(
    one: NDArray[np.float64],
    other: NDArray[np.float64],
    plan: NDArray[np.float64],
    epsilons: Sequence[float],
) -> NDArray[np.float64]:
    n = len(one)
    masses = np.full(n, 1 / n)
    apart = ~np.eye(n, dtype=bool)
    variance = max(float(one[apart].var() + other[apart].var()) / 2, _LEAST_VARIANCE)
    for epsilon in epsilons:
        with warnings.catch_warnings():
            # Inner problems that stop early only make the descent take another step.
            warnings.simplefilter("ignore")
            plan = ot.gromov.entropic_gromov_wasserstein(
                *(one, other, masses, masses, "square_loss"),
                epsilon=epsilon * variance,
                G0=plan,
                max_iter=_STEPS,
                tol=1e-6,
                solver="PGD",
                numItermax=_SINKHORN_STEPS,
            )
    return plan


def plan_distance(
    one: NDArray[np.float64], other: NDArray[np.float64], plan: NDArray[np.float64]
) -> float:
    """Return ``sum (C_ik - D_jl)^2 T_ij T_kl`` for a plan of any marginals, divided by its mass."""
    rows, columns = plan.sum(axis=1), plan.sum(axis=0)
    squares = rows @ one**2 @ rows + columns @ other**2 @ columns
    return float(max(0.0, (squares - 2 * np.sum((one @ plan @ other) * plan)) / plan.sum() ** 2))
