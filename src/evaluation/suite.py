"""What every suite is: items that a model is asked, numbers for each answer, and their cache."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import ValidationError, validate_call
from torch import Tensor

from ..adapters import LoraAdapter
from ..exceptions import ConfigurationError
from ..models import BaseModel, attached
from ..models.hooks import Attachable
from ..store import Key, Store
from .scoring import model_key

Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class SuiteScore:
    """How one model answers a suite's items, in their order."""

    # What the model answered each item, as text: a choice, or what it wrote.
    answers: tuple[str, ...]
    # Metric to one number an item, such as 1 for right and 0 for wrong; NaN where an item does not
    # count for that metric. Rows of two models are paired, item by item.
    rows: Mapping[str, Float[Tensor, " items"]]
    whole: Mapping[str, float]  # metrics of all answers together, such as self-BLEU

    def means(self) -> dict[str, float]:
        """Return every metric's mean over the items that count, and the metrics of the whole."""
        return {n: float(torch.nanmean(v.double())) for n, v in self.rows.items()} | {**self.whole}


@runtime_checkable
class Suite(Protocol):
    """A set of items with a way to score answers to them."""

    @property
    def name(self) -> str:
        """As in ``suite=``, and in tables."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics in the order in which they are shown; the first is the main one."""
        ...

    def prompts(self) -> tuple[str, ...]:
        """Return what is asked, an item each: drift is measured there as well."""
        ...

    def content_hash(self) -> str:
        """Return the SHA-256 of the items and of every setting that a score depends on."""
        ...

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the score of the model as it is, with what is attached to it.

        Raises:
            LoraportError: the model cannot be asked this.
        """
        ...


def checked(option: str) -> Callable[[Made], Made]:
    """Check what a class or function is called with by its types.

    What they do not take is a ConfigurationError that names it as an option below ``option``; an
    argument of that name wins, where one function makes several suites.
    """

    def decorated(made: Made) -> Made:
        target: Any = made
        function = target.__init__ if isinstance(made, type) else target
        check = validate_call(function)

        @wraps(function)
        def called(*given: Any, **named: Any) -> Any:
            try:
                return check(*given, **named)
            except ValidationError as error:
                place = str(named.get("option", option))
                wrong = "; ".join(
                    f"{'.'.join([place, *map(str, one['loc'])])} is {one['input']!r}"
                    f"{', but takes ' if one['type'] == 'takes' else ': '}{one['msg']}"
                    for one in error.errors()
                )
                raise ConfigurationError(f"{wrong}; correct it") from None

        if not isinstance(made, type):
            return cast(Made, called)
        target.__init__ = called
        return made

    return decorated


def hashed(*parts: object) -> str:
    """Return the SHA-256 of parts that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class SuiteCache:
    """Scores adapters on suites, and keeps each score in the store."""

    store: Store

    def score(
        self, base: BaseModel, adapter: LoraAdapter | Attachable | None, suite: Suite
    ) -> SuiteScore:
        """Return the score of a base model with an adapter, or without one, on a suite."""

        def scored() -> dict[str, Any]:
            with attached(base.network, adapter):
                score = suite.score(base)
            rows = {name: row.tolist() for name, row in score.rows.items()}
            return {"answers": list(score.answers), "rows": rows, "whole": dict(score.whole)}

        key = Key.of("suites", **model_key(base, adapter), suite=[suite.name, suite.content_hash()])
        kept = self.store.made(key, scored)
        rows = {name: torch.tensor(row, dtype=torch.float64) for name, row in kept["rows"].items()}
        return SuiteScore(tuple(kept["answers"]), rows, kept["whole"])
