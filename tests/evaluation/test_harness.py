"""Suites of lm-eval, whose own runner and HF backend are the reference."""

import importlib
import json
import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import OmegaConf

from loraport.evaluation import harness
from loraport.evaluation.harness import HarnessTask, lm_eval_suites
from loraport.evaluation.suite import Suite, SuiteCache, SuiteScore
from loraport.exceptions import ConfigurationError, DataError, ModelError
from loraport.models import BaseModel, attached
from loraport.store import Store

from ..conftest import WORDS

pytest.importorskip("lm_eval", reason="needs lm_eval")

from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from loraport.evaluation.batched_lm import BatchedLM

EIGHT = (
    *("arc_easy", "arc_challenge", "openbookqa", "hellaswag"),
    *("piqa", "winogrande", "boolq", "social_iqa"),
)
PAIR = Path(__file__).resolve().parents[2] / "conf" / "pair" / "smollm2_gemma3.yaml"
GOOD = {"question": "What is it?", "choices": ["a film", "a plot"], "answer_index": 1}
TWO, THREE = GOOD, GOOD | {"choices": ["a film", "a plot", "an actor"]}


def line(**changes: object) -> str:
    return json.dumps(GOOD | changes)


# --- Likelihoods ---

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"]
# Choices of one token and of many, that begin alike, that are equal, and contexts that differ.
PAIRS = [
    *[("Which is good?", " very good"), ("Which is good?", " very bad"), ("Which is good?", " a")],
    *[("a film", " b"), ("a film", " c")],
    *[("the actor was a", " dull"), ("the actor was the plot", " dull")],
    *[("so long a question that no window sees all of it: " * 2, " yes"), ("short", " no")],
    *[("x", " same"), ("x", " same"), ("x", " same but longer")],
]


def asked(base: BaseModel, pairs: list[tuple[str, str]], **options: int) -> list[Any]:
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    return BatchedLM(base, **options).loglikelihood(requests, disable_tqdm=True)


@torch.no_grad()
def one_by_one(base: BaseModel, context: str, continuation: str) -> tuple[float, bool]:
    """The answer from the definition: no tree, no padding, no mask, all logits."""
    begin = base.tokenizer(context.rstrip())["input_ids"]
    tokens = torch.tensor([base.tokenizer(context + continuation)["input_ids"]])
    predicted = base.network(tokens[:, :-1]).logits[0].double().log_softmax(dim=-1)
    where = range(len(begin) - 1, tokens.shape[1] - 1)
    greedy = all(predicted[n].argmax() == tokens[0, n + 1] for n in where)
    return float(sum(predicted[n, tokens[0, n + 1]] for n in where)), greedy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihoods_are_those_of_each_text_by_itself(architecture, pico):
    base = pico(architecture)
    found = asked(base, PAIRS)
    expected = [one_by_one(base, *pair) for pair in PAIRS]
    assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("batch_tokens", [1, 100])
def test_neither_batches_nor_padding_change_a_number(batch_tokens, pico_target):
    together = [value for value, _ in asked(pico_target, PAIRS, batch_tokens=100_000)]
    apart = [value for value, _ in asked(pico_target, PAIRS, batch_tokens=batch_tokens)]
    assert apart == pytest.approx(together, abs=1e-4)


def test_more_logits_than_are_held_at_once_are_given(pico_target):
    pairs = [("a question", " " + letter * 200) for letter in "abcde"]
    for pair, (value, _) in zip(pairs, asked(pico_target, pairs), strict=True):
        assert value == pytest.approx(one_by_one(pico_target, *pair)[0], abs=1e-3)


def test_an_attached_adapter_takes_part(pico_target, random_adapter):
    plain = asked(pico_target, PAIRS[:3])
    with attached(pico_target.network, random_adapter(pico_target)):
        adapted = asked(pico_target, PAIRS[:3])
        expected, _ = one_by_one(pico_target, *PAIRS[0])
    assert adapted[0][0] == pytest.approx(expected, abs=1e-4)
    assert abs(adapted[0][0] - plain[0][0]) > 1e-2


