"""What an adapter is asked, and how it answers, apart from any task's rows."""

from dataclasses import dataclass

from ..exceptions import DataError
from .tasks import PromptTemplate, Task


@dataclass(frozen=True)
class Question:
    """A prompt with a place for a text, and the answers among which the model chooses.

    This is all that a port may know of the task that an adapter was trained on.

    Attributes:
        prompt: Template of the prompt, with the field ``{text}``.
        labels: The answers; none where the model writes whatever it likes.
        completion: Template of an answer, with the field ``{label}``.
        text_chars: A text is cut to so many characters; ``None`` keeps it whole.

    Raises:
        DataError: the prompt has no place for a text, the completion none for a label, or the
            labels are no choice.
    """

    prompt: str = "{text}"
    labels: tuple[str, ...] = ()
    completion: str = " {label}"
    text_chars: int | None = None

    def __post_init__(self) -> None:
        if "{text}" not in self.prompt:
            raise DataError(
                f"the prompt template {self.prompt!r} has no {{text}}, so that all prompts would "
                "be the same; put {text} where the text goes"
            )
        if "{label}" not in self.completion:
            raise DataError(
                f"the completion {self.completion!r} has no {{label}}, so that all answers would "
                "be the same; put {label} where the label goes"
            )
        if self.labels and (len(set(self.labels)) < 2 or not all(map(str.strip, self.labels))):
            raise DataError(
                f"the labels are {list(self.labels)}; they take at least two different words, or "
                "none where the adapter writes freely"
            )
        if len(set(self.labels)) < len(self.labels):
            twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
            raise DataError(f"the labels name {', '.join(twice)} twice; name each once")

    @classmethod
    def of(cls, task: Task, template: PromptTemplate) -> "Question":
        """Return a task's question: its instruction in the template, and its labels."""
        prompt = template.prompt.replace("{instruction}", task.instruction)
        return cls(prompt, task.labels, template.completion, template.text_chars)

    def ask(self, text: str) -> str:
        """Return the prompt about a text."""
        # Not str.format: a text may hold braces.
        return self.prompt.replace("{text}", text[: self.text_chars])

    def answer(self, label: str) -> str:
        """Return the completion that gives ``label`` as the answer."""
        return self.completion.replace("{label}", label)
