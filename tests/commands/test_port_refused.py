"""Bad input to ``transfer.py``: one message, exit code 2, and nothing left of the attempt."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors.torch import load_file, save_file

from loraport.adapters import LowRank, read_adapter
from loraport.adapters import peft_io as peft_folder
from loraport.commands import port as module
from loraport.mappers.controls import CopyMapper
from loraport.models import BaseModel

from .conftest import Command, Outcome, Workspace, small_disk


def contents(folder: Path) -> dict[str, bytes]:
    """Every path below a folder, but for what a cache and Python leave, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not path.is_relative_to(folder / "cache")
    }


class Attempt:
    """Runs ``transfer.py`` where it must not succeed, and looks at what is left of it."""

    def __init__(self, workspace: Workspace, command: Command) -> None:
        self.workspace = workspace
        self.command = command
        self.adapter = workspace.zoo / "source" / "books"
        self.output = workspace.root / "out" / "ported"
        (workspace.root / "work").mkdir()

    def call(self, *options: str) -> Outcome:
        return self.command(
            "transfer",
            *self.workspace.options(),
            "mapper=copy",
            f"adapter={self.adapter}",
            f"output={self.output}",
            *options,
        )

    def refused(self, *options: str, code: int = 2) -> str:
        """Return the message, on one line."""
        before = contents(self.workspace.root)
        end = self.call(*options)
        assert end.code == code, end.err
        assert "Traceback" not in end.err
        assert end.err.count("loraport: ") == 1
        assert end.out == ""
        assert contents(self.workspace.root) == before
        return " ".join(end.err.split())


@pytest.fixture
def attempt(workspace: Workspace, command: Command) -> Attempt:
    return Attempt(workspace, command)


class TestAdapters:
    @pytest.mark.parametrize(
        ("kind", "named"),
        [
            ("missing", ["is no folder", "films, games"]),
            ("wrong model", ["'pico/target'", "mapper's source pico/source", "choose the pair"]),
            ("truncated", ["truncated or damaged"]),
            ("untrained", ["zero at every site", "that was trained"]),
        ],
    )
    def test_an_adapter_that_cannot_be_ported(
        self, attempt: Attempt, kind: str, named: list[str]
    ) -> None:
        damage(attempt.adapter, kind)
        if kind == "wrong model":
            attempt.adapter = attempt.workspace.zoo / "target" / "books"
        message = attempt.refused()
        for part in named:
            assert part in message

    def test_no_adapter_at_all(self, attempt: Attempt) -> None:
        assert "adapter is []; it takes a PEFT folder" in attempt.refused("adapter=[]")

    def test_one_of_several_adapters(self, attempt: Attempt) -> None:
        assert "is no folder" in attempt.refused(f"adapter=[{attempt.adapter},nowhere]")
        assert "nowhere" in attempt.refused("merge.with=[nowhere]")


def damage(folder: Path, kind: str) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    if kind == "missing":
        shutil.rmtree(folder)
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "untrained":
        save_file({k: 0 * t if "lora_B" in k else t for k, t in tensors.items()}, weights)


class TestModels:
    @pytest.fixture
    def target(self, attempt: Attempt, pico_target: BaseModel) -> Path:
        """The target in shards of its own, to be damaged."""
        models = attempt.workspace.root / "models"
        ours = attempt.workspace.root / "ours"
        shutil.copytree(models / "source", ours / "source")
        pico_target.network.save_pretrained(ours / "target", max_shard_size="20KB")
        pico_target.tokenizer.save_pretrained(ours / "target")
        models.unlink()
        ours.rename(models)
        assert len(list((models / "target").glob("model-*.safetensors"))) > 2
        return models / "target"

    def test_an_unknown_architecture(self, attempt: Attempt, target: Path) -> None:
        config = target / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "gpt2"}))
        message = attempt.refused()
        assert "'gpt2'" in message
        assert "gemma3_text, llama" in message

    def test_a_missing_shard(self, attempt: Attempt, target: Path) -> None:
        shard = sorted(target.glob("model-*.safetensors"))[1]
        shard.unlink()
        assert f"{shard} is missing" in attempt.refused()

    def test_a_truncated_shard(self, attempt: Attempt, target: Path) -> None:
        shard = sorted(target.glob("model-*.safetensors"))[1]
        shard.write_bytes(shard.read_bytes()[:-100])
        message = attempt.refused()
        assert str(shard) in message
        assert "is damaged" in message

    def test_a_tensor_that_only_the_verification_reads(
        self, attempt: Attempt, target: Path
    ) -> None:
        for shard in target.glob("model-*.safetensors"):
            tensors = load_file(shard)
            tensors.pop("model.norm.weight", None)
            save_file(tensors, shard)
        assert "no tensor model.norm.weight" in attempt.refused()

    def test_a_missing_model(self, attempt: Attempt, target: Path) -> None:
        shutil.rmtree(target)
        assert str(target) in attempt.refused()

    def test_shapes_that_the_printed_formula_is_not_defined_for(self, attempt: Attempt) -> None:
        message = attempt.refused("mapper=cross_lora", "mapper.variant=lora_x")
        assert "mapper.variant=typed or sign_fixed" in message


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "named"),
        [
            ("mapper=nonsense", ["nonsense", "cross_lora", "pca_mlp"]),
            ("mapper.rnak=3", ["mapper.rnak", "did you mean rank?"]),
            ("mapper.variant=wide", ["'wide'", "lora_x, paper, typed, sign_fixed"]),
            ("sparsify.p=1.5 sparsify=rank", ["sparsify.p is 1.5"]),
            ("merge.weights=[1,2]", ["merge.weights is [1.0, 2.0]", "1 adapters"]),
            ("choose.anchors=[bookz]", ["bookz", "songs"]),
        ],
    )
    def test_a_wrong_option(self, attempt: Attempt, option: str, named: list[str]) -> None:
        message = attempt.refused("mapper=cross_lora", *option.split())
        for part in named:
            assert part in message

    def test_factors_that_the_dtype_cannot_hold(self, attempt: Attempt) -> None:
        given = read_adapter(attempt.adapter)
        vast = given.map(lambda update: LowRank(1e6 * update.A, update.B, 1e-6))
        peft_folder.write_adapter(vast, attempt.adapter, overwrite=True)
        assert "dtype=float16 cannot hold" in attempt.refused("dtype=float16")
        assert attempt.call("dtype=bfloat16").code == 0


