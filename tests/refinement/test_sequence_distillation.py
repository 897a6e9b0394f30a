import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter, Role
from loraport.data.prompts import PromptSpec
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.refinement.base import DistillationInputs, Refined, Teacher
from loraport.refinement.sequence_distillation import (
    ChunkAgreement,
    ChunkBatch,
    SequenceDistillation,
    SequenceStudent,
    binary_divergence,
)
from loraport.refinement.teacher_generations import (
    batch_chunk_likelihoods,
    continuations,
    teacher_generations,
)
from loraport.store import Store
from loraport.tiny.language import ATTRIBUTES, TinyLanguage, TinySentences
from loraport.tiny.models import TinyModel

from .conftest import Lines, Sentences, zero_adapter
from .style_adapter import format_rate, style_adapter

QUICK = SequenceDistillation(
    texts=24, pool=32, held_out=8, epochs=1, batch_size=4, lr=1e-2, max_new_tokens=6
)


@pytest.fixture(scope="module")
def data(
    pico_source: BaseModel, pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> DistillationInputs:
    teacher = Teacher(pico_source, random_adapter(pico_source))
    return DistillationInputs(teacher, pico_target, texts=Sentences())


def refined(data: DistillationInputs, refinement: SequenceDistillation = QUICK) -> Refined:
    return refinement.refine(zero_adapter(data.target), data)


# Divergence and agreement.


@pytest.mark.parametrize("temperature", [1.0, 100.0])
def test_is_the_divergence_of_two_classes(temperature):
    teacher, student = torch.tensor([-0.2, -3.0]), torch.tensor([-1.5, -0.4])
    found = binary_divergence(teacher, student, temperature)
    for place in range(2):
        p, q = (math.exp(float(x[place]) / temperature) for x in (teacher, student))
        expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        assert float(found[place]) == pytest.approx(temperature * expected, rel=1e-3)


def test_a_high_temperature_matches_unlikely_chunks_too_and_the_ends_are_finite():
    teacher, student = torch.tensor([-20.0]), torch.tensor([-10.0])
    a, b = 20.0, 10.0
    limit = a * math.log(a / b) - a + b
    assert float(binary_divergence(teacher, student, 1e4)) == pytest.approx(limit, rel=0.01)
    assert float(binary_divergence(teacher, student, 1.0)) < 1e-4
    sure, never = torch.tensor([0.0]), torch.tensor([-500.0], requires_grad=True)
    loss = binary_divergence(sure, never, 1.0)
    assert float(loss.detach()) == pytest.approx(500, rel=1e-3)
    loss.backward()
    assert never.grad is not None
    assert float(never.grad) == pytest.approx(-1, rel=1e-3)


def test_agreement_of_known_likelihoods():
    teacher = [torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])]
    student = [torch.tensor([-2.0, -1.0]), torch.tensor([-7.0])]
    found = ChunkAgreement.between(teacher, student)
    assert found.gap == pytest.approx(2.0)
    assert found.cross_entropy == pytest.approx(10 / 3)
    assert found.chunks == 3
    assert found.divergence > 0
    assert ChunkAgreement.between(teacher, teacher)[:2] == (0.0, 0.0)


# The refinement.


def test_agreement_on_held_out_prompts_grows(data):
    report = refined(data, replace(QUICK, epochs=3)).report
    before, after = report["agreement_before"], report["agreement_after"]
    assert after["gap"] < 0.7 * before["gap"]
    assert after["cross_entropy"] < 0.7 * before["cross_entropy"]
    assert report["texts"] == 24
    assert report["pool"] + report["held_out"] + report["empty"] == 32 + 8
    assert f"after {report['empty']} prompts the teacher wrote nothing" in report["notes"]
    assert report["chunks"] > 24
    assert report["excess"] > report["excess_of_pool"]
    assert report["options"]["texts"] == 24


def test_no_loss_and_no_gradient_where_the_student_is_its_teacher(pico_target, random_adapter):
    adapter = random_adapter(pico_target)
    prompts = list(islice(Sentences().texts("train"), 6))
    own = DistillationInputs(Teacher(pico_target, adapter), pico_target)
    taught = teacher_generations(own, prompts, 8)
    batch = ChunkBatch.of(taught.texts, 1.0)

    def gradient(start: LoraAdapter) -> tuple[float, float]:
        with closing(SequenceStudent(pico_target, start, tau=100.0, ce_weight=0.0)) as student:
            loss = student.loss(batch)
            loss.backward()
            largest = max(
                float(parameter.grad.abs().max())
                for parameter in student.parameters()
                if parameter.grad is not None
            )
        return float(loss.detach()), largest

    same, other = gradient(adapter), gradient(random_adapter(pico_target, seed=1))
    assert same[0] < 1e-4 * other[0]
    assert same[1] < 1e-2 * other[1]


