"""The two processes of a sandbox: the candidate runs a program, the judge holds its tests.

Runs as a script in a bare Python (`python sandboxed.py ROLE CHANNEL LIMITS`) and so imports the
standard library alone. :mod:`.code_execution` starts both, each inside a ``bwrap`` of its own, and
connects them by a socket: the judge calls the program's functions and gets values back. Neither
the tests nor the verdict are ever in the candidate's memory or within its reach.
"""

import ctypes
import errno
import functools
import json
import os
import random
import resource
import socket
import sys
import types
from collections import deque
from collections.abc import Callable, ItemsView, Iterator, KeysView, ValuesView
from decimal import Decimal
from fractions import Fraction
from typing import Any, Never

CHANNEL = 3  # the candidate's descriptor of the socket
MESSAGE_CHARS = 200
REPLY_BYTES = 16 << 20

# Calls that no program of a test needs: other processes, mounts, namespaces, network, memory that
# counts for no limit, further programs, and parts of the kernel in which faults were found before.
_REFUSED = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd"),
    *("mount", "umount2", "pivot_root", "chroot", "unshare", "setns", "open_by_handle_at"),
    *("open_tree", "move_mount", "fsopen", "fspick", "mount_setattr"),
    *("socket", "execve", "execveat"),
    *("shmget", "semget", "msgget", "mq_open", "memfd_create", "memfd_secret"),
    *("personality", "kexec_load", "add_key", "request_key", "keyctl", "perf_event_open"),
    *("bpf", "userfaultfd", "io_uring_setup"),
)
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* flag, in the first argument of clone
_ALLOW, _REFUSE, _MASKED_EQUAL = 0x7FFF0000, 0x00050000, 7  # seccomp.h


class CandidateError(Exception):
    """The program raised an error (its class's name, its message), or its answer is none."""


class HangUpError(BaseException):
    """The program is gone. Not an Exception, so that no test can take it for an answer."""


# --- Values by JSON -------------------------------------------------------------------------------

# The methods of the plain classes: a subclass's own are never asked.
_SCALARS: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
}
_SEQUENCES: dict[str, type[Any]] = {
    **{"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
}
_TEXTS: dict[str, type] = {"complex": complex, "decimal": Decimal, "fraction": Fraction}


class Opaque:
    """An object of the other side, of which nothing is known but whether it is true."""

    def __init__(self, true: bool) -> None:
        self._true = true

    def __bool__(self) -> bool:
        return self._true


def encoded(value: Any) -> Any:
    """Return a value as what JSON holds: only what has no behaviour of its own.

    Subclasses become the plain class (a ``Counter`` a dict), iterators are used up, and every
    other object is :class:`Opaque` on the other side.
    """
    if value is None or isinstance(value, bool):
        return value
    for scalar, plain in _SCALARS.items():
        if isinstance(value, scalar):
            return plain(value)
    for kind, sequence in _SEQUENCES.items():
        if isinstance(value, sequence):
            return [kind, [encoded(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encoded(k), encoded(v)] for k, v in value.items()]]
    for kind, text in _TEXTS.items():
        if isinstance(value, text):
            return [kind, str(value)]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    if isinstance(value, (Iterator, KeysView, ValuesView, ItemsView)):
        return ["iterator", [encoded(item) for item in value]]
    return ["opaque", bool(value)]


def decoded(content: Any) -> Any:
    """Return the value that :func:`encoded` made the content of.

    Raises:
        ValueError: it did not; TypeError where what should be hashable is not.
    """
    if not isinstance(content, list):
        return content
    kind, inner = content
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decoded(item) for item in inner)
    if kind in _TEXTS:
        return _TEXTS[kind](inner)
    if kind == "dict":
        return {decoded(k): decoded(v) for k, v in inner}
    if kind == "bytes":
        return bytes.fromhex(inner)
    if kind == "range":
        return range(*inner)
    if kind == "iterator":
        return iter([decoded(item) for item in inner])
    if kind == "opaque":
        return Opaque(bool(inner))
    raise ValueError(f"no plain value has the kind {kind!r}")


