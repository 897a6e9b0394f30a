from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site, cosine
from loraport.data import Example, PromptTemplate, Task
from loraport.data.prompts import PromptSpec, answer_tokens, prompt_tokens
from loraport.evaluation.scoring import (
    GenerateScorer,
    LikelihoodScorer,
    ScoreCache,
    TaskScore,
    TextDivergences,
    prefix_label,
    random_adapter,
    swapped,
)
from loraport.exceptions import DataError
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.kl import KlToBaseGauge
from loraport.store import Key, Store


def naive(base: BaseModel, task: Task, template: PromptTemplate) -> Tensor:
    """Each label's log-likelihood by a forward pass of its own over the whole sequence."""
    answers = answer_tokens(base.tokenizer, PromptSpec.of(task, template))
    prompts = prompt_tokens(
        base.tokenizer, PromptSpec.of(task, template), [row.text for row in task.test]
    )
    scores = torch.empty(len(prompts), len(task.labels))
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(task.labels):
            ids = torch.tensor([prompt + answers[label]])
            with torch.inference_mode():
                logits = base.network(input_ids=ids, use_cache=False).logits[0, :-1]
            chosen = logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None]).squeeze(1)
            scores[row, column] = chosen[len(prompt) - 1 :].sum()
    return scores


def test_a_label_that_begins_others_is_the_answer_where_none_of_those_is(
    pico, random_adapter, pico_task, template
):
    """Against passes of their own; to a tenth a next byte that is a letter goes on to another."""
    base = pico("gemma3_text")
    labels = ("good", *(f"good{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"))
    rows = tuple(row._replace(label="good") for row in pico_task.test[:4])
    task = replace(pico_task, labels=labels, train=rows, test=rows)
    with attached(base.network, random_adapter(base)):
        ours = LikelihoodScorer().log_likelihoods(base, task, template).double()
        begun = naive(base, task, template).double()
    left = (begun[:, 0].exp() - begun[:, 1:].exp().sum(dim=1)).log()
    torch.testing.assert_close(ours[:, 0], left, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours[:, 1:], begun[:, 1:], rtol=1e-5, atol=1e-4)
    assert float((begun[:, 0] - left).min()) > 0.01


def test_labels_that_are_the_same_tokens_are_refused(pico_source, pico_task, template):
    labels = ("splendid", "dreadful")  # unknown words of this tokenizer
    rows = tuple(row._replace(label="splendid") for row in pico_task.test)
    task = replace(pico_task, labels=labels, train=rows, test=rows)
    with pytest.raises(DataError, match=r"'splendid' and 'dreadful' are the same tokens"):
        LikelihoodScorer().score(pico_source, task, template)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihoods_equal_those_of_a_pass_for_each_label(
    architecture, pico, random_adapter, pico_task, template
):
    base = pico(architecture)
    window_cuts = len(base.tokenizer(PromptSpec.of(pico_task, template).ask(""))["input_ids"])
    assert window_cuts > (getattr(base.network.config, "sliding_window", None) or 0)
    for adapter in (None, random_adapter(base)):
        with attached(base.network, adapter):
            ours = LikelihoodScorer().log_likelihoods(base, pico_task, template)
            expected = naive(base, pico_task, template)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    assert expected.std(dim=1).min() > 0.01


@pytest.mark.parametrize("batch_tokens", [1, 700])
def test_batches_and_padding_do_not_change_scores(batch_tokens, pico_target, pico_task, template):
    whole = LikelihoodScorer(10**6).log_likelihoods(pico_target, pico_task, template)
    parts = LikelihoodScorer(batch_tokens).log_likelihoods(pico_target, pico_task, template)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_score_is_the_best_label_and_the_share_of_the_right_one(pico_target, pico_task, template):
    score = LikelihoodScorer().score(pico_target, pico_task, template)
    expected = naive(pico_target, pico_task, template)
    best = [pico_task.labels[place] for place in expected.argmax(dim=1).tolist()]
    right = [row.label for row in pico_task.test]
    assert score.predictions == tuple(best)
    assert score.correct.tolist() == [a == b for a, b in zip(best, right, strict=True)]
    share = expected.softmax(dim=1)[range(len(right)), [pico_task.labels.index(x) for x in right]]
    assert score.row_nll is not None
    torch.testing.assert_close(score.row_nll, -share.log(), rtol=1e-4, atol=1e-4)
    assert score.nll == pytest.approx(float(-share.log().mean()), abs=1e-4)


