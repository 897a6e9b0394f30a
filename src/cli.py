"""The commands: Hydra's entry points, and what an error looks like to a user.

Nothing heavy is imported before a configuration is valid, so that ``--help`` answers at once, and
so do mistakes in it.
"""

import difflib
import errno
import logging
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException, HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import (
    GrammarParseError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from .composing import compose
from .exceptions import ConfigurationError, LoraportError, one_line
from .extras import missing_plugin
from .option_types import in_quotes
from .settings import DiagnoseSettings, read

_CONFIGS = "pkg://loraport.conf"
_MODULES = {"transfer": "port"}  # the module of a command that has another name
_REFUSED, _STOPPED, _PIPE = ConfigurationError.exit_code, 130, 141
# What a disk or its permissions say; anything else is a fault of the program.
_OF_A_PLACE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP),
}


@hydra.main(version_base="1.3", config_path=_CONFIGS, config_name="train")
def _train(config: DictConfig) -> float | None:
    return _clean_after(partial(_run, "train"), config)


@hydra.main(version_base="1.3", config_path=_CONFIGS, config_name="anchors")
def _anchors(config: DictConfig) -> str:
    return str(_clean_after(partial(_run, "anchors"), config))


@hydra.main(version_base="1.3", config_path=_CONFIGS, config_name="transfer")
def _transfer(config: DictConfig) -> float | None:
    return _clean_after(partial(_run, "transfer"), config)


@hydra.main(version_base="1.3", config_path=_CONFIGS, config_name="diagnose")
def _diagnose(config: DictConfig) -> float | None:
    return _clean_after(_diagnosed, config)


def _diagnosed(config: DictConfig) -> float:
    settings = DiagnoseSettings.of(config)
    from .commands import diagnose

    content = diagnose.run(settings)
    RunFolder.keep()  # what was found stays where it was written, whatever comes of it
    return diagnose.enforce(settings, content)


@hydra.main(version_base="1.3", config_path=_CONFIGS, config_name="evaluate")
def _evaluate(config: DictConfig) -> None:
    _clean_after(partial(_run, "evaluate"), config)


def _run(command: str, config: DictConfig) -> Any:
    """Run a command whose configuration can be used; nothing else is imported before that."""
    settings = read(command, config)
    return import_module(f".commands.{_MODULES.get(command, command)}", __package__).run(settings)


def train() -> None:
    """Run ``train.py``."""
    _command(_train, "train")


def anchors() -> None:
    """Run ``anchors.py``."""
    _command(_anchors, "anchors")


def transfer() -> None:
    """Run ``transfer.py``."""
    _command(
        _transfer,
        "transfer",
        "nothing was written, but what was done so far is kept: the same command goes on from here",
    )


def evaluate() -> None:
    """Run ``evaluate.py``."""
    _command(_evaluate, "evaluate")


def diagnose() -> None:
    """Run ``diagnose.py``."""
    _command(_diagnose, "diagnose", "nothing was written")


def _command(
    main: Callable[[], Any], name: str, then: str = "the same command goes on from here"
) -> None:
    # Without this Hydra prints its own summary of any error and always exits with 1.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A shell leaves the ~ of paths.zoo=~/zoo, and Hydra's grammar takes it in quotes alone.
    home = re.compile(r"(\+{0,2}[\w.]+)=(~[^'\"]*)")
    sys.argv[1:] = [home.sub(r"\1='\2'", w) if home.fullmatch(w) else w for w in sys.argv[1:]]
    logging.raiseExceptions = False  # a log that cannot be written is no traceback
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except LoraportError as error:
        _fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(_explained(error, name), _REFUSED)
    except ValueError as error:
        if not str(error).startswith("Config group override must be"):  # as of mapper=3
            raise
        _fail(f"a group takes one of its choices by name: {error}\n{_help(name)}", _REFUSED)
    except KeyboardInterrupt:
        _fail(f"stopped; {then}", _STOPPED)
    except OSError as error:
        if error.errno not in (errno.EPIPE, *_OF_A_PLACE):
            raise
        if not _stdout_fails():
            _fail(f"{_of_a_place(error)}; {then}", _REFUSED)
        if error.errno == errno.EPIPE:  # as of `| head`, which has seen enough
            sys.exit(_PIPE)
        _fail(f"standard output cannot be written ({error.strerror}); nothing more is printed", 1)
    finally:
        signal.signal(signal.SIGTERM, handler)


def _of_a_place(error: OSError) -> str:
    what = f"{error.filename or 'a file'} cannot be %s ({error.strerror}); %s"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return what % ("written", "free some space")
    return what % ("used", "name a place that you may read and write")


