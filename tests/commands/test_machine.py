"""What a machine does to a command: no end-of-text token, places that cannot be written."""

import json
import re
import shutil
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from loraport.adapters import read_adapter
from loraport.commands.train import Fitting
from loraport.evaluation.records import BenchmarkResults

from .conftest import (
    QUICK_DIAGNOSIS,
    QUICK_MAPPER,
    QUICK_REFINEMENT,
    QUICK_TEXT,
    Command,
    Workspace,
    mounted,
    write_texts,
)
from .test_evaluate import numbers

SEQUENCE = ("texts=6", "pool=8", "held_out=4", "epochs=1", "max_new_tokens=6", "checks=0")
FREE = (
    *("mapper=cross_lora", "refine=corpus_distill", "prompt.labels=[]"),
    "prompt.template='the film is {text}'",
    *(f"refine.sequence.{word}" for word in SEQUENCE),
    *("drift.texts=4", "drift.positions=4"),
)


QUICK_METHOD = (
    "method_options={transport: ['data.tokens=300','data.held_out_tokens=120',"
    "'data.batch_tokens=1024']}"
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


def read_only(folder: Path) -> AbstractContextManager[None]:
    """Let nobody write in a folder, not even root."""
    return mounted(folder, ("--bind", str(folder)), ("-o", "remount,bind,ro"))


def jobs(workspace: Workspace) -> dict[str, list[str]]:
    """Every command in a few seconds; the zoo lies where the cache keeps it."""
    kept = [word for word in workspace.training() if not word.startswith("paths.zoo=")]
    write_texts(workspace.root / "texts")
    texts = (*QUICK_TEXT, f"paths.corpus={workspace.root / 'texts'}")
    return {
        "anchors": [*kept[:-2], "recipe.epochs=1"],
        "train": [*kept, *texts, *QUICK_MAPPER["cast"], "mapper=cast", "recipe.epochs=1"],
        "transfer": [*quick(workspace), f"output={workspace.root / 'out'}", "overwrite=true"],
        "diagnose": [
            *(*kept[:-2], *QUICK_DIAGNOSIS, *texts[1:], "probes=sentences", "force=true"),
        ],
        "evaluate": [
            *(*kept, texts[-1], "recipe.epochs=1", "few_shot=[4]", "pairing=relative_depth"),
            *("methods=[global_ridge,cross_lora,transport]", QUICK_METHOD),
        ],
    }


def test_a_cache_in_which_everything_is_there_is_only_read(
    workspace: Workspace, command: Command
) -> None:
    given = jobs(workspace)
    first = {name: command(name, *words) for name, words in given.items()}
    assert {name: end.err for name, end in first.items() if end.code} == {}
    cache = workspace.root / "cache"
    before = sorted(cache.rglob("*"))
    with read_only(cache):
        again = {name: command(name, *words) for name, words in given.items()}
    assert {name: end.err for name, end in again.items() if end.code} == {}
    assert sorted(cache.rglob("*")) == before
    for name in ("train", "evaluate"):
        tables = [end.out.split("results  ")[0] for end in (first[name], again[name])]
        assert tables[0] == tables[1]


def change(file: Path) -> bool:
    """Change a kept file so that it is as well formed as before; return whether that was done."""
    content = file.read_bytes()
    if file.suffix in (".entry", ".json"):
        head, _, body = content.partition(b"\n") if file.suffix == ".entry" else (b"", b"", content)
        body = body.replace(b"false", b"true") if b"false" in body else swapped_digit(body)
        file.write_bytes(head + b"\n" + body if head else body)
    elif file.suffix in (".safetensors", ".bf16", ".ckpt"):
        at = 2 * len(content) // 3
        file.write_bytes(
            content[:at] + bytes(b ^ 1 for b in content[at : at + 500]) + content[at + 500 :]
        )
    return file.read_bytes() != content


def swapped_digit(body: bytes) -> bytes:
    return re.sub(rb"[0-8](?=\D*$)", lambda digit: bytes([digit[0][0] + 1]), body)


@pytest.mark.slow
def test_whatever_is_kept_and_has_changed_is_made_again(
    workspace: Workspace, command: Command
) -> None:
    """Scores, suites, divergences, factors, statistics, activations, fits, ports, labels, zoo."""
    given, cache = jobs(workspace), workspace.root / "cache"

    def found() -> dict[str, Any]:
        ends = {name: command(name, *words) for name, words in given.items()}
        assert {name: end.err for name, end in ends.items() if end.code} == {}
        runs = {name: max((workspace.root / f"work/outputs/{name}").iterdir()) for name in ends}
        train = json.loads((runs["train"] / "results.json").read_text())
        near = json.loads((runs["diagnose"] / "intersection_map.json").read_text())
        return {
            "train": [train["tasks"], train["summary"]],
            "transfer": read_adapter(workspace.root / "out").content_hash(),
            "diagnose": [near["verdict"], near["measures"], near["modules"]],
            "evaluate": numbers(BenchmarkResults.read(runs["evaluate"] / "results.json")),
        }

    before = found()
    changed = {file for file in cache.rglob("*") if file.is_file() and change(file)}
    kinds = {file.relative_to(cache).parts[0] for file in changed}
    assert kinds >= {
        *("scores", "divergences", "diagnoses", "factors", "statistics", "activations", "zoo"),
        *("teacher_labels", "fits", "ports", "few_shot"),
    }
    assert found() == before


PLACES = [
    *((name, "paths.cache") for name in ("anchors", "train", "transfer", "diagnose", "evaluate")),
    *((name, "hydra.run.dir") for name in ("anchors", "transfer")),
    *(("transfer", "output"), ("anchors", "paths.zoo")),
]


@pytest.mark.parametrize("kind", ["read-only", "too long", "a file"])
@pytest.mark.parametrize(("name", "option"), PLACES)
def test_a_place_that_cannot_be_written_is_a_message(
    workspace: Workspace, command: Command, name: str, option: str, kind: str
) -> None:
    words = [word for word in jobs(workspace)[name] if not word.startswith(f"{option}=")]
    if name == "transfer":  # else the cache, which is all right, is filled first
        words = [word for word in words if not word.startswith("refine.")]
        words += ["mapper=cross_lora"]
    if name in ("train", "evaluate") and option == "paths.cache":
        words.append(f"paths.zoo={workspace.zoo}")
    place = workspace.root / "place"
    with ExitStack() as stack:
        if kind == "read-only":
            stack.enter_context(read_only(place))
        elif kind == "a file":
            place.write_text("mine")
        else:
            place = workspace.root / ("x" * 300)
        end = command(name, *words, f"{option}={place / 'below'}")
    assert end.code == 2, end.err
    assert "Traceback" not in end.err
    assert str(place)[:200] in end.err.replace("\n", "")
    if kind == "a file":
        assert place.read_text() == "mine"
