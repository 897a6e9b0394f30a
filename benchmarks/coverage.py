"""How often the interval of a mean gap recovered holds the true mean, by the number of tasks.

Tasks are drawn from a population in which the gap recovered has the mean 0.5: each has 300 rows
that are easy or hard for all conditions alike, a base at 0.5, an oracle so much above it, and its
own true gap. Beside :func:`~loraport.evaluation.statistics.mean_gap` stands Student's t over
the tasks' gaps, which every report holds. ``python -m benchmarks.coverage`` takes minutes.
"""

import argparse

import torch
from scipy import stats
from torch import Tensor

from loraport.evaluation.statistics import Interval, PairedScores, mean_gap, task_gap

_MEAN, _ROWS = 0.5, 300


def drawn_task(gap: float, headroom: float, generator: torch.Generator) -> PairedScores:
    """Return right and wrong answers of a task with this true gap recovered."""
    ease = torch.rand(_ROWS, generator=generator)

    def answers(accuracy: float) -> Tensor:
        luck, own = torch.rand(2, _ROWS, generator=generator)
        return torch.where(luck < 0.5, ease, own) < accuracy

    return PairedScores(answers(0.5), answers(0.5 + gap * headroom), answers(0.5 + headroom))


def over_tasks(tasks: list[PairedScores]) -> Interval:
    """Return Student's 95 % interval of the mean over the usable tasks' gaps."""
    gaps = torch.tensor([task_gap(task, draws=1).value for task in tasks if task.usable])
    reach = stats.t.ppf(0.975, len(gaps) - 1) * float(gaps.std()) / len(gaps) ** 0.5
    return Interval(float(gaps.mean()) - reach, float(gaps.mean()) + reach)


def coverage(
    tasks: int, spread: float, headroom: tuple[float, float], simulations: int, draws: int
) -> tuple[float, float]:
    """Return in which share of simulations either interval holds the true mean.

    ``spread`` is the standard deviation of the tasks' true gaps; headroom is even between two ends.
    """
    least, most = headroom
    hits = torch.zeros(2)
    for seed in range(simulations):
        generator = torch.Generator().manual_seed(seed)
        gaps = _MEAN + spread * torch.randn(tasks, generator=generator)
        headrooms = least + (most - least) * torch.rand(tasks, generator=generator)
        pairs = zip(gaps.tolist(), headrooms.tolist(), strict=True)
        made = [drawn_task(gap, headroom, generator) for gap, headroom in pairs]
        found = mean_gap(made, seed, draws).interval, over_tasks(made)
        hits += torch.tensor([low <= _MEAN <= high for low, high in found])
    bootstrap, student = (hits / simulations).tolist()
    return bootstrap, student


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 5, 8, 10, 20])
    parser.add_argument("--spreads", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--headroom", type=float, nargs=2, default=(0.15, 0.4))
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=500)
    options = parser.parse_args()
    print("| tasks | spread of true gaps | bootstrap over tasks and rows | Student's t |")
    print("|---|---|---|---|")
    for tasks in options.tasks:
        for spread in options.spreads:
            headroom = options.headroom[0], options.headroom[1]
            found = coverage(tasks, spread, headroom, options.simulations, options.draws)
            print(f"| {tasks} | {spread:g} | {found[0]:.1%} | {found[1]:.1%} |", flush=True)


if __name__ == "__main__":
    main()
