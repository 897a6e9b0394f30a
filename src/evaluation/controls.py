"""Controls: adapters that should not work, beside which a prediction must stand."""

from collections.abc import Mapping, Sequence

import torch

from ..adapters import AdapterStack, LoraAdapter, LowRank


def random_adapter(anchors: AdapterStack, base_model: str, seed: int) -> LoraAdapter:
    """Return Gaussian factors, each site's update as large as the anchors' on average.

    The norm of each site is the root mean square of the anchors' norms there, so that the
    control is the same for every mapper.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = {}
    for site, stack in anchors.items():
        _, rank, inputs = stack.A.shape
        a = torch.randn(rank, inputs, generator=generator)
        b = torch.randn(stack.B.shape[1], rank, generator=generator)
        drawn = LowRank(a, b)
        norm = float(stack.delta_gram(stack).diagonal().mean()) ** 0.5
        factor = (norm / drawn.norm()) ** 0.5
        sites[site] = LowRank(factor * a, factor * b)
    return LoraAdapter(sites, base_model)


def swapped(
    adapters: Mapping[str, LoraAdapter], spare: Sequence[LoraAdapter]
) -> dict[str, LoraAdapter]:
    """Return for each task another task's adapter: the next one's, the last task's the first.

    Args:
        adapters: Of the held-out tasks.
        spare: Adapters of other tasks, whose first serves where only one task is held out.
    """
    names = list(adapters)
    if len(names) == 1:
        return {names[0]: spare[0]} if spare else {}
    return {name: adapters[names[(place + 1) % len(names)]] for place, name in enumerate(names)}
