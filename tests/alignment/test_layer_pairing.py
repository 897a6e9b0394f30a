import itertools

import pytest

from loraport.alignment import relative_depth

DEPTHS = [*itertools.product(range(1, 13), repeat=2), (30, 18), (24, 16), (16, 24), (28, 32)]
DEEPER = [(source, target) for source, target in DEPTHS if target > 1]


def test_every_target_layer_has_a_layer_of_the_source() -> None:
    for source, target in DEPTHS:
        pairs = relative_depth(source, target)
        assert len(pairs) == target
        assert set(pairs) <= set(range(source))


def test_ends_meet_and_depth_grows() -> None:
    for source, target in DEEPER:
        pairs = relative_depth(source, target)
        assert (pairs[0], pairs[-1]) == (0, source - 1)
        assert list(pairs) == sorted(pairs)


def test_no_layer_is_further_than_half_a_layer_from_its_depth() -> None:
    for source, target in DEEPER:
        exact = [layer * (source - 1) / (target - 1) for layer in range(target)]
        away = [p - e for p, e in zip(relative_depth(source, target), exact, strict=True)]
        # Halves are rounded up.
        assert all(-0.5 + 1e-9 < distance <= 0.5 + 1e-9 for distance in away)


@pytest.mark.parametrize("source", [1, 2, 9])
def test_single_target_layer_is_paired_with_the_last(source: int) -> None:
    assert relative_depth(source, 1) == (source - 1,)


def test_equal_depths_are_paired_one_to_one() -> None:
    assert relative_depth(7, 7) == tuple(range(7))


def test_pairing_of_a_real_pair_of_models() -> None:
    # round(t * 29 / 17), computed by hand.
    pairs = relative_depth(30, 18)
    assert [pairs[t] for t in (0, 1, 2, 8, 9, 16, 17)] == [0, 2, 3, 14, 15, 27, 29]
