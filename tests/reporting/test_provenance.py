import platform
import subprocess

import torch

from loraport.reporting import git_revision, library_versions


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_versions_are_those_that_run():
    versions = library_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert {"lightning", "transformers", "peft", "loraport"} <= set(versions)


def test_the_revision_is_the_commit_and_tells_changes(tmp_path):
    assert git_revision(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_revision(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_revision(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{commit}+changes"


def test_a_folder_inside_another_checkout_has_none(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "site-packages").mkdir()
    assert git_revision(tmp_path / "site-packages") is None


def test_without_git_there_is_no_revision(tmp_path, monkeypatch):
    git(tmp_path, "init", "--quiet")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None