class TestPlaces:
    def test_output_that_exists(self, attempt: Attempt) -> None:
        attempt.output.mkdir(parents=True)
        assert "exists already" in attempt.refused()

    def test_output_that_holds_more_than_an_adapter(self, attempt: Attempt) -> None:
        (attempt.output / "thesis").mkdir(parents=True)
        (attempt.output / "thesis" / "chapter.tex").write_text("years of work")
        assert "holds folders of its own" in attempt.refused("overwrite=true")

    @pytest.mark.parametrize("place", ["file/deep/ported", "long" * 100])
    def test_output_on_an_unwritable_path(self, attempt: Attempt, place: str) -> None:
        (attempt.workspace.root / "file").write_text("a file where a folder is due")
        attempt.output = attempt.workspace.root / place
        assert f"{attempt.output} cannot be written" in attempt.refused()

    def test_a_cache_that_cannot_be_written(self, attempt: Attempt) -> None:
        (attempt.workspace.root / "file").write_text("a file where a folder is due")
        message = attempt.refused("mapper=cross_lora", f"paths.cache={attempt.workspace.root}/file")
        assert "file/factors" in message
        assert "cannot be written" in message

    @pytest.mark.parametrize("step", ["report", "rename"])
    def test_a_disk_that_fills_up(
        self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        write, rename = Path.write_text, os.replace

        def full(*arguments: Any, **options: Any) -> NoReturn:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def full_for_reports(path: Path, *arguments: Any, **options: Any) -> int:
            return full() if path.name == "report.json" else write(path, *arguments, **options)

        def full_at_last(one: Any, other: Any) -> None:
            return full() if Path(one).name == "whole" else rename(one, other)

        if step == "report":
            monkeypatch.setattr(Path, "write_text", full_for_reports)
        else:
            monkeypatch.setattr(os, "replace", full_at_last)
        message = attempt.refused()
        assert f"{attempt.output} cannot be written (No space left on device)" in message

    def test_a_disk_that_is_full(self, attempt: Attempt, tmp_path: Path) -> None:
        with small_disk(tmp_path / "small", "64k") as disk:
            (disk / "other").write_bytes(bytes(56_000))
            attempt.output = disk / "new" / "ported"
            message = attempt.refused()
            assert f"{attempt.output} cannot be written" in message
            assert "free some space" in message
            assert [path.name for path in disk.iterdir()] == ["other"]
            (disk / "other").unlink()
            assert attempt.call().code == 0


class TestVerification:
    """What was written is not what was meant: nothing of it is left, and the exit code is 1."""

    def test_what_was_written_wrongly(
        self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def spoilt(adapter: Any, folder: Path) -> None:
            peft_folder.write_peft_files(adapter, folder)
            file = folder / "adapter_model.safetensors"
            tensors = load_file(file)
            kept = {n: t for n, t in tensors.items() if "layers.1.self_attn.q_proj" not in n}
            save_file(kept, file)

        monkeypatch.setattr(module, "write_peft_files", spoilt)
        assert "q_proj" in attempt.refused(code=1)

    def test_what_was_there_before_stays(
        self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert attempt.call().code == 0
        shutil.rmtree(attempt.workspace.root / "work" / "outputs")
        message = attempt.refused("overwrite=true", "scale=1e-30", code=1)
        assert "should change" in message


class TestStopped:
    @pytest.mark.parametrize("place", [["map_site"], ["verify"]], ids=str)
    def test_stopping_leaves_nothing_at_output(
        self, attempt: Attempt, monkeypatch: pytest.MonkeyPatch, place: list[str]
    ) -> None:
        calls: list[int] = []
        copy_site: Callable[..., LowRank] = CopyMapper.map_site

        def stop(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if place == ["verify"] or len(calls) > 3:
                raise KeyboardInterrupt
            return copy_site(*arguments)

        owner = module if place == ["verify"] else CopyMapper
        monkeypatch.setattr(owner, place[0], stop)
        end = attempt.call()
        assert end.code == 130
        assert "Traceback" not in end.err
        assert "stopped" in end.err
        assert not attempt.output.parent.exists()
