"""The extensions of docs/extending.md are written to a folder as they stand there, and run."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from loraport.evaluation.records import BenchmarkResults, IntersectionMap, TransferReport

from .conftest import HELD_OUT, QUICK_DIAGNOSIS, Command, Workspace

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`(my_\w+/[\w/.]+)`:\n\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL))


@pytest.fixture
def outside(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the example's folders lie; Python finds their modules."""
    folder = workspace.root / "outside"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        if path.suffix == ".py":
            monkeypatch.syspath_prepend(path.parent)
            monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return folder


def options(script: str, *named: str) -> list[str]:
    """Return the options of the page's command of a script, the named ones left out."""
    (line,) = re.findall(rf"^PYTHONPATH=\w+ python {script}\.py (.*)$", TEXT, flags=re.MULTILINE)
    words = line.removeprefix("--config-dir ").split()[1:]
    return [word for word in words if word.partition("=")[0] not in named]


def test_every_section_has_a_class_a_yaml_and_a_command():
    folders = {name.partition("/")[0] for name in FILES}
    assert folders == {"my_mappers", "my_refinements", "my_suites", "my_loggers", "my_measures"}


def test_the_examples_are_clean(outside: Path):
    config = ["--config", str(ROOT / "pyproject.toml"), str(outside)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *config], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_the_mapper_keeps_the_contract_of_every_mapper(outside: Path):
    contract = importlib.import_module("test_nearest").TestNearest()
    asked = [name for name in dir(contract) if name.startswith("test_")]
    assert len(asked) >= 8
    for name in asked:
        getattr(contract, name)()


def test_readme_has_the_same_mapper():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    docstring, _, rest = FILES["my_mappers/nearest.py"].partition("\n\n")
    assert docstring.startswith('"""')
    assert f"```python\n{rest}```" in readme


def test_a_refinement(outside: Path, workspace: Workspace, command: Command):
    words = options("transfer", "adapter", "output")
    where = (f"--config-dir={outside / 'my_refinements'}", f"output={workspace.root / 'ported'}")
    end = command("transfer", *where, *workspace.options(), *words, "adapter=books")
    assert end.code == 0, end.err
    report = TransferReport.model_validate_json(
        (workspace.root / "ported" / "report.json").read_bytes()
    )
    assert report.refinement is not None
    assert report.refinement.name == "norm_match"
    assert report.output.norm == pytest.approx(report.adapters[0].norm, rel=1e-5)


def test_a_suite(outside: Path, workspace: Workspace, command: Command):
    prompts = workspace.root / "prompts.txt"
    prompts.write_text("the film\na plot")
    words = [*options("evaluate", "suite.endings.path"), f"suite.endings.path={prompts}"]
    quick = ("methods=[mean]", "few_shot=[]", "drift.texts=0", "suite_methods=null")
    where = f"--config-dir={outside / 'my_suites'}"
    end = command("evaluate", where, *workspace.training(), *quick, *words)
    assert end.code == 0, end.err
    (folder,) = (workspace.root / "work").glob("outputs/evaluate/*")
    (suite,) = BenchmarkResults.read(folder / "results.json").suites
    assert (suite.name, suite.items) == ("endings", 2)
    assert [s.condition.task for s in suite.scores] == [None, *HELD_OUT, *HELD_OUT]


def test_a_logger(outside: Path, workspace: Workspace, command: Command):
    training = [word for word in workspace.training() if not word.startswith("logger=")]
    where = f"--config-dir={outside / 'my_loggers'}"
    end = command("train", where, *training, *options("train"), "hydra.run.dir=run")
    assert end.code == 0, end.err
    path = workspace.root / "work" / "run" / "lines.jsonl"
    assert str(path) in end.out
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert any(
        "summary/mean/gap_recovered" in line or "accuracy/mean/books" in line for line in lines
    )


def test_a_diagnostic(outside: Path, workspace: Workspace, command: Command):
    quick = (*(word for word in QUICK_DIAGNOSIS if "svcca" not in word), "force=true")
    where = f"--config-dir={outside / 'my_measures'}"
    words = (*options("diagnose"), "hydra.run.dir=found")
    end = command("diagnose", where, *workspace.options(), *quick, *words)
    assert end.code == 0, end.err
    path = workspace.root / "work" / "found" / "intersection_map.json"
    found = IntersectionMap.model_validate_json(path.read_bytes())
    assert list(found.measures) == ["gram_cosine"]
    values = [value for row in found.measures["gram_cosine"].raw for value in row]
    assert all(value is not None and 0 < value <= 1 + 1e-5 for value in values)
