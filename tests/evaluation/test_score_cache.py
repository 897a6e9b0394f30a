import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loraport.adapters import LoraAdapter, Role, Site
from loraport.data import Example, PromptTemplate, Task
from loraport.evaluation.score_cache import ScoreCache
from loraport.evaluation.scoring import TaskScore
from loraport.models import BaseModel

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
    return ScoreCache(tmp_path / "scores", scorer, template)


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


def test_a_score_is_computed_once_and_kept_to_the_bit(
    scores: ScoreCache,
    scorer: CountingScorer,
    pico_source: BaseModel,
    pico_task: Task,
    adapter: LoraAdapter,
) -> None:
    first = scores.score(pico_source, adapter, pico_task)
    again = scores.score(pico_source, adapter, pico_task)
    assert scorer.calls == ["feeling"]
    assert same(first, again)
    assert first.row_nll is not None
    assert len(list(scores.folder.iterdir())) == 1


def test_the_adapter_is_attached_while_it_is_scored_and_only_then(
    scores: ScoreCache,
    scorer: CountingScorer,
    pico_source: BaseModel,
    pico_task: Task,
    adapter: LoraAdapter,
) -> None:
    plain = scores.score(pico_source, None, pico_task)
    adapted = scores.score(pico_source, adapter, pico_task)
    assert len(scorer.calls) == 2
    assert not same(plain, adapted)
    scores.folder.rename(scores.folder.with_name("elsewhere"))
    assert same(scores.score(pico_source, None, pico_task), plain)


def test_scores_without_likelihoods_are_kept(
    template: PromptTemplate, pico_source: BaseModel, pico_task: Task, tmp_path: Path
) -> None:
    scorer = CountingScorer(likelihoods=False)
    cache = ScoreCache(tmp_path, scorer, template)
    first, again = (cache.score(pico_source, None, pico_task) for _ in range(2))
    assert len(scorer.calls) == 1
    assert same(first, again)
    assert again.row_nll is None


@pytest.mark.parametrize(
    "changed", ["adapter", "scale", "task", "rows", "template", "scorer", "base", "dtype"]
)
def test_everything_that_a_score_depends_on_is_in_its_key(
    changed: str,
    scores: ScoreCache,
    scorer: CountingScorer,
    pico: Callable[[str], BaseModel],
    pico_source: BaseModel,
    pico_task: Task,
    adapter: LoraAdapter,
) -> None:
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
    else:
        base = replace(pico("llama"), fingerprint=base.fingerprint)
        cast("torch.nn.Module", base.network).to(torch.bfloat16)
    cache.score(base, used, task)
    assert len(scorer.calls) == 2
    cache.score(base, used, task)
    assert len(scorer.calls) == 2
    assert len(list(scores.folder.iterdir())) == 2


def test_the_name_of_a_task_is_not_in_its_key(
    scores: ScoreCache, scorer: CountingScorer, pico_source: BaseModel, pico_task: Task
) -> None:
    scores.score(pico_source, None, pico_task)
    scores.score(pico_source, None, replace(pico_task, name="renamed"))
    assert len(scorer.calls) == 1


def truncated(content: str) -> str:
    return content[: len(content) // 2]


def without_a_key(content: str) -> str:
    return json.dumps({key: json.loads(content)[key] for key in ("predictions", "row_nll")})


def of_fewer_rows(content: str) -> str:
    return json.dumps({key: value[:-1] for key, value in json.loads(content).items()})


def of_uneven_rows(content: str) -> str:
    return json.dumps(json.loads(content) | {"correct": [True]})


def as_a_list(content: str) -> str:
    return json.dumps([content])


def emptied(content: str) -> str:
    return ""


@pytest.mark.parametrize(
    "damage", [truncated, without_a_key, of_fewer_rows, of_uneven_rows, as_a_list, emptied]
)
def test_damaged_file_is_computed_again_and_replaced(
    damage: Callable[[str], str],
    scores: ScoreCache,
    scorer: CountingScorer,
    pico_source: BaseModel,
    pico_task: Task,
) -> None:
    expected = scores.score(pico_source, None, pico_task)
    (path,) = scores.folder.iterdir()
    whole = path.read_text()
    path.write_text(damage(whole))
    assert same(scores.score(pico_source, None, pico_task), expected)
    assert len(scorer.calls) == 2
    assert path.read_text() == whole
    assert list(scores.folder.iterdir()) == [path]


def test_scorer_that_fails_leaves_nothing_behind(
    scores: ScoreCache, pico_source: BaseModel, pico_task: Task, adapter: LoraAdapter
) -> None:
    class Failing(CountingScorer):
        def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
            raise RuntimeError("planted")

    failing = replace(scores, scorer=Failing())
    before = pico_source.network(input_ids=IDS).logits
    with pytest.raises(RuntimeError, match="planted"):
        failing.score(pico_source, adapter, pico_task)
    assert not scores.folder.exists() or not list(scores.folder.iterdir())
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
    scores: ScoreCache, scorer: CountingScorer, pico_source: BaseModel, pico_task: Task
) -> None:
    plain = scores.score(pico_source, None, pico_task)
    turned = scores.score(pico_source, Turned("one"), pico_task)
    assert not same(plain, turned)
    assert same(scores.score(pico_source, Turned("one"), pico_task), turned)
    assert len(scorer.calls) == 2
    scores.score(pico_source, Turned("other"), pico_task)
    assert len(scorer.calls) == 3
