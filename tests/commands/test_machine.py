"""What a machine does to a command: no end-of-text token, places that cannot be written."""

import json
import shutil

import pytest

from loraport.adapters import read_adapter
from loraport.commands.train import Fitting

from .conftest import QUICK_REFINEMENT, Command, Workspace, write_texts

SEQUENCE = ("texts=6", "pool=8", "held_out=4", "epochs=1", "max_new_tokens=6", "checks=0")
FREE = (
    *("mapper=cross_lora", "refine=corpus_distill", "prompt.labels=[]"),
    "prompt.template='the film is {text}'",
    *(f"refine.sequence.{word}" for word in SEQUENCE),
    *("drift.texts=4", "drift.positions=4"),
)


def quick(workspace: Workspace, *options: str) -> list[str]:
    """Options of ``transfer.py`` that distil, in seconds."""
    if not (workspace.root / "texts").exists():
        write_texts(workspace.root / "texts")
    return [
        *workspace.options(),
        f"adapter={workspace.zoo / 'source/books'}",
        f"paths.corpus={workspace.root / 'texts'}",
        *(options or QUICK_REFINEMENT["corpus_distill"]),
    ]


def without_special_tokens(workspace: Workspace) -> None:
    """Give both models tokenizers that have neither a padding nor an end-of-text token."""
    kept = (workspace.root / "models").resolve()
    (workspace.root / "models").unlink()
    shutil.copytree(kept, workspace.root / "models")
    for file in (workspace.root / "models").glob("*/tokenizer_config.json"):
        entries = json.loads(file.read_text())
        assert entries.pop("pad_token")
        assert entries.pop("eos_token")
        file.write_text(json.dumps(entries))


@pytest.mark.parametrize("options", [(), FREE], ids=["labels", "free"])
def test_padding_is_masked_whatever_it_is_of(
    workspace: Workspace, command: Command, options: tuple[str, ...]
) -> None:
    """Training, scoring, generation and distillation give the same without such tokens."""
    zoo = ("anchors", *workspace.options(), "tasks.names=[films]", "evaluation.rows=4")
    found = []
    for turn in ("with", "without"):
        if turn == "without":
            without_special_tokens(workspace)
        end = command(*zoo, f"paths.zoo={workspace.root / turn}")
        assert end.code == 0, end.err
        adapters = [
            read_adapter(workspace.root / turn / side / "films") for side in ("source", "target")
        ]
        end = command(
            "transfer", *quick(workspace, *options), f"output={workspace.root / turn / 'o'}"
        )
        assert end.code == 0, end.err
        adapters.append(read_adapter(workspace.root / turn / "o"))
        found.append([adapter.content_hash() for adapter in adapters])
    assert found[0][:2] == found[1][:2]
    if not options:  # else what ended before goes on now
        assert found[0] == found[1]


def test_a_logger_that_cannot_write_ends_a_command_before_it_fits(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace.root / "file").write_text("")
    monkeypatch.setattr(Fitting, "fit", lambda *_: pytest.fail("a mapper was fitted"))
    place = f"logger.csv.save_dir={workspace.root / 'file/below'}"
    end = command("train", *workspace.training(), "mapper=mean", place)
    assert end.code == 2
    assert "logger=csv cannot write" in end.err
    assert "Traceback" not in end.err
