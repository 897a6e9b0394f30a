"""What the adapter that is ported is asked: all that a port knows of its task."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from ..data import HubTasks
from ..data.question import Question
from ..exceptions import ConfigurationError
from .building import Workbench
from .options import listed, optional

_INSTRUCTION = "{instruction}"


def asked_question(bench: Workbench, place: str) -> Question:
    """Return the prompt and the labels of ``prompt``, or of the task that the adapter is of.

    What is given goes first. A task of the pair's zoo brings its instruction and its labels;
    none of its rows is used. Where neither says how the adapter is asked, it is asked with the
    text itself.

    Args:
        bench: The options.
        place: The adapter, as it was given.

    Raises:
        DataError: the template has no ``{text}``, or the labels are no choice.
        ConfigurationError: the template takes an instruction, and there is none.
    """
    config = bench.config
    template = config.prompt.template
    if not isinstance(template, str):
        raise ConfigurationError(f"prompt.template is {template!r}; it takes text with {{text}}")
    instruction = optional(config, "prompt.instruction", str)
    labels = None if config.prompt.labels is None else listed(config, "prompt.labels", str)
    task = task_of(bench, place)
    if task is not None and (instruction is None or labels is None):
        known = described(bench, task)
        instruction = known[0] if instruction is None else instruction
        labels = list(known[1]) if labels is None else labels
    if instruction is None and _INSTRUCTION in template:
        if _template_is_given():
            raise ConfigurationError(
                f"prompt.template is {template!r}, and nothing says what {_INSTRUCTION} is; give "
                "prompt.instruction=TEXT, or write it into the template"
            )
        template = "{text}"
    # A shell and Hydra hand on a backslash and an n where a new line is meant.
    prompt = template.replace("\\n", "\n").replace(_INSTRUCTION, instruction or "")
    return Question(prompt, tuple(labels or ()), config.prompt.completion, config.prompt.text_chars)


def _template_is_given() -> bool:
    words = HydraConfig.get().overrides.task
    return any(word.lstrip("+").startswith("prompt.template=") for word in words)


def task_of(bench: Workbench, place: str) -> str | None:
    """Return the task that an adapter was trained on, where it lies in the pair's zoo."""
    paths = bench.config.paths
    folder = Path(place).expanduser()
    if folder.is_dir():
        side = Path(paths.zoo_source) if paths.zoo_source else bench.zoo_folder() / "source"
        if folder.resolve().parent != side.expanduser().resolve():
            return None
    elif folder.name != place:
        return None
    return folder.name if folder.name in bench.task_source().names() else None


def described(bench: Workbench, task: str) -> tuple[str, tuple[str, ...]]:
    """Return the instruction and the labels of a task; of the hub's no row is fetched."""
    source = bench.task_source()
    if isinstance(source, HubTasks):
        definition = source.definitions[task]
        return definition.instruction, definition.labels
    known = source.load([task])[task]
    return known.instruction, known.labels


def told(question: Question) -> dict[str, object]:
    """Return what reports say of a question."""
    return {
        "prompt": question.prompt,
        "labels": list(question.labels),
        "completion": question.completion,
        "text_chars": question.text_chars,
    }
