import pytest

from loraport.exceptions import ConfigurationError
from loraport.mappers.strengths import STRENGTHS, checked_strengths


def test_positive_numbers_and_infinity_are_taken() -> None:
    assert checked_strengths(list(STRENGTHS)) == STRENGTHS
    assert STRENGTHS[-1] == float("inf")


@pytest.mark.parametrize(
    "strengths", [[], [0.0, 1.0], [1.0, -0.1], [float("nan")]], ids=["none", "zero", "less", "nan"]
)
def test_anything_else_is_refused(strengths: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.strengths is \[.*one or more positive"):
        checked_strengths(strengths)
