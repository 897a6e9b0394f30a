"""HumanEval and MBPP: a model writes programs, which are run in a sandbox and tested.

Each program is a process in a ``bwrap`` (bubblewrap) of its own, with no network, no file but the
interpreter's, no right and hard limits; its tests run in a second one (:mod:`.sandboxed`), call
the program's functions through a socket and say whether it passes. So a program cannot pass by
leaving early, by printing what a success prints, by patching Python or by returning objects that
equal everything, and it cannot read the tests. What a test can tell apart stays the limit.

What is left is the kernel itself: a program that exploits a fault in Linux is not held back.
"""

import ast
import itertools
import json
import math
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Annotated, Literal, cast

import torch
from pydantic import BaseModel as Record
from pydantic import ConfigDict, Field

from ..exceptions import ConfigurationError
from ..models.generation import MostLikely, NextToken, NucleusSampling
from ..models.loading import BaseModel
from ..option_types import Count, OptionalCount, Positive, Takes
from . import sandboxed
from .suite import SuiteScore, checked, hashed
from .written_answers import Probability, from_hub, json_lines, parsed, write_answers

_SCORED = "calls-2"  # part of the content hash: to be changed with whatever changes a score

# --- The sandbox ----------------------------------------------------------------------------------

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
# User ids that no distribution hands out (systemd's table of UIDs); under root, one a process, so
# that the limit on processes counts that process's alone.
_FIRST_UID, _UIDS = 60578, 606
_uids = itertools.count(os.getpid())
_CHUNK = 1 << 16
_PATIENCE = 0.5  # seconds for a process whose line is down to be seen as ended


@checked("suite.code.limits")
@dataclass(frozen=True)
class Limits:
    """What one program may use, and as much again its tests; the least leaves room for Python.

    Described in ``conf/suite/code.yaml``. Memory is that of each process: all of them together
    can use ``processes`` times as much.
    """

    seconds: Annotated[float, Field(ge=0.1), Takes("0.1 or more")] = 10.0
    cpu_seconds: Count = 5
    memory_mb: Annotated[int, Field(ge=128), Takes("128 or more")] = 512
    folder_mb: Count = 8
    open_files: Annotated[int, Field(ge=8), Takes("8 or more")] = 32
    processes: Annotated[int, Field(ge=2), Takes("2 or more")] = 8
    output_bytes: Count = 1 << 16


class Outcome(Enum):
    """How a program ended."""

    PASSED = "passed"
    FAILED = "failed"  # a test found something wrong, or the program raised an error
    ENDED = "ended"  # it was over before its tests were: it left, crashed or was killed
    TIMEOUT = "timeout"  # wall-clock or CPU time
    MEMORY = "memory"
    OUTPUT = "output"  # it printed too much