# --- What both processes give up ------------------------------------------------------------------


def confine(limits: dict[str, Any]) -> None:
    """Give up all rights but those of a program under test, for good, in this process and below.

    Args:
        limits: Fields of :class:`~.code_execution.Limits`, and ``user``: the user id to become
            where the process is root's; None otherwise.
    """
    os.environ.clear()
    sys.set_int_max_str_digits(0)
    if limits["user"] is not None:  # root is exempt from the limit on processes
        os.setgroups([])
        os.setresgid(*[limits["user"]] * 3)
        os.setresuid(*[limits["user"]] * 3)
    for limit, most in {
        resource.RLIMIT_AS: limits["memory_mb"] << 20,
        resource.RLIMIT_FSIZE: limits["folder_mb"] << 20,
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_NPROC: limits["processes"],
        # Not 0: of all sizes only 1 also keeps crashes from the system's crash reporter.
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
    }.items():
        resource.setrlimit(limit, (most, most))
    # One signal that tells what it is about, and a second later one that nobody can ignore.
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))
    _filter_system_calls()


class _Comparison(ctypes.Structure):
    _fields_ = (
        *(("argument", ctypes.c_uint), ("operator", ctypes.c_int)),
        *(("mask", ctypes.c_uint64), ("value", ctypes.c_uint64)),
    )


def _filter_system_calls() -> None:
    """Let the kernel refuse :data:`_REFUSED` and new namespaces, by libseccomp."""
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ALLOW)))

    def refuse(name: str, error: int, *conditions: _Comparison) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:  # unknown to this version of the library
            return
        array = (_Comparison * len(conditions))(*conditions)
        action = ctypes.c_uint32(_REFUSE | error)
        done = library.seccomp_rule_add_array(rules, action, number, len(conditions), array)
        if done:
            raise OSError(-done, f"seccomp {name}: {os.strerror(-done)}")

    for name in _REFUSED:
        refuse(name, errno.EPERM)
    # The C library takes clone instead, whose flags a filter can see.
    refuse("clone3", errno.ENOSYS)
    for bit in range(32):
        flag = 1 << bit
        if flag & _NEW_NAMESPACES:
            refuse("clone", errno.EPERM, _Comparison(0, _MASKED_EQUAL, flag, flag))
    done = library.seccomp_load(rules)
    if done:
        raise OSError(-done, f"seccomp: {os.strerror(-done)}")


# --- The candidate --------------------------------------------------------------------------------


def run_candidate(channel: int, limits: dict[str, Any]) -> Never:
    """Say that this process is ready, run the program that comes, answer calls of its functions.

    Args:
        channel: Descriptor of the socket; no other stays open but what is printed to.
        limits: As in :func:`confine`.
    """
    try:
        nothing, end = os.pipe()
        line = os.dup(channel)
        os.dup2(nothing, 0)
        os.close(end)
        os.dup2(line, CHANNEL)
        os.closerange(CHANNEL + 1, 1 << 16)
        with open(CHANNEL, "rb") as reader, open(CHANNEL, "wb", closefd=False) as writer:
            try:
                confine(limits)
            except OSError as error:
                _send(writer, {"refused": str(error)})
            else:
                _send(writer, {"value": None})
                _serve(reader, writer)
    finally:
        os._exit(0)


def _serve(reader: Any, writer: Any) -> None:
    program = json.loads(reader.readline())
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
        reply: dict[str, Any] = {"value": None}
    except BaseException as error:  # SystemExit as well: leaving early is no success
        reply = _error(error)
    _send(writer, reply)
    for line in reader:
        request = json.loads(line)
        try:
            function = module.__dict__[request["name"]]
            arguments, named = decoded(request["arguments"]), decoded(request["named"])
            reply = {"value": encoded(function(*arguments, **named))}
        except BaseException as error:
            reply = _error(error)
        _send(writer, reply)


def _error(error: BaseException) -> dict[str, Any]:
    try:
        message = str(error)
    except BaseException:  # a program's own error can fail at this, too
        message = ""
    return {"error": type(error).__name__, "message": message[:MESSAGE_CHARS]}


