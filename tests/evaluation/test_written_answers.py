import copy
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from loraport.evaluation import written_answers
from loraport.evaluation.written_answers import PromptForm, greedy, sampled, write_answers
from loraport.exceptions import ConfigurationError, ModelError
from loraport.models import BaseModel
from loraport.models.generation import MostLikely

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
    assert PromptForm("plain").tokens(pico_target, []) == []


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
def test_an_answer_ends_where_the_frame_begins_again(
    answer: str, kept: str, pico_target: BaseModel
):
    assert PromptForm().cut(pico_target, answer) == kept
    assert PromptForm().cut(chatting(pico_target), answer) == answer


def test_a_frame_without_words_cuts_nothing(pico_target: BaseModel):
    assert PromptForm("plain", "{prompt}\n").cut(pico_target, "a\n\nb") == "a\n\nb"


def test_bad_settings(pico_target: BaseModel):
    with pytest.raises(ConfigurationError, match=r"chat='maybe'.*auto, template, plain"):
        PromptForm("maybe")
    for frame in ("no place", "{prompt} and {prompt}"):
        with pytest.raises(ConfigurationError, match="plain_prompt"):
            PromptForm("plain", frame)
    with pytest.raises(ModelError, match=r"pico/target has no chat template.*chat=plain"):
        PromptForm("template").tokens(pico_target, ["a"])
    refusing = chatting(pico_target, "{{ raise_exception('two turns, please') }}")
    with pytest.raises(ModelError, match=r"two turns, please.*chat=plain"):
        PromptForm("template").tokens(refusing, ["a"])


PROMPTS = ["the film is", "a", "the plot was never dull ?", "Answer : good", "an actor is"]


def encoded(base: BaseModel, prompts: list[str]) -> list[list[int]]:
    return base.tokenizer(prompts)["input_ids"] if prompts else []


def test_answers_keep_their_order_and_batches_change_nothing(pico_source: BaseModel):
    together = write_answers(pico_source, encoded(pico_source, PROMPTS), max_new_tokens=6)
    apart = write_answers(
        pico_source, encoded(pico_source, PROMPTS), max_new_tokens=6, batch_rows=1
    )
    single = [
        write_answers(pico_source, encoded(pico_source, [p]), max_new_tokens=6)[0] for p in PROMPTS
    ]
    assert together == apart == single
    assert len(set(together)) > 1
    assert write_answers(pico_source, encoded(pico_source, []), max_new_tokens=6) == []


def test_answers_are_what_the_networks_own_generate_writes(pico_source: BaseModel):
    tokenizer = pico_source.tokenizer
    network: Any = pico_source.network
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        out = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
        )
        text = str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        (answer,) = write_answers(pico_source, encoded(pico_source, [prompt]), max_new_tokens=6)
        assert answer.split() == text.split()


def test_one_seed_gives_the_same_samples_and_another_one_others(pico_target: BaseModel):
    def sample(seed: int) -> list[str]:
        return write_answers(
            pico_target,
            encoded(pico_target, ["ab"] * 4),
            max_new_tokens=8,
            choice=sampled(seed, temperature=1.5, top_p=0.95),
            batch_rows=2,
        )

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


def test_an_answer_ends_at_any_token_that_the_model_ends_with(
    pico_source: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    good, turn, bad = pico_source.tokenizer("good Answer bad")["input_ids"]
    plan = [[good], [turn], [bad]]
    kept = {"max_new_tokens": 3}
    assert write_answers(
        pico_source, encoded(pico_source, ["a"]), choice=planned(*plan), **kept
    ) == [" good Answer bad"]
    config = GenerationConfig(eos_token_id=[1, turn])
    monkeypatch.setattr(pico_source.network, "generation_config", config)
    assert write_answers(
        pico_source, encoded(pico_source, ["a"]), choice=planned(*plan), **kept
    ) == [" good"]


def test_a_character_that_is_cut_off_is_left_out(pico_target: BaseModel):
    first, second = pico_target.tokenizer("é", add_special_tokens=False)["input_ids"]
    (x,) = pico_target.tokenizer("x", add_special_tokens=False)["input_ids"]
    for plan, text in (([[x], [first]], "x"), ([[first], [second]], "é")):
        found = write_answers(
            pico_target, encoded(pico_target, ["a"]), max_new_tokens=2, choice=planned(*plan)
        )
        assert found == [text]


def test_bad_sampling():
    with pytest.raises(ConfigurationError, match="temperature=0"):
        sampled(0, temperature=0.0, top_p=1.0)
    with pytest.raises(ConfigurationError, match=r"top_p=1\.5"):
        sampled(0, temperature=1.0, top_p=1.5)


def test_prompts_of_like_length_go_together(
    pico_source: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    seen: list[list[int]] = []

    def generate(base: BaseModel, rows: list[list[int]], **_options: object) -> list[list[int]]:
        seen.append([len(row) for row in rows])
        return [[] for _ in rows]

    monkeypatch.setattr(written_answers, "generate", generate)
    prompts = ["a", "a a a a a a a a", "a a", "a a a a a a a"]
    write_answers(pico_source, encoded(pico_source, prompts), max_new_tokens=1, batch_rows=2)
    assert seen == [[8, 7], [2, 1]]
    assert isinstance(greedy([0]), MostLikely)
