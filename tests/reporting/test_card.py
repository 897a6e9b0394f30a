from typing import Any

import yaml

from loraport.reporting import PairRecord, Provenance, adapter_card

from .conftest import conditions, results_of


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def test_the_front_matter_is_what_peft_and_the_hub_read(results):
    head = front_matter(adapter_card(results, "emotion"))
    assert head["base_model"] == "tiny-target"
    assert head["library_name"] == "peft"
    assert "lora" in head["tags"]


def test_odd_names_do_not_break_the_front_matter():
    pair = PairRecord(name="x", source="s", target='a: "b" # c')
    card = adapter_card(results_of({"t": conditions(30, 50, 60)}, pair=pair), "t")
    assert front_matter(card)["base_model"] == 'a: "b" # c'


def test_the_card_gives_scores_controls_settings_and_limits(results):
    card = adapter_card(results, "bbc_news")
    assert "| target without adapter (base) | 0.620 |" in card
    assert "| control: mean of the anchors | 0.670 |" in card
    assert "| **this adapter** | 0.800 |" in card
    assert "| gap recovered, (predicted - base) / (oracle - base) | 0.56" in card
    assert '"components": 8' in card
    assert "sst2, subj" in card
    assert '"strength": 0.1' in card
    assert "| torch | `2.13.0` |" in card
    assert 'PeftModel.from_pretrained(base, "path/to/this/folder")' in card
    assert "## Limits" in card
    assert "None" not in card


def test_the_code_on_the_card_is_python(results):
    card = adapter_card(results, "bbc_news")
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


def test_a_task_without_headroom_claims_nothing(results):
    card = adapter_card(results, "trec")
    assert "nothing can be said about the prediction" in card
    assert "| gap recovered, (predicted - base) / (oracle - base) | - " in card


def test_a_gain_that_is_not_shown_is_called_so():
    card = adapter_card(results_of({"t": conditions(50, 50, 56, mean=50, swapped=50)}), "t")
    assert "so a gain is not shown" in card
    assert "as high as the best of the base and the controls" in card


def test_hashes_of_other_tasks_are_left_out(results):
    record = Provenance(
        versions={}, hashes={"predicted/emotion": "aa", "predicted/trec": "bb", "target": "cc"}
    )
    card = adapter_card(results.model_copy(update={"provenance": record}), "emotion")
    assert "`aa`" in card
    assert "`cc`" in card
    assert "`bb`" not in card


def test_the_mean_is_a_control_on_its_own_card(results):
    card = adapter_card(results.model_copy(update={"mapper": "mean"}), "emotion")
    assert "is a control: the mean of adapters of other tasks" in card
