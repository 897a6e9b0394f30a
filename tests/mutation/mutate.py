"""Make one known mistake at a time in a copy of the code; the tests named for it must fail.

    python -m tests.mutation.mutate [NAME ...] [--list] [--no-baseline] [--root DIR]

The mistakes stand in ``mutants.py``. A mutant is *killed* where its tests fail, *survived* where
they pass, *not found* where its text is not exactly once in the code below ``src``, and *broken*
where pytest cannot run it at all. Tests that fail without any mistake are named and left out.
Exit code: 0 where all mutants are killed, else 1; 2, and nothing is run, where a named test file is
not there.

The code is copied to a temporary folder (what git tracks and what it does not ignore), so that the
checkout is never touched. Libraries are imported once; each mutant is tried in a fork of that
process. Needs ``fork``: Linux or macOS.
"""

import argparse
import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

from tests.mutation.mutants import MUTANTS, Mutant

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_LIBRARIES = ("torch", "transformers", "peft", "lightning", "scipy.stats", "scipy.optimize", "ot")
_MARKS = "not slow and not real"
_SECONDS = 900
_CLOCK = count(2_000_000_000, 10)
_PASSED, _FAILED = 0, 1


def copied(root: Path, place: Path) -> Path:
    """Copy the checkout, and make its ``src`` importable as loraport; return the copy's root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    copy = place / "checkout"
    for name in listed.split("\0"):
        if name and (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    # In front of the installed package, whose finder comes last.
    (place / "path").mkdir()
    (place / "path" / "loraport").symlink_to(copy / "src")
    if not (copy / "src" / "conf").exists():
        (copy / "src" / "conf").symlink_to(copy / "conf")
    return copy


def found(root: Path, mutant: Mutant) -> Path | None:
    """Return the file that has a mutant's text exactly once and nowhere else, if there is one."""
    code = {path: path.read_text() for path in sorted((root / "src").rglob("*.py"))}
    places = [path for path, text in code.items() if mutant.old in text]
    return places[0] if len(places) == 1 and code[places[0]].count(mutant.old) == 1 else None


def test_files(root: Path, names: Iterable[str]) -> list[str]:
    """Return the test files of these names, wherever they lie."""
    return [
        str(path.relative_to(root))
        for name in names
        for path in sorted((root / "tests").rglob(name))
    ]


def pytest_in_fork(root: Path, options: Sequence[str], log: Path) -> int:
    """Run pytest in a fork, with its output in ``log``; return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(root)
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]  # those of the checkout, of which this module is one
        sys.path[:0] = [str(root.parent / "path"), str(root)]
        os.environ["PYTHONPATH"] = str(root.parent / "path")
        import faulthandler

        import pytest

        faulthandler.dump_traceback_later(_SECONDS, exit=True)
        always = ["-q", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", _MARKS]
        # Libraries that bring a pytest plugin are imported already, in this process's parent.
        always += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
        code = int(pytest.main([*always, *options]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def failures(log: Path) -> list[str]:
    """Return the failed tests that pytest's output names."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(), re.MULTILINE)


def summary(log: Path) -> str:
    """Return the first failed test without its folder, or the last line of the output."""
    named = failures(log)
    if named:
        return named[0].rpartition("/")[2]
    return (log.read_text().strip().splitlines() or ["no output"])[-1][:100]


def outcome(root: Path, mutant: Mutant, left_out: Sequence[str], log: Path) -> tuple[str, str]:
    """Try one mutant in the copy; return what became of it and a detail."""
    path, tests = found(root, mutant), test_files(root, mutant.tests)
    if path is None:
        return "not found", mutant.old.strip().splitlines()[0]
    text, stat = path.read_text(), path.stat()
    try:
        path.write_text(text.replace(mutant.old, mutant.new))
        # Bytecode is recognised by size and whole seconds: no two mutants may share them.
        changed = next(_CLOCK)
        os.utime(path, (changed, changed))
        options = ["-x", *(f"--deselect={test}" for test in left_out)]
        code = pytest_in_fork(root, [*options, *tests], log)
    finally:
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    if code == _FAILED:
        return "killed", summary(log)
    return ("survived", " ".join(tests)) if code == _PASSED else ("broken", summary(log))


def main() -> int:
    """Try the mutants that were asked for, print what became of each, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these")
    parser.add_argument("--list", action="store_true", help="say where each is, and run nothing")
    parser.add_argument("--no-baseline", action="store_true", help="take it that all tests pass")
    parser.add_argument("--deselect", action="append", default=[], help="a test that says nothing")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2])
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.names or any(n in m.name for n in asked.names)]
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    with tempfile.TemporaryDirectory(prefix="loraport-mutants-") as folder:
        root, log = copied(asked.root.resolve(), Path(folder)), Path(folder, "log")
        if absent := [
            f"{mutant.name}: {name}"
            for mutant in chosen
            for name in mutant.tests
            if not test_files(root, [name])
        ]:
            print("test files that are not there:", *absent, sep="\n  ", file=sys.stderr)
            return 2
        if asked.list:
            for mutant in chosen:
                path = found(root, mutant)
                where = path.relative_to(root) if path else "NOT FOUND"
                print(f"{mutant.name}: {where}; {' '.join(test_files(root, mutant.tests))}")
            return 0
        for library in _LIBRARIES:
            with contextlib.suppress(ImportError):
                importlib.import_module(library)
        left_out = list(asked.deselect)
        every = sorted({path for mutant in chosen for path in test_files(root, mutant.tests)})
        if every and not asked.no_baseline:
            code = pytest_in_fork(root, every, log)
            if code not in (_PASSED, _FAILED):
                print(f"the tests cannot be run:\n{log.read_text()[-3000:]}")
                return 1
            left_out += failures(log)
        for test in left_out:
            print(f" left out  {test}", flush=True)
        counts: Counter[str] = Counter()
        for mutant in chosen:
            state, detail = outcome(root, mutant, left_out, log)
            counts[state] += 1
            print(f"{state:>9}  {mutant.name}  ({detail})", flush=True)
    print(", ".join(f"{count} {state}" for state, count in counts.most_common()))
    return 0 if counts and set(counts) == {"killed"} else 1


if __name__ == "__main__":
    sys.exit(main())
