"""How large this code is and how far a reader has to walk in it, measured alike for any layout.

    python benchmarks/structure.py [--root DIR] [--before FILE] [--json FILE] [--no-port]

It prints a Markdown table, and writes the figures as JSON. The interpreter has to import loraport
from ``--root``, which is this checkout unless another is named.

Nothing here names a module of loraport. What is counted:

- source files / lines: ``*.py`` and templates (``*.j2``) below ``src``, blank lines and comments
  included; ``python`` is the part without the templates.
- share of import lines: lines of ``import`` and ``from ... import`` statements, continuation lines
  included and function-local ones too, over all lines of ``*.py`` below ``src``.
- files in the widest folder: ``*.py`` of the folder directly below ``src`` that holds most of
  them, with the folders below it (a sub-folder does not make a layer narrower).
- files entered, changes of layer: ``transfer.py`` ports an adapter of the tiny pair, a folder
  outside of its zoo, with all defaults, in a process with ``sys.setprofile``. The models and the
  adapter are made before; nothing of the port is in the cache. A file is entered where one of its
  functions is called; what runs while a module is imported, class bodies among it, does not count.
  The caller of a function is the nearest function of ``src`` above it on the stack, through frames
  of libraries. A change of layer is a pair of files, caller and callee, that lie in different
  folders directly below ``src`` (a file that lies directly in ``src`` is a layer of its own). Each
  pair counts once, however often the call is made.
- loads and folder hashes of a base model: how often ``PreTrainedModel.from_pretrained`` is called
  with one folder, and how often Python opens one file of weights in it (safetensors' ``safe_open``
  maps a file without that, so that what is left is reading for a hash). The larger number of the
  two models.
- YAML files: below ``conf``; option names that nobody documents or uses: keys of these files that
  stand neither in a code span nor as ``name=`` in ``README.md`` and ``docs/*.md``, and that no
  test and no benchmark sets as ``name=``. ``defaults`` lists, Hydra's own node and the
  definitions of tasks are no options.
- tests: ``*.py`` below ``tests``.
"""

import argparse
import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import yaml

TASK = "speaker_33"
"""The task of the tiny pair whose adapter is ported."""

PROMPT = ('prompt.instruction="Your verdict?"', "prompt.labels=[good,bad]")
"""How that adapter was trained to be asked."""

_OPTIMIZED = 0x1
"""``CO_OPTIMIZED``: set in the code of functions, not in that of modules and class bodies."""

ROWS = {
    "source files / lines": ("source_files", "source_lines"),
    "of these python files / lines": ("python_files", "python_lines"),
    "share of import lines, %": ("import_share",),
    "files in the widest folder": ("widest_folder_files",),
    "files entered by a default port / changes of layer": ("files_entered", "layer_changes"),
    "each base model: loads / folder hashes in one port": ("model_loads", "folder_hashes"),
    "YAML files / option names that nobody documents or uses": ("yaml_files", "unused_options"),
    "tests: files / lines": ("test_files", "test_lines"),
}


def files(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files below a folder with one of the suffixes, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix in suffixes and p.is_file())


def lines(paths: Iterable[Path]) -> int:
    """Return how many lines the files have together."""
    return sum(len(path.read_text().splitlines()) for path in paths)


