"""HumanEval and MBPP: the sandbox, layer by layer and attack by attack; problems; the suites."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter, OrderedDict, deque, namedtuple
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from loraport.evaluation import code_execution, sandboxed, written_answers
from loraport.evaluation.code_execution import (
    SOURCES,
    Code,
    Decoding,
    Limits,
    Outcome,
    Sandbox,
    Trial,
    code_suites,
    pass_at_k,
)
from loraport.evaluation.sandboxed import Opaque, decoded, encoded
from loraport.evaluation.suite import Suite, SuiteCache
from loraport.exceptions import ConfigurationError, DataError
from loraport.models.generation import MostLikely, NucleusSampling, generate
from loraport.store import Store

from .attacks import ATTACKS


def why_no_sandbox() -> str:
    """Return why this machine cannot run the sandbox; empty where it can."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return "bubblewrap is not installed"
    tried = subprocess.run(
        [bwrap, "--unshare-net", "--unshare-pid", "--ro-bind", "/", "/", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip()


needs_sandbox = pytest.mark.skipif(bool(why_no_sandbox()), reason=why_no_sandbox() or "-")

# --- The sandbox ---

DOUBLE = "def double(x):\n    return 2 * x\n"


def ran(program, tests, calls=("double",), **limits):
    (result,) = Sandbox(Limits(**limits)).run([Trial(program, tests, calls)])
    return result


WAITS = "import time\ntime.sleep(60)"


@pytest.mark.parametrize(
    ("program", "limits", "outcome", "reason"),
    [
        (DOUBLE + "print('hello')\n", {}, Outcome.PASSED, ""),
        ("def double(x):\n    return x", {}, Outcome.FAILED, "a test does not hold"),
        ("def double(x):\n    return x.y", {}, Outcome.FAILED, "AttributeError: 'int' object has"),
        ("def double(x)", {}, Outcome.FAILED, "SyntaxError: expected ':'"),
        ("", {}, Outcome.FAILED, "KeyError: 'double'"),
        ("import numpy", {}, Outcome.FAILED, "ModuleNotFoundError: No module named 'numpy'"),
        ("def double(x):\n    raise MemoryError", {}, Outcome.MEMORY, "MemoryError"),
        ("import os\nos._exit(3)", {}, Outcome.ENDED, "ended before its tests did (exit code 3)"),
        ("import os\nos.kill(os.getpid(), 9)", {}, Outcome.ENDED, "(killed by signal 9)"),
        ("while True: pass", {"seconds": 20.0, "cpu_seconds": 1}, Outcome.TIMEOUT, "1 s of CPU"),
        (WAITS, {"seconds": 0.5}, Outcome.TIMEOUT, "took more than 0.5 s"),
    ],
)
@needs_sandbox
def test_it_is_told_what_became_of_a_program(program, limits, outcome, reason):
    result = ran(program, "assert double(4) == 8\nassert double(x=[1]) == [1, 1]", **limits)
    assert (result.outcome, result.output) == (outcome, "hello\n" if result.passed else "")
    assert reason in result.reason
    assert bool(reason) != result.passed


@needs_sandbox
def test_results_come_in_the_order_of_the_programs_and_sets_have_one_order():
    program = "import time\ntime.sleep({})\nprint({}, set('abcdefgh'))"
    trials = [Trial(program.format((3 - n) / 10, n), "", ()) for n in range(3)]
    outputs = [result.output for result in Sandbox(workers=3).run(trials)]
    assert [output[0] for output in outputs] == ["0", "1", "2"]
    assert len({output[1:] for output in outputs}) == 1


@needs_sandbox
def test_a_program_finds_the_interpreter_and_an_empty_work_folder():
    program = """
import os, sys
def look():
    open("note", "w").write("x" * 1000)
    packages = [path for path in sys.path if "site-packages" in path]
    return [os.listdir("."), os.getcwd(), os.getppid(), dict(os.environ), packages,
            sys.stdin.read(), __name__, open("note").read()], os.listdir("/"), os.geteuid()
"""
    tests = """
found, folders, user = look()
assert found == [["note"], "/tmp", 1, {}, [], "", "candidate", "x" * 1000]
assert user != 0
assert {"proc", "dev", "home", "sys", "var", "bin", "run"}.isdisjoint(folders)
treble(4)
"""
    assert ran(program, tests, ("look",)).reason == "NameError(\"name 'treble' is not defined\")"


@needs_sandbox
def test_the_check_notices_what_is_not_held_back(monkeypatch):
    Sandbox().check()
    monkeypatch.setattr(code_execution, "_PROBE", "def probe():\n    return ['a socket']")
    with pytest.raises(ConfigurationError, match="was not held back"):
        Sandbox().check()


@needs_sandbox
def test_every_limit_binds_the_program():
    program = """
import resource, os

def limits():
    names = ("AS", "FSIZE", "NOFILE", "NPROC", "CPU", "CORE")
    return [resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names]

def size():
    found = os.statvfs("/tmp")
    return found.f_blocks * found.f_frsize
"""
    wanted = [(256 << 20,) * 2, (1 << 20,) * 2, (20, 20), (5, 5), (3, 4), (1, 1)]
    tests = f"assert limits() == {wanted}\nassert size() == 1 << 20"
    options = {"memory_mb": 256, "folder_mb": 1, "open_files": 20, "processes": 5}
    result = ran(program, tests, ("limits", "size"), **options, cpu_seconds=3)
    assert result.passed, result.reason


@needs_sandbox
def test_the_namespaces_hold_back_what_the_filter_hides():
    # The filter of system calls refuses every socket: here is what stands behind it.
    code = """
import json, os, socket, sys
with socket.socket() as line:
    line.settimeout(2)
    reached = line.connect_ex(("127.0.0.1", int(sys.argv[1]))) == 0
print(json.dumps([reached, [name for _, name in socket.if_nameindex()], os.getpid()]))
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = Sandbox()._command("candidate", server)
        start = command[: command.index("--") + 2]
        done = subprocess.run([*start, "-c", code, port], capture_output=True, check=True)
    assert json.loads(done.stdout) == [False, ["lo"], 2]


@needs_sandbox
@pytest.mark.skipif(os.geteuid() != 0, reason="to become another user takes root")
def test_a_plain_user_gets_a_sandbox_too(monkeypatch):
    python, setpriv = Path("/usr/bin/python3"), shutil.which("setpriv")
    if setpriv is None or not python.exists() or minor(python) < 11:
        pytest.skip("takes setpriv and a Python that every user may start")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        script = Path(shutil.copy(str(sandboxed.__file__), folder))
        script.chmod(0o644)
        library = Path(f"/usr/lib/python3.{minor(python)}")
        with monkeypatch.context() as changed:
            changed.setattr(os, "geteuid", lambda: 61000)
            changed.setattr(sys, "executable", str(python))
            changed.setattr(os, "__file__", str(library / "os.py"))
            changed.setattr(sandboxed, "__file__", str(script))
            command = Sandbox._command
            user = [setpriv, "--reuid=61000", "--regid=61000", "--clear-groups"]
            changed.setattr(Sandbox, "_command", lambda *args: user + command(*args))
            program = "import os\ndef f():\n    return [os.getuid(), os.getpid()]"
            (result,) = Sandbox().run([Trial(program, "assert f() == [61000, 2]", ("f",))])
            attacks = [Trial(ATTACKS[name], TESTS, ("add",)) for name in ("fork_bomb", "mount")]
            attacks += [Trial(ATTACKS["new_namespaces"], TESTS, ("add",)), GOOD]
            found = Sandbox(Limits(seconds=3.0, cpu_seconds=1)).run(attacks)
    assert result.passed, (result.reason, result.output)
    assert [one.passed for one in found] == [False, False, False, True]


def minor(python: Path) -> int:
    code = "import sys; print(sys.version_info.minor)"
    return int(subprocess.run([python, "-c", code], capture_output=True, check=True).stdout)


def test_nothing_runs_where_bubblewrap_is_refused(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigurationError, match=r"No permissions to create new namespace.*sysctl"):
        Sandbox().run([Trial("print('ran')", "", ())])


@needs_sandbox
@pytest.mark.parametrize(
    ("line", "instead", "message"),
    [
        ("libseccomp.so.2", "libnone.so", "libnone.so"),
        ("os.setgroups([])", "raise OSError(1, 'setgroups refused')", "setgroups refused"),
        ("    done = library.seccomp_load(rules)", "    done = -38", "seccomp"),
    ],
)
def test_nothing_runs_where_a_layer_is_refused(line, instead, message, monkeypatch, tmp_path):
    if "setgroups" in line and os.geteuid() != 0:
        pytest.skip("a plain user has no groups to give up")
    source = Path(str(sandboxed.__file__)).read_text()
    assert line in source
    changed = tmp_path / "sandboxed.py"
    changed.write_text(source.replace(line, instead))
    monkeypatch.setattr(sandboxed, "__file__", str(changed))
    with pytest.raises(ConfigurationError, match=f"{message}.*apt-get install"):
        Sandbox().run([Trial("print('ran')", "", ())])


# --- Attacks ---

QUICK = (
    *("fork_bomb", "memory_at_once", "flood_output", "leave_daemon", "delete_file"),
    *("connect_to_host", "kill_process_of_host", "stop_parent", "exit_at_once", "fake_success"),
)
# Attacks that do harm to nothing but what the host fixture sets up.
WORKING_OUTSIDE = {
    *("delete_file", "delete_everything", "write_outside", "change_mode", "read_secret"),
    *("connect_to_host", "kill_process_of_host", "read_environment", "run_interpreter"),
    *("run_shell", "many_files", "listen", "memory_of_no_process"),
}
OUTCOMES = {
    "memory_at_once": Outcome.MEMORY,
    "sleep": Outcome.TIMEOUT,
    "stop_itself": Outcome.TIMEOUT,
    "flood_output": Outcome.OUTPUT,
    "flood_errors": Outcome.OUTPUT,
    "exit_at_once": Outcome.ENDED,
    "exit_in_call": Outcome.ENDED,
    "crash": Outcome.ENDED,
}
TESTS = "assert add(2, 3) == 5\nassert not add(-1, 1)\n"
GOOD = Trial("def add(a, b):\n    return a + b\n", TESTS, ("add",))


class Host(NamedTuple):
    """What stands for the machine: a file, its folder, a process, an open port."""

    file: Path
    process: "subprocess.Popen[bytes]"
    server: socket.socket

    def aimed(self, program: str) -> str:
        """Return the program with the host's things as its aims."""
        aims = {
            "file": self.file,
            "folder": self.file.parent,
            "process": self.process.pid,
            "port": self.server.getsockname()[1],
        }
        for name, aim in aims.items():
            program = program.replace(f"@{name}@", str(aim))
        return program

    def untouched(self) -> bool:
        """Whether file, folder and process are as they were, and nobody has called."""
        try:
            self.server.accept()
            return False
        except BlockingIOError:
            pass
        return (
            self.process.poll() is None
            and self.file.read_text() == "secret"
            and self.file.stat().st_mode & 0o777 == 0o644
            and [f.name for f in self.file.parent.iterdir()] == [self.file.name]
        )


@pytest.fixture
def host() -> Iterator[Host]:
    # Where everybody may write, unlike tmp_path: no other rule protects it.
    with tempfile.TemporaryDirectory(prefix="loraport-host-") as folder, socket.socket() as server:
        Path(folder).chmod(0o777)
        file = Path(folder, "canary")
        file.write_text("secret")
        file.chmod(0o644)
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.setblocking(False)
        with subprocess.Popen(["sleep", "600"]) as process:
            yield Host(file, process, server)
            process.kill()


def started(mark: str) -> list[bytes]:
    """Return the command lines of sandboxes' processes in which a text stands."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"/sandboxed.py" in line and mark.encode() in line:
            found.append(line)
    return found


def mounts() -> set[str]:
    """Return what is mounted, without what other tests mount in their folders meanwhile."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return {line for line in lines if "pytest-of-" not in line}


def attack(names: list[str], host: Host) -> None:
    """Run the attacks, with a good program after each, and check all that should be so then."""
    mark = f"2.{os.getpid():08d}"  # seconds that no other sandbox has
    sandbox = Sandbox(Limits(seconds=float(mark), cpu_seconds=1))
    trials = [
        trial for n in names for trial in (Trial(host.aimed(ATTACKS[n]), TESTS, ("add",)), GOOD)
    ]
    before = mounts()
    results = sandbox.run(trials)
    attacks = dict(zip(names, results[::2], strict=True))
    assert [name for name, result in attacks.items() if result.passed] == []
    for name, expected in OUTCOMES.items():
        if name in attacks:
            assert attacks[name].outcome is expected, (name, attacks[name])
    assert all(result.reason for result in attacks.values())
    assert all(len(result.output) <= sandbox.limits.output_bytes for result in results)
    assert [n for n, good in zip(names, results[1::2], strict=True) if not good.passed] == []
    assert host.untouched()
    assert waited(lambda: not started(mark.rstrip("0")))
    assert mounts() == before


@needs_sandbox
def test_attacks_fail(host):
    attack(list(QUICK), host)


@needs_sandbox
@pytest.mark.slow
def test_all_attacks_fail(host):
    assert len(ATTACKS) == 62
    attack(list(ATTACKS), host)


@pytest.mark.parametrize("name", sorted(WORKING_OUTSIDE))
def test_without_a_sandbox_the_attack_would_succeed(name, host, tmp_path):
    # Otherwise it would show nothing that it fails within one.
    program = host.aimed(ATTACKS[name]).replace("10**6", "100")
    run = subprocess.run(
        [sys.executable, "-c", program.replace("while True:", "for _ in range(3):") + TESTS],
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0


@needs_sandbox
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # the child ends by itself
def test_a_killed_runner_takes_its_sandboxes_along():
    """The fork starts sandboxes from this process's imports, and is killed before they end."""
    mark = f"20.{os.getpid():08d}1"
    runner = os.fork()
    if runner == 0:
        try:
            trial = Trial("print(1, flush=True)\nwhile True: pass", "", ())
            Sandbox(Limits(seconds=float(mark), cpu_seconds=20)).run([trial])
        finally:
            os._exit(0)
    assert waited(lambda: len(started(mark)) >= 4, 60)
    os.kill(runner, signal.SIGKILL)
    os.waitpid(runner, 0)
    assert waited(lambda: not started(mark))


def waited(condition, seconds=15) -> bool:
    """Whether the condition comes true within some seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


# --- Values between a program and its tests ---

Point = namedtuple("Point", "x y")


class Chameleon(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def sent(value):
    return decoded(json.loads(json.dumps(encoded(value))))


PLAIN: list[Any] = [
    *(None, True, False, 0, -(10**40), 0.1, float("inf"), "", "\ud800é\n", b"\x00x", 1 + 2j),
    *([], [1, [2.0, "a"]], (), (1, (2,)), {1, 2}, set(), frozenset({"a"}), deque([1])),
    *({}, {1: "a", (1, 2): [3], "b": {"c": None}}, range(1, 9, 3)),
    *(Decimal("0.10"), Fraction(1, 3)),
]


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        *((value, value) for value in PLAIN),
        *((Counter("aab"), {"a": 2, "b": 1}), (OrderedDict(a=1), {"a": 1}), (Point(1, 2), (1, 2))),
        *((bytearray(b"x"), b"x"), (Chameleon(7), 7)),
    ],
)
def test_plain_values_arrive_as_they_are_and_subclasses_plain(value, plain):
    assert sent(value) == plain
    assert type(sent(value)) is type(plain)


def test_nothing_is_left_of_an_own_behaviour():
    assert sent([Chameleon(7)]) != [8]
    for value in ((n for n in (1, 2)), map(int, "12"), {1: 0, 2: 0}.keys()):
        received = sent(value)
        assert received != [1, 2]
        assert list(received) == [1, 2]
    found, object_ = sent(re.match("a", "a")), sent(object())
    assert isinstance(found, Opaque)
    assert found
    assert found not in (True, 1, object_)


@pytest.mark.parametrize("content", [["class", "x"], ["list"], [], ["complex", "x"]])
def test_other_content_is_refused(content):
    with pytest.raises((ValueError, TypeError)):
        decoded(content)


# --- Problems ---

HUMAN_EVAL: dict[str, Any] = {
    "task_id": "HumanEval/7",
    "prompt": 'def twice(x):\n    """ Double. """\n\ndef add(a, b):\n    """ Sum. """\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert twice\n",
}
MBPP: dict[str, Any] = {
    "source_file": "notebook",
    "task_id": 9,
    "prompt": "Write a function to measure.",
    "code": "import sys\nimport math as m\nfrom re import sub\n"
    "def size(x):\n  return sys.getsizeof(x)",
    "test_imports": ["import math"],
    "test_list": ["assert size(1) == sys.getsizeof(1)", "assert size(2) > math.pi"],
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "human_eval.jsonl").write_text(json.dumps(HUMAN_EVAL) + "\n\n")
    rows = [MBPP, MBPP | {"task_id": 12}]
    (tmp_path / "mbpp_sanitized.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def test_human_eval_goes_on_behind_its_prompt(files):
    (problem,) = SOURCES["human_eval"].problems(files, None)
    assert problem.prompt == HUMAN_EVAL["prompt"]
    assert problem.trial(problem.reference).program == HUMAN_EVAL["prompt"] + "    return a + b\n"
    assert problem.tests.endswith("\ncheck(add)\n")
    assert problem.calls == ("add", "twice")


def test_mbpp_asks_by_a_docstring_with_the_first_test(files):
    first, second = SOURCES["mbpp"].problems(files, None)
    assert first.prompt == f'"""\n{MBPP["prompt"]}\n{MBPP["test_list"][0]}\n"""\n'
    assert (first.name, second.name) == ("MBPP/9", "MBPP/12")
    assert first.trial("x = 1").program == "x = 1"
    assert first.calls == ("size",)


@needs_sandbox
def test_mbpp_tests_bring_what_they_import(files):
    (problem,) = SOURCES["mbpp"].problems(files, 1)
    assert problem.tests.splitlines() == ["import math", "import sys", *MBPP["test_list"]]
    (result,) = Sandbox().run([problem.trial(problem.reference)])
    assert result.passed


@pytest.mark.parametrize("row", ["{}", json.dumps(MBPP | {"code": "def"})])
def test_a_malformed_row_is_named(files, row):
    file = files / "mbpp_sanitized.jsonl"
    file.write_text(json.dumps(MBPP) + "\n" + row)
    with pytest.raises(DataError, match=r"mbpp_sanitized.jsonl, line 2 is .*, but takes a problem"):
        SOURCES["mbpp"].problems(files, None)


def test_the_hub_gives_what_the_file_gives(monkeypatch, files):
    import datasets

    asked = []

    def load(name, config, *, split):
        asked.append((name, config, split))
        found = {"test": [MBPP | {"task_id": 12}], "train": [MBPP]}.get(split, [])
        return found if config == "sanitized" else [HUMAN_EVAL]

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name in SOURCES:
        assert SOURCES[name].problems(None, None) == SOURCES[name].problems(files, None)
    assert asked[0] == ("openai/openai_humaneval", "openai_humaneval", "test")
    assert {split for _, config, split in asked if config == "sanitized"} == {
        *("prompt", "test", "validation", "train")
    }


@needs_sandbox
@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("human_eval", 164), ("mbpp", 427)])
def test_solutions_pass_and_nothing_else_does(shared, name, count):
    problems = SOURCES[name].problems(shared / "data" / "code", None)
    assert len(problems) == count
    results = Sandbox().run([problem.trial(problem.reference) for problem in problems])
    wrong = [(p.name, r) for p, r in zip(problems, results, strict=True) if not r.passed]
    assert wrong == []
    empty = Sandbox().run([p.trial("    return None\n" if p.head else "") for p in problems[:50]])
    assert [p.name for p, r in zip(problems, empty, strict=False) if r.passed] == []


@needs_sandbox
@pytest.mark.real
@pytest.mark.parametrize("name", list(SOURCES))
def test_some_solutions_pass(shared, name):
    problems = SOURCES[name].problems(shared / "data" / "code", None)[::20]
    results = Sandbox().run([problem.trial(problem.reference) for problem in problems])
    assert all(result.passed for result in results)


# --- What a model writes ---

PROMPTS = ["def add(a, b):\n", "x", "def double(number):\n    # twice\n"]


def test_greedy_continuations_are_those_of_each_prompt_by_itself(pico_target):
    found = Decoding(max_new_tokens=8, batch_rows=2).completions(pico_target, PROMPTS, [])
    for prompt, texts in zip(PROMPTS, found, strict=True):
        ids = pico_target.tokenizer(prompt)["input_ids"]
        (tokens,) = generate(pico_target, [ids], max_new_tokens=8, choice=MostLikely())
        whole = pico_target.tokenizer.decode([*ids, *tokens], skip_special_tokens=True)
        assert texts == [whole[len(prompt) :]]
        assert whole.startswith(prompt)


def test_drawn_ones_differ_and_come_again_with_the_seed(pico_target):
    def drawn(seed):
        return Decoding(5, 8, seed=seed).completions(pico_target, PROMPTS, [])

    before = torch.get_rng_state()
    found = drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(texts) for texts in found] == [5, 5, 5]
    assert all(len(set(texts)) > 1 for texts in found)
    assert drawn(1) == found
    assert drawn(2) != found


def planned(monkeypatch, base, texts):
    """Let generation return given texts, whatever the prompts are; keep what it was asked."""
    asked = []

    def fake(_base, prompts, *, max_new_tokens, choice):
        asked.append((prompts, max_new_tokens, choice))
        return [base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    monkeypatch.setattr(written_answers, "generate", fake)
    return asked


def test_is_cut_before_the_first_stop(monkeypatch, pico_target):
    text = "    return 1\n\nprint(2)\ndef other():\n"
    planned(monkeypatch, pico_target, [text])
    stops = ["\ndef", "\nprint"]
    assert Decoding().completions(pico_target, ["p"], stops) == [["    return 1\n"]]
    assert Decoding().completions(pico_target, ["p"], ["\nclass"]) == [[text]]


def test_samples_of_a_prompt_go_through_the_model_together(monkeypatch, pico_target):
    asked = planned(monkeypatch, pico_target, ["a", "b", "c"])
    decoding = Decoding(3, 5, temperature=0.2, top_p=0.5, batch_rows=3)
    assert decoding.completions(pico_target, ["one", "three"], []) == [["a", "b", "c"]] * 2
    assert [prompts == [prompts[0]] * 3 for prompts, _, _ in asked] == [True, True]
    choice = asked[0][2]
    assert isinstance(choice, NucleusSampling)
    assert (choice.temperature, choice.top_p) == (0.2, 0.5)


def test_the_first_space_behind_a_prompt_stays(monkeypatch, pico_source):
    # A tokenizer that joins words with spaces loses those at the ends of a text by itself.
    planned(monkeypatch, pico_source, ["good film"])
    assert Decoding().completions(pico_source, ["the plot"], []) == [[" good film"]]


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_is_the_share_of_choices_with_one_that_passes(samples):
    for passed, k in itertools.product(range(samples + 1), range(1, samples + 1)):
        choices = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
        share = sum(map(any, choices)) / len(choices)
        assert pass_at_k(samples, passed, k) == pytest.approx(share, abs=1e-12)


# --- The suites ---


def row(name, solution):
    return {
        "task_id": name,
        "prompt": f"def {name}(x):\n",
        "entry_point": name,
        "canonical_solution": solution,
        "test": "def check(candidate):\n    assert candidate(5) == 10\n",
    }


ROWS = [row("double", "    return 2 * x\n"), row("product", "    return x * 2\n")]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "code").mkdir()
    file = tmp_path / "code" / "human_eval.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def suite(folder, **options):
    given: dict[str, Any] = {
        "allow_execution": True,
        "names": ["human_eval"],
        "suites": str(folder),
    }
    (found,) = code_suites(**given | options)
    assert isinstance(found, Suite)
    return found


def plant(monkeypatch, texts):
    """Let the model write these completions, a list for each problem."""
    monkeypatch.setattr(Decoding, "completions", lambda *_: texts)


@needs_sandbox
def test_several_samples_give_pass_at_k(monkeypatch, folder, pico_source):
    good, bad = "    return 2 * x\n", "    while True:\n        print(x)\n"
    plant(monkeypatch, [[bad, good, bad, bad], [good, good, "((", good]])
    found = suite(folder, k=[1, 2, 4, 10], decoding=Decoding(4))
    assert found.name == "human_eval"
    score = found.score(pico_source)
    assert {name: row.tolist() for name, row in score.rows.items()} == {
        "pass@1": pytest.approx([0.25, 0.75]),
        "pass@2": pytest.approx([0.5, 1.0]),
        "pass@4": pytest.approx([1.0, 1.0]),
    }
    assert score.answers[0] == f"def double(x):\n{bad}"


@needs_sandbox
def test_a_real_model_writes_and_is_scored(folder, pico_target, tmp_path):
    found = suite(folder, decoding=Decoding(max_new_tokens=4))
    score = SuiteCache(Store(tmp_path / "kept")).score(pico_target, None, found)
    assert score.rows["pass@1"].tolist() == [0.0, 0.0]
    again = SuiteCache(Store(tmp_path / "kept")).score(pico_target, None, found)
    assert again.answers == score.answers
    assert all(a.startswith(p) for a, p in zip(score.answers, found.prompts(), strict=True))


def test_nothing_is_run_without_being_allowed(monkeypatch, folder):
    monkeypatch.setattr(Sandbox, "check", lambda _: pytest.fail("was run"))
    with pytest.raises(ConfigurationError, match=r"has written.* set suite.code.allow_execution="):
        suite(folder, allow_execution=False)


def test_the_sandbox_is_tried_before_anything_is_written(monkeypatch, folder):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match=r"no command bwrap.*apt-get install bubblewrap"):
        suite(folder)


def test_the_hash_tells_what_a_score_depends_on(monkeypatch, folder):
    monkeypatch.setattr(Sandbox, "check", lambda _: None)
    found = [
        suite(folder),
        suite(folder, subset=1),
        suite(folder, decoding=Decoding(max_new_tokens=9)),
        suite(folder, k=[1, 2], decoding=Decoding(2)),
        suite(folder, k=[1, 2], decoding=Decoding(2, seed=1)),
        suite(folder, k=[1, 2], decoding=Decoding(2, top_p=0.5)),
        suite(folder, limits=Limits(seconds=3.0)),
    ]
    assert len({each.content_hash() for each in found}) == len(found)
    same = suite(folder, workers=1, decoding=Decoding(seed=5, temperature=0.1, batch_rows=2))
    assert same.content_hash() == found[0].content_hash()
    assert suite(folder, path=str(folder / "code")).content_hash() == found[0].content_hash()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": [2]}, "k is [2], but takes numbers up to suite.code.decoding.samples=1"),
        (
            {"k": [0], "subset": 0, "workers": 0},
            "subset is 0, but takes a whole number of at least",
        ),
        ({"names": ["humaneval"]}, "names is ['humaneval'], but takes some of human_eval, mbpp"),
    ],
)
def test_impossible_options_are_refused(folder, options, said):
    with pytest.raises(ConfigurationError, match=re.escape(f"suite.code.{said}")):
        suite(folder, **options)


def test_impossible_limits_and_decoding_are_refused():
    limits: Any = {"seconds": 0.0, "processes": 1}
    with pytest.raises(ConfigurationError, match=r"limits.seconds is 0.0.*limits.processes is 1"):
        Limits(**limits)
    decoding: Any = {"samples": 0, "top_p": 1.5}
    with pytest.raises(ConfigurationError, match=r"decoding.samples is 0.*decoding.top_p is 1.5"):
        Decoding(**decoding)


@needs_sandbox
def test_the_config_makes_the_suites(folder):
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose(
            "evaluate",
            overrides=[
                "suite=[code]",
                "suite.code.allow_execution=true",
                "suite.code.names=[human_eval]",
                "suite.code.decoding.samples=10",
                f"paths.suites={folder}",
                "seed=3",
            ],
        )
    (found,) = instantiate(config.suite.code)
    assert isinstance(found, Code)
    assert found.metrics == ("pass@1", "pass@10")
    assert (found.decoding.seed, len(found.problems)) == (3, 2)
    assert found.sandbox.limits == Limits()
