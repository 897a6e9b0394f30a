"""What a user gives for a refinement, checked against what it takes."""

from ..adapters import LoraAdapter
from ..data.question import Question
from ..data.tasks import Example
from ..exceptions import AdapterError, ConfigurationError, DataError
from ..refinement.base import Refinement
from ..refinement.drift_budget import DriftBudget
from .building import Workbench
from .given_texts import given_examples, given_inputs
from .options import optional


def check_adapters(refinement: Refinement, name: str, given: dict[str, LoraAdapter]) -> None:
    """Refuse adapters of which nothing can be learned.

    Raises:
        ConfigurationError: there are several, and the refinement asks one question.
        AdapterError: one of them does nothing.
    """
    if len(given) > 1 and not isinstance(refinement, DriftBudget):
        raise ConfigurationError(
            f"refine={name} refines one adapter, as it asks one question, but adapter= names "
            f"{len(given)}; port each by itself, and merge the results by merge.with=[DIR] and "
            "refine=none"
        )
    for place, adapter in given.items():
        if adapter.norm() == 0:
            raise AdapterError(
                f"{place} is zero at every site, so that there is nothing to learn from it; give "
                "a source adapter that was trained"
            )


def given_data(
    bench: Workbench, refinement: Refinement, name: str, question: Question
) -> tuple[tuple[str, ...], tuple[Example, ...]]:
    """Return the inputs and the examples, each where the refinement takes them.

    Raises:
        DataError: what it takes is missing, or cannot be used.
        ConfigurationError: something is given that it does not take.
    """
    used = refinement.information_class
    inputs, examples = (optional(bench.config, key, str) for key in ("inputs", "examples"))
    if used == "generic text":
        refuse_unused(bench, name, "inputs", "examples")
    if used == "unlabelled prompts":
        refuse_unused(bench, name, "examples")
        if inputs is None:
            raise DataError(
                f"refine={name} learns from the task's own inputs, and none are given; give "
                'inputs=FILE, a text a line, or *.jsonl with rows {"text": ...}'
            )
    if used == "few-shot":
        refuse_unused(bench, name, "inputs")
        if examples is None:
            raise DataError(
                f"refine={name} learns from labelled examples, and none are given; give "
                'examples=FILE, *.jsonl with rows {"text": ..., "label": ...}'
            )
    return (
        given_inputs(inputs) if inputs is not None else (),
        given_examples(examples, question.labels) if examples is not None else (),
    )


def refuse_unused(bench: Workbench, name: str, *keys: str) -> None:
    """Raise ConfigurationError where one of some options is given, but nothing takes it."""
    takes = {"inputs": "refine=prompt_distill", "examples": "refine=few_shot"}
    for key in keys:
        if optional(bench.config, key, str) is not None:
            raise ConfigurationError(
                f"refine={name} does not use {key}=; leave it out, or set {takes[key]}"
            )
