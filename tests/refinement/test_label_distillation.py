from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import loraport.refinement.label_distillation as generic_module
import loraport.refinement.label_distillation as module
from loraport.adapters import LoraAdapter, Role, relative_error
from loraport.data.prompts import PromptSpec, answer_tokens
from loraport.data.tasks import Example
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel, attached
from loraport.models.likelihood import log_likelihoods
from loraport.refinement.base import (
    Agreement,
    DistillationInputs,
    HeldOut,
    Refined,
    Refinement,
    Teacher,
)
from loraport.refinement.label_distillation import (
    CorpusDistill,
    FewShot,
    LabelStudent,
    PromptDistill,
    SoftBatch,
    check_labels,
    check_teaches,
    confidence,
    label_balance,
    label_distributions,
    label_shares,
    teacher_answers,
)

from .conftest import Lines, Sentences, answer

TEXTS = list(Sentences().texts("train"))[:150]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of texts that the model was asked about, call by call."""
    counts: list[int] = []

    def counted(base: BaseModel, question: PromptSpec, texts: list[str]) -> torch.Tensor:
        counts.append(len(texts))
        return log_likelihoods(base, question, texts)

    monkeypatch.setattr(module, "log_likelihoods", counted)
    return counts


def test_distribution_is_the_softmax_of_the_likelihoods_of_whole_labels(
    word_teacher: Teacher, question: PromptSpec
) -> None:
    base = word_teacher.base
    labels = answer_tokens(base.tokenizer, question)
    found = label_distributions(word_teacher, question, TEXTS[:3], temperature=2.0)
    for row, text in zip(found, TEXTS, strict=False):
        prompt = base.tokenizer(text)["input_ids"]
        totals = []
        for tokens in labels.values():
            ids = torch.tensor([prompt + tokens])
            with attached(base.network, word_teacher.adapter), torch.inference_mode():
                steps = base.network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            totals.append(sum(s.log_softmax(0)[t] for s, t in zip(steps, tokens, strict=True)))
        expected = (torch.stack([torch.as_tensor(total) for total in totals]) / 2).softmax(0)
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_teacher_answers_by_the_last_word(word_teacher: Teacher, question: PromptSpec) -> None:
    found = label_distributions(word_teacher, question, TEXTS)
    tops = [question.labels[top] for top in found.argmax(dim=1).tolist()]
    assert tops == [answer(text) for text in TEXTS]
    shares = label_shares(found, question.labels)
    assert shares == {label: tops.count(label) / 150 for label in question.labels}
    assert 0.9 < confidence(found) < 1


def test_labelling_is_kept_for_other_temperatures_and_no_other_adapter(
    word_teacher: Teacher,
    question: PromptSpec,
    tmp_path: Path,
    asked: list[int],
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    fresh = label_distributions(word_teacher, question, TEXTS)
    asked.clear()
    first = label_distributions(word_teacher, question, TEXTS, cache=tmp_path)
    assert asked == [64, 64, 22]
    assert torch.equal(first, fresh)
    assert torch.equal(label_distributions(word_teacher, question, TEXTS, cache=tmp_path), first)
    sharp = label_distributions(word_teacher, question, TEXTS, cache=tmp_path, temperature=0.5)
    assert asked == [64, 64, 22]
    assert confidence(sharp) > confidence(first)
    changed: list[tuple[Teacher, PromptSpec, list[str]]] = [
        (replace(word_teacher, adapter=random_adapter(word_teacher.base)), question, TEXTS),
        (word_teacher, replace(question, prompt="{text} ?"), TEXTS),
        (word_teacher, question, TEXTS[:-1]),
    ]
    for number, (teacher, other, texts) in enumerate(changed, start=2):
        label_distributions(teacher, other, texts, cache=tmp_path)
        assert len(asked) == 3 * number


def test_killed_labelling_goes_on(
    word_teacher: Teacher,
    question: PromptSpec,
    tmp_path: Path,
    asked: list[int],
) -> None:
    told: list[tuple[int, int]] = []

    def stop(_step: str, done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    expected = label_distributions(word_teacher, question, TEXTS)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        label_distributions(word_teacher, question, TEXTS, cache=tmp_path, progress=stop)
    assert (asked, told) == ([64, 64], [(0, 3), (1, 3), (2, 3)])
    found = label_distributions(word_teacher, question, TEXTS, cache=tmp_path)
    assert asked == [64, 64, 22]
    assert torch.equal(found, expected)


def test_labels_of_the_same_tokens_are_refused(
    pico_source: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    unknown = PromptSpec("{text}", ("good", "sublime", "lousy"))
    with pytest.raises(DataError, match=r"'sublime' and 'lousy' are the same tokens for pico/sou"):
        check_labels(pico_source, unknown)
    teacher = Teacher(pico_source, random_adapter(pico_source))
    with pytest.raises(DataError, match="choose other words"):
        label_distributions(teacher, unknown, TEXTS)


def test_teacher_that_gives_one_answer_only_is_refused() -> None:
    rows = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]])
    with pytest.raises(DataError, match=r"answers 'yes' to 100% of 3 texts.*prompt\.labels"):
        check_teaches(rows, ["yes", "no"])


def test_teacher_that_does_not_read_the_text_is_refused() -> None:
    rows = torch.tensor([[0.5001, 0.4999], [0.4999, 0.5001]])
    with pytest.raises(DataError, match="nothing can be learned"):
        check_teaches(rows, ["yes", "no"])


def test_teacher_that_hardly_varies_is_told_of() -> None:
    rows = torch.tensor([[0.9, 0.1]] * 199 + [[0.1, 0.9]])
    (note,) = check_teaches(rows, ["yes", "no"])
    assert "'yes' to 99.5% of the texts" in note
    assert check_teaches(rows[-20:], ["yes", "no"]) == ()


@pytest.mark.parametrize(
    ("shares", "balance"),
    [((0.25, 0.25, 0.25, 0.25), 1.0), ((1.0, 0.0), 0.0), ((0.5, 0.5, 0.0, 0.0), 0.5)],
)
def test_balance_is_the_entropy_of_the_labels_shares(
    shares: tuple[float, ...], balance: float
) -> None:
    named = {f"label {place}": share for place, share in enumerate(shares)}
    assert label_balance(named) == pytest.approx(balance)


TEXTS_LABEL_DISTILLATION = list(Sentences().texts("train"))[:10]
TARGETS = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]] * 5)


@pytest.mark.parametrize(
    "labels", [("very good", "very bad", "neutral"), ("a", "b", "ab"), ("x", "xy", "xyz")]
)
def test_loss_is_the_cross_entropy_of_whole_labels(
    pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter], labels: tuple[str, ...]
) -> None:
    question = PromptSpec("{text}\n?", labels)
    start = random_adapter(pico_target)
    tokens = list(answer_tokens(pico_target.tokenizer, question).values())
    prompts = pico_target.tokenizer([question.ask(text) for text in TEXTS_LABEL_DISTILLATION[:2]])[
        "input_ids"
    ]
    expected = 0.0
    for prompt, target in zip(prompts, TARGETS, strict=False):
        for label, weight in zip(tokens, target.tolist(), strict=True):
            ids = torch.tensor([prompt + label])
            with attached(pico_target.network, start), torch.inference_mode():
                steps = pico_target.network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            chosen = steps.log_softmax(dim=-1).gather(1, torch.tensor(label)[:, None])
            expected -= weight * float(chosen.sum()) / 2
    with closing(LabelStudent(pico_target, start, question)) as student:
        found = student.loss(SoftBatch(prompts, TARGETS[:2]))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_batches_keep_texts_and_targets_together(
    pico_target: BaseModel, question: PromptSpec, nothing: Callable[..., LoraAdapter]
) -> None:
    targets = torch.arange(30.0).reshape(10, 3)
    with closing(LabelStudent(pico_target, nothing(pico_target), question)) as student:
        batches = student.batches(TEXTS_LABEL_DISTILLATION, targets, batch_size=4, epochs=2, seed=0)
    assert [len(batch.prompts) for batch in batches[:3]].count(4) == 2
    expected = {
        tuple(ids): row
        for ids, row in zip(
            pico_target.tokenizer(TEXTS_LABEL_DISTILLATION)["input_ids"],
            targets.tolist(),
            strict=True,
        )
    }
    for batch in batches:
        for prompt, row in zip(batch.prompts, batch.targets.tolist(), strict=True):
            assert expected[tuple(prompt)] == row
    assert sum(len(batch.prompts) for batch in batches) == 20


def test_labels_that_the_target_cannot_tell_apart_leave_it_alone(
    pico_source: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    modules = list(pico_source.network.modules())
    with pytest.raises(DataError, match="are the same tokens for pico/source"):
        LabelStudent(pico_source, nothing(pico_source), PromptSpec("{text}", ("sublime", "lousy")))
    assert list(pico_source.network.modules()) == modules


QUICK = CorpusDistill(texts=24, pool=40, held_out=8, lr=0.01, checks=3)
LONG = CorpusDistill(texts=160, pool=176, held_out=32, epochs=4, lr=0.01, checks=2)

GOOD = [text for text in Sentences().texts("train") if text.endswith("good")]


@pytest.fixture
def distillation_inputs(
    word_teacher: Teacher, pico_target: BaseModel, question: PromptSpec
) -> DistillationInputs:
    return DistillationInputs(word_teacher, pico_target, question, Sentences())


def accuracy(base: BaseModel, adapter: LoraAdapter, question: PromptSpec) -> float:
    texts = list(Sentences(validation=300).texts("validation"))[-100:]
    with attached(base.network, adapter):
        found = log_likelihoods(base, question, texts).argmax(dim=1).tolist()
    same = [question.labels[top] == answer(text) for top, text in zip(found, texts, strict=True)]
    return sum(same) / len(same)


def test_skill_arrives_from_texts_alone(
    distillation_inputs: DistillationInputs, start: LoraAdapter
) -> None:
    adapter, report = LONG.refine(start, distillation_inputs)
    assert accuracy(distillation_inputs.target, adapter, distillation_inputs.question) > 0.7
    assert report["agreement_after"] > 0.7 > 0.6 > report["agreement_before"]
    assert report["kl_after"] < 0.3 * report["kl_before"]
    assert (report["texts"], report["pool"], report["held_out"]) == (160, 176, 32)
    assert report["steps"] == 4 * 20
    assert report["loss_last"] < 0.3 * report["loss_first"]
    assert sum(report["pool_shares"].values()) == pytest.approx(1)
    assert report["pool_balance"] == label_balance(report["pool_shares"])
    assert report["chosen_shares"] == pytest.approx(
        dict.fromkeys(distillation_inputs.question.labels, 1 / 3), abs=0.05
    )
    assert report["notes"] == []


def test_the_same_texts_with_labels_that_say_nothing_of_them_teach_nothing(
    distillation_inputs: DistillationInputs, start: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(*args: Any, **options: Any) -> torch.Tensor:
        found = teacher_answers(*args, **options)
        return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]

    monkeypatch.setattr(generic_module, "teacher_answers", shuffled)
    control = replace(LONG, checks=0).refine(start, distillation_inputs).adapter
    assert accuracy(distillation_inputs.target, control, distillation_inputs.question) < 0.6


def test_best_of_the_measured_weights_is_what_comes_out(
    distillation_inputs: DistillationInputs, start: LoraAdapter
) -> None:
    report = QUICK.refine(start, distillation_inputs).report
    assert list(report["checks"]) == ["0", "1", "2", "3"]
    best = min(report["checks"].values())
    assert report["checks"][str(report["best_step"])] == best
    assert report["kl_before"] == report["checks"]["0"]
    assert report["kl_after"] == pytest.approx(best, rel=1e-5)


def test_given_adapter_is_kept_without_steps(
    distillation_inputs: DistillationInputs, random_adapter: Callable[..., LoraAdapter]
) -> None:
    given = random_adapter(distillation_inputs.target)
    adapter, report = replace(QUICK, epochs=0).refine(given, distillation_inputs)
    assert relative_error(adapter, given) < 1e-6
    assert (report["steps"], report["loss_first"]) == (0, None)
    assert report["agreement_after"] == report["agreement_before"]


def test_training_that_helps_nothing_leaves_the_given_adapter_and_says_so(
    distillation_inputs: DistillationInputs,
    random_adapter: Callable[..., LoraAdapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = iter([1.0, 2.0, 3.0, 4.0, 1.0])
    monkeypatch.setattr(HeldOut, "agreement", lambda *_: Agreement(0.5, next(found)))
    given = random_adapter(distillation_inputs.target, roles=(Role.Q,))
    adapter, report = QUICK.refine(given, distillation_inputs)
    assert (report["best_step"], report["steps"]) == (0, 3)
    assert "brought the target no nearer" in report["notes"][0]
    assert relative_error(adapter, given) < 1e-6


def test_same_seed_same_bits_and_base_models_are_left_as_they_were(
    distillation_inputs: DistillationInputs, start: LoraAdapter
) -> None:
    bases = (distillation_inputs.teacher.base, distillation_inputs.target)
    before = [{k: v.clone() for k, v in base.network.state_dict().items()} for base in bases]
    torch.manual_seed(0)
    first = QUICK.refine(start, distillation_inputs).adapter.content_hash()
    torch.manual_seed(1)
    assert QUICK.refine(start, distillation_inputs).adapter.content_hash() == first
    assert QUICK.refine(start, replace(distillation_inputs, seed=1)).adapter.content_hash() != first
    for base, kept in zip(bases, before, strict=True):
        after = base.network.state_dict()
        assert kept.keys() == after.keys()
        assert all(torch.equal(kept[name], after[name]) for name in kept)


def test_stopped_in_labelling_and_in_training_it_ends_in_the_same_bits(
    distillation_inputs: DistillationInputs,
    start: LoraAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = QUICK.refine(start, distillation_inputs)
    cached = replace(distillation_inputs, cache=tmp_path)
    calls: list[int] = []
    loss = LabelStudent.loss

    def stopping(student: LabelStudent, batch: SoftBatch) -> torch.Tensor:
        calls.append(len(batch.prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(student, batch)

    def stop(step: str, _done: int, _total: int) -> None:
        if step.startswith("labelling held-out"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        QUICK.refine(start, replace(cached, progress=stop))
    monkeypatch.setattr(LabelStudent, "loss", stopping)
    modules = list(distillation_inputs.target.network.modules())
    with pytest.raises(KeyboardInterrupt):
        QUICK.refine(start, cached)
    assert list(distillation_inputs.target.network.modules()) == modules
    assert len(list(tmp_path.glob("students/*/state.pt"))) == 1
    found = QUICK.refine(start, cached)
    assert len(calls) == 4, "two steps were made, the third was begun twice"
    assert found.adapter.content_hash() == expected.adapter.content_hash()
    assert not list(tmp_path.glob("students/*"))
    for fact in ("checks", "best_step", "loss_first", "loss_last", "kl_before", "kl_after"):
        assert found.report[fact] == expected.report[fact]


def test_progress_is_told(distillation_inputs: DistillationInputs, start: LoraAdapter) -> None:
    told: dict[str, tuple[int, int]] = {}
    QUICK.refine(
        start, replace(distillation_inputs, progress=lambda s, d, n: told.update({s: (d, n)}))
    )
    assert told == {
        "labelling texts by the source": (1, 1),
        "labelling held-out texts by the source": (1, 1),
        "distilling into the target": (3, 3),
    }


def test_texts_are_cut_at_words_and_neither_empty_nor_double_nor_held_out(
    distillation_inputs: DistillationInputs, start: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the film was very good", "the film was bad", " ", "", "the plot was bad indeed"]
    validation = ["the film was dull", "a dull plot"]
    question = replace(distillation_inputs.question, text_chars=13)
    seen: list[list[str]] = []

    def noted(
        distillation_inputs: DistillationInputs, texts: list[str], **options: Any
    ) -> torch.Tensor:
        seen.append(texts)
        return teacher_answers(distillation_inputs, texts, **options)

    monkeypatch.setattr(generic_module, "teacher_answers", noted)
    monkeypatch.setattr(generic_module, "check_teaches", lambda *_: ())
    texts = Lines([*lines, "a scene", "A scene"], validation)
    report = QUICK.refine(
        start, replace(distillation_inputs, question=question, texts=texts)
    ).report
    assert seen == [["the film was", "the plot was", "a scene", "A scene"], ["a dull plot"]]
    assert report["notes"][:2] == [
        "The corpus has 4 texts of the 24 that were asked for; all of them were used.",
        "Agreement was measured on 1 texts of the 8 that were asked for: the corpus has no more "
        "validation texts.",
    ]


def test_without_validation_texts_the_last_weights_are_kept(
    distillation_inputs: DistillationInputs, start: LoraAdapter
) -> None:
    texts = Lines(list(Sentences().texts("train")), [])
    report = QUICK.refine(start, replace(distillation_inputs, texts=texts)).report
    assert (report["held_out"], report["kl_after"]) == (0, None)
    assert report["best_step"] == report["steps"] == 3
    assert "no held-out generic texts" in report["notes"][0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, r"there is no corpus; set paths\.corpus"),
        (Lines([], []), r"the corpus has 0 training texts .* set paths\.corpus"),
        (Lines(["", " ", "a film", "a film"], []), "the corpus has 1 training texts"),
        (Lines(GOOD, []), "answers 'very good' to 100% of 40 texts"),
    ],
)
def test_texts_that_nothing_can_be_learned_from_are_refused(
    distillation_inputs: DistillationInputs, start: LoraAdapter, texts: Lines | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        QUICK.refine(start, replace(distillation_inputs, texts=texts))


def test_question_without_labels_is_handed_over(
    distillation_inputs: DistillationInputs, start: LoraAdapter
) -> None:
    class Sequences(Refinement):
        data_access = "generic text"

        def refine(self, start: LoraAdapter, distillation_inputs: DistillationInputs) -> Refined:
            return Refined(start, {"labels": len(distillation_inputs.question.labels)})

    free = replace(distillation_inputs, question=PromptSpec())
    assert replace(QUICK, sequence=Sequences()).refine(start, free) == (start, {"labels": 0})
    with pytest.raises(DataError, match=r"set prompt\.labels to the words"):
        QUICK.refine(start, free)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("texts", 0), ("pool", 0), ("held_out", -1), ("epochs", -1), ("batch_size", 0)),
        *(("lr", 0.0), ("lr", float("nan")), ("temperature", 0.0), ("checks", -1)),
    ],
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"refine\.{option}={value}, but it takes"):
        replace(QUICK, **{option: value})


QUICK_PROMPT_DISTILL = PromptDistill(generic=16, pool=24, repeats=3, held_out=8, lr=0.01)
INPUTS = ("the film was very good", "a dull plot was dull", "", "the film was very good", "so bad")


@pytest.fixture
def lesson_prompt_distill(
    word_teacher: Teacher, pico_target: BaseModel, question: PromptSpec
) -> DistillationInputs:
    return DistillationInputs(word_teacher, pico_target, question, Sentences(), inputs=INPUTS)


def test_inputs_weigh_as_often_as_they_are_repeated_beside_generic_texts(
    lesson_prompt_distill: DistillationInputs,
) -> None:
    dataset = QUICK_PROMPT_DISTILL.dataset(lesson_prompt_distill)
    own = {"the film was very good", "a dull plot was dull", "so bad"}
    assert len(dataset.texts) == 3 * 3 + 16
    assert {text: dataset.texts.count(text) for text in own} == dict.fromkeys(own, 3)
    tops = dict(zip(dataset.texts, dataset.targets.argmax(dim=1).tolist(), strict=True))
    assert [lesson_prompt_distill.question.labels[tops[text]] for text in INPUTS[:2]] == [
        "very good",
        "neutral",
    ]
    assert dataset.report["inputs"] == 3
    assert dataset.report["generic_texts"] == 16


def test_inputs_alone_are_learned_where_there_is_nothing_else(
    lesson_prompt_distill: DistillationInputs, start: LoraAdapter
) -> None:
    for alone in (replace(lesson_prompt_distill, texts=None), lesson_prompt_distill):
        distill = replace(QUICK_PROMPT_DISTILL, generic=0)
        dataset = distill.dataset(alone)
        assert len(dataset.texts) == 9
    adapter, report = QUICK_PROMPT_DISTILL.refine(start, replace(lesson_prompt_distill, texts=None))
    assert adapter.norm() > 0
    assert (report["texts"], report["steps"], report["held_out"]) == (3, 2, 0)
    assert "no held-out generic texts" in report["notes"][0]


def test_what_is_learned_from_inputs_is_their_answers(
    lesson_prompt_distill: DistillationInputs, start: LoraAdapter
) -> None:
    inputs = tuple(list(Sentences().texts("train"))[:24])
    distill = PromptDistill(generic=0, repeats=8, lr=0.01)
    report = distill.refine(start, replace(lesson_prompt_distill, inputs=inputs, texts=None)).report
    assert (report["inputs"], report["steps"]) == (24, 24)
    assert report["loss_last"] < 0.5 * report["loss_first"]


@pytest.mark.parametrize("inputs", [(), ("", "  ")])
def test_no_inputs_are_refused(
    lesson_prompt_distill: DistillationInputs, start: LoraAdapter, inputs: tuple[str, ...]
) -> None:
    with pytest.raises(DataError, match=rf"got {len(inputs)}, .* choose refine=corpus_distill"):
        QUICK_PROMPT_DISTILL.refine(start, replace(lesson_prompt_distill, inputs=inputs))


def test_inputs_that_all_get_one_answer_need_others_beside_them(
    lesson_prompt_distill: DistillationInputs, start: LoraAdapter
) -> None:
    alike = replace(
        lesson_prompt_distill, inputs=("the film was very good", "the plot was very good")
    )
    assert QUICK_PROMPT_DISTILL.dataset(alike).report["inputs"] == 2
    with pytest.raises(DataError, match="answers 'very good' to 100% of 2 texts"):
        QUICK_PROMPT_DISTILL.refine(start, replace(alike, texts=None))


def test_corpus_without_texts_is_told_of(lesson_prompt_distill: DistillationInputs) -> None:
    with pytest.raises(DataError, match="the corpus has 0 training texts"):
        QUICK_PROMPT_DISTILL.dataset(replace(lesson_prompt_distill, texts=Lines([], [])))


@pytest.mark.parametrize(("option", "value"), [("generic", -1), ("repeats", 0)])
def test_impossible_options_are_refused_prompt_distill(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"refine\.{option}={value}, but it takes"):
        replace(QUICK_PROMPT_DISTILL, **{option: value})


QUICK_FEW_SHOT = FewShot(generic=16, pool=24, repeats=2, held_out=8, lr=0.01)
EXAMPLES = (
    Example("the film was very good", "very good"),
    Example("the plot was dull", "neutral"),
    # The teacher says otherwise.
    Example("the actor was good", "neutral"),
)


@pytest.fixture
def lesson_few_shot(
    word_teacher: Teacher, pico_target: BaseModel, question: PromptSpec
) -> DistillationInputs:
    return DistillationInputs(word_teacher, pico_target, question, Sentences(), examples=EXAMPLES)


def test_examples_are_learned_by_their_labels_beside_generic_texts(
    lesson_few_shot: DistillationInputs,
) -> None:
    dataset = QUICK_FEW_SHOT.dataset(lesson_few_shot)
    assert dataset.texts[:6] == tuple(row.text for row in EXAMPLES) * 2
    assert len(dataset.texts) == 6 + 16
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])
    assert torch.equal(dataset.targets[:6], labels.repeat(2, 1))
    assert dataset.report["example_labels"] == {"very good": 1, "very bad": 0, "neutral": 2}
    assert dataset.notes == ("No example is labelled 'very bad'.",)


def test_teacher_has_its_share_in_the_targets(lesson_few_shot: DistillationInputs) -> None:
    own = replace(QUICK_FEW_SHOT, generic=0, repeats=1)
    teacher = label_distributions(
        lesson_few_shot.teacher, lesson_few_shot.question, [e.text for e in EXAMPLES]
    )
    hard = own.dataset(lesson_few_shot).targets
    mixed = replace(own, teacher_weight=0.25).dataset(lesson_few_shot).targets
    torch.testing.assert_close(mixed, 0.75 * hard + 0.25 * teacher)


def test_examples_that_contradict_the_teacher_are_still_learned(
    lesson_few_shot: DistillationInputs, start: LoraAdapter
) -> None:
    adapter, report = replace(QUICK_FEW_SHOT, generic=0, repeats=48).refine(start, lesson_few_shot)
    assert adapter.norm() > 0
    assert (report["best_step"], report["checks"]) == (report["steps"], {})
    assert report["kl_before"] is not None
    assert report["kl_after"] != report["kl_before"]
    assert report["loss_last"] < 0.7 * report["loss_first"]


def test_no_corpus_is_needed(lesson_few_shot: DistillationInputs, start: LoraAdapter) -> None:
    report = QUICK_FEW_SHOT.refine(start, replace(lesson_few_shot, texts=None)).report
    assert (report["examples"], report["steps"], report["held_out"]) == (3, 1, 0)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ((), "there are none; give examples=FILE"),
        (
            (*EXAMPLES, Example("a film", "so so")),
            "labelled 'so so', but the labels are 'very good'",
        ),
        ((*EXAMPLES, Example(" ", "neutral")), "1 of 4 examples have no text"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_refused(
    lesson_few_shot: DistillationInputs,
    start: LoraAdapter,
    examples: tuple[Example, ...],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        QUICK_FEW_SHOT.refine(start, replace(lesson_few_shot, examples=examples))


def test_impossible_weight_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"refine\.teacher_weight=1.5, but it takes"):
        FewShot(teacher_weight=1.5)
