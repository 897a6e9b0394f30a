"""The texts that a refinement learns from, and those that drift is measured on."""

from pathlib import Path

from ..data import PromptTemplate, TextSource
from ..data.corpus_folder import CorpusFolder
from ..data.task_prompts import TaskPrompts
from ..exceptions import ConfigurationError, DataError
from .asked_question import task_of
from .building import Workbench, build
from .options import listed, option, optional


def corpus(bench: Workbench) -> TextSource | None:
    """Return the corpus; None where none is named.

    Raises:
        DataError: it is named, and not there.
    """
    node = bench.config.corpus
    named = node.get("_target_", "").rpartition(".")[2] != CorpusFolder.__name__
    if not named and optional(bench.config, "paths.corpus", str) is None:
        return None
    return build(node)


def needed_corpus(bench: Workbench, name: str) -> TextSource:
    """Return the corpus that a refinement cannot do without.

    Raises:
        DataError: there is none.
    """
    found = corpus(bench)
    if found is None:
        raise DataError(
            f"refine={name} puts generic texts into the adapter's prompt, and there is no corpus; "
            "give paths.corpus=DIR (*.txt with a text a line, or *.jsonl), or let the source write "
            "some by refine_texts.written=256, or name a mapper, such as mapper=cross_lora"
        )
    return found


def generic_texts(bench: Workbench) -> TextSource:
    """Return what drift is measured on: the corpus, or the probes where there is none."""
    source: TextSource = corpus(bench) or build(bench.config.probes)
    return source


def anchor_texts(bench: Workbench, place: str) -> TaskPrompts | None:
    """Return the training texts of the anchor tasks, without question or answer.

    Held-out tasks are never among them, nor is the task that is ported. None unless
    ``refine_texts.anchors`` asks for them; where it says nothing, ``paths.tasks`` decides.

    Raises:
        ConfigurationError: no anchor task is left.
    """
    asked = optional(bench.config, "refine_texts.anchors", bool)
    if not (bench.config.paths.tasks if asked is None else asked):
        return None
    source, tasks = bench.task_source(), bench.config.tasks
    names = (
        list(source.names()) if tasks.names is None else listed(bench.config, "tasks.names", str)
    )
    others = {*listed(bench.config, "tasks.held_out", str), Path(place).name, task_of(bench, place)}
    anchors = [name for name in names if name not in others]
    if not anchors and asked is None:
        return None
    if not anchors:
        raise ConfigurationError(
            "refine_texts.anchors takes texts of tasks that are neither held out nor ported, and "
            "none is left; shorten tasks.held_out, or set refine_texts.anchors=false"
        )
    loaded = source.load(anchors)
    return TaskPrompts(list(loaded.values()), PromptTemplate("{text}"), bench.config.seed)


def written_texts(bench: Workbench) -> int:
    """Return how many texts ``refine_texts.written`` asks the source to write.

    Raises:
        ConfigurationError: it is no number of texts.
    """
    count = option(bench.config, "refine_texts.written", int)
    if count < 0:
        raise ConfigurationError(f"refine_texts.written is {count}; it takes 0 or more")
    return count