@pytest.mark.parametrize("side", ["pico_source", "pico_target"])
def test_generation_follows_the_most_likely_token(side, pico_task, template, request):
    base: BaseModel = request.getfixturevalue(side)
    longest = max(
        len(a) for a in answer_tokens(base.tokenizer, PromptSpec.of(pico_task, template)).values()
    )
    prompts = prompt_tokens(
        base.tokenizer, PromptSpec.of(pico_task, template), [row.text for row in pico_task.test]
    )
    written = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(longest):
            with torch.inference_mode():
                best = base.network(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            if best == base.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best.view(1, 1)], dim=1)
        text = base.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        written.append(str(text))
    # Labels that the model does write, so that there is something to recognise.
    begun = sorted({text.strip()[:2].strip() for text in written if text.strip()})
    labels = (*begun, "never written")
    task = replace(
        pico_task,
        labels=labels,
        train=(),
        test=tuple(Example(row.text, labels[0]) for row in pico_task.test),
    )
    score = GenerateScorer(batch_tokens=100).score(base, task, template)
    assert score.predictions == tuple(prefix_label(text, labels) for text in written)
    assert any(score.predictions)
    assert score.row_nll is None


@pytest.mark.parametrize(
    ("text", "label"),
    [(" very good film", "very good"), ("\n neutral", "neutral"), ("so very good", ""), ("", "")],
)
def test_prefix_label(text: str, label: str) -> None:
    assert prefix_label(text, ("very good", "very bad", "neutral")) == label


@pytest.mark.parametrize("scorer", [LikelihoodScorer(), GenerateScorer()])
def test_task_without_test_rows_is_refused(scorer, pico_source, pico_task, template):
    with pytest.raises(DataError, match=r"feeling has no test row.*tasks\.limit"):
        scorer.score(pico_source, replace(pico_task, test=()), template)


IDS = torch.arange(12).reshape(1, 12) % 20 + 2


@dataclass(frozen=True)
class CountingScorer:
    """Scores by the model's logits, so that what is attached shows; counts its calls."""

    setting: int = 0
    likelihoods: bool = True
    calls: list[str] = field(default_factory=list, repr=False, compare=False)

    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        self.calls.append(task.name)
        with torch.inference_mode():
            logits = base.network(input_ids=IDS).logits[0, -1, : len(task.test)]
        nll = logits.exp().log1p()
        return TaskScore(
            predictions=tuple(task.labels[0] for _ in task.test),
            correct=torch.tensor([row.label == task.labels[0] for row in task.test]),
            row_nll=nll.clone() if self.likelihoods else None,
        )


@pytest.fixture
def scorer() -> CountingScorer:
    return CountingScorer()


@pytest.fixture
def scores(scorer: CountingScorer, template: PromptTemplate, tmp_path: Path) -> ScoreCache:
    return ScoreCache(Store(tmp_path / "store"), scorer, template)


@pytest.fixture
def adapter(pico_source: BaseModel, random_adapter: Callable[..., LoraAdapter]) -> LoraAdapter:
    return random_adapter(pico_source)


def same(one: TaskScore, other: TaskScore) -> bool:
    if one.row_nll is None or other.row_nll is None:
        alike = one.row_nll is other.row_nll
    else:
        alike = torch.equal(one.row_nll, other.row_nll) and one.row_nll.dtype == other.row_nll.dtype
    return (
        alike and one.predictions == other.predictions and torch.equal(one.correct, other.correct)
    )


@pytest.mark.parametrize("likelihoods", [True, False])
def test_a_score_is_computed_once_and_kept_to_the_bit(
    likelihoods, scores, pico_source, pico_task, adapter
):
    scorer = CountingScorer(likelihoods=likelihoods)
    cache = replace(scores, scorer=scorer)
    first, again = (cache.score(pico_source, adapter, pico_task) for _ in range(2))
    assert scorer.calls == ["feeling"]
    assert same(first, again)
    assert (first.row_nll is not None) == likelihoods


