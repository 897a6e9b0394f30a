"""Write docs/options.md: every option of every command, and every choice of every group.

``python docs/options.py`` takes the options of commands from :mod:`loraport.settings`, and those of
choices from the comments of ``conf/``. ``tests/test_docs.py`` compares the page with them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from loraport.settings import SETTINGS, options

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "options.md"
# A key with its value and its comment, or only one of the two.
_LINE = re.compile(r"(?P<space> *)(?P<key>[\w]+): ?(?P<value>.*?)(?: +# (?P<comment>.*))?$")
_SKIPPED = ("_target_", "_convert_")
_PRESETS = ("experiment", "sweep")  # groups whose choices set options of others

_OPENING = """# Options

This page is written by `python docs/options.py`. Every option is set as `key=value`, on the command
line or in an experiment file; a group takes one of its choices by name (`mapper=cross_lora`), and
the options of a choice stand below it (`mapper.rank=8`). `python COMMAND.py --cfg job` prints the
configuration that a command line makes. What may be null is so where the text says it.
"""


def page() -> str:
    """Return the page."""
    return "\n".join([_OPENING, *_commands(), *_groups()]).rstrip() + "\n"


def _commands() -> Iterator[str]:
    seen: dict[tuple[str, str, str], list[str]] = {}
    for command in SETTINGS:
        for option in options(command):
            seen.setdefault((option.name, option.takes, option.meaning), []).append(command)
    common = [option for option, used in seen.items() if len(used) == len(SETTINGS)]
    yield from _table("All commands", common)
    for command in SETTINGS:
        own = [one for one, used in seen.items() if command in used and one not in common]
        yield from _table(f"{command}.py", own)


def _table(title: str, rows: list[tuple[str, str, str]]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| option | takes | meaning |"
    yield "|---|---|---|"
    for name, takes, meaning in rows:
        yield f"| `{name}` | {_escaped(takes)} | {_escaped(meaning)} |"
    yield ""


def _groups() -> Iterator[str]:
    for folder in sorted(path for path in (ROOT / "conf").rglob("*") if path.is_dir()):
        choices = sorted(folder.glob("*.yaml"))
        if choices:
            yield f"## `{folder.relative_to(ROOT / 'conf')}=`\n"
        for choice in choices:
            head, rows = _choice(choice.read_text(encoding="utf-8").splitlines())
            yield f"**`{choice.stem}`**: {_escaped(' '.join(head))}\n"
            if rows and folder.name not in _PRESETS:
                yield "| option | value | meaning |"
                yield "|---|---|---|"
                yield from (
                    f"| `{key}` | {value} | {_escaped(told)} |" for key, value, told in rows
                )
                yield ""


def _choice(lines: list[str]) -> tuple[list[str], list[tuple[str, str, str]]]:
    """Return what a YAML says of itself, and its options with their values and comments."""
    head: list[str] = []
    rows: list[tuple[str, str, str]] = []
    above: list[str] = []
    for line in lines:
        if line.startswith("# ") and not rows and not line.startswith("# @"):
            head.append(line.removeprefix("# "))
        found = _LINE.fullmatch(line)
        if found is None or found["key"] in _SKIPPED:
            continue
        depth = len(found["space"]) // 2
        above = [*above[:depth], found["key"]]
        if above[0] not in ("defaults", "hydra") and (found["value"] or found["comment"]):
            value = f"`{found['value']}`" if found["value"] else ""
            rows.append((".".join(above), value, found["comment"] or ""))
    return head, rows


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
