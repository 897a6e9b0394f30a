import math
from contextlib import closing
from dataclasses import dataclass, replace

import pytest
import torch

import loraport.refinement.label_distillation as module
from loraport.adapters import LoraAdapter, Role, relative_error
from loraport.data.prompts import PromptSpec, answer_tokens
from loraport.data.tasks import Example
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel, attached
from loraport.models.likelihood import log_likelihoods
from loraport.refinement.base import DistillationInputs, Refined, Refinement, Teacher
from loraport.refinement.label_distillation import (
    Agreement,
    CorpusDistill,
    FewShot,
    LabelStudent,
    PromptDistill,
    SoftBatch,
    SoftLabelDataset,
    agreement_rows,
    check_informative,
    confidence,
    label_balance,
    label_distributions,
    label_shares,
)
from loraport.store import Store

from .conftest import Lines, Sentences, answer, zero_adapter

TEXTS = list(Sentences().texts("train"))[:150]
INPUTS = ("the film was very good", "a dull plot was dull", "", "the film was very good", "so bad")
EXAMPLES = (
    Example("the film was very good", "very good"),
    Example("the plot was dull", "neutral"),
    # The teacher says otherwise.
    Example("the actor was good", "neutral"),
)

QUICK = CorpusDistill(texts=24, pool=40, held_out=8, lr=0.01, checks=3)
LONG = CorpusDistill(texts=160, pool=176, held_out=24, epochs=4, lr=0.01, checks=2)
PROMPTS = PromptDistill(generic=16, pool=24, repeats=3, held_out=8, lr=0.01)
FEW = FewShot(generic=16, pool=24, repeats=2, held_out=8, lr=0.01)


@pytest.fixture(scope="module")
def data(
    word_teacher: Teacher, pico_target: BaseModel, prompt_spec: PromptSpec
) -> DistillationInputs:
    return DistillationInputs(
        word_teacher, pico_target, prompt_spec, Sentences(), inputs=INPUTS, examples=EXAMPLES
    )


@pytest.fixture(scope="module")
def quick(data: DistillationInputs, start: LoraAdapter) -> Refined:
    return QUICK.refine(start, data)


def label_likelihoods(
    base: BaseModel, adapter: LoraAdapter, prompt: list[int], prompt_spec: PromptSpec
) -> torch.Tensor:
    """Each label's log-likelihood by a forward pass of its own."""
    totals = []
    for tokens in answer_tokens(base.tokenizer, prompt_spec).values():
        ids = torch.tensor([prompt + tokens])
        with attached(base.network, adapter), torch.inference_mode():
            steps = base.network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        totals.append(steps.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).sum())
    return torch.stack(totals)


# The teacher's labels.


def test_distribution_is_the_softmax_of_the_likelihoods_of_whole_labels(data):
    base, adapter = data.teacher.base, data.teacher.adapter
    rows = label_distributions(data, TEXTS[:3], temperature=2.0)
    for row, text in zip(rows, TEXTS, strict=False):
        prompt = base.tokenizer(text)["input_ids"]
        expected = label_likelihoods(base, adapter, prompt, data.prompt_spec) / 2
        torch.testing.assert_close(row, expected.softmax(0), atol=1e-5, rtol=1e-4)


def test_teacher_answers_by_the_last_word(data):
    labels = data.prompt_spec.labels
    rows = label_distributions(data, TEXTS)
    tops = [labels[top] for top in rows.argmax(dim=1).tolist()]
    assert tops == [answer(text) for text in TEXTS]
    assert label_shares(rows, labels) == {label: tops.count(label) / 150 for label in labels}
    assert 0.9 < confidence(rows) < confidence(label_distributions(data, TEXTS, temperature=0.5))


def test_labels_are_kept_for_other_temperatures_and_no_other_adapter(
    data, tmp_path, monkeypatch, random_adapter
):
    computed: list[int] = []

    def counted(base: BaseModel, spec: PromptSpec, texts: list[str]) -> torch.Tensor:
        computed.append(len(texts))
        return log_likelihoods(base, spec, texts)

    monkeypatch.setattr(module, "log_likelihoods", counted)
    monkeypatch.setattr(module, "_SHARD", 4)
    stored, texts = replace(data, store=Store(tmp_path)), TEXTS[:10]
    first = label_distributions(stored, texts)
    assert computed == [4, 4, 2]
    assert torch.equal(label_distributions(stored, texts), first)
    label_distributions(stored, texts, temperature=0.5)
    assert computed == [4, 4, 2]
    other = Teacher(data.teacher.base, random_adapter(data.teacher.base))
    label_distributions(replace(stored, teacher=other), texts)
    spec = replace(data.prompt_spec, prompt="{text} ?")
    label_distributions(replace(stored, prompt_spec=spec), texts)
    label_distributions(stored, texts[:-1])
    assert len(computed) == 4 * 3


