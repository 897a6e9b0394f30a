"""Every option of every YAML is bound to the signature of what it configures.

A misspelt or outdated option fails here, without anything being built. Source of the idea:
torchtune's config validation.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object

CONF = Path(__file__).resolve().parents[1] / "conf"
HYDRA_KEYS = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}


def nodes(content: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping with a ``_target_`` and the path of keys that leads to it."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield path or ".", content
        for key, value in content.items():
            yield from nodes(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from nodes(value, f"{path}[{place}]")


NODES = [
    pytest.param(node, id=f"{file.relative_to(CONF)}:{path}")
    for file in sorted(CONF.rglob("*.yaml"))
    for path, node in nodes(yaml.safe_load(file.read_text(encoding="utf-8")))
    if "${" not in node["_target_"]
]


@pytest.mark.parametrize("node", NODES)
def test_options_fit_the_signature(node):
    target = get_object(node["_target_"])
    options = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    inspect.signature(target).bind_partial(*node.get("_args_", ()), **options)


def test_a_misspelt_option_is_noticed():
    signature = inspect.signature(get_object("loraport.data.HubTasks"))
    with pytest.raises(TypeError, match="rows_tran"):
        signature.bind_partial(rows_tran=3)
