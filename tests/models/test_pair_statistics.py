from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from loraport.alignment.moments import PairedMoments
from loraport.exceptions import DataError
from loraport.models.pair_statistics import LEAST_ROWS, SLAB, PairStatistics
from loraport.models.taps import Tap

A, B, C = Tap.residual(0), Tap.residual(1), Tap.residual(2)
# Widths under, over and far over a slab, and no multiples of it.
WIDTHS = {A: 20, B: SLAB + 30, C: 2 * SLAB + 3}
PAIRS = [(A, B), (A, C), (B, A)]
PARTS = ("x_sum", "y_sum", "xx", "yy", "xy")


def rows_of(seed: int, rows: int) -> dict[Tap, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # With a mean, as activations have.
    return {t: torch.randn(rows, w, generator=generator) + 1 for t, w in WIDTHS.items()}


def gathered(
    ends: Sequence[int], pairs: Sequence[tuple[Tap, Tap]] = PAIRS, rows: int = 3000
) -> PairStatistics:
    source, target = rows_of(1, rows), rows_of(2, rows)
    statistics = PairStatistics(pairs)
    for first, last in pairwise([0, *ends, rows]):
        statistics.add(
            {tap: x[first:last] for tap, x in source.items()},
            {tap: x[first:last] for tap, x in target.items()},
        )
    return statistics


def assert_same_bits(one: PairStatistics, other: PairStatistics) -> None:
    assert one.rows == other.rows
    for pair in one.pairs:
        ours, theirs = one.moments(*pair), other.moments(*pair)
        assert all(torch.equal(getattr(ours, part), getattr(theirs, part)) for part in PARTS)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("ends", [(), (10, 11, 400, 400, 2000)], ids=["one batch", "batches"])
def test_moments_are_those_of_all_rows_at_once(
    pair: tuple[Tap, Tap], ends: tuple[int, ...]
) -> None:
    moments = gathered(ends).moments(*pair)
    expected = PairedMoments.of(rows_of(1, 3000)[pair[0]], rows_of(2, 3000)[pair[1]])
    assert moments.rows == 3000
    for part in PARTS:
        found = getattr(moments, part)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, getattr(expected, part), rtol=1e-5, atol=3e-3)
    assert moments.xx.equal(moments.xx.mT)
    assert moments.yy.equal(moments.yy.mT)


def test_many_batches_do_not_lose_precision() -> None:
    """A sum in float32 would stand still: 2^24 + 1 = 2^24."""
    statistics = PairStatistics([(A, A)])
    ones = {A: torch.ones(LEAST_ROWS, 1)}
    statistics.add({A: torch.full((LEAST_ROWS, 1), 4096.0)}, ones)
    for _ in range(3):
        statistics.add(ones, ones)
    expected = LEAST_ROWS * (4096**2 + 3)
    assert statistics.moments(A, A).xx.item() == expected


def test_same_batches_give_the_same_bits_also_when_restored_in_between() -> None:
    ends = (300, 900, 1500, 1700, 2990)
    straight = gathered(ends)
    source, target = rows_of(1, 3000), rows_of(2, 3000)
    broken = PairStatistics(PAIRS)
    for first, last in pairwise([0, *ends, 3000]):
        kept = {name: tensor.clone() for name, tensor in broken.tensors().items()}
        broken = PairStatistics.from_tensors(PAIRS, kept)
        broken.add(
            {tap: x[first:last] for tap, x in source.items()},
            {tap: x[first:last] for tap, x in target.items()},
        )
    assert_same_bits(straight, broken)


def test_rows_that_wait_are_kept_and_counted() -> None:
    few = gathered((), rows=30)
    tensors = few.tensors()
    assert any(name.startswith("waiting") for name in tensors)
    restored = PairStatistics.from_tensors(PAIRS, tensors)
    assert restored.rows == 30
    assert_same_bits(restored, few)
    assert not any(name.startswith("waiting") for name in few.tensors())


def test_moments_stay_as_they_were_when_more_rows_come() -> None:
    statistics = gathered(())
    before = statistics.moments(A, B)
    copies = {part: getattr(before, part).clone() for part in PARTS}
    statistics.add(rows_of(1, 2000), rows_of(2, 2000))
    assert statistics.moments(A, B).rows == 5000
    assert before.rows == 3000
    assert all(torch.equal(getattr(before, part), copies[part]) for part in PARTS)


def test_a_tap_of_several_pairs_is_kept_once() -> None:
    shared = gathered(()).tensors()
    assert len([name for name in shared if name.startswith("sum.source.0")]) == 1
    assert len([name for name in shared if name.startswith("cross.")]) == 3
    doubled = PairStatistics([*PAIRS, *PAIRS])
    assert doubled.pairs == tuple(PAIRS)


def test_a_gram_takes_little_more_than_its_upper_triangle() -> None:
    tensors = gathered((), [(A, C)]).tensors()
    kept = sum(x.numel() for name, x in tensors.items() if "target.2" in name and "gram" in name)
    assert kept <= 0.75 * WIDTHS[C] ** 2


def test_other_precision_is_taken_as_float32() -> None:
    half = {A: torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).bfloat16()}
    statistics = PairStatistics([(A, A)])
    statistics.add(half, half)
    moments = statistics.moments(A, A)
    torch.testing.assert_close(
        moments.xy, PairedMoments.of(half[A], half[A]).xy, rtol=1e-5, atol=1e-4
    )


def test_devices_are_summed() -> None:
    one, other = gathered((500,)), gathered((200, 1800))
    others = {id(x): name for name, x in one.tensors().items()}
    theirs = other.tensors()
    other.settle()

    def reduce(tensor: Tensor) -> Tensor:
        name = others.get(id(tensor), "rows")
        return tensor + theirs[name]

    together = one.reduced(reduce)
    assert together.rows == 6000
    assert one.rows == 3000
    for pair in PAIRS:
        for part in PARTS:
            found = getattr(together.moments(*pair), part)
            parts = [getattr(x.moments(*pair), part) for x in (one, other)]
            torch.testing.assert_close(found, parts[0] + parts[1])


def test_without_rows_the_reason_is_told() -> None:
    with pytest.raises(DataError, match=r"no token.*give a corpus"):
        PairStatistics(PAIRS).moments(A, B)
    empty = PairStatistics.from_tensors(PAIRS, PairStatistics(PAIRS).tensors())
    assert empty.rows == 0


def test_tensors_of_other_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="other pairs"):
        PairStatistics.from_tensors([(A, B)], gathered(()).tensors())
