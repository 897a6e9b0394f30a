"""What a run was made from: library versions and the revision of the checkout."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("torch", "lightning", "transformers", "peft", "datasets", "loraport")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    return versions


def git_revision(folder: Path | None = None) -> str | None:
    """Return the commit that is checked out, with ``+changes`` where files differ from it.

    None where there is no checkout, no commit yet, or no git.

    Args:
        folder: Root of the checkout; None for the one that this package is run from.
    """
    root = Path(__file__).resolve().parents[2] if folder is None else folder
    # Without this an installed package would report the repository that its environment lies in.
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain")
    return f"{commit}+changes" if commit and changes else commit or None


def _git(root: Path, *arguments: str) -> str:
    """Return what a git command prints, empty where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