def test_labels_of_the_same_tokens_are_refused(data, pico_source):
    unknown = PromptSpec("{text}", ("good", "sublime", "lousy"))
    message = "'sublime' and 'lousy' are the same tokens for pico/source.* choose other words"
    with pytest.raises(DataError, match=message):
        label_distributions(replace(data, prompt_spec=unknown), TEXTS)
    modules = list(pico_source.network.modules())
    with pytest.raises(DataError, match=message):
        LabelStudent(pico_source, zero_adapter(pico_source), unknown)
    assert list(pico_source.network.modules()) == modules


def test_teacher_that_gives_one_answer_only_is_refused_and_one_that_hardly_varies_noted():
    labels = ["yes", "no"]
    with pytest.raises(DataError, match=r"answers 'yes' to 100% of 3 texts.*prompt\.labels"):
        check_informative(torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]]), labels)
    with pytest.raises(DataError, match="nothing can be learned"):  # it does not read the text
        check_informative(torch.tensor([[0.5001, 0.4999], [0.4999, 0.5001]]), labels)
    rows = torch.tensor([[0.9, 0.1]] * 199 + [[0.1, 0.9]])
    (note,) = check_informative(rows, labels)
    assert "'yes' to 99.5% of the texts" in note
    assert check_informative(rows[-20:], labels) == ()


@pytest.mark.parametrize(
    ("shares", "balance"),
    [((0.25, 0.25, 0.25, 0.25), 1.0), ((1.0, 0.0), 0.0), ((0.5, 0.5, 0.0, 0.0), 0.5)],
)
def test_balance_is_the_entropy_of_the_labels_shares(shares, balance):
    named = {f"label {index}": share for index, share in enumerate(shares)}
    assert label_balance(named) == pytest.approx(balance)


# The student and its agreement.


@pytest.mark.parametrize("labels", [("very good", "very bad", "neutral"), ("x", "xy", "xyz")])
def test_loss_is_the_cross_entropy_of_whole_labels(pico_target, random_adapter, labels):
    spec = PromptSpec("{text}\n?", labels)
    start = random_adapter(pico_target)
    prompts = pico_target.tokenizer([spec.ask(text) for text in TEXTS[:2]])["input_ids"]
    targets = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]])
    expected = 0.0
    for prompt, target in zip(prompts, targets, strict=True):
        begun = label_likelihoods(pico_target, start, prompt, spec).double()
        if labels == ("x", "xy", "xyz"):  # the text is one of them only
            begun[:2] = (begun[:2].exp() - begun[1:].exp()).log()
        expected -= float((target * begun).sum()) / 2
    with closing(LabelStudent(pico_target, start, spec)) as student:
        loss = student.loss(SoftBatch(prompts, targets))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_batches_keep_texts_and_targets_together(pico_target, prompt_spec, start):
    dataset = SoftLabelDataset(tuple(TEXTS[:10]), torch.arange(30.0).reshape(10, 3))
    with closing(LabelStudent(pico_target, start, prompt_spec)) as student:
        batches = student.batches(dataset, batch_size=4, epochs=2, seed=0)
    assert [len(batch.prompts) for batch in batches[:3]].count(4) == 2
    prompts = map(tuple, pico_target.tokenizer(TEXTS[:10])["input_ids"])
    expected = dict(zip(prompts, dataset.targets.tolist(), strict=True))
    for batch in batches:
        for prompt, row in zip(batch.prompts, batch.targets.tolist(), strict=True):
            assert expected[tuple(prompt)] == row
    assert sum(len(batch.prompts) for batch in batches) == 20


def test_agreement_by_hand():
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
    # A student of NaN does not count as the best.
    nan = Agreement.between(torch.tensor([[0.5, 0.5]]), torch.tensor([[math.nan, math.nan]]))
    assert math.isnan(nan.kl)


