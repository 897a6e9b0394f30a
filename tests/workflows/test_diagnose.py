"""``diagnose.py`` on pico models with random weights, and on a model and itself."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.image import imread
from safetensors.torch import load_file

from loraport.reporting.intersection_map import IntersectionMap

from .conftest import Command, Outcome, Workspace

QUICK = (
    *("diagnosis.rows=120", "diagnosis.permutations=20", "measures.svcca.components=4"),
    *("transport.layers=1", "transport.rows=12", "data.tokens=400", "data.held_out_tokens=200"),
)
MEASURES = {"mutual_knn", "jaccard", "linear_cka", "rbf_cka", "svcca", "rsa"}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    nouns, words = ("film", "plot", "actor", "scene"), ("good", "bad", "dull", "neutral")
    lines = [
        f"the {one} was truly {word} and a {other} is never {end}"
        for one in nouns
        for other in nouns
        for word in words
        for end in words
    ]
    (folder / "all.txt").write_text("\n".join(lines))
    return folder


def diagnose(workspace: Workspace, command: Command, *options: str) -> Outcome:
    return command("diagnose", *workspace.options(), *QUICK, "hydra.run.dir=found", *options)


def test_random_models_are_found_incompatible_and_everything_is_written(
    workspace: Workspace, command: Command, texts: Path
):
    adapter = workspace.zoo / "source" / "books"
    end = diagnose(workspace, command, f"adapter={adapter}", f"paths.corpus={texts}")
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
    kept = list((workspace.root / "cache" / "compatibility").iterdir())
    adapter = workspace.zoo / "source" / "books"
    cheap = ("diagnosis=cheap", *QUICK[:2])
    end = command("transfer", *workspace.options(), "mapper=copy", f"adapter={adapter}", *cheap)
    assert end.code == 3
    assert list((workspace.root / "cache" / "compatibility").iterdir()) == kept


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("roles=[query]", "roles is ['query']"),
        ("adapter=nowhere", "is no folder"),
        ("paths.corpus=nowhere", "nowhere"),
        ("force=3", "force is 3"),
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