def import_lines(path: Path) -> int:
    """Return how many lines of a Python file belong to import statements."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(found)


def sizes(root: Path) -> dict[str, Any]:
    """Return what can be counted without running anything."""
    src, tests = root / "src", files(root / "tests", ".py")
    python, templates = files(src, ".py"), files(src, ".j2")
    widths = Counter(p.relative_to(src).parts[0] for p in python if p.parent != src)
    widest, width = widths.most_common(1)[0]
    python_lines = lines(python)
    unused = unused_options(root)
    return {
        "source_files": len(python) + len(templates),
        "source_lines": python_lines + lines(templates),
        "python_files": len(python),
        "python_lines": python_lines,
        "import_share": round(100 * sum(map(import_lines, python)) / python_lines, 2),
        "widest_folder": widest,
        "widest_folder_files": width,
        "yaml_files": len(files(root / "conf", ".yaml")),
        "unused_options": len(unused),
        "unused_option_names": unused,
        "test_files": len(tests),
        "test_lines": lines(tests),
    }


def options(path: Path) -> set[str]:
    """Return the option names in a YAML file of the configuration."""
    found: set[str] = set()
    skipped = {"defaults", "hydra", "definitions"}

    def visit(node: yaml.Node, outermost: bool) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if outermost and key.value in skipped:
                    continue
                if re.fullmatch(r"[a-z][a-z0-9_]*", key.value):
                    found.add(key.value)
                visit(value, False)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, False)

    if "hydra" not in path.parent.parts[-2:]:
        tree = yaml.compose(path.read_text())
        if tree is not None:
            visit(tree, True)
    return found


def unused_options(root: Path) -> list[str]:
    """Return the option names that no document tells of and no test or benchmark sets."""
    documents = "\n".join(
        path.read_text() for path in [root / "README.md", *files(root / "docs", ".md")]
    )
    commands = "\n".join(
        path.read_text()
        for folder in ("tests", "benchmarks")
        for path in files(root / folder, ".py")
    )
    known = set(re.findall(r"(\w+)=", documents + commands))
    for span in re.findall(r"`([^`]*)`", documents):
        known |= set(re.findall(r"\w+", span))
    return sorted(
        {name for path in files(root / "conf", ".yaml") for name in options(path)} - known
    )


def trace(root: Path, output: Path, command: Sequence[str]) -> None:
    """Run one of the scripts in this process and write what it entered, loaded and read as JSON."""
    src = os.path.realpath(root / "src") + os.sep
    places: dict[CodeType, str | None] = {}
    entered: set[str] = set()
    calls: set[tuple[str, str]] = set()
    loads: Counter[str] = Counter()
    reads: Counter[str] = Counter()

    def place(code: CodeType) -> str | None:
        if code not in places:
            name = code.co_filename
            places[code] = name[len(src) :] if name.startswith(src) else None
        return places[code]

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        here = place(code)
        if here is None:
            if code.co_name == "from_pretrained" and code.co_filename.endswith("modeling_utils.py"):
                loads[str(frame.f_locals.get("pretrained_model_name_or_path"))] += 1
            return
        if not code.co_flags & _OPTIMIZED:
            return
        above = frame.f_back
        while above is not None and place(above.f_code) is None:
            above = above.f_back
        if above is None:
            entered.add(here)
        elif above.f_code.co_flags & _OPTIMIZED:  # else a module is being imported
            entered.add(here)
            calls.add((str(place(above.f_code)), here))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".safetensors"):
            path = Path(str(arguments[0]))
            reads[str(path)] += (path.parent / "config.json").exists()

    sys.addaudithook(audit)
    sys.path.insert(0, str(root))
    sys.argv = list(command)
    threading.setprofile(profile)
    sys.setprofile(profile)
    code: object = 0
    try:
        runpy.run_path(str(root / command[0]), run_name="__main__")
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.setprofile(None)
    output.write_text(
        json.dumps(
            {
                "exit": code,
                "entered": sorted(entered),
                "calls": sorted(calls),
                "loads": loads,
                "reads": reads,
            }
        )
    )


def layer(file: str) -> str:
    """Return the folder directly below ``src`` that a file lies in, or the file itself."""
    return file.split(os.sep)[0]


def port(root: Path) -> dict[str, Any]:
    """Return what one default port enters, loads and hashes, with a cache of its own.

    Raises:
        RuntimeError: a command failed.
    """

    def run(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=root,
            env=os.environ | {"LORAPORT_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")

    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name, "cache")
        run("anchors.py", f"tasks.names=[{TASK}]", f"hydra.run.dir={folder}/anchors")
        (trained,) = cache.rglob(f"source/{TASK}/adapter_config.json")
        shutil.copytree(trained.parent, folder / "given")
        traced = folder / "trace.json"
        run(
            *(__file__, "--root", str(root), "--trace", str(traced)),
            *("transfer.py", f"adapter={folder}/given", f"output={folder}/adapter", *PROMPT),
            f"hydra.run.dir={folder}/transfer",
        )
        found = json.loads(traced.read_text())
    if found["exit"]:
        raise RuntimeError(f"the port ended with exit code {found['exit']}")
    return {
        "files_entered": len(found["entered"]),
        "layer_changes": sum(layer(caller) != layer(callee) for caller, callee in found["calls"]),
        "model_loads": max(found["loads"].values(), default=0),
        "folder_hashes": max(found["reads"].values(), default=0),
    }


def table(now: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Return the figures as a Markdown table, beside earlier ones where there are some."""

    def cell(figures: dict[str, Any], keys: Sequence[str]) -> str:
        return " / ".join(f"{figures[key]:,}" if key in figures else "-" for key in keys)

    columns = [now] if before is None else [before, now]
    head = ["now"] if before is None else ["before", "after"]
    rows = [f"| | {' | '.join(head)} |", f"|---|{'---|' * len(head)}"]
    rows += [
        f"| {name} | {' | '.join(cell(c, keys) for c in columns)} |" for name, keys in ROWS.items()
    ]
    return "\n".join(rows)


def main() -> None:
    """Count, print the table, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--before", type=Path, help="figures that were written earlier")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--no-port", action="store_true", help="run nothing, only count")
    parser.add_argument("--trace", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    root: Path = asked.root.resolve()
    if asked.trace:
        trace(root, Path(asked.trace[0]), asked.trace[1:])
        return
    figures = sizes(root)
    if not asked.no_port:
        figures |= port(root)
    print(table(figures, json.loads(asked.before.read_text()) if asked.before else None))
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