def test_teacher_agrees_with_itself_and_its_base_does_not(data):
    held_out = QUICK.held_out_texts(data, 40)
    assert held_out is not None
    base, spec = data.teacher.base, data.prompt_spec
    bare = Agreement.of(base, spec, held_out)
    with attached(base.network, data.teacher.adapter):
        own = Agreement.of(base, spec, held_out)
    assert own.top_share == 1.0
    assert own.kl == pytest.approx(0, abs=1e-6)
    assert bare.top_share < 0.7
    assert bare.kl > 0.3


def test_rows_of_agreement_by_hand():
    teacher = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])  # 0, 0, 1, 0
    held_out = SoftLabelDataset(("a", "b", "c", "d"), teacher)
    before, after = (
        Agreement.between(teacher, torch.tensor([[1.0 - top, top] for top in tops]).log())
        for tops in ([1, 0, 0, 1], [0, 1, 1, 0])
    )
    assert (before.tops, after.tops) == ((1, 0, 0, 1), (0, 1, 1, 0))
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert agreement_rows(held_out, before, after) == {
        "agreement_gained": 3,
        "agreement_lost": 1,
        "agreement_constant": 0.75,
        "agreement_over_constant": 0.0,
        "teacher_balance": pytest.approx(entropy),
        "student_balance": pytest.approx(1.0),
    }


# Distillation on generic texts.


def accuracy(data: DistillationInputs, adapter: LoraAdapter) -> float:
    texts = list(Sentences(validation=300).texts("validation"))[-100:]
    with attached(data.target.network, adapter):
        tops = log_likelihoods(data.target, data.prompt_spec, texts).argmax(dim=1).tolist()
    labels = [data.prompt_spec.labels[top] for top in tops]
    return sum(map(str.__eq__, labels, map(answer, texts))) / len(texts)


def test_skill_arrives_from_texts_alone(data, start):
    adapter, report = LONG.refine(start, data)
    assert accuracy(data, adapter) > 0.7
    assert report["agreement_after"] > 0.7 > 0.6 > report["agreement_before"]
    assert report["kl_after"] < 0.3 * report["kl_before"]
    changed = report["agreement_gained"] - report["agreement_lost"]
    rise = report["agreement_after"] - report["agreement_before"]
    assert changed / report["held_out"] == pytest.approx(rise)
    assert (report["texts"], report["pool"], report["held_out"]) == (160, 176, 24)
    assert report["steps"] == 4 * 20
    assert report["loss_last"] < 0.3 * report["loss_first"]
    assert sum(report["pool_shares"].values()) == pytest.approx(1)
    assert report["pool_balance"] == label_balance(report["pool_shares"])
    equal = dict.fromkeys(data.prompt_spec.labels, 1 / 3)
    assert report["chosen_shares"] == pytest.approx(equal, abs=0.05)
    assert report["notes"] == []


def test_the_same_texts_with_labels_of_other_texts_teach_nothing(data, start):
    @dataclass(frozen=True, kw_only=True)
    class Shuffled(CorpusDistill):
        def dataset(self, data: DistillationInputs) -> SoftLabelDataset:
            made = super().dataset(data)
            order = torch.randperm(len(made.texts), generator=torch.Generator().manual_seed(0))
            return replace(made, targets=made.targets[order])

    options = {name: getattr(LONG, name) for name in ("texts", "pool", "held_out", "epochs", "lr")}
    control = Shuffled(**options, checks=0).refine(start, data).adapter
    assert accuracy(data, control) < 0.6


def test_best_of_the_measured_weights_is_kept(quick):
    report = quick.report
    assert list(report["checks"]) == ["0", "1", "2", "3"]
    best = min(report["checks"].values())
    assert report["checks"][str(report["best_step"])] == best
    assert report["kl_before"] == report["checks"]["0"]
    assert report["kl_after"] == pytest.approx(best, rel=1e-5)


def test_given_adapter_is_kept_without_steps_or_where_training_does_not_help(
    data, random_adapter, monkeypatch
):
    start = random_adapter(data.target)
    adapter, report = replace(QUICK, epochs=0).refine(start, data)
    assert relative_error(adapter, start) < 1e-6
    assert (report["steps"], report["loss_first"]) == (0, None)
    assert report["agreement_after"] == report["agreement_before"]
    kls = iter([1.0, 2.0, 3.0, 4.0, 1.0])
    monkeypatch.setattr(Agreement, "of", lambda *_: Agreement(0.5, next(kls)))
    start = random_adapter(data.target, roles=(Role.Q,))
    adapter, report = QUICK.refine(start, data)
    assert (report["best_step"], report["steps"]) == (0, 3)
    assert "brought the target no nearer" in report["notes"][0]
    assert relative_error(adapter, start) < 1e-6


