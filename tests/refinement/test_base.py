"""Folders of the cache."""

import math
from pathlib import Path

import pytest
import torch

from loraport.data.prompts import PromptSpec
from loraport.models import attached
from loraport.refinement.base import Agreement, HeldOut, Teacher, cache_folder
from loraport.refinement.label_distillation import label_distributions

from .conftest import Sentences


def test_work_lies_under_a_hash_of_what_it_depends_on(tmp_path: Path) -> None:
    found = cache_folder(tmp_path, "teacher", ["model", ["a text"], 3])
    assert found is not None
    assert found.parent == tmp_path / "teacher"
    assert found == cache_folder(tmp_path, "teacher", ["model", ["a text"], 3])
    assert found != cache_folder(tmp_path, "teacher", ["model", ["a text"], 4])


def test_without_a_cache_nothing_is_kept() -> None:
    assert cache_folder(None, "teacher", []) is None


def test_by_hand() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    # Not normalised: likelihoods of labels among all texts.
    student = torch.tensor([[0.25, 0.5, 0.25], [0.3, 0.6, 0.1]]).log() - 3
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.5)
    second = 0.1 * math.log(0.1 / 0.3) + 0.2 * math.log(0.2 / 0.6) + 0.7 * math.log(0.7 / 0.1)
    found = Agreement.between(teacher, student)
    assert found.kl == pytest.approx((first + second) / 2, rel=1e-6)
    assert found.top_share == 0.0
    same = Agreement.between(teacher[1:], teacher[1:].log())
    assert same.top_share == 1.0
    assert same.kl == pytest.approx(0, abs=1e-7)


def test_student_that_has_come_to_nothing_does_not_pass_for_the_best() -> None:
    found = Agreement.between(torch.tensor([[0.5, 0.5]]), torch.tensor([[math.nan, math.nan]]))
    assert math.isnan(found.kl)


def test_teacher_agrees_with_itself_and_its_base_does_not(
    word_teacher: Teacher, question: PromptSpec
) -> None:
    texts = list(Sentences().texts("validation"))[:40]
    held_out = HeldOut(question, texts, label_distributions(word_teacher, question, texts))
    bare = held_out.agreement(word_teacher.base)
    with attached(word_teacher.base.network, word_teacher.adapter):
        own = held_out.agreement(word_teacher.base)
    assert own.top_share == 1.0
    assert own.kl == pytest.approx(0, abs=1e-6)
    assert bare.top_share < 0.7
    assert bare.kl > 0.3
