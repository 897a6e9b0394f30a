import json
import re
from typing import Any

import pytest
import yaml

from loraport.evaluation.records import PairRecord, Provenance, StepRecord
from loraport.reporting.cards import adapter_card, ported_card
from loraport.reporting.tables import sites_table

from .conftest import conditions, results_of
from .test_records import record, report_of
from .test_summaries import refined


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(head)
    return found


def test_the_front_matter_is_what_peft_and_the_hub_read(results):
    for card, base in (
        (adapter_card(results, "emotion"), "tiny-target"),
        (ported_card(report_of()), "pico/target"),
    ):
        head = front_matter(card)
        assert (head["base_model"], head["library_name"]) == (base, "peft")
        assert {"lora", "loraport", "adapter-transfer"} <= set(head["tags"])


@pytest.mark.parametrize("name", ['a: "b" # c', "it's <b> & 'c'", "null", "a\\b"])
def test_odd_names_break_neither_front_matter_nor_code(name: str) -> None:
    pair = PairRecord(name="x", source="s", target=name)
    predicted = adapter_card(results_of({"t": conditions(30, 50, 60)}, pair=pair), "t")
    for card in (predicted, ported_card(report_of(pair=pair))):
        assert front_matter(card)["base_model"] == name
        code = card.split("```python\n")[1].split("```")[0]
        compile(code, "card", "exec")
        named: dict[str, Any] = {}
        exec(f"name = {code.split('from_pretrained(')[1].partition(chr(10))[0][:-1]}", named)
        assert named["name"] == name


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


def test_hashes_of_other_tasks_are_left_out_and_nothing_is_claimed_without_headroom(results):
    record = Provenance(
        versions={}, hashes={"predicted/emotion": "aa", "predicted/trec": "bb", "target": "cc"}
    )
    card = adapter_card(results.model_copy(update={"provenance": record}), "emotion")
    assert "`aa`" in card
    assert "`cc`" in card
    assert "`bb`" not in card
    mean = adapter_card(results.model_copy(update={"mapper": "mean"}), "trec")
    assert "is a control: the mean of adapters of other tasks" in mean
    assert "nothing can be said about the prediction" in mean
    assert "| gap recovered, (predicted - base) / (oracle - base) | - " in mean


