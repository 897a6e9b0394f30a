"""What every command does around its work: what it leaves behind, and how it ends."""

import errno
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from loraport.cli import _unread
from loraport.commands import port
from loraport.option_types import in_quotes

from .conftest import ROOT, Command, Workspace


@pytest.fixture
def refused(workspace: Workspace, command: Command) -> Any:
    def call(*options: str) -> None:
        words = [word for word in workspace.options() if not word.startswith("paths.zoo=")]
        end = command("transfer", *words, "mapper=copy", "adapter=nowhere", *options)
        assert end.code == 2, end.err

    return call


class TestWhatARefusedRunLeaves:
    def test_folders_of_the_users_stay(self, workspace: Workspace, refused: Any):
        work = workspace.root / "work"
        (work / "runs" / "a").mkdir(parents=True)
        refused("hydra.run.dir=runs/a/b/c")
        assert [path.relative_to(work) for path in sorted(work.rglob("*"))] == [
            Path("runs"),
            Path("runs/a"),
        ]
        refused("hydra.run.dir=runs/a")
        assert (work / "runs" / "a").is_dir()
        assert not list((work / "runs" / "a").iterdir())

    def test_what_lay_in_the_folder_stays(self, workspace: Workspace, refused: Any):
        folder = workspace.root / "work" / "mine"
        (folder / "empty").mkdir(parents=True)
        (folder / "thesis.tex").write_text("years of work")
        refused("hydra.run.dir=mine")
        assert {path.name for path in folder.iterdir()} == {"empty", "thesis.tex"}

    def test_the_folders_that_it_made_go(self, workspace: Workspace, refused: Any):
        refused()
        assert not list((workspace.root / "work").iterdir())


def test_a_request_to_end_is_like_one_of_the_keyboard(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def ask(*_: object) -> NoReturn:
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal was not noticed")

    monkeypatch.setattr(port.Inputs, "of", ask)
    before = signal.getsignal(signal.SIGTERM)
    end = command("transfer", *workspace.options(), "mapper=copy", "adapter=books")
    assert end.code == 130
    assert "stopped; nothing was written" in end.err
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_standard_output_that_is_full_is_told(unbuffered: str):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, ROOT / "anchors.py", "--help"],
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("loraport: standard output cannot be written (No space left")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, ROOT / "anchors.py", "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_disk_that_a_library_finds_full_is_told(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(port.Inputs, "of", full)
    end = command("transfer", *workspace.options(), "mapper=copy", "adapter=books")
    assert end.code == 2
    assert "a file cannot be written (No space left on device); free some space" in end.err
    assert "Traceback" not in end.err


def parsed(word: str) -> Any:
    return OverridesParser.create().parse_overrides([word])[0].value()


def test_a_word_that_hydra_does_not_take_is_shown_as_it_takes_it():
    """Whatever its lexer and its grammar refuse: a shell and Hydra make the value of the answer."""
    draw, asked = random.Random(0), 0
    given = [
        "{text} is",
        "a=b",
        "a~b",
        "it's",
        'a"b',
        "\\",
        "a\\'",
        "a(b)",
        "[a",
        "é!",
        "x\ny",
        "${a",
    ]
    signs = "ab '\"\\{}[]()=~$,:!#&;<>|*?`\n\té/."
    given += ["".join(draw.choices(signs, k=draw.randint(1, 8))) for _ in range(600)]
    for value in given:
        try:
            parsed(f"output={value}")
        except HydraException:
            written = _unread(f"output={value}").partition("it is written ")[2]
            (word,) = shlex.split(written)
            made = OmegaConf.create({"made": parsed(word)})["made"] if "${" not in word else None
            asked += 1
            if made is not None and not (value[0] == "[" and value[-1] == "]"):
                assert made == value
    assert asked > 100


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("prompt.template={text} is", "\"prompt.template='{text} is'\""),
        ("paths.zoo=/a=b", "\"paths.zoo='/a=b'\""),
        ("prompt.instruction=it's", "\"prompt.instruction='it\\'s'\""),
        ("prompt.labels=[it's,good]", "\"prompt.labels=['it\\'s','good']\""),
        ("output=out[/a]", "\"output='out[/a]'\""),
    ],
)
def test_the_quoting_is_that_of_the_option_at_hand(command: Command, word: str, written: str):
    end = command("transfer", word)
    assert end.code == 2
    assert f"{word} has signs that Hydra takes in quotes alone; it is written {written}" in end.err


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("paths.zoo=/a,b", 'as text it is written "paths.zoo=\'/a,b\'", as a list "paths.zoo=['),
        ("output=/a/${b}", "as text it is written 'output='"),
        ("adapter", "adapter is no option; an option is written NAME=VALUE"),
        ("--adapter=x", "unrecognized arguments: --adapter=x"),
    ],
)
def test_other_words_that_mean_something_else(command: Command, word: str, told: str):
    end = command("transfer", word)
    assert end.code == 2
    assert told in end.err
    assert "Traceback" not in end.err


def test_in_quotes_leaves_what_is_quoted_in_a_list():
    assert in_quotes("x=['a b', \"c\"]") == "\"x=['a b','c']\""
