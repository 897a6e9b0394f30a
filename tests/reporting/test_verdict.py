from loraport.reporting import verdict

from .conftest import conditions, results_of


def tasks(base: int, predicted: int, oracle: int, **others: int):
    return {name: conditions(base, predicted, oracle, **others) for name in "abcdefgh"}


def test_a_clear_gain_over_everything():
    text = verdict(results_of(tasks(30, 60, 80)))
    assert "recovers 60% of what the oracle gains" in text
    assert "8 usable of 8" in text
    assert "better than no adapter" in text
    assert "It beats the anchors' mean adapter: +25.0 points" in text
    assert "strongest control" not in text


def test_no_gain_is_no_gain():
    text = verdict(results_of(tasks(30, 30, 80, mean=30)))
    assert "the interval contains 0, so a gain over no adapter is not shown" in text
    assert "right and wrong on the same rows as the anchors' mean adapter" in text


def test_harm_is_said():
    text = verdict(results_of(tasks(50, 20, 80, mean=60)))
    assert "worse than no adapter at all" in text
    assert "It is worse than the anchors' mean adapter: -40.0 points" in text


def test_what_does_not_separate_is_not_told_apart():
    text = verdict(results_of(tasks(30, 51, 80, mean=50) | {"z": conditions(30, 40, 80, mean=55)}))
    assert "It is not told apart from the anchors' mean adapter" in text


def test_a_stronger_control_than_the_mean_is_named():
    text = verdict(results_of(tasks(30, 50, 80, mean=35, swapped=70)))
    assert "The strongest control is the swapped control: -20.0 points" in text
    text = verdict(results_of(tasks(40, 50, 80, mean=30, random=30, swapped=30)))
    assert "The strongest control is the base without adapter: +10.0 points" in text


def test_without_usable_tasks_nothing_is_claimed():
    text = verdict(results_of(tasks(50, 60, 52)))
    assert text.startswith("Nothing can be said")
    assert "none of the 8 held-out tasks" in text


def test_the_mean_is_not_compared_with_itself():
    text = verdict(results_of(tasks(30, 40, 80, mean=40), mapper="mean"))
    assert "It is itself the anchors' mean adapter" in text


def test_an_empty_run_has_a_verdict():
    text = verdict(results_of({}))
    assert "Nothing can be said" in text
    assert "no comparison" in text