def settings(card: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(card.split("```json\n")[1].split("```")[0])
    return found


def test_the_card_says_what_was_done_and_what_was_lost() -> None:
    card = ported_card(
        report_of(
            adapters=(record(), record("owner/other", base_model="", ranks=(4, 4))),
            mapping=({"sites": {"0.q": {"kept_norm": 0.25}}}, {"sites": {}}),
            merged_with=(record("films", base_model="pico/target"),),
            steps=(StepRecord(name="merge", lost_energy=0.125),),
            warnings=("mind this",),
        )
    )
    assert "- `adapters/books`, trained on pico/source: 4 sites (q, v), rank 2 to 8\n" in card
    assert "- `owner/other`, trained on a base model that it does not name: 4 sites" in card
    assert "rank 4\n" in card
    assert "merged it with adapters of pico/target:\n\n- `films`\n" in card
    assert "- merge: cutting back to the rank lost 12.5% of the energy\n" in card
    assert "- mind this\n" in card
    assert "| q | 1 | 0.25 |" in card
    assert "Means over the sites of a role" in card
    assert "The result has 3 sites, rank 2, dtype float32, scale 1.0." in card
    assert "It has not been scored on a task" in card
    assert "## Limits" in card
    assert "| torch | `2.13.0` |" in card
    assert f"| SHA-256 of source model | `{'cd' * 32}` |" in card
    assert "None" not in card


def test_settings_are_those_that_made_it() -> None:
    found = settings(ported_card(report_of()))
    assert found["mapper"]["rank"] == 320
    assert found["scale"] == 1.0
    assert "ckpt" not in found
    assert "paths" not in found
    pair = PairRecord(name="tiny", source="tiny-source", target="tiny-target")
    card = ported_card(report_of(mapper="copy", mapping=({},), pair=pair))
    assert "cut off, or filled up with zeros. Nothing aligns" in card
    assert "The model tiny-target is built by `pair=tiny`" in card
    assert "merged it" not in card
    assert "| role |" not in card


def test_a_checkpoint_stands_in_for_the_options_of_another_mapper() -> None:
    """Beside ckpt= the configuration's mapper is but its default."""
    report = report_of(mapper="pca_ridge", data_access="anchors")
    config = {**report.config, "ckpt": "runs/mapper.ckpt"}
    found = settings(ported_card(report.model_copy(update={"config": config})))
    assert found["ckpt"] == "runs/mapper.ckpt"
    assert "mapper" not in found


def test_a_checkpoint_shows_what_its_mapper_was_trained_with() -> None:
    report = report_of(mapper="transport", data_access="generic text")
    config = {**report.config, "ckpt": "runs/mapper.ckpt"}
    update = {"config": config, "trained_with": {"roles": ["q", "v"], "min_r2": None}}
    card = ported_card(report.model_copy(update=update))
    assert settings(card)["mapper"] == {"roles": ["q", "v"], "min_r2": None}
    assert "Linear maps between the two models' activations" in card
    assert "does not say that the task is solved" in card
    assert "weights alone" not in card
    assert "weights alone have hardly been better" in ported_card(report_of())


def test_a_refinement_from_zero_is_told_without_the_mapper() -> None:
    report = report_of(mapper="noop", data_access="generic text", refinement=refined())
    assert sites_table(report).rows == ()
    card = ported_card(report)
    assert "was not trained on its task's data. `loraport` made it with the refinement" in card
    assert "Mapper and refinement may use: generic text. The source with its adapter" in card
    assert "**GO: expect 0.60 of the gap" in card
    assert "It is a control" not in card
    assert "- drift on 64 generic texts" in card
    assert "- took 1.2 s: port 1.2" in card


def test_a_mapper_and_a_refinement_are_both_told_with_what_they_used() -> None:
    used = "unlabelled prompts"
    refinement = refined(name="prompt_distill", data_access=used)
    report = report_of(mapper="copy", data_access=used, refinement=refinement)
    card = ported_card(report)
    assert "task's data but for a few unlabelled inputs. `loraport` made it with the mapper" in card
    assert "`copy` and the refinement `prompt_distill` from" in card
    assert "Nothing aligns the two models' coordinates. The source with its adapter" in card
    assert sites_table(report).rows


FORGED = (
    "x\n\n---\n\n**GO: expect 1.00 of the gap**\n\n# GO\n\n```\n<b>|`a`[l](javascript:x)\x1b[1m"
)


@pytest.mark.parametrize("odd", [FORGED, "\n```\nGO\n", "a | b\r\n| GO | x |", "``x`", "\u2028GO"])
def test_names_of_others_stay_on_their_line_and_are_no_markup(odd: str) -> None:
    """Whatever an adapter, a zoo or a task is called, the card has the lines that it would have."""

    def lines(name: str) -> tuple[list[str], list[str]]:
        pair = PairRecord(name=name, source=name, target=name)
        ported = report_of(
            pair=pair,
            adapters=(record(name, base_model=name),),
            merged_with=(record(name),),
            steps=(StepRecord(name=name, lost_energy=0.125),),
            warnings=(name,),
            mapper=name,
            refinement=refined(name=name, question={"prompt": name, "labels": [name, "b"]}),
            config={"scale": name, "mapper": {name: name}},
            provenance=Provenance(versions={name: name}, hashes={name: name}),
        )
        results = results_of({name: conditions(30, 50, 60)}, pair=pair)
        predicted = results.model_copy(
            update={"mapper_report": {"anchors": [name], name: name}, "space": name}
        )
        return ported_card(ported).split("\n"), adapter_card(predicted, name).split("\n")

    for ours, theirs in zip(lines("plain"), lines(odd), strict=True):
        begin = ours.index("---", 1), theirs.index("---", 1)
        assert len(theirs) - begin[1] == len(ours) - begin[0]
        for line, other in zip(ours[begin[0] :], theirs[begin[1] :], strict=True):
            assert line[:3] == other[:3] or "plain" in line
            if other.startswith("|"):
                assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", other))
            assert not line.startswith(("#", "**GO", "```", "|")) or line[:2] == other[:2]
            assert not re.search(r"[\x00-\x09\x0b-\x1f\u2028]", other)
        assert front_matter("\n".join(theirs))["library_name"] == "peft"
        assert "GO" not in front_matter("\n".join(theirs))


def test_paths_of_the_machine_do_not_stand_in_a_card() -> None:
    home = "/home/somebody/secret project"
    config = {
        "adapter": [f"{home}/films_a", "owner/name"],
        "merge": {"with": [f"{home}/sub/other"]},
        "ckpt": f"{home}/runs/mapper.ckpt",
        "paths": {"zoo": home, "cache": "/"},
    }
    report = report_of(
        adapters=(record(f"{home}/films_a", base_model="/mnt/x/base"), record("owner/name")),
        merged_with=(record(f"{home}/sub/other"),),
        mapping=({}, {}),
        warnings=(f"{home}/films_a says that it was trained on /mnt/x/base, and is taken as one",),
        config=config,
        provenance=Provenance(versions={}, hashes={f"{home}/films_a": "aa", "owner/name": "bb"}),
    )
    card = ported_card(report)
    assert "secret" not in card
    assert "/mnt" not in card
    assert "- `films_a`, trained on base: " in card
    assert "- `owner/name`, trained on" in card
    assert "- `other`\n" in card
    assert "films\\_a says that it was trained on base, and is taken" in card
    assert settings(card)["ckpt"] == "mapper.ckpt"
    assert "| SHA-256 of films\\_a | `aa` |" in card
