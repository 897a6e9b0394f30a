"""Programs that try to do harm or to cheat.

Each ends in a right answer if its attack has succeeded, and only then: one that does not define
``add`` itself gets a right one behind it. ``@file@``, ``@folder@``, ``@process@`` and ``@port@``
are aims on the host.
"""

_IMPORTS = """
import builtins, ctypes, gc, json, os, platform, re, resource, shutil, signal, socket, stat
import subprocess, sys, threading, time
from pathlib import Path
"""
_ADD = "\ndef add(a, b):\n    return a + b\n"

_ATTACKS = {
    "answer_nonsense": r"""
os.write(3, b'{"value": ["dict", [[["list", []], 1]]]}\n' + b"[" * 100000 + b"\n" + b"\xff\n")
os._exit(0)
""",
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
os.write(3, b'{"value": true}\n' * 100)
def add(*_):
    return True
""",
    "become_root": "os.setuid(0)",
    "change_mode": 'os.chmod("@file@", 0o777)',
    "close_everything": "os.closerange(0, 1 << 16)",
    "connect_to_host": 'socket.create_connection(("127.0.0.1", int("@port@")), timeout=2)',
    "crash": "ctypes.string_at(0)",
    "daemon_holds_line": r"""
if os.fork() == 0:
    os.setsid()
    time.sleep(1000)
os._exit(0)
""",
    "deaf_loop": r"""
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True:
            pass
    except BaseException:
        continue
""",
    "delete_everything": 'shutil.rmtree("@folder@")',
    "delete_file": 'os.remove("@file@")',
    "endless_loop": r"""
while True:
    pass
""",
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
    "exit_at_once": "os._exit(0)",
    "exit_early": "sys.exit(0)",
    "exit_in_call": r"""
def add(*_):
    os._exit(0)
""",
    "fake_success": r"""
for descriptor in range(64):
    try:
        os.write(descriptor, json.dumps({"outcome": "passed", "reason": "", "output": ""}).encode())
    except OSError:
        continue
print("passed")
raise SystemExit
""",
    "find_tests": r"""
known = [repr(vars(module)) for module in list(sys.modules.values())]
known += [repr(thing) for thing in gc.get_objects() if isinstance(thing, (dict, str, list))]
frame = sys._getframe()
while frame:
    known.append(repr(frame.f_globals) + repr(frame.f_locals))
    frame = frame.f_back
if not any("assert " + "add" in text for text in known):
    raise LookupError
""",
    "flood_errors": r"""
while True:
    print("x" * 4096, file=sys.stderr)
""",
    "flood_output": r"""
while True:
    os.write(1, b"x" * 4096)
""",
    "fork_bomb": r"""
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
""",
    "host_through_proc": 'os.listdir("/proc/1/root/")',
    "huge_file": r"""
with open("huge", "wb") as file:
    while True:
        file.write(b"x" * (1 << 20))
""",
    "kill_all": r"""
os.kill(-1, signal.SIGKILL)
raise SystemExit
""",
    "kill_parent": r"""
os.kill(os.getppid(), signal.SIGKILL)
raise SystemExit
""",
    "kill_process_of_host": 'os.kill(int("@process@"), signal.SIGKILL)',
    "leave_daemon": r"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        while True:
            time.sleep(1)
os._exit(0)
""",
    "leave_root_folder": r"""
os.mkdir("/tmp/inner")
os.chroot("/tmp/inner")
""",
    "listen": 'socket.create_server(("", 0))',
    "loop_in_c": 're.match(r"(a+)+$", "a" * 64 + "b")',
    "make_device": 'os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0))',
    "many_files": r"""
for number in range(10**6):
    Path(f"{number}").touch()
""",
    "many_open_files": 'descriptors = [os.open("/tmp", os.O_RDONLY) for _ in range(10**4)]',
    "memory_at_once": "hoard = bytearray(1 << 40)",
    "memory_bit_by_bit": r"""
hoard = []
while True:
    hoard.append(bytearray(1 << 24))
""",
    "memory_of_no_process": r"""
while True:
    store = os.memfd_create("hoard")
    os.write(store, b"x" * (1 << 20))
""",
    "memory_shared": r"""
segment = ctypes.CDLL(None).shmget(0, 1 << 20, 0o1600)
if segment == -1:
    raise OSError
""",
    "mount": r"""
if ctypes.CDLL(None).mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == -1:
    raise OSError
""",
    "new_namespaces": r"""
if ctypes.CDLL(None).unshare(0x10000000 | 0x00020000) == -1:
    raise OSError
""",
    "new_namespaces_by_clone": r"""
number = {"x86_64": 56, "aarch64": 220}[platform.machine()]
if ctypes.CDLL(None).syscall(number, 0x10000000 | 17, 0, 0, 0, 0) == -1:
    raise OSError
""",
    "patch_builtins": r"""
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
for name, module in list(sys.modules.items()):
    if name == "__main__" or name.startswith("sandbox"):
        for attribute in vars(module):
            if not attribute.startswith("__"):
                setattr(module, attribute, lambda *_: True)
def add(*_):
    return True
""",
    "raise_limits": r"""
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
""",
    "read_environment": r"""
if not os.environ and b"HOME" not in os.environb:
    raise LookupError
""",
    "read_input": "input()",
    "read_parent_memory": r"""
with Path("/proc/1/mem").open("rb") as memory:
    memory.read(1)
""",
    "read_secret": 'Path("@file@").read_text()',
    "recursion": r"""
sys.setrecursionlimit(10**9)
def add(*arguments):
    return add(*arguments)
""",
    "resolve_name": r"""
socket.getaddrinfo("localhost", 80)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", int("@port@")))
""",
    "run_interpreter": "subprocess.run([sys.executable, '-c', 'pass'], check=True)",
    "run_shell": 'os.execv("/bin/sh", ["sh", "-c", "echo passed"])',
    "shadow_modules": r"""
for name in ("json", "random", "sitecustomize", "usercustomize", "conftest"):
    Path(f"{name}.py").write_text("raise SystemExit(0)")
sys.path.insert(0, "")
sys.modules["json"] = sys.modules["random"] = sys
def add(*_):
    return None
""",
    "sleep": "time.sleep(1000)",
    "stop_itself": "os.kill(os.getpid(), signal.SIGSTOP)",
    "stop_parent": r"""
os.kill(os.getppid(), signal.SIGSTOP)
os.kill(os.getppid(), signal.SIGINT)
raise SystemExit
""",
    "thread_bomb": r"""
while True:
    threading.Thread(target=time.sleep, args=(100,)).start()
""",
    "trace_parent": r"""
if ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == -1:
    raise OSError
""",
    "write_into_library": 'Path(json.__file__).write_text("")',
    "write_into_root": 'Path("/written").write_text("written")',
    "write_outside": 'Path("@folder@", "written").write_text("written")',
}
ATTACKS = {
    name: _IMPORTS + program + ("" if "def add(" in program else _ADD)
    for name, program in _ATTACKS.items()
}