def test_scores_of_labels_that_begin_others_have_keys_of_their_own(
    scores, pico_source, pico_task, monkeypatch
):
    """What an earlier release kept of them followed another rule."""
    rules, of = [], Key.of

    def noted(kind, **parts):
        rules.append(parts.get("rule"))
        return of(kind, **parts)

    monkeypatch.setattr(Key, "of", noted)
    longer = replace(pico_task, labels=(*pico_task.labels, "neutral mostly"))
    for task in (pico_task, longer):
        scores.score(pico_source, None, task)
    assert rules == [None, "labels exclude each other"]


@pytest.mark.parametrize(
    "changed",
    ["adapter", "scale", "task", "rows", "template", "scorer", "base", "dtype", "precision"],
)
def test_everything_that_a_score_depends_on_is_in_its_key(
    changed, scores, scorer, pico, pico_source, pico_task, adapter, monkeypatch
):
    base, cache, task, used = pico_source, scores, pico_task, adapter
    cache.score(base, used, task)
    if changed == "adapter":
        used = used.map(lambda update: replace(update, A=update.A + 1e-3))
    elif changed == "scale":
        used = used.map(lambda update: update.scaled(1.001))
    elif changed == "task":
        first = Example(task.test[0].text + " truly", task.test[0].label)
        task = replace(task, test=(first, *task.test[1:]))
    elif changed == "rows":
        task = task.limited(5)
    elif changed == "template":
        cache = replace(cache, template=PromptTemplate(prompt="{text} {instruction}"))
    elif changed == "scorer":
        cache = replace(cache, scorer=replace(scorer, setting=1))
    elif changed == "base":
        base = replace(base, fingerprint="another")
    elif changed == "precision":
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    else:
        base = replace(pico("llama"), fingerprint=base.fingerprint)
        cast("torch.nn.Module", base.network).to(torch.bfloat16)
    for name in ("feeling", "renamed"):  # which no score depends on
        cache.score(base, used, replace(task, name=name))
        assert len(scorer.calls) == 2


def test_scorer_that_fails_leaves_nothing_behind(scores, pico_source, pico_task, adapter):
    class Failing(CountingScorer):
        def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
            raise RuntimeError("planted")

    failing = replace(scores, scorer=Failing())
    before = pico_source.network(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="planted"):
        failing.score(pico_source, adapter, pico_task)
    assert scores.store.root is not None
    assert [file for file in scores.store.root.rglob("*") if file.is_file()] == []
    assert torch.equal(pico_source.network(input_ids=IDS).logits, before)


class Turned:
    """Attached by hooks of its own: turns the sign of what the first layer's q puts out."""

    def __init__(self, name: str) -> None:
        self.name = name

    def hooks(self, network: PreTrainedModel) -> list[RemovableHandle]:
        module = network.get_submodule(Site(0, Role.Q).module_name)
        return [module.register_forward_hook(lambda _module, _inputs, output: -output)]

    def content_hash(self) -> str:
        return self.name


def test_what_is_attached_by_hooks_of_its_own_is_scored_and_kept_by_its_content(
    scores, scorer, pico_source, pico_task
):
    plain = scores.score(pico_source, None, pico_task)
    fresh = replace(scores, store=Store(None))
    turned = scores.score(pico_source, Turned("one"), pico_task)
    assert not same(plain, turned)
    assert same(scores.score(pico_source, Turned("one"), pico_task), turned)
    assert len(scorer.calls) == 2
    scores.score(pico_source, Turned("other"), pico_task)
    assert len(scorer.calls) == 3
    assert same(fresh.score(pico_source, None, pico_task), plain), "it is attached no longer"


TEXTS: tuple[str, ...] = ("the film was truly good", "a plot", "is the scene bad ?")


