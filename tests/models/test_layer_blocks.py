from itertools import chain, pairwise

import pytest
import torch

from loraport.models.layer_blocks import layer_blocks, statistics_bytes
from loraport.models.pair_statistics import LEAST_ROWS, PairStatistics
from loraport.models.taps import Tap

LAYERS = range(6)
WIDTHS = (
    {Tap.residual(layer): 300 for layer in LAYERS},
    {Tap.residual(layer): 520 for layer in LAYERS},
)
# Out of order, and two source layers for one of the target's.
PAIRS = [(Tap.residual(layer // 2), Tap.residual(layer)) for layer in reversed(LAYERS)]
PAIRS.append((Tap.residual(5), Tap.residual(0)))


def test_blocks_hold_all_pairs_in_order_of_the_target_layer() -> None:
    one = statistics_bytes([PAIRS[0]], WIDTHS) / 1e9
    blocks = layer_blocks(PAIRS, WIDTHS, budget_gb=2.2 * one)
    assert len(blocks) > 1
    layers = [pair[1].layer for pair in chain.from_iterable(blocks)]
    assert layers == sorted(layers)
    assert sorted(chain.from_iterable(blocks)) == sorted(PAIRS)
    assert all(statistics_bytes(block, WIDTHS) <= 2.2e9 * one for block in blocks)
    # No two neighbours would fit together.
    for first, second in pairwise(blocks):
        next_layer = [pair for pair in second if pair[1].layer == second[0][1].layer]
        assert statistics_bytes([*first, *next_layer], WIDTHS) > 2.2e9 * one


def test_a_layer_is_not_split() -> None:
    blocks = layer_blocks(PAIRS, WIDTHS, budget_gb=1e-9)
    assert [{pair[1].layer for pair in block} for block in blocks] == [{x} for x in LAYERS]
    assert len(blocks[0]) == 2


def test_one_block_where_all_fits() -> None:
    assert len(layer_blocks(PAIRS, WIDTHS)) == 1
    assert layer_blocks([], WIDTHS) == ()


def test_bytes_are_those_that_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [
        {tap: torch.randn(LEAST_ROWS, width, generator=generator) for tap, width in side.items()}
        for side in WIDTHS
    ]
    statistics = PairStatistics(PAIRS)
    statistics.add(sides[0], sides[1])
    held = sum(tensor.nbytes for name, tensor in statistics.tensors().items() if name != "rows")
    read = sum(WIDTHS[side][tap] for side in (0, 1) for tap in {pair[side] for pair in PAIRS})
    assert statistics_bytes(PAIRS, WIDTHS) == pytest.approx(2 * held + 4 * LEAST_ROWS * read)