def test_a_context_that_is_too_long_loses_its_beginning(pico_target):
    limit = pico_target.network.config.max_position_embeddings
    ((value, _),) = asked(pico_target, [("x" * 600, " y")])
    kept = "x" * (limit - 1)
    tokens = pico_target.tokenizer(kept + " y", add_special_tokens=False)["input_ids"]
    assert len(tokens) == limit + 1
    with torch.no_grad():
        logits = pico_target.network(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    assert value == pytest.approx(float(logits[-2, tokens[-2]] + logits[-1, tokens[-1]]), abs=1e-4)


@pytest.mark.parametrize("count", [0, 600])
def test_a_continuation_that_cannot_be_scored_is_refused(count, pico_target):
    request = (None, [1, 5, 6], [7] * count)
    with pytest.raises(DataError, match=rf"has {count} tokens behind 3 .* takes 1 to 512 .*"):
        BatchedLM(pico_target)._loglikelihood_tokens([request])


# --- The same as lm-eval's HF backend ---


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def original_rows(name: str) -> list[dict[str, Any]]:
    """Random rows in the columns of the original data set."""
    draw = random.Random(name)

    def words(least: int, most: int) -> str:
        return " ".join(
            draw.choices([*WORDS, "naïve", "[step]", "[title]"], k=draw.randint(least, most))
        )

    def row() -> dict[str, Any]:
        texts = [f"{words(1, 5)} {letter}" for letter in "abcd"]
        right = draw.randrange(2)
        if name == "hellaswag":
            parts = {"activity_label": words(1, 2), "ctx_a": words(3, 9), "ctx_b": words(0, 3)}
            return {**parts, "endings": texts, "label": str(right)}
        if name == "winogrande":
            sentence = f"{words(0, 6)} _ {words(1, 4)} "
            options = {"option1": words(1, 1), "option2": words(1, 2)}
            return {"sentence": sentence, **options, "answer": str(right + 1)}
        choices = {"text": texts, "label": list("ABCD")}
        return {"question": words(3, 9), "choices": choices, "answerKey": "ABCD"[right]}

    return [row() for _ in range(12)]


def reference(base: BaseModel, suite: HarnessTask) -> dict[str, Any]:
    """What lm-eval's own runner finds with its HF backend."""
    model = HFLM(pretrained=base.network, tokenizer=base.tokenizer, batch_size=8)
    tasks = {"tasks": {suite.name: suite.task}, "groups": {}, "group_map": {}}
    return evaluate(model, tasks, limit=suite.limit, bootstrap_iters=0)


def agree(base: BaseModel, suite: HarnessTask, tolerance: float) -> SuiteScore:
    """Compare answers, metrics and likelihoods, item by item."""
    score = suite.score(base)
    found = reference(base, suite)
    samples = sorted(found["samples"][suite.name], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(score.answers) == len(suite.prompts())
    for index, sample in enumerate(samples):
        values = [value for value, _ in sample["filtered_resps"]]
        choices = suite.task.doc_to_choice(sample["doc"])
        assert score.answers[index] == choices[values.index(max(values))]
        assert float(score.rows["accuracy"][index]) == sample["acc"]
        if "acc_norm" in sample:
            assert float(score.rows["accuracy_norm"][index]) == sample["acc_norm"]
        nll = score.rows["nll"][index]
        shares = (-torch.tensor(values, dtype=torch.float64).log_softmax(0)).tolist()
        assert min(abs(float(nll) - share) for share in shares) <= tolerance
    results = found["results"][suite.name]
    assert score.means()["accuracy"] == pytest.approx(results["acc,none"])
    return score


@pytest.mark.parametrize("name", ["arc_easy", "hellaswag", "winogrande"])
def test_rows_in_lm_eval_s_columns_are_answered_as_by_its_backend(name, pico_target, tmp_path):
    rows = original_rows(name)
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (suite,) = lm_eval_suites([name], path=tmp_path)
    assert isinstance(suite, Suite)
    agree(pico_target, suite, 2e-4)


@pytest.mark.parametrize("name", EIGHT)
def test_questions_of_a_file_are_answered_as_by_its_backend(name, pico_source, tmp_path):
    blank = " _ it" if name == "winogrande" else ""
    choices = ["false", "true"] if name in ("boolq", "piqa", "winogrande") else ["a", "b c", "good"]
    lines = [
        {"question": f"[step] the {word}{blank} .", "choices": choices, "answer_index": place % 2}
        for place, word in enumerate(WORDS[:6])
    ]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (suite,) = lm_eval_suites([name], path=tmp_path)
    agree(pico_source, suite, 1e-4)


@pytest.mark.real
@pytest.mark.parametrize("name", EIGHT)
def test_a_real_model_is_scored_as_lm_eval_scores_it(name: str, shared: Path, cache: Path):
    try:
        base = instantiate(OmegaConf.load(PAIR).source).load(cache)
    except ModelError as error:
        pytest.skip(str(error))
    (suite,) = lm_eval_suites([name], suites=shared / "data", limit=6)
    agree(base, suite, 2e-3)


def task_file(folder: Path, name: str, **fields: object) -> Path:
    """Write a task of our own as lm-eval's YAML, on three local rows."""
    rows = [{"text": f"the film {n}", "more": " was good and the plot"} for n in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{more}}",
        "num_fewshot": 0,
        **fields,
    }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(config))
    return file