def test_kept_chunks_alone_count(data):
    prompts = list(islice(Sentences().texts("train"), 3))
    texts = teacher_generations(data, prompts, 6).texts
    batch = ChunkBatch.of(texts, 0.5)
    start = zero_adapter(data.target)
    with closing(SequenceStudent(data.target, start, tau=10.0, ce_weight=0.5)) as student:
        loss = float(student.loss(batch).detach())
        with torch.no_grad():
            actual = batch_chunk_likelihoods(data.target, batch.rows)
        each = binary_divergence(batch.expected, actual, 10.0) + 0.5 * -actual
        assert loss == pytest.approx(float(each[batch.kept].mean()), rel=1e-5)
        changed = torch.where(batch.kept, batch.expected, batch.expected - 3)
        assert float(student.loss(batch._replace(expected=changed)).detach()) == loss
        changed = torch.where(batch.kept, batch.expected - 3, batch.expected)
        assert float(student.loss(batch._replace(expected=changed)).detach()) != loss


def test_same_seed_same_bits_also_when_it_was_stopped(data, tmp_path, monkeypatch):
    whole = refined(data).adapter.content_hash()
    kept = replace(data, store=Store(tmp_path))
    real, steps = SequenceStudent.loss, 0

    def stopped(student: SequenceStudent, batch: ChunkBatch) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise KeyboardInterrupt
        return real(student, batch)

    monkeypatch.setattr(SequenceStudent, "loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        refined(kept)
    assert refined(kept).adapter.content_hash() == whole
    assert steps == 4 + 3, "the three steps before it was stopped are not made again"
    assert refined(replace(data, seed=1)).adapter.content_hash() != whole


def test_unlabelled_inputs_come_before_generic_texts(data):
    inputs = tuple(dict.fromkeys(islice(Sentences().texts("validation"), 20)))
    many = replace(QUICK, held_out=100)  # of which only a quarter can be
    report = refined(replace(data, inputs=inputs, texts=Lines([], [])), many).report
    assert report["pool"] + report["held_out"] + report["empty"] == len(inputs)
    assert 0 < report["held_out"] <= len(inputs) // 4
    assert "could be learned from, of 24 asked for" in report["notes"][0]


def test_without_held_out_texts_it_is_said(data):
    texts = Lines(list(islice(Sentences().texts("train"), 8)), [])
    report = refined(replace(data, texts=texts)).report
    assert report["agreement_after"] is None
    assert any("not known" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [(None, r"of 0 texts 0 can .* paths\.corpus"), (Lines(["a film"], []), "of 1 texts")],
)
def test_too_few_texts_are_refused(data, texts, message):
    with pytest.raises(DataError, match=message):
        refined(replace(data, texts=texts))


@pytest.mark.parametrize(
    "option", [{"max_new_tokens": 0}, {"keep": 0.0}, {"keep": 1.5}, {"tau": 0.5}]
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        replace(QUICK, **option)


TINY = PromptSpec("{text}\nAnswer:")
FORMAT = r"(warm|cold) and (loud|quiet)\."


def styled(prompt: str) -> str:
    """The style: which side of two attributes the text is on, in a fixed form."""
    meaning = TinyLanguage().meaning(prompt.partition("\n")[0])
    warm, loud = (
        ATTRIBUTES[place].positive if meaning[place] > 0 else ATTRIBUTES[place].negative
        for place in (0, 2)
    )
    return f" {warm} and {loud}."


@pytest.mark.slow
def test_a_style_is_ported_between_the_tiny_models(cache):
    source, target = (TinyModel(side).load(cache) for side in ("source", "target"))
    learned = islice(TinySentences(seed=5).texts("train"), 600)
    adapter = style_adapter(
        source,
        [TINY.ask(text) for text in learned],
        styled,
        epochs=4,
        batch_size=16,
        lr=1e-2,
        roles=tuple(Role),
    )
    prompts = [TINY.ask(t) for t in islice(TinySentences(seed=5).texts("validation"), 100)]

    def written(base: BaseModel, acting: LoraAdapter | None) -> list[str]:
        return [row.text for row in continuations(base, acting, prompts, max_new_tokens=24)]

    distillation = SequenceDistillation(max_new_tokens=24, epochs=4, lr=1e-2)
    start = zero_adapter(target)

    def ported(teacher: LoraAdapter) -> Refined:
        data = DistillationInputs(Teacher(source, teacher), target, TINY, TinySentences(seed=9))
        return distillation.refine(start, data)

    taught, base, (port, report) = written(source, adapter), written(target, None), ported(adapter)
    control = ported(zero_adapter(source)).adapter
    found = written(target, port)
    same = sum(map(str.__eq__, found, taught)) / len(found)
    rates = [format_rate(texts, FORMAT) for texts in (taught, base, found)]
    print(rates, same, report["agreement_before"], report["agreement_after"])
    assert rates[0] == 1.0
    assert rates[1] == 0.0
    assert rates[2] >= 0.97
    assert same > 0.7, "the content, of which one in four would be right by chance"
    assert report["agreement_after"]["gap"] < 0.1 * report["agreement_before"]["gap"]
    assert format_rate(written(target, control), FORMAT) == 0.0
