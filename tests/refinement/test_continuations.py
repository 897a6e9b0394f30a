from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraport.adapters import LoraAdapter
from loraport.exceptions import ConfigurationError
from loraport.models import BaseModel
from loraport.refinement import continuations as module
from loraport.refinement.continuations import Continuation, continuations, written

PROMPTS = ["the film is", "a", "the plot was never dull ?", "Answer : good", "an actor is"]


def test_prompts_keep_their_order_and_the_adapter_matters(
    pico_source: BaseModel, random_adapter: Callable[..., LoraAdapter]
):
    adapter = random_adapter(pico_source)
    found = continuations(pico_source, adapter, PROMPTS, max_new_tokens=6)
    assert [each.prompt for each in found] == PROMPTS
    single = [continuations(pico_source, adapter, [p], max_new_tokens=6)[0] for p in PROMPTS]
    assert found == single
    assert found != continuations(pico_source, None, PROMPTS, max_new_tokens=6)
    assert continuations(pico_source, adapter, []) == []


class Planned:
    """Chooses planned tokens."""

    def __init__(self, *steps: list[int]) -> None:
        self.steps = list(steps)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.steps.pop(0))


def test_text_is_what_stands_behind_the_prompt(pico_source: BaseModel, pico_target: BaseModel):
    words, end = pico_source.tokenizer, pico_source.tokenizer.eos_token_id
    prompt = words("the film")["input_ids"]
    good, is_ = words("good is")["input_ids"]
    plan = Planned([is_, end, is_], [end, end, good])
    rows = written(pico_source, [prompt] * 3, max_new_tokens=2, choice=plan)
    assert rows == [(" is", True), ("", True), (" is good", False)]
    # A character of two bytes, of which the second no longer fits.
    pieces = pico_target.tokenizer("é", add_special_tokens=False)["input_ids"]
    plan = Planned([pieces[0]], [pieces[1]], [pieces[0]])
    start = pico_target.tokenizer("a")["input_ids"]
    assert written(pico_target, [start], max_new_tokens=3, choice=plan) == [("é", False)]


def test_a_stopped_run_goes_on_and_a_finished_one_runs_no_model(
    pico_source: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    monkeypatch.setattr(module, "_ROWS", 2)
    adapter, calls = random_adapter(pico_source), 0
    told: list[tuple[str, int, int]] = []
    real = written

    def counted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    def run(**options) -> list[Continuation]:
        return continuations(
            pico_source,
            adapter,
            PROMPTS,
            max_new_tokens=4,
            progress=lambda *step: told.append(step),
            **options,
        )

    monkeypatch.setattr(module, "written", counted)
    with pytest.raises(KeyboardInterrupt):
        run(cache=tmp_path)
    whole = run(cache=tmp_path)
    assert calls == 4, "one portion before it was stopped, the one it was stopped in, two after"
    assert run(cache=tmp_path) == whole
    assert calls == 4
    assert run() == whole
    assert calls == 7
    assert told[-1] == ("writing", 3, 3)
    (file,) = tmp_path.glob("continuations/*/00001.json")
    file.write_text("{damaged")
    assert run(cache=tmp_path) == whole
    assert calls == 8
    other = random_adapter(pico_source, seed=1)
    continuations(pico_source, other, PROMPTS, max_new_tokens=4, cache=tmp_path)
    assert calls == 11, "another adapter is another question"


def test_no_tokens_are_refused(pico_source: BaseModel):
    with pytest.raises(ConfigurationError, match="max_new_tokens=0"):
        continuations(pico_source, None, PROMPTS, max_new_tokens=0)
