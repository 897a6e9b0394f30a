"""Code suites: the share of programming problems that a model's programs solve."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ...exceptions import ConfigurationError
from ...models.loading import BaseModel
from ..sandbox.limits import Limits
from ..sandbox.runner import Sandbox
from .base import SuiteScore
from .code_problems import CodeProblem
from .code_sources import code_source
from .completions import Decoding, completions
from .pass_at_k import pass_at_k

_SCORED = "calls-1"  # part of the content hash: to be changed with whatever changes a score


@dataclass(frozen=True)
class Code:
    """Problems whose programs are written by a model and run in a sandbox.

    The metric of each problem is ``pass@k``, the share of choices of k programs among which one
    passes all tests, for each k that there are enough programs for. The answer is the first
    program.

    Attributes:
        name: As in tables.
        problems: What is asked.
        stops: Texts before which a completion is cut.
        decoding: How programs are written.
        k: The k of pass@k, rising.
        sandbox: Where they are run.
    """

    name: str
    problems: tuple[CodeProblem, ...] = field(repr=False)
    stops: tuple[str, ...]
    decoding: Decoding
    k: tuple[int, ...]
    sandbox: Sandbox

    @property
    def metrics(self) -> tuple[str, ...]:
        """``pass@k`` for every k."""
        return tuple(f"pass@{k}" for k in self.k)

    def prompts(self) -> tuple[str, ...]:
        """Return what each problem puts before the model."""
        return tuple(problem.prompt for problem in self.problems)

    def content_hash(self) -> str:
        """Return the SHA-256 of the problems, the decoding and the programs' limits."""
        content = [
            _SCORED,
            [asdict(problem) for problem in self.problems],
            self.stops,
            self.decoding.signature(),
            self.k,
            asdict(self.sandbox.limits),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def score(self, base: BaseModel) -> SuiteScore:
        """Return which problems the model's programs solve.

        Raises:
            ConfigurationError: the system does not allow a sandbox.
        """
        written = completions(base, self.prompts(), self.decoding, self.stops)
        results = self.sandbox.run(
            [
                problem.trial(text)
                for problem, texts in zip(self.problems, written, strict=True)
                for text in texts
            ]
        )
        samples = self.decoding.samples
        passed = [
            sum(result.passed for result in results[start : start + samples])
            for start in range(0, len(results), samples)
        ]
        rows = {
            f"pass@{k}": torch.tensor(
                [pass_at_k(samples, count, k) for count in passed], dtype=torch.float64
            )
            for k in self.k
        }
        answers = tuple(
            problem.program(texts[0]) for problem, texts in zip(self.problems, written, strict=True)
        )
        return SuiteScore(answers, rows, {})


def code_suites(
    *,
    allow_execution: bool,
    names: Sequence[str] = ("human_eval", "mbpp"),
    suites: str | None = None,
    path: str | None = None,
    subset: int | None = None,
    k: Sequence[int] = (1,),
    decoding: Decoding | None = None,
    limits: Limits | None = None,
    workers: int = 2,
) -> list[Code]:
    """Return the code suites of some names, once the user has allowed to run programs.

    Args:
        allow_execution: Whether programs that a model writes may be run on this machine.
        names: Some of ``human_eval``, ``mbpp``.
        suites: Folder of suites, whose folder ``code`` holds the problems; None for the hub.
        path: Instead of it, the folder that holds the problems.
        subset: Of each suite, the first so many problems; None for all.
        k: The k of pass@k; those beyond the number of samples cannot be estimated and are left
            out.
        decoding: How programs are written.
        limits: Of each program.
        workers: Programs run at a time.

    Raises:
        ConfigurationError: it is not allowed, a value is not possible, or the system does not
            allow a sandbox.
        DataError: the problems cannot be read.
    """
    if not allow_execution:
        raise ConfigurationError(
            "suite=code runs programs that a language model has written, on this machine, though "
            "in a sandbox without network, files or other processes; nothing was run, since "
            "suite.code.allow_execution is false; set suite.code.allow_execution=true to allow "
            "it, or leave the suite code out"
        )
    how = decoding or Decoding()
    counts = _estimable(k, how.samples)
    if subset is not None and subset < 1:
        raise ConfigurationError(
            f"suite.code.subset is {subset}, but takes 1 or more problems, or null for all"
        )
    sandbox = Sandbox(limits or Limits(), workers)
    sandbox.check()
    folder = Path(path) if path else Path(suites) / "code" if suites else None
    sources = {name: code_source(name) for name in names}
    return [
        Code(name, source.problems(folder, subset), source.stops, how, counts, sandbox)
        for name, source in sources.items()
    ]


def _estimable(k: Sequence[int], samples: int) -> tuple[int, ...]:
    counts = tuple(sorted({count for count in k if count <= samples}))
    if not counts or counts[0] < 1:
        raise ConfigurationError(
            f"suite.code.k is {list(k)} with suite.code.decoding.samples={samples}, but pass@k "
            "takes a k from 1 to the number of samples; set suite.code.k=[1], or more samples"
        )
    return counts
