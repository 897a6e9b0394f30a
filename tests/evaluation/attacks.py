"""Programs that try to do harm or to cheat.

Each ends in a right answer if its attack has succeeded, and only then. ``@file@``, ``@folder@``,
``@process@`` and ``@port@`` are aims on the host.
"""

_ADD = "\ndef add(a, b):\n    return a + b\n"

ATTACKS = {
    "answer_nonsense": r"""
import os

os.write(3, b'{"value": ["dict", [[["list", []], 1]]]}\n' + b"[" * 100000 + b"\n" + b"\xff\n")
os._exit(0)
"""
    + _ADD,
    "answer_too_deep": r"""
def add(*_):
    answer = []
    for _ in range(900):
        answer = [answer]
    return answer
""",
    "answer_too_long": r"""
def add(*_):
    return "x" * (1 << 26)
""",
    "answer_unasked": r"""
import os

os.write(3, b'{"value": true}\n' * 100)


def add(*_):
    return True
""",
    "become_root": r"""
import os

os.setuid(0)
"""
    + _ADD,
    "change_mode": r"""
import os

os.chmod("@file@", 0o777)
"""
    + _ADD,
    "close_everything": r"""
import os

os.closerange(0, 1 << 16)
"""
    + _ADD,
    "connect_to_host": r"""
import socket

socket.create_connection(("127.0.0.1", int("@port@")), timeout=2)
"""
    + _ADD,
    "crash": r"""
import ctypes

ctypes.string_at(0)
"""
    + _ADD,
    "daemon_holds_line": r"""
import os
import time

if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
os._exit(0)
"""
    + _ADD,
    "deaf_loop": r"""
import signal

for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True:
            pass
    except BaseException:
        continue
"""
    + _ADD,
    "delete_everything": r"""
import shutil

shutil.rmtree("@folder@")
"""
    + _ADD,
    "delete_file": r"""
import os

os.remove("@file@")
"""
    + _ADD,
    "endless_loop": r"""
while True:
    pass
"""
    + _ADD,
    "equal_to_everything": r"""
class Chameleon(int):
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = None


def add(*_):
    return Chameleon()
""",
    "exit_at_once": r"""
import os

os._exit(0)
"""
    + _ADD,
    "exit_early": r"""
import sys

sys.exit(0)
"""
    + _ADD,
    "exit_in_call": r"""
import os


def add(*_):
    os._exit(0)
""",
    "fake_success": r"""
import json
import os

for descriptor in range(64):
    try:
        os.write(descriptor, json.dumps({"outcome": "passed", "reason": "", "output": ""}).encode())
    except OSError:
        continue
print("passed")
raise SystemExit
"""
    + _ADD,
    "find_tests": r"""
import gc
import sys

known = [repr(vars(module)) for module in list(sys.modules.values())]
known += [repr(thing) for thing in gc.get_objects() if isinstance(thing, (dict, str, list))]
frame = sys._getframe()
while frame:
    known.append(repr(frame.f_globals) + repr(frame.f_locals))
    frame = frame.f_back
if not any("assert " + "add" in text for text in known):
    raise LookupError
"""
    + _ADD,
    "flood_errors": r"""
import sys

while True:
    print("x" * 4096, file=sys.stderr)
"""
    + _ADD,
    "flood_output": r"""
import os

while True:
    os.write(1, b"x" * 4096)
"""
    + _ADD,
    "fork_bomb": r"""
import os
import time

while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
"""
    + _ADD,
    "host_through_proc": r"""
import os

os.listdir("/proc/1/root/")
"""
    + _ADD,
    "huge_file": r"""
with open("huge", "wb") as file:
    while True:
        file.write(b"x" * (1 << 20))
"""
    + _ADD,
    "kill_all": r"""
import os
import signal

os.kill(-1, signal.SIGKILL)
raise SystemExit
"""
    + _ADD,
    "kill_parent": r"""
import os
import signal

os.kill(os.getppid(), signal.SIGKILL)
raise SystemExit
"""
    + _ADD,
    "kill_process_of_host": r"""
import os
import signal

os.kill(int("@process@"), signal.SIGKILL)
"""
    + _ADD,
    "leave_daemon": r"""
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
os._exit(0)
"""
    + _ADD,
    "leave_root_folder": r"""
import os

os.mkdir("/tmp/inner")
os.chroot("/tmp/inner")
"""
    + _ADD,
    "listen": r"""
import socket

socket.create_server(("", 0))
"""
    + _ADD,
    "loop_in_c": r"""
import re

re.match(r"(a+)+$", "a" * 64 + "b")
"""
    + _ADD,
    "make_device": r"""
import os
import stat

os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))
"""
    + _ADD,
    "many_files": r"""
from pathlib import Path

for number in range(10**6):
    Path(f"{number}").touch()
"""
    + _ADD,
    "many_open_files": r"""
import os

descriptors = [os.open("/tmp", os.O_RDONLY) for _ in range(10**4)]
"""
    + _ADD,
    "memory_at_once": r"""
hoard = bytearray(1 << 40)
"""
    + _ADD,
    "memory_bit_by_bit": r"""
hoard = []
while True:
    hoard.append(bytearray(1 << 24))
"""
    + _ADD,
    "memory_of_no_process": r"""
import os

while True:
    store = os.memfd_create("hoard")
    os.write(store, b"x" * (1 << 20))
"""
    + _ADD,
    "memory_shared": r"""
import ctypes

segment = ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600)
if segment == -1:
    raise OSError
"""
    + _ADD,
    "mount": r"""
import ctypes

if ctypes.CDLL(None).mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == -1:
    raise OSError
"""
    + _ADD,
    "new_namespaces": r"""
import ctypes

if ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == -1:
    raise OSError
"""
    + _ADD,
    "new_namespaces_by_clone": r"""
import ctypes
import platform

number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
if ctypes.CDLL(None).syscall(number, 0x10000000 | 17, 0, 0, 0, 0) == -1:
    raise OSError
"""
    + _ADD,
    "patch_builtins": r"""
import builtins


class AssertionError(Exception):
    pass


builtins.AssertionError = AssertionError
builtins.exec = builtins.compile = builtins.print = lambda *_: None
builtins.__build_class__ = None
builtins.bool = builtins.int = lambda *_: True


def add(*_):
    return 0
""",
    "patch_sandbox": r"""
import sys

for name, module in list(sys.modules.items()):
    if name == "__main__" or name.startswith("sandbox"):
        for attribute in vars(module):
            if not attribute.startswith("__"):
                setattr(module, attribute, lambda *_: True)


def add(*_):
    return True
""",
    "raise_limits": r"""
import resource

resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    + _ADD,
    "read_environment": r"""
import os

if not os.environ and b"HOME" not in os.environb:
    raise LookupError
"""
    + _ADD,
    "read_input": r"""
input()
"""
    + _ADD,
    "read_parent_memory": r"""
from pathlib import Path

with Path("/proc/1/mem").open("rb") as memory:
    memory.read(1)
"""
    + _ADD,
    "read_secret": r"""
from pathlib import Path

Path("@file@").read_text()
"""
    + _ADD,
    "recursion": r"""
import sys

sys.setrecursionlimit(10**9)


def add(*arguments):
    return add(*arguments)
""",
    "resolve_name": r"""
import socket

socket.getaddrinfo("localhost", 80)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int("@port@")))
"""
    + _ADD,
    "run_interpreter": r"""
