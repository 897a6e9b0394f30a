import random
from collections import Counter
from operator import mul

import pytest

from loraport.exceptions import ConfigurationError, DataError
from loraport.tiny.language import TASTES, VERDICT, TinyLanguage
from loraport.tiny.tasks import TinyTasks


@pytest.fixture(scope="module")
def source():
    return TinyTasks(count=10, rows_train=40, rows_test=30)


@pytest.fixture(scope="module")
def tasks(source):
    return source.load()


def score(source, name, text):
    return sum(map(mul, source.taste(name), source.language.meaning(text)))


def test_there_are_enough_for_anchors_and_held_out_tasks():
    names = TinyTasks().names()
    assert len(names) == len(set(names)) == 40


def test_labels_follow_the_speakers_taste(source, tasks):
    for name, task in tasks.items():
        for row in (*task.train, *task.test):
            liked = score(source, name, row.text)
            assert abs(liked) >= source.margin
            assert row.label == (TASTES[0] if liked > 0 else TASTES[1])


def test_tastes_are_directions_and_every_second_is_opposite_to_the_one_before(source):
    tastes = [source.taste(name) for name in source.names()]
    for taste in tastes:
        assert sum(map(mul, taste, taste)) == pytest.approx(1)
    for taste, opposite in zip(tastes[::2], tastes[1::2], strict=True):
        assert sum(map(mul, taste, opposite)) == pytest.approx(-1)
    apart = [abs(sum(map(mul, tastes[0], other))) for other in tastes[2::2]]
    assert max(apart) < 0.99


def test_rows_are_balanced_and_distinct_and_the_prompt_does_not_tell_the_task(tasks):
    for task in tasks.values():
        assert (task.instruction, task.labels) == (VERDICT, TASTES)
        assert Counter(row.label for row in task.train) == dict.fromkeys(TASTES, 20)
        assert Counter(row.label for row in task.test) == dict.fromkeys(TASTES, 15)
        assert len({row.text for row in (*task.train, *task.test)}) == 70


def test_no_test_row_of_any_task_is_trained_on(tasks):
    train = {row.text for task in tasks.values() for row in task.train}
    test = {row.text for task in tasks.values() for row in task.test}
    assert not train & test


def test_tasks_depend_on_their_seed_alone(tasks):
    random.seed(1)
    again = TinyTasks(rows_train=40, rows_test=30).load(["speaker_07"])["speaker_07"]
    assert again.content_hash() == tasks["speaker_07"].content_hash()
    other = TinyTasks(rows_train=40, rows_test=30, seed=1).load(["speaker_07"])["speaker_07"]
    assert other.content_hash() != again.content_hash()


def test_more_rows_begin_with_the_same(tasks):
    more = TinyTasks(rows_train=42, rows_test=30).load(["speaker_01"])["speaker_01"]
    assert Counter(more.train) >= Counter(tasks["speaker_01"].train)


def test_named_tasks_come_in_the_order_asked_for_and_unknown_names_are_refused(source):
    assert list(source.load(["speaker_09", "speaker_02"])) == ["speaker_09", "speaker_02"]
    with pytest.raises(DataError, match=r"speaker_99.*the tiny language has speaker_01"):
        source.load(["speaker_01", "speaker_99"])


def test_counts_are_positive():
    with pytest.raises(ConfigurationError, match="rows_train=0"):
        TinyTasks(rows_train=0)


def test_rows_that_the_language_cannot_give_are_refused():
    with pytest.raises(ConfigurationError, match=r"3 train rows of speaker_01.*margin of 50"):
        TinyTasks(rows_train=3, margin=50.0).load(["speaker_01"])
    few = TinyTasks(language=TinyLanguage(nouns=1, adjectives=1, verbs=1), rows_train=16)
    with pytest.raises(ConfigurationError, match="too few sentences"):
        few.load(["speaker_01"])
