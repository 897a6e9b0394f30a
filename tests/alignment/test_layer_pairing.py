import pytest

from loraport.alignment import relative_depth


@pytest.mark.parametrize("source", range(1, 13))
@pytest.mark.parametrize("target", range(1, 13))
class TestRelativeDepth:
    def test_every_target_layer_has_a_layer_of_the_source(self, source: int, target: int) -> None:
        pairs = relative_depth(source, target)
        assert len(pairs) == target
        assert set(pairs) <= set(range(source))

    def test_ends_meet_and_depth_grows(self, source: int, target: int) -> None:
        pairs = relative_depth(source, target)
        assert pairs[-1] == source - 1
        assert target == 1 or pairs[0] == 0
        assert list(pairs) == sorted(pairs)

    def test_no_layer_is_further_than_half_a_step_away(self, source: int, target: int) -> None:
        pairs = relative_depth(source, target)
        steps = max(target - 1, 1)
        exact = [layer * (source - 1) / steps for layer in range(target)]
        if target > 1:
            assert max(abs(p - e) for p, e in zip(pairs, exact, strict=True)) <= 0.5


def test_equal_depths_are_paired_one_to_one() -> None:
    assert relative_depth(7, 7) == tuple(range(7))


def test_pairing_of_a_real_pair_of_models() -> None:
    # round(t * 29 / 17), computed by hand for the first, middle and last layers.
    pairs = relative_depth(30, 18)
    assert [pairs[t] for t in (0, 1, 2, 8, 9, 16, 17)] == [0, 2, 3, 14, 15, 27, 29]
