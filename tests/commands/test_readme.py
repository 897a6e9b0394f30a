"""Every command of the README and of docs/transfer.md is run, real models replaced by pico ones."""

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from loraport import api

from .conftest import (
    HELD_OUT,
    QUICK_DIAGNOSIS,
    QUICK_MAPPER,
    QUICK_REFINEMENT,
    QUICK_TEXT,
    Command,
    Workspace,
    write_inputs,
    write_texts,
)

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PORT = (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", f"{README}\n{PORT}", flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.partition("#")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if line.partition("#")[0].strip()
]
OURS = list(dict.fromkeys(line for line in COMMANDS if line.startswith("python ")))
SETUP = [line for line in COMMANDS if not line.startswith("python ")]


def test_the_python_example_is_the_one_that_is_tested():
    block = str(api.__doc__).split(".. code-block:: python")[1].split("\n``PORTED``")[0]
    assert textwrap.dedent(block).strip() in README


def test_the_readme_is_short_and_has_commands():
    assert len(README.splitlines()) < 200
    assert len(OURS) >= 6


@pytest.mark.parametrize("line", SETUP)
def test_setup_commands_are_known_to_make_and_pip(line: str):
    if "make " in line:
        target = line.rpartition("make ")[2].strip()
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert line == "pip install -e . -c constraints.txt"
        pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        assert re.search(r"^torch==", pins, flags=re.MULTILINE)


def marked(line: str) -> object:
    """Return a command as a parameter: those of several runs are slow."""
    several = line.startswith("python evaluate.py") or " -m " in line or " sweep=" in line
    return pytest.param(line, marks=pytest.mark.slow if several else ())


@pytest.mark.parametrize("line", [marked(line) for line in OURS])
def test_our_commands_run(
    line: str, workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    # In place of the hub, whose ids are folders here.
    monkeypatch.setattr("loraport.models.loading.snapshot_download", lambda name, **_: name)
    _, script, *words = shlex.split(line)
    trains = script in ("train.py", "evaluate.py")
    pico = workspace.training() if trains else workspace.options()
    if "collect=DIR" in words:
        assert command("train", *pico, "mapper=mean", "hydra.run.dir=runs/0").code == 0
    if "ckpt=FILE" in words:
        training = [*workspace.training(), "mapper=mean"]
        if "cartridge=DIR" in words:
            training = workspace.text_training("cast")
        fitted = command("train", *training, "hydra.run.dir=fitted")
        assert fitted.code == 0, fitted.err
    named = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    inputs, examples = write_inputs(workspace.root)
    paths = {
        "inputs": inputs,
        "examples": examples,
        "pair.source.path": workspace.root / "models/source",
        "pair.target.path": workspace.root / "models/target",
        "pair.source.name": workspace.root / "models/source",
        "pair.target.name": workspace.root / "models/target",
        "paths.tasks": workspace.root / "tasks",
        "paths.zoo": workspace.root / "new_zoo" if script == "anchors.py" else workspace.zoo,
        "paths.zoo_source": workspace.zoo / "source",
        "paths.zoo_target": workspace.zoo / "target",
        "adapter": workspace.zoo / "source/books",
        "merge.with": workspace.zoo / "target/games",
        "output": workspace.root / "ported",
        "cartridge": workspace.root / "cartridge",
        "paths.corpus": workspace.root / "texts",
        "ckpt": workspace.root / "work/fitted/mapper.ckpt",
        "collect": workspace.root / "work/runs",
    }
    given = [
        f"{word.partition('=')[0]}={paths[word.partition('=')[0]]}"
        if word.endswith(("=DIR", "=ID", "=FILE", "=speaker_33"))
        else word
        for word in words
        # The real pair's own models take minutes: the tests marked real load them.
        if not word.startswith(("pair=smollm2_gemma3", "experiment="))
    ]
    if "pair=hub" in words:
        pico = [o for o in pico if not o.startswith("pair.") and o != "pair=local"]
    if "paths.zoo_source" in named:
        pico = [o for o in pico if not o.startswith("paths.zoo=")]
    small = []
    if "pca" in line:
        small = ["++mapper.components=1", "++data.validation=0.34", "++trainer.max_epochs=2"]
    if "mapper=mean," in line:  # of the sweep, one mapper
        given = ["mapper=mean" if word.startswith("mapper=") else word for word in given]
        small = []
    refined = script == "transfer.py" and (
        "refine" in named or not named.keys() & {"mapper", "ckpt"}
    )
    if refined or "paths.corpus=DIR" in words:
        write_texts(workspace.root / "texts")
    if refined:
        small += QUICK_REFINEMENT[named.get("refine", "corpus_distill")]
        small.append(f"paths.corpus={workspace.root / 'texts'}")
    elif "paths.corpus=DIR" in words and script != "evaluate.py":
        small += [*QUICK_TEXT, *QUICK_MAPPER.get(named.get("mapper", ""), ())]
    if script == "evaluate.py":
        quick = ",".join(f"'{w}'" for w in QUICK_REFINEMENT["corpus_distill"] if "refine." in w)
        small += ["few_shot=[4]", "drift.texts=0", f"method_options={{default: [{quick}]}}"]
    if "sweep=seeds" in words:  # of the sweep, one mapper
        small += ["mapper=mean", "seed=0,1"]
    if script == "diagnose.py":  # random weights are not compatible
        small += [*QUICK_DIAGNOSIS, "force=true"]
    given = [w for w in given if w.partition("=")[0] not in {o.partition("=")[0] for o in small}]
    kept = [o for o in pico if o.partition("=")[0] not in {w.partition("=")[0] for w in given}]
    flags, rest = [w for w in given if w == "-m"], [w for w in given if w != "-m"]
    end = command(script.removesuffix(".py"), *flags, *kept, *rest, *small)
    assert end.code == 0, end.err
    if script == "transfer.py":
        assert "verified: PEFT reads" in end.out
        assert ("cartridge" in named) == (workspace.root / "cartridge").is_dir()
    if script == "train.py":
        assert all(name in end.out for name in HELD_OUT)
    if script == "diagnose.py":
        assert list((workspace.root / "work").glob("outputs/diagnose/*/diagnosis.html"))


@pytest.mark.parametrize("script", ["train", "anchors", "transfer", "diagnose", "evaluate"])
def test_help_shows_groups_without_torch(script: str):
    code = (
        f"import sys; sys.argv = ['{script}.py', '--help']\n"
        f"from loraport.cli import {script}\n"
        f"try:\n    {script}()\nexcept SystemExit as end:\n    print('code', end.code)\n"
        "print('torch imported', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "torch imported False" in done.stdout
    assert f"python {script}.py" in done.stdout
    assert "pair: " in done.stdout
