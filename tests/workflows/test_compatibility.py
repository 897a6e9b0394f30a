"""The check that stops a transfer between models that have nothing in common."""

import json
from pathlib import Path

import pytest

from loraport.reporting.transfer_report import TransferReport
from loraport.workflows.compatibility import Compatibility

from .conftest import Command, Workspace

CHEAP = ("diagnosis=cheap", "diagnosis.rows=150", "diagnosis.permutations=30")


def compatibility(coverage: float = 0.25) -> Compatibility:
    return Compatibility(((0.5, 0.0),), coverage, 1.0, 300)


class TestKept:
    def test_what_is_written_is_read(self, tmp_path: Path):
        compatibility().write(tmp_path / "deep" / "pair.json")
        assert Compatibility.read(tmp_path / "deep" / "pair.json") == compatibility()

    @pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"similarity": [["x"]]}'], ids=repr)
    def test_a_damaged_file_is_none(self, tmp_path: Path, text: str | None):
        if text is not None:
            (tmp_path / "pair.json").write_text(text)
        assert Compatibility.read(tmp_path / "pair.json") is None

    @pytest.mark.parametrize(
        ("coverage", "force", "forced"),
        [(0.25, True, True), (0.25, False, False), (0.75, True, False)],
    )
    def test_forced_is_what_would_not_have_gone_on(self, coverage, force, forced):
        record = compatibility(coverage).record(0.5, force=force)
        assert record.forced is forced
        assert ("force=true overrode" in record.words) is forced
        assert f"{coverage:.0%}" in record.words


@pytest.fixture
def asked(workspace: Workspace) -> list[str]:
    adapter, output = workspace.zoo / "source" / "books", workspace.root / "out" / "ported"
    return [*workspace.options(), "mapper=copy", f"adapter={adapter}", f"output={output}"]


def test_random_models_stop_the_transfer(
    workspace: Workspace, command: Command, asked: list[str], tmp_path: Path
):
    end = command("transfer", *asked, *CHEAP)
    assert end.code == 3
    assert "Traceback" not in end.err
    assert end.out == ""
    message = " ".join(end.err.split())
    for part in ("pico/source and pico/target", "at least 50%", "force=true", "diagnosis=none"):
        assert part in message
    assert not (workspace.root / "out").exists()
    assert not list((workspace.root / "work").iterdir())


def test_forced_it_goes_on_and_says_so(
    workspace: Workspace, command: Command, asked: list[str], tmp_path: Path
):
    end = command("transfer", *asked, *CHEAP, "force=true")
    assert end.code == 0, end.err
    folder = workspace.root / "out" / "ported"
    record = TransferReport.model_validate_json((folder / "report.json").read_bytes()).compatibility
    assert record is not None
    assert record.forced
    assert record.coverage < 0.5
    assert "which force=true overrode" in end.out
    assert "which force=true overrode" in (folder / "README.md").read_text()
    (kept,) = (workspace.root / "cache" / "compatibility").iterdir()
    # The second time nothing is compared any more: what is kept decides, and is trusted.
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"coverage": 1.0}))
    end = command("transfer", *asked, *CHEAP, "overwrite=true")
    assert end.code == 0, end.err
    record = TransferReport.model_validate_json((folder / "report.json").read_bytes()).compatibility
    assert record is not None
    assert (record.coverage, record.forced) == (1.0, False)


def test_left_out_it_says_so(workspace: Workspace, command: Command, asked: list[str]):
    end = command("transfer", *asked, "diagnosis=none")
    assert end.code == 0, end.err
    assert "diagnosis: left out" in end.out
    assert (
        TransferReport.model_validate_json(
            (workspace.root / "out/ported/report.json").read_bytes()
        ).compatibility
        is None
    )
    assert not (workspace.root / "cache" / "compatibility").exists()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("force=maybe", "force is 'maybe'"),
        ("diagnosis.rows=3", "diagnosis.rows is 3"),
        ("diagnosis.minimum=2.0", "diagnosis.minimum is 2"),
        ("diagnosis=all", "all"),
    ],
)
def test_wrong_options(command: Command, asked: list[str], option: str, named: str):
    end = command("transfer", *asked, option)
    assert end.code == 2
    assert named in end.err