def own_task(folder: Path, name: str, **fields: object) -> HarnessTask:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    return HarnessTask(ConfigurableTask(config=load_yaml(task_file(folder, name, **fields))))


@pytest.mark.parametrize("pico_name", ["pico_source", "pico_target"])
def test_written_answers_and_whole_metrics_are_lm_eval_s(pico_name, request, tmp_path):
    base = request.getfixturevalue(pico_name)
    suite = own_task(
        tmp_path,
        "mine",
        output_type="generate_until",
        generation_kwargs={"max_gen_toks": 6, "until": ["o"], "do_sample": False},
        metric_list=[{"metric": "exact_match"}, {"metric": "bleu"}],
    )
    score, found = suite.score(base), reference(base, suite)
    assert score.answers == tuple(s["filtered_resps"][0] for s in found["samples"]["mine"])
    assert not any("o" in answer for answer in score.answers)
    assert score.rows["exact_match"].tolist() == [0, 0, 0]
    assert score.whole == {"bleu": pytest.approx(found["results"]["mine"]["bleu,none"])}
    assert suite.metrics == ("exact_match", "bleu")


# --- The suite ---


def suites_of(folder: Path) -> None:
    """Write two questions of each task, one with its answer spelt out."""
    (folder / "reasoning").mkdir()
    for name in EIGHT:
        row = GOOD | ({"question": "It is _ that was."} if name == "winogrande" else {})
        row |= {"choices": THREE["choices"]} if name == "social_iqa" else {}
        text = json.dumps(row) + "\n\n" + json.dumps(row | {"answer": "a plot"}) + "\n"
        (folder / "reasoning" / f"{name}.jsonl").write_text(text)


def test_a_limit_and_examples_before_the_question(tmp_path):
    rows = [line(question=question) for question in ("Wash it.", "Dry it.")]
    (tmp_path / "piqa.jsonl").write_text("\n".join(rows))
    (suite,) = lm_eval_suites(["piqa"], path=tmp_path, limit=1, num_fewshot=1)
    example, question = "Question: Dry it.\nAnswer: a plot", "Question: Wash it.\nAnswer:"
    assert suite.prompts() == (f"{example}\n\n{question}",)