def test_same_seed_same_bits_and_base_models_are_left_as_they_were(data, start, quick):
    bases = (data.teacher.base, data.target)
    before = [{k: v.clone() for k, v in base.network.state_dict().items()} for base in bases]
    torch.manual_seed(1)
    other = QUICK.refine(start, replace(data, seed=1)).adapter.content_hash()
    assert QUICK.refine(start, data).adapter.content_hash() == quick.adapter.content_hash() != other
    for base, kept in zip(bases, before, strict=True):
        after = base.network.state_dict()
        assert kept.keys() == after.keys()
        assert all(torch.equal(kept[name], after[name]) for name in kept)
        assert not any(p.requires_grad for p in base.network.parameters())
        assert not base.network.training


def test_stopped_in_labelling_and_in_training_it_ends_in_the_same_bits(
    data, start, quick, tmp_path, monkeypatch
):
    kept = replace(data, store=Store(tmp_path))
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
        QUICK.refine(start, replace(kept, progress=stop))
    monkeypatch.setattr(LabelStudent, "loss", stopping)
    modules = list(data.target.network.modules())
    with pytest.raises(KeyboardInterrupt):
        QUICK.refine(start, kept)
    assert list(data.target.network.modules()) == modules
    steps: dict[str, tuple[int, int]] = {}
    found = QUICK.refine(start, replace(kept, progress=lambda s, d, n: steps.update({s: (d, n)})))
    assert len(calls) == 4, "two steps were made, the third was begun twice"
    assert found.adapter.content_hash() == quick.adapter.content_hash()
    for fact in ("checks", "best_step", "loss_first", "loss_last", "kl_before", "kl_after"):
        assert found.report[fact] == quick.report[fact]
    assert steps == {
        "labelling texts by the source": (1, 1),
        "labelling held-out texts by the source": (1, 1),
        "distilling into the target": (3, 3),
    }


def test_texts_are_cut_at_words_and_neither_empty_nor_double_nor_held_out(data, start, monkeypatch):
    lines = ["the film was very good", "the film was bad", " ", "", "the plot was bad indeed"]
    validation = ["the film was dull", "a dull plot"]
    labelled: list[list[str]] = []

    def noted(base: BaseModel, spec: PromptSpec, texts: list[str]) -> torch.Tensor:
        labelled.append(list(texts))
        return log_likelihoods(base, spec, texts)

    monkeypatch.setattr(module, "log_likelihoods", noted)
    monkeypatch.setattr(module, "check_informative", lambda *_: ())
    short = replace(
        data,
        prompt_spec=replace(data.prompt_spec, text_chars=13),
        texts=Lines([*lines, "a scene", "A scene"], validation),
    )
    report = QUICK.refine(start, short).report
    pool = ["the film was", "the plot was", "a scene", "A scene"]
    assert labelled[:2] == [pool, ["a dull plot"]]
    held_out = QUICK.held_out_texts(short, 8)  # nor of the pool, whichever of it is learned
    assert held_out is not None
    assert held_out.texts == ("a dull plot",)
    assert report["notes"][:2] == [
        "The corpus has 4 texts of the 24 that were asked for; all of them were used.",
        "Agreement was measured on 1 texts of the 8 that were asked for: the corpus has no more "
        "validation texts.",
    ]


def test_without_validation_texts_the_last_weights_are_kept(data, start):
    texts = Lines(list(Sentences().texts("train")), [])
    report = QUICK.refine(start, replace(data, texts=texts)).report
    assert (report["held_out"], report["kl_after"]) == (0, None)
    assert report["best_step"] == report["steps"] == 3
    assert "no held-out generic texts" in report["notes"][0]


GOOD = [text for text in Sentences().texts("train") if text.endswith("good")]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, r"there is no corpus; set paths\.corpus"),
        (Lines([], []), r"the corpus has 0 training texts .* set paths\.corpus"),
        (Lines(["", " ", "a film", "a film"], []), "the corpus has 1 training texts"),
        (Lines(GOOD, []), "answers 'very good' to 100% of 40 texts"),
    ],
)
def test_texts_that_nothing_can_be_learned_from_are_refused(data, start, texts, message):
    with pytest.raises(DataError, match=message):
        QUICK.refine(start, replace(data, texts=texts))


