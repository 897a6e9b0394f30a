"""What is known of adapters of pico models before they are carried over."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file

from loraport.adapters import LoraAdapter, LowRank, cosine, read_adapter
from loraport.commands.context import RunContext
from loraport.commands.diagnose import ModuleMaps, diagnostics, module_pairs
from loraport.evaluation.records import IntersectionMap
from loraport.exceptions import AdapterError

from .conftest import HELD_OUT, TASKS, Command, Outcome, Workspace, context_of, write_texts

ALONE = {"relative_norm", "effective_rank", "concentration"}
BESIDE = {"mean_cosine", "anchor_span"}
OF_PAIR = {"coverage", "identification"}
DIRECTIONS = {"r2_reads", "r2_writes"}


def context(workspace: Workspace, *options: str, command: str = "evaluate") -> RunContext:
    quick = ["pairing=relative_depth"]
    if "diagnosis=none" not in options:
        quick += ["diagnosis.rows=120", "diagnosis.permutations=20"]
    held_out = f"tasks.held_out=[{','.join(HELD_OUT)}]"
    return context_of(command, *workspace.options(), *quick, held_out, *options)


def kept(workspace: Workspace, kind: str) -> list[Path]:
    return sorted((workspace.root / "cache" / kind).rglob("*.entry"))


def sources(workspace: Workspace, *tasks: str) -> dict[str, LoraAdapter]:
    return {task: read_adapter(workspace.zoo / "source" / task) for task in tasks}


@pytest.fixture
def texts(workspace: Workspace) -> str:
    write_texts(workspace.root / "texts")
    return f"paths.corpus={workspace.root / 'texts'}"


def test_all_of_it_is_known_and_kept(workspace: Workspace, texts: str, monkeypatch) -> None:
    given = sources(workspace, *HELD_OUT)
    found = diagnostics(context(workspace, texts), given)
    assert list(found) == list(HELD_OUT)
    for numbers in found.values():
        assert set(numbers) == ALONE | BESIDE | OF_PAIR | DIRECTIONS
        assert all(isinstance(number, float) for number in numbers.values())
        assert 1 < numbers["effective_rank"] <= 2
        assert 0.25 <= numbers["concentration"] < 0.5
        assert 0 < numbers["anchor_span"] < 1
        assert numbers["r2_reads"] <= 1
    books, games = (found[task] for task in HELD_OUT)
    assert {name: books[name] for name in OF_PAIR} == {name: games[name] for name in OF_PAIR}
    for name in ALONE | BESIDE | DIRECTIONS:
        assert books[name] != games[name]

    # The second time no model is loaded.
    monkeypatch.setattr(RunContext, "model", lambda *_: pytest.fail("loads a model"))
    assert diagnostics(context(workspace, texts), given) == found


def test_the_numbers_are_those_of_their_definitions(workspace: Workspace, pico_source) -> None:
    given = sources(workspace, "books")
    (found,) = diagnostics(context(workspace, "diagnosis=none"), given).values()
    assert set(found) == ALONE | BESIDE
    adapter = given["books"]
    changes = torch.cat([update.dense().flatten() for update in adapter.values()])
    names = [f"{site.module_name}.weight" for site in adapter]
    weights = torch.cat([pico_source.network.get_parameter(name).flatten() for name in names])
    assert found["relative_norm"] == pytest.approx(float(changes.norm() / weights.norm()), rel=1e-5)
    anchors = sources(workspace, *(task for task in TASKS if task not in HELD_OUT)).values()
    cosines = [cosine(adapter, anchor) for anchor in anchors]
    assert found["mean_cosine"] == pytest.approx(sum(cosines) / 3)


def test_directions_are_those_of_a_diagnosis(workspace: Workspace, texts: str):
    quick = ("data.tokens=300", "data.held_out_tokens=120")
    chosen = context(workspace, texts, *quick, command="diagnose")
    source, target = chosen.model("source"), chosen.model("target")
    corpus = chosen.settings.data.build(
        texts=chosen.settings.corpus.build(),
        source_tokenizer=source.tokenizer,
        target_tokenizer=target.tokenizer,
    )
    given = sources(workspace, "books", "games")
    pairing = chosen.settings.pairing.build().pair(torch.rand(3, 2))
    pairs = module_pairs(pairing, given["books"].roles)

    def silent(*_: object) -> None: ...

    maps = ModuleMaps.of(chosen, source, target, corpus, pairs, silent)
    found = maps.restricted(given, silent)
    assert list(found) == ["books", "games"]
    for name, adapter in given.items():
        fits = maps.fits(adapter, silent)
        energies = [adapter[pair.source].norm() ** 2 for pair in pairs]
        for ours, theirs in (("reads", "adapter_inputs"), ("writes", "adapter_outputs")):
            wanted = sum(
                energy * getattr(fit, theirs) for energy, fit in zip(energies, fits, strict=True)
            ) / sum(energies)
            assert getattr(found[name], ours) == pytest.approx(wanted, rel=1e-9)
    assert maps.restricted({}, silent) == {}


def test_an_adapter_in_the_zoo_is_not_compared_with_itself(workspace: Workspace) -> None:
    name = next(task for task in TASKS if task not in HELD_OUT)
    given = sources(workspace, name) | {"books": sources(workspace, name)[name]}
    found = diagnostics(context(workspace, "diagnosis=none"), given)
    assert found[name]["anchor_span"] < 0.9
    assert found["books"]["anchor_span"] == pytest.approx(1.0, rel=1e-4)


def test_what_is_not_there_is_left_out(workspace: Workspace) -> None:
    given = sources(workspace, "books")
    (found,) = diagnostics(context(workspace), given).values()
    assert set(found) == ALONE | BESIDE | OF_PAIR
    (found,) = diagnostics(context(workspace, "paths.zoo=null"), given).values()
    assert set(found) == ALONE | OF_PAIR
    assert diagnostics(context(workspace), {}) == {}


def test_a_pair_that_a_transfer_refuses_is_told_all_the_same(workspace: Workspace) -> None:
    chosen = context(workspace)
    (found,) = diagnostics(chosen, sources(workspace, "books")).values()
    assert found["coverage"] < chosen.settings.diagnosis.build().minimum


def test_what_is_kept_depends_on_adapter_anchors_and_options(workspace: Workspace, texts: str):
    books = sources(workspace, "books")
    diagnostics(context(workspace, texts), books)
    diagnostics(context(workspace, texts), books)
    assert len(kept(workspace, "pre_transfer")) == 1
    halved = {"books": books["books"].map(lambda u: LowRank(u.A, u.B, u.scale / 2))}
    for count, (given, options) in enumerate(
        [
            (halved, (texts,)),
            (books, ()),
            (books, (texts, "tasks.held_out=[books]")),
            (books, (texts, "pairing=monotone")),
            (books, (texts, "diagnosis.neighbours=7")),
        ]
    ):
        diagnostics(context(workspace, *options), given)
        assert len(kept(workspace, "pre_transfer")) == count + 2


def test_an_adapter_of_the_target_is_refused(workspace: Workspace) -> None:
    given = {"books": read_adapter(workspace.zoo / "target" / "books")}
    with pytest.raises(AdapterError, match=r"adapter of the source zoo, for .* has shape"):
        diagnostics(context(workspace, "diagnosis=none"), given)


# ``diagnose.py`` on pico models with random weights, and on a model and itself.

QUICK = (
    *("diagnosis.rows=120", "diagnosis.permutations=20", "measures.svcca.components=4"),
    *("transport.layers=1", "transport.rows=12", "data.tokens=400", "data.held_out_tokens=200"),
)
MEASURES = {"mutual_knn", "jaccard", "linear_cka", "rbf_cka", "svcca", "rsa"}


def diagnose(workspace: Workspace, command: Command, *options: str) -> Outcome:
    return command("diagnose", *workspace.options(), *QUICK, "hydra.run.dir=found", *options)


def test_random_models_are_found_incompatible_and_everything_is_written(
    workspace: Workspace, command: Command, texts: str
):
    adapter = workspace.zoo / "source" / "books"
    end = diagnose(workspace, command, f"adapter={adapter}", texts)
    assert end.code == 3
    assert "Traceback" not in end.err
    assert "force=true" in end.err
    folder = workspace.root / "work" / "found"
    content = IntersectionMap.model_validate_json((folder / "intersection_map.json").read_bytes())
    assert set(content.measures) == MEASURES
    for measure in content.measures.values():
        assert [len(row) for row in measure.raw] == [2, 2, 2]
    assert content.verdict.coverage < 0.5
    assert not content.verdict.compatible
    assert content.verdict.words in end.out
    assert [layer.target for layer in content.layers] == [0, 1, 2]
    overlaps = content.measures["jaccard"].raw
    assert [layer.jaccard for layer in content.layers] == [
        overlaps[layer.target][layer.source] for layer in content.layers
    ]
    weights = [layer.agreement or 0.0 for layer in content.layers]
    expected = np.average([layer.similarity for layer in content.layers], weights=weights)
    assert content.verdict.weighted_similarity == pytest.approx(expected)
    assert {fit.target for fit in content.modules} == {f"{n}.{r}" for n in range(3) for r in "qv"}
    assert all(fit.adapter_inputs is not None for fit in content.modules)
    assert len(content.transport) == 1
    for name in MEASURES:
        assert imread(folder / f"{name}.png").shape[0] > 200
    page = (folder / "diagnosis.html").read_text()
    assert page.count("data:image/png;base64,") == len(MEASURES)
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "Not compatible" in page
    prints = load_file(folder / "fingerprints.safetensors")
    assert prints["target.2.neighbours"].shape == (content.probes.rows, 10)
    assert prints["source.1.distances"].shape == (content.probes.rows,)


@pytest.mark.slow
def test_forced_it_ends_well_and_without_a_corpus_there_are_no_modules(
    workspace: Workspace, command: Command
):
    end = diagnose(workspace, command, "force=true")
    assert end.code == 0, end.err
    content = IntersectionMap.model_validate_json(
        (workspace.root / "work/found/intersection_map.json").read_bytes()
    )
    assert content.verdict.forced
    assert content.modules == ()
    file = workspace.root / "work/found/intersection_map.json"
    assert json.loads(file.read_text(), parse_constant=pytest.fail)["schema"] == 1

    # The check of a transfer takes over what was found.
    before = kept(workspace, "diagnoses")
    adapter = workspace.zoo / "source" / "books"
    cheap = ("diagnosis=cheap", *QUICK[:2])
    end = command("transfer", *workspace.options(), "mapper=copy", f"adapter={adapter}", *cheap)
    assert end.code == 3
    assert kept(workspace, "diagnoses") == before != []


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("adapter=nowhere", "is no folder"),
        ("paths.corpus=nowhere", "nowhere"),
    ],
)
def test_wrong_options(workspace: Workspace, command: Command, option: str, named: str):
    end = diagnose(workspace, command, option)
    assert end.code == 2
    assert named in end.err
    assert not (workspace.root / "work" / "found").exists()


def test_nothing_is_left_to_do_without_a_diagnosis(workspace: Workspace, command: Command):
    end = command("diagnose", *workspace.options(), "diagnosis=none", "measures={}")
    assert end.code == 2
    assert "diagnose.py takes diagnosis=cheap" in end.err