def test_a_score_is_kept_and_of_equal_choices_the_first_is_taken(pico_target, tmp_path):
    rows = [line(choices=["very good"] * 2, answer_index=n) for n in (0, 1)]
    (tmp_path / "piqa.jsonl").write_text("\n".join(rows))
    (suite,) = lm_eval_suites(["piqa"], path=tmp_path)
    score = SuiteCache(Store(tmp_path / "kept")).score(pico_target, None, suite)
    assert score.answers == ("very good", "very good")
    assert score.rows["accuracy"].tolist() == score.rows["accuracy_norm"].tolist() == [1, 0]
    assert score.rows["nll"].tolist() == pytest.approx([math.log(2)] * 2, abs=1e-6)
    again = SuiteCache(Store(tmp_path / "kept")).score(pico_target, None, suite)
    assert again.answers == score.answers


def test_the_nll_is_that_of_the_right_choice(pico_source, tmp_path):
    words = ["good", "bad", "dull"]
    rows = [line(question="the film was", choices=words, answer_index=n) for n in range(3)]
    (tmp_path / "openbookqa.jsonl").write_text("\n".join(rows))
    (suite,) = lm_eval_suites(["openbookqa"], path=tmp_path)
    values = [one_by_one(pico_source, "the film was", f" {word}")[0] for word in words]
    normaliser = math.log(sum(math.exp(value) for value in values))
    expected = [normaliser - value for value in values]
    assert suite.score(pico_source).rows["nll"].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_hash_is_of_what_is_asked_and_not_of_the_batches(tmp_path):
    def hash_of(row: dict[str, object], **options: Any) -> str:
        (tmp_path / "piqa.jsonl").write_text(json.dumps(GOOD | row))
        (suite,) = lm_eval_suites(["piqa"], path=tmp_path, **options)
        return suite.content_hash()

    first = hash_of({})
    assert hash_of({}, batch_tokens=3, batch_rows=2) == first
    others = [
        hash_of({"question": "Why?"}),
        hash_of({"choices": ["a film", "a play"]}),
        hash_of({"answer_index": 0}),
        hash_of({}, chat_template=True),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("name", "asked", "requests"),
    [
        ("arc_challenge", {"question": "Why?"}, ("Question: Why?\nAnswer:", " a film")),
        ("piqa", {"question": "Wash it."}, ("Question: Wash it.\nAnswer:", " a film")),
        ("openbookqa", {"question": "It is"}, ("It is", " a film")),
        ("social_iqa", {"question": "He ran. Why?"}, ("Q: He ran. Why?\nA:", " a film")),
        ("boolq", {"question": "is it?"}, ("Question: is it?\nAnswer:", " no")),
        (
            "boolq",
            {"question": "is it?", "passage": "It is."},
            ("It is.\nQuestion: is it?\nAnswer:", " no"),
        ),
        (
            "hellaswag",
            {"question": "[header] How [title] First [step] go ", "choices": ["a [title] x", "y"]},
            (" How. First go", " a. x"),
        ),
        ("winogrande", {"question": "It is _ that was."}, ("It is a film", " that was.")),
    ],
)
def test_a_question_is_asked_as_lm_eval_asks_it(name, asked, requests, tmp_path):
    row = (THREE if name == "social_iqa" else TWO) | asked
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    (suite,) = lm_eval_suites([name], path=tmp_path)
    assert suite._asked[0] == (0, requests)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("piqa", " \n\n", r"piqa\.jsonl is empty"),
        ("piqa", line() + "\n{", r"piqa\.jsonl, line 2 is .\{., but takes"),
        ("piqa", line() + "\n\n3", r"line 3 is .3., but takes"),
        ("piqa", line(question=" "), r"line 1 is .*\(question: "),
        ("piqa", line(choices=["a"]), r"choices: "),
        ("piqa", line(answer_index=2), r"answer_index 2 of 2 choices"),
        ("piqa", line(answer="a film"), r"answer is not the choice at answer_index"),
        ("winogrande", line(), r"line 1 is .*\(question has no blank"),
        ("boolq", line(choices=["a", "b", "c"]), r"choices are 3 instead of false and true"),
        ("hellaswag", line(choices=["[step]", "b"]), r"blank without its marks in brackets"),
    ],
)
def test_what_is_wrong_with_a_file_names_file_and_line(name, content, message, tmp_path):
    (tmp_path / f"{name}.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        lm_eval_suites([name], path=tmp_path)


def test_a_missing_file_says_what_to_set(tmp_path):
    with pytest.raises(DataError, match=r"piqa\.jsonl cannot be read.*set paths\.suites"):
        lm_eval_suites(["piqa"], suites=tmp_path)


class Index:
    """An index of tasks without lm-eval's 14,000 files."""

    all_tasks = ("hellaswag", "hellaswag_chat", "humaneval", "mmlu")
    task_index: Mapping[str, Any] = {
        name: SimpleNamespace(cfg={"unsafe_code": name == "humaneval"}) for name in all_tasks
    }

    def load(self, _names: list[str]) -> dict[str, Any]:
        raise ConnectionError("Couldn't reach the Hub")


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["hellaswagg"], {}, r"no task 'hellaswagg', but hellaswag, hellaswag_chat; correct"),
        (["x"], {}, r"no task 'x'; `lm-eval ls tasks`.*correct suite\.harness\.tasks"),
        ("mmlu", {}, r"suite\.harness\.tasks is 'mmlu', but takes a list"),
        ([], {"limit": 0}, r"tasks is \[\], but .* suite\.harness\.limit is 0, but takes a whole"),
    ],
)
def test_a_wrong_option_is_refused(tasks, options, message, monkeypatch):
    monkeypatch.setattr(harness, "_tasks", lambda _folder: Index())
    with pytest.raises(ConfigurationError, match=message):
        lm_eval_suites(tasks=tasks, **options)


