"""The forms in which a model can be asked: its chat template, or a plain prompt."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jinja2 import TemplateError

from ...exceptions import ConfigurationError, ModelError
from ...models.loading import BaseModel

PLAIN_PROMPT = "Question: {prompt}\nAnswer:"
"""How a model without a chat template is asked."""

_CHOICES = ("auto", "template", "plain")
_PLACE = "{prompt}"
# Some templates name the day, or let the model think first: always the same day, never thinking.
_FIXED = {"date_string": "01 Jan 2025", "enable_thinking": False}


@runtime_checkable
class PromptForm(Protocol):
    """How a prompt is put to a model, and where its answer ends."""

    def tokens(self, base: BaseModel, prompts: Sequence[str]) -> list[list[int]]:
        """Return each prompt's tokens, at least one each.

        Raises:
            ModelError: the tokenizer cannot put a prompt into this form.
        """
        ...

    def cut(self, answer: str) -> str:
        """Return the answer up to where the model goes on with something else."""
        ...


class ChatTemplate:
    """The prompt as a user's turn in the tokenizer's own chat template."""

    def tokens(self, base: BaseModel, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each prompt's turn and of the opening of the answer's.

        Raises:
            ModelError: there is no chat template, or it refuses the prompt.
        """
        tokenizer: Any = base.tokenizer
        if not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {base.name} has no chat template, but chat=template asks for "
                "one; take chat=auto or chat=plain"
            )
        try:
            turns = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                    **_FIXED,
                )
                for prompt in prompts
            ]
        except TemplateError as error:
            raise ModelError(
                f"the chat template of {base.name} does not take a single turn of a user "
                f"({error}); take chat=plain"
            ) from error
        # The template has the leading tokens in it already.
        return tokenizer(turns, add_special_tokens=False)["input_ids"] if turns else []

    def cut(self, answer: str) -> str:
        """Return the answer as it is: the end of a turn is a token."""
        return answer


class PlainPrompt:
    """A prompt in a plain frame, for models that were never taught to chat.

    An answer ends where a line begins like a line of the frame: base models tend to go on with a
    question of their own.

    Args:
        template: The frame, with ``{prompt}`` once.

    Raises:
        ConfigurationError: the frame has no ``{prompt}``, or several.
    """

    def __init__(self, template: str = PLAIN_PROMPT) -> None:
        if template.count(_PLACE) != 1:
            raise ConfigurationError(
                f"plain_prompt is {template!r}, but takes a text with {_PLACE} in it, once; such "
                f"as {PLAIN_PROMPT!r}"
            )
        self.template = template
        lines = (line.partition(_PLACE)[0].strip() for line in template.splitlines())
        self._marks = tuple(line for line in lines if line)

    def tokens(self, base: BaseModel, prompts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each framed prompt, with the tokenizer's own leading tokens."""
        framed = [self.template.replace(_PLACE, prompt) for prompt in prompts]
        return base.tokenizer(framed)["input_ids"] if framed else []

    def cut(self, answer: str) -> str:
        r"""Return the answer up to a line that begins like one of the frame.

        >>> PlainPrompt().cut(" Yes, it is.\nQuestion: And what is that?")
        ' Yes, it is.'
        """
        lines = answer.split("\n")
        for place, line in enumerate(lines):
            # The first line stands behind the frame's last one and begins nothing.
            if place and line.strip().startswith(self._marks):
                return "\n".join(lines[:place])
        return answer


def check_chat(chat: str, plain_prompt: str) -> None:
    """Refuse settings that :func:`prompt_form` cannot take.

    Raises:
        ConfigurationError: an unknown ``chat``, or a frame without a place for the prompt.
    """
    if chat not in _CHOICES:
        raise ConfigurationError(f"chat={chat!r}, but it takes one of {', '.join(_CHOICES)}")
    PlainPrompt(plain_prompt)


def prompt_form(base: BaseModel, chat: str, plain_prompt: str = PLAIN_PROMPT) -> PromptForm:
    """Return the form in which a model is asked.

    Args:
        base: The model.
        chat: ``template``, ``plain``, or ``auto``: the chat template where there is one.
        plain_prompt: The frame without one.

    Raises:
        ConfigurationError: an unknown ``chat``, or a frame without a place for the prompt.
    """
    check_chat(chat, plain_prompt)
    if chat == "template" or (chat == "auto" and base.tokenizer.chat_template):
        return ChatTemplate()
    return PlainPrompt(plain_prompt)
