import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors.torch import save_file

from loraport.exceptions import ModelError, OutputError
from loraport.files import staged_folder, write_whole, writing


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder, with the text of each file."""
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def no_space(*_arguments: object, **_options: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make(folder: Path, overwrite: bool = False, name: str = "new.txt") -> None:
    with staged_folder(folder, overwrite=overwrite) as whole:
        (whole / name).write_text("whole")


def stopped(folder: Path, act: Callable[[Path], object], error: type[BaseException]) -> None:
    with staged_folder(folder) as whole:
        act(whole)
        raise error


class TestWriting:
    def test_what_the_system_says_is_told_with_the_place(self, tmp_path):
        with (
            pytest.raises(OutputError, match=r"place cannot be written \(No space left.*free some"),
            writing(tmp_path / "place"),
        ):
            no_space()

    def test_what_safetensors_says_is_told_with_the_place(self, tmp_path):
        missing = tmp_path / "missing" / "x.safetensors"
        with (
            pytest.raises(OutputError, match=r"missing cannot be written"),
            writing(missing.parent),
        ):
            save_file({"x": torch.ones(2)}, missing)

    def test_other_errors_are_left_alone(self, tmp_path):
        with pytest.raises(ModelError, match=r"^other$"), writing(tmp_path):
            raise ModelError("other")
        outer, inner = writing(tmp_path / "outer"), writing(tmp_path / "inner")
        with pytest.raises(OutputError, match="inner cannot"), outer, inner:
            no_space()


class TestWriteWhole:
    def test_it_writes_utf_8_below_new_folders(self, tmp_path):
        path = write_whole(tmp_path / "a" / "b" / "notes.md", "für dich\n")
        assert path.read_bytes() == "für dich\n".encode()
        assert contents(tmp_path / "a/b") == {"notes.md": "für dich\n"}

    def test_a_failure_keeps_the_old_text(self, tmp_path, monkeypatch):
        write_whole(tmp_path / "notes", "old")
        monkeypatch.setattr(Path, "replace", no_space)
        with pytest.raises(OutputError, match=r"notes cannot be written \(No space left"):
            write_whole(tmp_path / "notes", "new")
        assert contents(tmp_path) == {"notes": "old"}


class TestStagedFolder:
    def test_the_folder_appears_whole_and_at_the_end(self, tmp_path):
        folder = tmp_path / "not" / "yet" / "there"
        with staged_folder(folder) as whole:
            assert list(whole.iterdir()) == []
            (whole / "new.txt").write_text("whole")
            assert not folder.exists()
        assert contents(folder) == {"new.txt": "whole"}
        # Others may read it, as the umask says.
        (tmp_path / "usual").mkdir()
        assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(
            (tmp_path / "usual").stat().st_mode
        )

    @pytest.mark.parametrize(
        ("error", "place"), [(ValueError, "mine"), (KeyboardInterrupt, "not/yet/mine")]
    )
    def test_when_the_block_raises_nothing_is_left(self, tmp_path, error, place):
        with pytest.raises(error):
            stopped(tmp_path / place, lambda whole: (whole / "half.txt").write_text("half"), error)
        assert contents(tmp_path) == {}

    def test_folders_above_stay_where_another_has_come_into_them(self, tmp_path):
        other = tmp_path / "a" / "other"
        with pytest.raises(KeyError):
            stopped(tmp_path / "a" / "b" / "mine", lambda _: other.write_text("kept"), KeyError)
        assert contents(tmp_path) == {"a": "", "a/other": "kept"}

    @pytest.mark.parametrize("kind", ["folder", "empty", "file"])
    def test_what_exists_is_kept_and_the_way_out_named(self, tmp_path, kind):
        place = tmp_path / "mine"
        if kind == "file":
            place.write_text("old")
        else:
            place.mkdir()
        if kind == "folder":
            (place / "old.txt").write_text("old")
        before = contents(tmp_path)
        with pytest.raises(OutputError, match=r"mine exists already; name another.*overwrite=true"):
            make(place)
        assert contents(tmp_path) == before

    def test_overwriting_replaces_all_of_it(self, tmp_path):
        for name in ("old.txt", "new.txt"):
            make(tmp_path / "mine", overwrite=True, name=name)
        assert contents(tmp_path) == {"mine": "", "mine/new.txt": "whole"}

    def test_overwriting_keeps_the_old_folder_when_the_block_raises(self, tmp_path):
        make(tmp_path / "mine", name="old.txt")
        with pytest.raises(KeyError), staged_folder(tmp_path / "mine", overwrite=True):
            raise KeyError
        assert contents(tmp_path) == {"mine": "", "mine/old.txt": "whole"}

    def test_overwriting_removes_no_folder_of_folders_and_no_file(self, tmp_path):
        """A home folder, a checkout or a training run is not an adapter's folder."""
        (tmp_path / "home" / "documents").mkdir(parents=True)
        (tmp_path / "home" / "documents" / "thesis.txt").write_text("years of work")
        (tmp_path / "file").write_text("old")
        before = contents(tmp_path)
        with pytest.raises(OutputError, match="home holds folders of its own"):
            make(tmp_path / "home", overwrite=True)
        with pytest.raises(OutputError, match="file is a file"):
            make(tmp_path / "file", overwrite=True)
        assert contents(tmp_path) == before

    def test_the_old_folder_comes_back_when_the_rename_fails(self, tmp_path, monkeypatch):
        make(tmp_path / "mine", name="old.txt")
        rename = os.replace

        def full_at_last(one: Path, other: Path) -> None:
            if Path(one).name == "whole":
                no_space()
            rename(one, other)

        monkeypatch.setattr(os, "replace", full_at_last)
        with pytest.raises(OutputError, match=r"mine cannot be written \(No space left"):
            make(tmp_path / "mine", overwrite=True)
        assert contents(tmp_path) == {"mine": "", "mine/old.txt": "whole"}

    @pytest.mark.parametrize(
        "place",
        [
            lambda folder: folder / "file" / "deeper" / "mine",
            lambda folder: folder / ("long" * 100) / "mine",
            lambda folder: Path("/proc/mine"),
        ],
        ids=["below a file", "long parent", "proc"],
    )
    def test_a_place_where_nothing_can_be_made_is_named(self, tmp_path, place):
        (tmp_path / "file").write_text("old")
        with pytest.raises(OutputError, match=r"cannot be written \(.+\); free some space, or"):
            make(place(tmp_path))
        assert contents(tmp_path) == {"file": "old"}

    def test_a_failure_of_the_block_is_not_taken_for_one_of_the_place(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="elsewhere"), staged_folder(tmp_path / "mine"):
            (tmp_path / "elsewhere").read_text()
        assert contents(tmp_path) == {}