@dataclass(frozen=True)
class Trial:
    """A program to be run, and what decides whether it passes."""

    program: str  # Python source, run first. __name__ is not "__main__" in it
    tests: str  # Python source; passes by coming to its end
    # The names of the program's functions that the tests call. Arguments and results go by value.
    # All other names in the tests are the tests' own.
    calls: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """What came of a trial: how it ended, why (empty where it passed), what was printed."""

    outcome: Outcome
    reason: str = ""
    output: str = ""

    @property
    def passed(self) -> bool:
        """Whether all tests came to their end."""
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True)
class Sandbox:
    """Runs programs that nobody has read, each in a sandbox of its own.

    Programs find the standard library and no other package, a work folder in memory, no
    environment variables, no input, no network and no other process; ``workers`` run at a time.
    Sets have the same order in every run.
    """

    limits: Limits = field(default_factory=Limits)
    workers: int = 2

    def check(self) -> None:
        """See that programs can be run, and that they run apart from this machine."""
        (result,) = self.run([Trial(_PROBE, "assert probe() == []", ("probe",))])
        if not result.passed:
            raise _refusal(f"a trial program was not held back: {result.reason}")

    def run(self, trials: Sequence[Trial]) -> list[Result]:
        """Return what comes of each trial, in their order.

        Raises:
            ConfigurationError: the system does not allow a sandbox; nothing is run without one.
        """
        with ThreadPoolExecutor(max_workers=self.workers) as pool:
            return list(pool.map(self._run, trials))

    def _run(self, trial: Trial) -> Result:
        until = time.monotonic() + self.limits.seconds
        ours, theirs = socket.socketpair()
        outputs, output_end = os.pipe()
        with open(outputs, "rb", buffering=0) as printed, tempfile.TemporaryFile() as order:
            with ours, theirs, open(output_end, "wb") as output:
                order.write(json.dumps(asdict(trial)).encode() + b"\n")
                order.seek(0)
                judge = subprocess.Popen(
                    self._command("judge", ours),
                    stdin=order,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    pass_fds=[ours.fileno()],
                )
                candidate = subprocess.Popen(
                    self._command("candidate", theirs),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[theirs.fileno()],
                )
            with judge, candidate:
                try:
                    return self._watched(cast(IO[bytes], judge.stdout), printed, candidate, until)
                finally:
                    # All else that runs in the sandboxes ends with these (--die-with-parent).
                    judge.kill()
                    candidate.kill()

    def _command(self, role: str, channel: socket.socket) -> list[str]:
        """Return the command of one of :mod:`.sandboxed`'s processes in a ``bwrap`` of its own."""
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise _refusal("there is no command bwrap")
        python = Path(sys.executable).resolve()
        library = Path(os.__file__).resolve().parents[1]  # holds the standard library's folder
        shown = [name for name in _LIBRARIES if os.path.exists(name)]
        shown += [str(path) for path in (library, python)]
        parents = {str(up) for path in shown for up in Path(path).parents} - {"/"}
        root = os.geteuid() == 0
        user = _FIRST_UID + next(_uids) % _UIDS if root else None
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        return [
            *(bwrap, "--die-with-parent", "--new-session", "--clearenv"),
            *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
            *(rights if root else ["--unshare-user", "--disable-userns"]),
            # Made by bwrap itself, they would be root's alone.
            *(part for path in sorted(parents) for part in ("--perms", "0755", "--dir", path)),
            *(part for path in shown for part in ("--ro-bind", path, path)),
            *("--ro-bind", str(Path(sandboxed.__file__).resolve()), "/sandboxed.py"),
            *("--perms", "1777", "--size", str(self.limits.folder_mb << 20), "--tmpfs", "/tmp"),
            *("--remount-ro", "/", "--chdir", "/tmp", "--setenv", "PYTHONHASHSEED", "0", "--"),
            # No module from the folder at hand or the user's (-P, -s), no packages (-S).
            *(str(python), "-PsSB", "/sandboxed.py", role, str(channel.fileno())),
            json.dumps(asdict(self.limits) | {"user": user}),
        ]

    def _watched(
        self,
        verdicts: IO[bytes],
        printed: IO[bytes],
        candidate: "subprocess.Popen[bytes]",
        until: float,
    ) -> Result:
        """Return the judge's verdict, or what became of the program before there was one."""
        verdict, output = b"", b""
        selector = selectors.DefaultSelector()
        for source in (verdicts, printed):
            selector.register(source, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            # What was printed comes before the verdict that ends this.
            ready = sorted(selector.select(left), key=lambda pair: pair[0].fileobj is verdicts)
            for key, _ in ready:
                data = os.read(key.fd, _CHUNK)
                if key.fileobj is verdicts:
                    verdict += data
                    if not data:
                        return self._finished(verdict, output.decode(errors="replace"), candidate)
                elif data:
                    output += data
                else:
                    selector.unregister(printed)
            most = self.limits.output_bytes
            if len(output) > most:
                text = output[:most].decode(errors="ignore")
                return Result(Outcome.OUTPUT, f"printed more than {most} bytes", text)
        text = output.decode(errors="replace")
        return Result(Outcome.TIMEOUT, f"took more than {self.limits.seconds:g} s", text)

    def _finished(
        self, verdict: bytes, output: str, candidate: "subprocess.Popen[bytes]"
    ) -> Result:
        """Return what the judge said, or why the candidate was gone before it could."""
        last = output.strip().rpartition("\n")[2]
        if not verdict:
            raise _refusal(last or "bwrap ended without a word")
        if not verdict.strip():
            return Result(Outcome.FAILED, "the tests crashed", output)
        content = json.loads(verdict)
        if "refused" in content:
            raise _refusal(f"{content['refused']} {last}".strip())
        if content["outcome"] != "ended":
            return Result(Outcome(content["outcome"]), content["reason"], output)
        try:
            code = candidate.wait(_PATIENCE)  # bwrap's: 128 and a signal, or the program's own
        except subprocess.TimeoutExpired:
            return Result(Outcome.ENDED, "stopped answering before its tests ended", output)
        if code == 128 + signal.SIGXCPU:
            reason = f"took more than {self.limits.cpu_seconds} s of CPU time"
            return Result(Outcome.TIMEOUT, reason, output)
        how = f"killed by signal {code - 128}" if code > 128 else f"exit code {code}"
        return Result(Outcome.ENDED, f"ended before its tests did ({how})", output)


def _refusal(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"programs cannot be run in a sandbox here ({why}), and are not run without one; it takes "
        "Linux with bubblewrap 0.8 or newer and libseccomp (Debian: apt-get install bubblewrap "
        "libseccomp2), and either root with CAP_SYS_ADMIN or user namespaces (sysctl "
        "kernel.unprivileged_userns_clone=1 on Debian, "
        "kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu; in a container "
        "--security-opt seccomp=unconfined); or leave the suite code out"
    )


# What must not be possible; returns what was.
_PROBE = """
import os, socket

def probe():
    found = []
    for what, attempt in {
        "a socket": lambda: socket.socket(),
        "a file of the system": lambda: open("/etc/passwd"),
        "writing outside": lambda: open("/probe", "w"),
        "a higher limit": lambda: __import__("resource").setrlimit(0, (1000, 1000)),
    }.items():
        try:
            attempt()
        except (OSError, ValueError):
            continue
        found.append(what)
    if os.environ or os.getppid() != 1:
        found.append("the environment")
    return found
"""

# --- Problems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodeProblem:
    """A programming problem."""

    name: str
    prompt: str  # what the model goes on behind
    head: str  # what stands in a program before the model's text
    reference: str  # a text that passes
    tests: str  # Python source that raises an error where a program is wrong
    calls: tuple[str, ...]  # names of the program's functions that the tests call

    def trial(self, completion: str) -> Trial:
        """Return the program that a completion makes, with its tests."""
        return Trial(self.head + completion, self.tests, self.calls)


class HumanEvalRow(Record):
    """A problem of HumanEval, with the fields of its file and of the hub.

    The prompt is the head of a function with a docstring, which the model goes on behind.
    Source: Chen et al., 2021 (arXiv 2107.03374).
    """

    model_config = ConfigDict(frozen=True, strict=True)

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str

    def problem(self) -> CodeProblem:
        """Return the problem; a SyntaxError where its solution or its tests are no Python."""
        tests = f"{self.test}\ncheck({self.entry_point})\n"
        calls = _called(self.prompt + self.canonical_solution, tests)
        return CodeProblem(
            self.task_id, self.prompt, self.prompt, self.canonical_solution, tests, calls
        )


class MbppRow(Record):
    """A problem of MBPP's sanitized part, with the fields of its file and of the hub.

    The prompt is a docstring of the text and the first test, which tells the function's name;
    there are no examples before it (zero-shot). Source: Austin et al., 2021 (arXiv 2108.07732);
    the prompt as in the bigcode evaluation harness and in InCoder (arXiv 2204.05999).
    """

    model_config = ConfigDict(frozen=True, strict=True)

    task_id: int
    prompt: str
    code: str
    test_imports: tuple[str, ...] = ()
    test_list: tuple[str, ...] = Field(min_length=1)

    def problem(self) -> CodeProblem:
        """Return the problem; a SyntaxError where its solution or its tests are no Python."""
        prompt = f'"""\n{self.prompt}\n{self.test_list[0]}\n"""\n'
        asserts = "\n".join(self.test_list)
        # A test may lean on what the solution imports; a program need not import it.
        names, imports = _names(asserts), list(self.test_imports)
        for node in ast.parse(self.code).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                bound = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
                if bound & names:
                    imports.append(ast.unparse(node))
        tests = "\n".join([*imports, asserts]) + "\n"
        calls = _called(self.code, tests)
        return CodeProblem(f"MBPP/{self.task_id}", prompt, "", self.code, tests, calls)


def _called(program: str, tests: str) -> tuple[str, ...]:
    """Return the functions that a program defines and its tests name."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = {node.name for node in ast.parse(program).body if isinstance(node, kinds)}
    return tuple(sorted(defined & _names(tests)))


def _names(source: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


@dataclass(frozen=True)
class CodeSource:
    """A data set of problems."""

    file: str  # name of its local file, one problem a line, of all splits
    hub: tuple[str, str]  # its id and its configuration on the hub
    splits: tuple[str, ...]
    row: type[HumanEvalRow] | type[MbppRow]
    # Texts with which something new begins: a completion is cut before the first.
    stops: tuple[str, ...]

    def problems(self, folder: Path | None, limit: int | None) -> tuple[CodeProblem, ...]:
        """Return the first problems of the file in a folder, or, without one, of the hub."""
        fields = ", ".join(self.row.model_fields)
        takes = f"a problem: an object with {fields}, code in Python and at least one test"

        def problem(line: str) -> CodeProblem:
            return self.row.model_validate_json(line).problem()

        if folder is not None:
            way_out = (
                f"set paths.suites to a folder that holds code/{self.file}, or suite.code.path to "
                f"the folder with {self.file}, or leave both out to take the problems from the hub"
            )
            return tuple(json_lines(folder / self.file, problem, takes, way_out)[:limit])
        way_out = f"if there is no network, set suite.code.path to a folder with {self.file}"
        rows: list[dict[str, object]] = []
        with from_hub(f"the data set {self.hub[0]}", way_out):
            import datasets

            for split in self.splits:
                rows += datasets.load_dataset(*self.hub, split=split)
        if len(self.splits) > 1:
            rows.sort(key=lambda row: int(str(row["task_id"])))
        return tuple(
            parsed(f"{self.hub[0]}, row {number}", json.dumps(row), problem, takes)
            for number, row in enumerate(rows[:limit], start=1)
        )


SOURCES = {
    "human_eval": CodeSource(
        file="human_eval.jsonl",
        hub=("openai/openai_humaneval", "openai_humaneval"),
        splits=("test",),
        row=HumanEvalRow,
        stops=("\nclass", "\ndef", "\n#", "\nif", "\nprint"),
    ),
    "mbpp": CodeSource(
        file="mbpp_sanitized.jsonl",
        hub=("google-research-datasets/mbpp", "sanitized"),
        splits=("prompt", "test", "validation", "train"),
        row=MbppRow,
        stops=("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
    ),
}

# --- The suites -----------------------------------------------------------------------------------


@checked("suite.code.decoding")
@dataclass(frozen=True)
class Decoding:
    """How programs are written.

    Described in ``conf/suite/code.yaml``. ``batch_rows`` changes what is drawn.
    """

    samples: Count = 1
    max_new_tokens: Count = 256
    temperature: Positive = 0.8
    top_p: Probability = 0.95
    seed: int = 0
    batch_rows: Count = 16

    def signature(self) -> tuple[int | float, ...]:
        """Return all that decides what is written; nothing of the draws where there are none."""
        if self.samples == 1:
            return (1, self.max_new_tokens)
        sampling = (self.temperature, self.top_p, self.seed, self.batch_rows)
        return (self.samples, self.max_new_tokens, *sampling)

    def completions(
        self, base: BaseModel, prompts: Sequence[str], stops: Sequence[str]
    ) -> list[list[str]]:
        """Return the continuations of each prompt, each cut before the first stop text in it."""
        choice: NextToken = MostLikely()
        if self.samples > 1:
            generator = torch.Generator().manual_seed(self.seed)  # one for all batches
            choice = NucleusSampling(generator, temperature=self.temperature, top_p=self.top_p)
        # Rows of one prompt stand side by side, and so mostly in one batch.
        rows = [
            ids for ids in base.tokenizer(list(prompts))["input_ids"] for _ in range(self.samples)
        ]
        texts = write_answers(
            base,
            rows,
            max_new_tokens=self.max_new_tokens,
            choice=lambda _: choice,
            batch_rows=self.batch_rows,
            batch_tokens=max(1, sum(map(len, rows))),
        )
        cut = [
            min((text.partition(stop)[0] for stop in stops), key=len, default=text)
            for text in texts
        ]
        return [cut[n : n + self.samples] for n in range(0, len(cut), self.samples)]


@dataclass(frozen=True)
class Code:
    """Problems whose programs are written by a model and run in a sandbox.

    The metric of each problem is ``pass@k``, the share of choices of k programs among which one
    passes all tests, for each k. The answer is the first program. A completion is cut before the
    first of ``stops``.
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
        problems = [asdict(problem) for problem in self.problems]
        limits = asdict(self.sandbox.limits)
        return hashed(_SCORED, problems, self.stops, self.decoding.signature(), self.k, limits)

    def score(self, base: BaseModel) -> SuiteScore:
        """Return which problems the model's programs solve."""
        written = self.decoding.completions(base, self.prompts(), self.stops)
        trials = [
            [problem.trial(text) for text in texts]
            for problem, texts in zip(self.problems, written, strict=True)
        ]
        results = self.sandbox.run([trial for group in trials for trial in group])
        n = self.decoding.samples
        passed = [
            sum(result.passed for result in results[start : start + n])
            for start in range(0, len(results), n)
        ]
        rows = {
            f"pass@{k}": torch.tensor([pass_at_k(n, c, k) for c in passed], dtype=torch.float64)
            for k in self.k
        }
        return SuiteScore(tuple(group[0].program for group in trials), rows, {})


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate ``1 - C(n - c, k) / C(n, k)`` of a problem's pass@k.

    Of n ``samples`` c have ``passed``. Source: Chen et al., 2021 (arXiv 2107.03374), equation 1.
    """
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


@checked("suite.code")
def code_suites(
    *,
    allow_execution: bool,
    names: Annotated[Sequence[Literal["human_eval", "mbpp"]], Takes("some of human_eval, mbpp")] = (
        "human_eval",
        "mbpp",
    ),
    suites: str | None = None,
    path: str | None = None,
    subset: OptionalCount = None,
    k: Annotated[Sequence[Count], Takes("whole numbers of at least 1")] = (1,),
    decoding: Decoding | None = None,
    limits: Limits | None = None,
    workers: Count = 2,
) -> list[Code]:
    """Return the code suites of some names, once the user has allowed to run programs.

    Described in ``conf/suite/code.yaml``.

    Raises:
        ConfigurationError: it is not allowed, or the system does not allow a sandbox.
        DataError: the problems cannot be read.
    """
    if not allow_execution:
        raise ConfigurationError(
            "suite=code runs programs that a language model has written, on this machine, though "
            "in a sandbox without network, files or other processes; nothing was run, since "
            "suite.code.allow_execution is false; set suite.code.allow_execution=true to allow "
            "it, or leave the suite code out"
        )
    decoding = decoding or Decoding()
    counts = tuple(sorted({count for count in k if count <= decoding.samples}))
    if not counts:
        raise ConfigurationError(
            f"suite.code.k is {list(k)}, but takes numbers up to suite.code.decoding.samples="
            f"{decoding.samples}; set suite.code.k=[1], or more samples"
        )
    sandbox = Sandbox(limits or Limits(), workers)
    sandbox.check()
    folder = Path(path) if path else Path(suites) / "code" if suites else None
    return [
        Code(
            name,
            SOURCES[name].problems(folder, subset),
            SOURCES[name].stops,
            decoding,
            counts,
            sandbox,
        )
        for name in names
    ]