@pytest.fixture
def adapters(
    pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> tuple[LoraAdapter, LoraAdapter]:
    return random_adapter(pico_target), random_adapter(pico_target, seed=1)


@pytest.fixture
def runs(pico_target: BaseModel) -> Iterator[list[int]]:
    """Counts forward passes of the target."""
    counted: list[int] = []
    handle = pico_target.network.register_forward_pre_hook(lambda *_: counted.append(1))
    yield counted
    handle.remove()


def test_what_is_kept_is_what_the_gauge_measures_and_runs_no_model(
    tmp_path, pico_target, adapters, runs
):
    store = Store(tmp_path)
    first = [TextDivergences(pico_target, TEXTS, store).of(adapter) for adapter in adapters]
    assert first[0] != first[1]
    assert first[0] == KlToBaseGauge(pico_target, TEXTS, most=64, positions=4).measures(adapters[0])
    runs.clear()
    assert [TextDivergences(pico_target, TEXTS, store).of(adapter) for adapter in adapters] == first
    assert runs == []


@pytest.mark.parametrize("change", ["texts", "most", "positions", "seed", "scale", "base"])
def test_everything_that_a_divergence_depends_on_is_in_its_key(
    change, tmp_path, pico_target, pico, adapters, random_adapter
):
    store = Store(tmp_path)
    TextDivergences(pico_target, TEXTS, store).of(adapters[0])
    base, adapter, texts = pico_target, adapters[0], TEXTS
    settings: dict[str, int] = {}
    if change == "texts":
        texts = (*TEXTS, "actor")
    elif change == "scale":
        adapter = adapter.map(lambda update: update.scaled(0.5))
    elif change == "base":
        base = pico("llama")
        adapter = random_adapter(base)
    else:
        settings = {change: 2}
    TextDivergences(base, texts, store, **settings).of(adapter)
    assert len(list(tmp_path.rglob("*.entry"))) == 2


SHAPES = {Site(0, Role.Q): (7, 6), Site(1, Role.DOWN): (5, 9)}


def drawn(seed: int, size: float = 1.0) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for place, (site, (out, in_)) in enumerate(SHAPES.items()):
        a = torch.randn(3, in_, generator=generator) * size
        updates[site] = LowRank(a, torch.randn(out, 3, generator=generator) * (1 + 9 * place), 0.5)
    return LoraAdapter(updates, "some/base")


ANCHORS = {f"t{seed}": drawn(seed, size=1.0 + seed) for seed in range(4)}


class TestRandom:
    control = random_adapter(AdapterStack.of(ANCHORS), "target/base", seed=0)

    def test_each_site_is_as_large_as_the_anchors_are_on_average(self) -> None:
        assert self.control.base_model == "target/base"
        assert list(self.control) == list(SHAPES)
        for site, update in self.control.items():
            norms = [
                float(adapter[site].to(torch.float64).dense().norm())
                for adapter in ANCHORS.values()
            ]
            expected = (sum(norm**2 for norm in norms) / len(norms)) ** 0.5
            assert float(update.dense().norm()) == pytest.approx(expected, rel=1e-5)
            assert (update.shape, update.rank) == (SHAPES[site], 3)

    def test_it_is_drawn_by_the_seed_and_has_no_direction_of_the_anchors(self) -> None:
        stack = AdapterStack.of(ANCHORS)
        again = random_adapter(stack, "target/base", 0)
        assert again.content_hash() == self.control.content_hash()
        controls = (random_adapter(stack, "target/base", 100 + seed) for seed in range(200))
        cosines = [cosine(control, ANCHORS["t0"]) for control in controls]
        # Each is about 1 / sqrt(42) or less in size, and their mean vanishes.
        assert abs(sum(cosines) / len(cosines)) < 0.04
        assert max(map(abs, cosines)) < 0.8

    def test_sites_that_no_anchor_changes_stay_so(self) -> None:
        silent = {name: a.map(lambda update: update.scaled(0.0)) for name, a in ANCHORS.items()}
        assert random_adapter(AdapterStack.of(silent), "target/base", 0).norm() == 0


def test_each_task_has_the_next_one_s_adapter_and_a_single_one_a_spare() -> None:
    first, second, third, fourth = ANCHORS
    assert swapped(ANCHORS, [drawn(9)]) == {
        **{first: ANCHORS[second], second: ANCHORS[third]},
        **{third: ANCHORS[fourth], fourth: ANCHORS[first]},
    }
    alone, spare = {first: ANCHORS[first]}, drawn(9)
    assert swapped(alone, [spare, drawn(8)]) == {first: spare}
    assert swapped(alone, []) == {}
    assert swapped({}, [spare]) == {}