def _stdout_fails() -> bool:
    """Return whether nothing can be printed any more; then nothing is, when Python ends."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError:
        # What is left in the buffer would raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _fail(message: str, code: int) -> NoReturn:
    shown = "\n".join(map(one_line, message.split("\n")))
    print(f"loraport: {shown}", file=sys.stderr)
    sys.exit(code)


def _clean_after(run: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run a workflow; where it refuses its input, leave nothing of the run behind.

    In a sweep the error goes on to Hydra, which says which of the jobs it is about.
    """
    try:
        return run(config)
    except (LoraportError, OmegaConfBaseException) as error:
        if HydraConfig.get().mode != RunMode.RUN:
            raise
        if not getattr(error, "keeps", False):
            RunFolder.remove(Path(HydraConfig.get().runtime.output_dir))
        if isinstance(error, LoraportError):
            _fail(str(error), error.exit_code)
        _fail(_explained(error, HydraConfig.get().job.name), _REFUSED)


class RunFolder(Callback):
    """Knows what lay at a run's folder before the run, and removes what came after."""

    made: ClassVar[list[Path]] = []
    """Folders that the run made, the innermost first."""
    content: ClassVar[set[Path] | None] = None
    """What the run's folder held before; None where that is not known, so that all of it stays."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Look at what there is; Hydra calls this before it makes the folder."""
        folder = Path(config.hydra.run.dir).absolute()
        # os.path: a name that is too long does not exist, and is refused where it is made.
        RunFolder.made = [p for p in (folder, *folder.parents) if not os.path.exists(p)]
        RunFolder.content = set(folder.iterdir()) if os.path.isdir(folder) else set()

    @classmethod
    def keep(cls) -> None:
        """Let everything stay from now on."""
        cls.made, cls.content = [], None

    @classmethod
    def remove(cls, folder: Path) -> None:
        """Remove what the run has made, and nothing else."""
        if cls.content is None:
            return
        root = logging.getLogger()
        for handler in [h for h in root.handlers if isinstance(h, logging.FileHandler)]:
            root.removeHandler(handler)
            handler.close()
        for path in set(folder.absolute().iterdir()) - cls.content if folder.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        for path in cls.made:
            with suppress(OSError):  # another process has put something there
                path.rmdir()


def _explained(error: Exception, name: str) -> str:
    """Say what a configuration error is about, and which options there are instead."""
    message = str(error).strip()
    missing = missing_plugin(message)
    if missing is not None:
        return missing
    if isinstance(error, OverrideParseException):
        return f"{_unread(error.override)}\n{_help(name)}"
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'$", message, re.MULTILINE):
        word = ambiguous[1]
        key, _, value = word.partition("=")
        return (
            f"{word} may be text or a list; as text it is written {in_quotes(word)}, as a list "
            f"{in_quotes(f'{key}=[{value}]')}; several runs take --multirun\n{_help(name)}"
        )
    if isinstance(error, InterpolationKeyError | GrammarParseError):
        words = [word for word in sys.argv[1:] if "${" in word]
        written = "".join(f"; as text it is written {in_quotes(word, True)}" for word in words)
        return f"{message}{written}\n{_help(name)}"
    if isinstance(error, MissingMandatoryValue):
        lacking = message.partition("\n")[0].rpartition(": ")[2]
        return f"{lacking} is not given, and there is no default; set {lacking}=...\n{_help(name)}"
    key = re.match(r"Could not override '([^']+)'", message)
    if not isinstance(error, ConfigCompositionException) or key is None:
        return f"{message}\n{_help(name)}"
    parent, _, option = key[1].rpartition(".")
    options = _options(name, parent)
    near = difflib.get_close_matches(option, options, n=1)
    guess = f" (did you mean {near[0]}?)" if near else ""
    where = f"{parent} takes" if parent else "the options are groups and"
    return f"there is no option {key[1]}{guess}; {where} {', '.join(options)}.\n{_help(name)}"


def _unread(word: str) -> str:
    """Say how a word is written that Hydra's grammar does not take."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word} is no option; an option is written NAME=VALUE"
    torn = "${" in value and not re.search(r"\$\{[\w.:,]+\}", value)
    written = in_quotes(word, torn)
    try:
        OverridesParser.create().parse_overrides(shlex.split(written))
    except HydraException:
        return f"{key} is no name of an option; an option is written NAME=VALUE"
    return f"{word} has signs that Hydra takes in quotes alone; it is written {written}"


def _help(name: str) -> str:
    return f"See python {name}.py --help."


def _options(name: str, parent: str) -> list[str]:
    """Return the keys of a node, as the groups on the command line make it."""
    words = sys.argv[1:]
    given, _ = get_args_parser().parse_known_args(words)
    beside = [] if given.config_dir is None else [given.config_dir]
    searched = [word for word in words if word.startswith("hydra.searchpath=")]
    groups = [word for word in words if re.fullmatch(r"[a-z_/]+=[\w/]+", word)]
    for overrides in (groups, [w for w in groups if w.startswith("mapper=")], ["mapper=mean"]):
        try:
            node: Any = compose(name, [*searched, *overrides], beside=beside)
            for part in parent.split(".") if parent else ():
                node = node[part]
            return [str(key) for key in node]
        except (HydraException, OmegaConfBaseException, KeyError, TypeError):
            continue
    return []