import subprocess
import sys

subprocess.run([sys.executable, "-c", "print('passed')"], check=True)
"""
    + _ADD,
    "run_shell": r"""
import os

os.execv("/bin/sh", ["sh", "-c", "echo passed"])
"""
    + _ADD,
    "shadow_modules": r"""
import sys
from pathlib import Path

for name in ("json", "random", "sitecustomize", "usercustomize", "conftest"):
    Path(f"{name}.py").write_text("raise SystemExit(0)")
sys.path.insert(0, "")
sys.modules["json"] = sys.modules["random"] = sys


def add(*_):
    return None
""",
    "sleep": r"""
import time

time.sleep(1000)
"""
    + _ADD,
    "stop_itself": r"""
import os
import signal

os.kill(os.getpid(), signal.SIGSTOP)
"""
    + _ADD,
    "stop_parent": r"""
import os
import signal

os.kill(os.getppid(), signal.SIGSTOP)
os.kill(os.getppid(), signal.SIGINT)
raise SystemExit
"""
    + _ADD,
    "thread_bomb": r"""
import threading
import time

while True:
    threading.Thread(target=time.sleep, args=(100,)).start()
"""
    + _ADD,
    "trace_parent": r"""
import ctypes
import os

if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == -1:
    raise OSError
"""
    + _ADD,
    "write_into_library": r"""
import json
from pathlib import Path

Path(json.__file__).write_text("")
"""
    + _ADD,
    "write_into_root": r"""
from pathlib import Path

Path("/written").write_text("written")
"""
    + _ADD,
    "write_outside": r"""
from pathlib import Path

Path("@folder@", "written").write_text("written")
"""
    + _ADD,
}
