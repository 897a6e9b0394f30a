import pytest

from loraport.exceptions import ConfigurationError, DataError
from loraport.refinement.format_rate import format_rate


def test_texts_have_to_match_whole():
    texts = ["<<A>>", " <<B C>>\n", "<<A>> and more", "A", "<<A\nB>>"]
    assert format_rate(texts, r"<<.+>>") == 0.6
    assert format_rate(texts[:1], r"<<A") == 0.0


def test_mistakes_are_told():
    with pytest.raises(ConfigurationError, match="no regular expression"):
        format_rate(["a"], "(")
    with pytest.raises(DataError, match="at least one"):
        format_rate([], "a")