def test_a_hub_out_of_reach_says_to_set_a_folder(monkeypatch):
    monkeypatch.setattr(harness, "_tasks", lambda _folder: Index())
    with pytest.raises(DataError, match=r"mmlu .*Couldn't reach the Hub; .*suite\.harness\.path"):
        lm_eval_suites(["mmlu"])


def test_a_task_that_runs_programs_is_refused(monkeypatch, tmp_path):
    suite = own_task(tmp_path, "humaneval", output_type="generate_until", unsafe_code=True)
    monkeypatch.setattr(harness, "_tasks", lambda _folder: Index())
    monkeypatch.setattr(Index, "load", lambda *_: {"tasks": {"humaneval": suite.task}})
    for name in ("humaneval", "mmlu"):  # by itself, and as what a group holds
        with pytest.raises(ConfigurationError, match=r"humaneval, which runs programs.*suite=code"):
            lm_eval_suites([name])


def test_without_lm_eval_it_is_said_how_to_install_it(monkeypatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    harness._tasks.cache_clear()
    with pytest.raises(ConfigurationError, match=r"No module.*pip install 'loraport\[suites\]'"):
        lm_eval_suites(["piqa"])


def test_the_config_names_the_eight_and_reads_them_from_a_folder_of_suites(tmp_path):
    suites_of(tmp_path)
    with initialize_config_module("loraport.conf", version_base="1.3"):
        overrides = ["suite=[reasoning,harness]", f"paths.suites={tmp_path}"]
        config = compose("evaluate", overrides=overrides)
    suites = instantiate(config.suite.reasoning)
    assert [suite.name for suite in suites] == list(EIGHT)
    assert {len(suite.prompts()) for suite in suites} == {2}
    lengthy = {suite.name for suite in suites if "accuracy_norm" in suite.metrics}
    assert lengthy == set(EIGHT) - {"winogrande", "boolq", "social_iqa"}
    with pytest.raises(Exception, match=re.escape("tasks is [], but takes a list of lm-eval's")):
        instantiate(config.suite.harness)