def test_without_labels_another_refinement_takes_over(data, start):
    class Sequences(Refinement):
        name = "sequences"
        data_access = "generic text"

        def refine(self, start: LoraAdapter, data: DistillationInputs) -> Refined:
            return Refined(start, {"labels": len(data.prompt_spec.labels)})

    free = replace(data, prompt_spec=PromptSpec())
    assert replace(QUICK, sequence=Sequences()).refine(start, free) == (start, {"labels": 0})
    with pytest.raises(DataError, match=r"set prompt\.labels to the words"):
        QUICK.refine(start, free)


@pytest.mark.parametrize(
    ("refinement", "option", "value"),
    [
        *(
            (QUICK, "texts", 0),
            (QUICK, "held_out", -1),
            (QUICK, "lr", 0.0),
            (QUICK, "lr", math.nan),
        ),
        *((PROMPTS, "repeats", 0), (FEW, "teacher_weight", 1.5), (FEW, "teacher_weight", -0.1)),
    ],
)
def test_impossible_options_are_refused(refinement, option, value):
    with pytest.raises(ConfigurationError, match=rf"refine\.{option}={value}, but it takes"):
        replace(refinement, **{option: value})


# Distillation on inputs of the task.


def test_inputs_weigh_as_often_as_they_are_repeated_beside_generic_texts(data):
    dataset = PROMPTS.dataset(data)
    assert len(dataset.texts) == 3 * 3 + 16
    own = {INPUTS[0]: "very good", INPUTS[1]: "neutral", "so bad": "very bad"}
    assert {text: dataset.texts.count(text) for text in own} == dict.fromkeys(own, 3)
    tops = dict(zip(dataset.texts, dataset.targets.argmax(dim=1).tolist(), strict=True))
    assert {text: data.prompt_spec.labels[tops[text]] for text in own} == own
    assert (dataset.report["inputs"], dataset.report["generic_texts"]) == (3, 16)


def test_inputs_alone_are_learned_where_there_is_nothing_else(data, start):
    assert len(replace(PROMPTS, generic=0).dataset(data).texts) == 9
    many = replace(PROMPTS, repeats=32)
    report = many.refine(start, replace(data, texts=None)).report
    assert (report["texts"], report["steps"], report["held_out"]) == (3, 12, 0)
    assert report["loss_last"] < 0.8 * report["loss_first"]
    assert "no held-out generic texts" in report["notes"][0]


def test_inputs_without_text_and_alone_with_one_answer_are_refused(data):
    with pytest.raises(DataError, match=r"got 2, .* choose refine=corpus_distill"):
        PROMPTS.dataset(replace(data, inputs=("", "  ")))
    same = replace(data, inputs=("the film was very good", "the plot was very good"))
    assert PROMPTS.dataset(same).report["inputs"] == 2
    with pytest.raises(DataError, match="answers 'very good' to 100% of 2 texts"):
        PROMPTS.dataset(replace(same, texts=None))


# Training on labelled examples.


def test_examples_are_learned_by_their_labels_beside_generic_texts(data):
    dataset = FEW.dataset(data)
    assert dataset.texts[:6] == tuple(row.text for row in EXAMPLES) * 2
    assert len(dataset.texts) == 6 + 16
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])
    assert torch.equal(dataset.targets[:6], labels.repeat(2, 1))
    assert dataset.report["example_labels"] == {"very good": 1, "very bad": 0, "neutral": 2}
    assert dataset.notes == ("No example is labelled 'very bad'.",)
    teacher = label_distributions(data, [example.text for example in EXAMPLES])
    mixed = replace(FEW, generic=0, repeats=1, teacher_weight=0.25).dataset(data)
    torch.testing.assert_close(mixed.targets, 0.75 * labels + 0.25 * teacher)


def test_examples_that_contradict_the_teacher_are_still_learned(data, start):
    adapter, report = replace(FEW, generic=0, repeats=48).refine(start, data)
    assert adapter.norm() > 0
    assert (report["best_step"], report["checks"]) == (report["steps"], {})
    assert report["kl_before"] is not None
    assert report["kl_after"] != report["kl_before"]
    assert report["loss_last"] < 0.7 * report["loss_first"]


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
def test_examples_that_cannot_be_learned_from_are_refused(data, examples, message):
    with pytest.raises(DataError, match=message):
        FEW.dataset(replace(data, examples=examples))
