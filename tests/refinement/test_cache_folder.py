"""Folders of the cache."""

from pathlib import Path

from loraport.refinement.cache_folder import cache_folder


def test_work_lies_under_a_hash_of_what_it_depends_on(tmp_path: Path) -> None:
    found = cache_folder(tmp_path, "teacher", ["model", ["a text"], 3])
    assert found is not None
    assert found.parent == tmp_path / "teacher"
    assert found == cache_folder(tmp_path, "teacher", ["model", ["a text"], 3])
    assert found != cache_folder(tmp_path, "teacher", ["model", ["a text"], 4])


def test_without_a_cache_nothing_is_kept() -> None:
    assert cache_folder(None, "teacher", []) is None
