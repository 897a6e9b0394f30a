import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from loraport.evaluation.written_answers import PromptForm, sampled, write_answers
from loraport.exceptions import ModelError
from loraport.models import BaseModel

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {{ date_string }}{% endif %}"
)


def chatting(base: BaseModel, template: str = TEMPLATE) -> BaseModel:
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.chat_template = template
    return BaseModel(base.name, base.network, tokenizer, "chatting")


def test_auto_takes_the_chat_template_where_there_is_one(pico_target: BaseModel):
    assert not PromptForm("auto").uses_template(pico_target)
    assert PromptForm("auto").uses_template(chatting(pico_target))
    assert not PromptForm("plain").uses_template(chatting(pico_target))
    assert PromptForm("template").uses_template(pico_target)


def test_a_turn_has_one_bos_and_always_the_same_day(pico_target: BaseModel):
    base = chatting(pico_target)
    (row,) = PromptForm().tokens(base, ["How?"])
    assert base.tokenizer.decode(row) == "<bos>[user] How?\n[assistant] 01 Jan 2025"
    assert PromptForm().tokens(base, []) == []


def test_a_plain_prompt_has_its_frame_and_the_leading_tokens(pico_target: BaseModel):
    (row,) = PromptForm("plain", "Q {prompt} A").tokens(pico_target, ["a {prompt} b"])
    assert pico_target.tokenizer.decode(row) == "<bos>Q a {prompt} b A"


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (" Yes.\nQuestion: What else?\nAnswer: No.", " Yes."),
        (" Yes.\n  Answer: Yes.", " Yes."),
        ("\nQuestion: How?", ""),
        (" Question: this one is no mark.", " Question: this one is no mark."),
        (" One.\nTwo.\n\nThree.", " One.\nTwo.\n\nThree."),
    ],
)
def test_an_answer_ends_where_the_frame_begins_again(answer, kept, pico_target):
    assert PromptForm().cut(pico_target, answer) == kept
    assert PromptForm().cut(chatting(pico_target), answer) == answer


def test_a_chat_template_that_is_missing_or_refuses_is_told(pico_target: BaseModel):
    with pytest.raises(ModelError, match=r"pico/target has no chat template .*chat=plain"):
        PromptForm("template").tokens(pico_target, ["a"])
    refusing = chatting(pico_target, "{{ raise_exception('two turns, please') }}")
    with pytest.raises(ModelError, match=r"two turns, please.*chat=plain"):
        PromptForm("template").tokens(refusing, ["a"])


PROMPTS = ["the film is", "a", "the plot was never dull ?", "Answer : good", "an actor is"]


def write(base: BaseModel, prompts: list[str], tokens: int = 6, **options: Any) -> list[str]:
    ids = base.tokenizer(prompts)["input_ids"] if prompts else []
    return write_answers(base, ids, max_new_tokens=tokens, **options)


def test_answers_are_what_the_networks_own_generate_writes_whatever_the_batches(pico_source):
    together = write(pico_source, PROMPTS)
    assert together == write(pico_source, PROMPTS, batch_rows=1)
    assert len(set(together)) > 1
    assert write(pico_source, []) == []
    network: Any = pico_source.network
    for prompt, answer in zip(PROMPTS, together, strict=True):
        ids = torch.tensor([pico_source.tokenizer(prompt)["input_ids"]])
        out = network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
        text = pico_source.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer.split() == str(text).split()


def test_one_seed_gives_the_same_samples_and_another_one_others(pico_target: BaseModel):
    def sample(seed: int) -> list[str]:
        choice = sampled(seed, temperature=1.5, top_p=0.95)
        return write(pico_target, ["ab"] * 4, 8, choice=choice, batch_rows=2)

    first = sample(0)
    torch.manual_seed(7)
    assert sample(0) == first
    assert sample(1) != first
    assert len(set(first)) == 4  # neither rows nor batches share draws


def planned(*steps: list[int]):
    """What chooses these tokens, a step after the other."""

    class Planned:
        def __init__(self) -> None:
            self.steps = list(steps)

        def choose(self, logits: torch.Tensor) -> torch.Tensor:
            return torch.tensor(self.steps.pop(0))

    return lambda _indices: Planned()


def test_an_answer_ends_at_any_token_that_the_model_ends_with(pico_source, monkeypatch):
    good, turn, bad = pico_source.tokenizer("good Answer bad")["input_ids"]
    plan = [[good], [turn], [bad]]
    assert write(pico_source, ["a"], 3, choice=planned(*plan)) == [" good Answer bad"]
    config = GenerationConfig(eos_token_id=[1, turn])
    monkeypatch.setattr(pico_source.network, "generation_config", config)
    assert write(pico_source, ["a"], 3, choice=planned(*plan)) == [" good"]


def test_a_character_that_is_cut_off_is_left_out(pico_target: BaseModel):
    first, second = pico_target.tokenizer("é", add_special_tokens=False)["input_ids"]
    (x,) = pico_target.tokenizer("x", add_special_tokens=False)["input_ids"]
    for plan, text in (([[x], [first]], "x"), ([[first], [second]], "é")):
        assert write(pico_target, ["a"], 2, choice=planned(*plan)) == [text]
