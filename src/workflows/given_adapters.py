"""Adapters by whatever a user calls them: a folder, a task of the pair's zoo, a hub id."""

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..adapters import LoraAdapter, read_adapter
from ..data.zoo import SIDES
from ..exceptions import AdapterError
from .anchors import CPU_TRAINER, builds_zoo, train_zoo
from .building import Workbench

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
_FILES = ("adapter_config.json", "adapter_model.safetensors")


def given_adapter(bench: Workbench, given: str) -> LoraAdapter:
    """Read the source's adapter that ``adapter=`` names.

    A folder goes first; a bare name is looked up among the source's adapters of the pair's zoo,
    which a pair that brings its own tasks trains where it is missing; ``owner/name`` is an id of
    the hub.

    Raises:
        AdapterError: it is none of them, or what is there cannot be read exactly.
    """
    folder = Path(given).expanduser()
    if given and folder.is_dir():
        return read_adapter(folder)
    if builds_zoo(bench) and given in bench.task_source().names():
        train_zoo(bench, SIDES, list(bench.task_source().names()), CPU_TRAINER)
    known = _zoo_tasks(bench)
    if given in known:
        return read_adapter(known[given])
    if _HUB_ID.fullmatch(given):
        return read_adapter(_fetched(given))
    zoo = f", or a task of the pair's zoo: {', '.join(sorted(known))}" if known else ""
    raise AdapterError(
        f"adapter={given} is no folder; it takes a PEFT adapter's folder, a hub id such as "
        f"owner/name{zoo}"
    )


def _zoo_tasks(bench: Workbench) -> dict[str, Path]:
    paths = bench.config.paths
    side = Path(paths.zoo_source) if paths.zoo_source else bench.zoo_folder() / "source"
    if not side.is_dir():
        return {}
    return {path.name: path for path in side.iterdir() if (path / _FILES[0]).is_file()}


def _fetched(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"the adapter {name} is no folder here, nor in the hub's cache, nor could it be "
            f"fetched ({why}); correct the path, connect to the network, or run `hf auth login` "
            "if it is private"
        ) from error