def _send(writer: Any, reply: dict[str, Any]) -> None:
    for output in (sys.stdout, sys.stderr):
        try:
            output.flush()
        except Exception:  # closed or replaced by the program
            continue
    writer.write(json.dumps(reply).encode() + b"\n")
    writer.flush()


# --- The judge ------------------------------------------------------------------------------------


class Peer:
    """The candidate as the judge sees it: everything that comes from it may be a lie."""

    def __init__(self, line: socket.socket) -> None:
        self._reader, self._writer = line.makefile("rb"), line.makefile("wb")

    def send(self, content: object) -> None:
        """Send a line of JSON; raises HangUpError where the other side is gone."""
        try:
            self._writer.write(json.dumps(content).encode() + b"\n")
            self._writer.flush()
        except OSError:
            raise HangUpError from None

    def line(self) -> bytes:
        """Return the next line; raises HangUpError where there is none."""
        try:
            text = self._reader.readline(REPLY_BYTES)
        except OSError:
            raise HangUpError from None
        if not text.endswith(b"\n") and len(text) < REPLY_BYTES:
            raise HangUpError
        return text

    def reply(self) -> Any:
        """Return the value that the candidate sends, or raise its error."""
        text = self.line()
        if len(text) == REPLY_BYTES:
            raise CandidateError("ValueError", "what it returned is too long")
        try:
            content = json.loads(text)
            if "error" not in content:
                return decoded(content["value"])
            kind, message = str(content["error"]), str(content["message"])
        except Exception as error:
            raise CandidateError("ValueError", f"no plain value came: {error}") from None
        raise CandidateError(kind[:MESSAGE_CHARS], message[:MESSAGE_CHARS])

    def call(self, name: str, *arguments: object, **named: object) -> Any:
        """Call a function of the program and return what it returned."""
        self.send({"name": name, "arguments": encoded(arguments), "named": encoded(named)})
        return self.reply()


def run_judge(channel: int, limits: dict[str, Any]) -> None:
    """Test the program of the trial that standard input holds; print the verdict as JSON."""
    verdicts = os.dup(1)
    os.write(verdicts, b"\n")  # the sandbox stands
    os.dup2(2, 1)  # what tests print is no verdict
    line = socket.socket(fileno=channel)
    trial = json.loads(sys.stdin.buffer.readline())
    try:
        confine(limits)
        verdict = _verdict(trial, Peer(line))
    except OSError as error:
        verdict = {"refused": str(error)}
    os.write(verdicts, json.dumps(verdict).encode())


def _verdict(trial: dict[str, Any], peer: Peer) -> dict[str, str]:
    """Return outcome and reason; whatever goes wrong is the program's failure."""
    try:
        ready = json.loads(peer.line())  # sent before the program is: no program can forge it
    except HangUpError:
        return {"refused": "the program's sandbox did not start"}
    if "refused" in ready:
        return {"refused": ready["refused"]}
    random.seed(0)  # some tests draw their cases
    names = {name: functools.partial(peer.call, name) for name in trial["calls"]}
    try:
        peer.send(trial["program"])
        peer.reply()
        exec(compile(trial["tests"], "<tests>", "exec"), {"__name__": "tests", **names})
    except HangUpError:
        return {"outcome": "ended", "reason": ""}
    except CandidateError as error:
        kind, message = error.args
        outcome = "memory" if kind == "MemoryError" else "failed"
        return {"outcome": outcome, "reason": f"{kind}: {message}".rstrip(": ")}
    except MemoryError:
        return {"outcome": "memory", "reason": "what it returned takes too much memory"}
    except BaseException as error:
        said = "a test does not hold" if isinstance(error, AssertionError) else repr(error)
        return {"outcome": "failed", "reason": said[:MESSAGE_CHARS]}
    return {"outcome": "passed", "reason": ""}


if __name__ == "__main__":
    {"judge": run_judge, "candidate": run_candidate}[sys.argv[1]](
        int(sys.argv[2]), json.loads(sys.argv[3])
    )
