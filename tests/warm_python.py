"""An interpreter whose imports are done: for scripts and programs that start many, each of which imports for seconds.

`warm_python()` is the path of a program that takes an interpreter's arguments (`-m MODULE`, `-c CODE`, `-`, a file). It
hands them, with its environment, folder and open files, to a process of this test process that has imported what the
programs import and forks for each. What it writes, its exit status and signals are an interpreter's; programs that the
forked one starts by `sys.executable` or `multiprocessing` are forked as well. Tests of who ends whom, of process groups
and of the start itself take `sys.executable`.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing import forkserver, process, resource_tracker
from pathlib import Path
from typing import Any, NoReturn

from forked import _started

from llava.common.child_processes import is_running

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
open_files = [int(name) for name in os.listdir("/proc/self/fd")]
open_files = [number for number in open_files if os.path.exists(f"/proc/self/fd/{{number}}")]
ignored = [number for number in {signals} if signal.getsignal(number) == signal.SIG_IGN]
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
for number in set({signals}) - set(ignored):
    signal.signal(number, lambda number, frame: server.sendall(bytes([number])))
request = {{"words": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}}
text = json.dumps(request | {{"files": open_files, "ignored": ignored}}).encode()
socket.send_fds(server, [len(text).to_bytes(4, "big")], open_files)
server.sendall(text)
status = int.from_bytes(server.recv(4) or b"\\0\\0\\0\\1", "big", signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def warm_python() -> str:
    """Path of the interpreter; the process behind it ends with this one."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    path = folder / "python"
    path.write_text(
        CLIENT.format(python=sys.executable, signals=[int(number) for number in PASSED_ON], address=address)
    )
    path.chmod(0o755)
    own_path = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.path[1:], sep='\\n')"],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    server = _started(_serve, os.environ, address, str(path), own_path, os.getpid())
    atexit.register(server.kill)
    while not os.path.exists(address):
        assert server.exitcode is None, "the process that forks interpreters did not start"
        time.sleep(0.01)
    return str(path)


def run_program(
    words: list[str], cwd: str | Path, env: Mapping[str, str] = os.environ, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run([sys.executable, *words], capture_output=True, text=True)` returns."""
    command = [warm_python(), *words]
    return subprocess.run(command, cwd=cwd, env=dict(env), timeout=timeout, capture_output=True, text=True)


def _serve(environment: dict[str, str], address: str, executable: str, own_path: list[str], owner: int) -> None:
    """Fork for each client, as long as the test process lives; it removes the folder where it ends without a word."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who ended are not waited for
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".new")
    listening.listen(64)
    os.rename(address + ".new", address)
    listening.settimeout(1)
    while is_running(owner):
        try:
            client, _ = listening.accept()
        except TimeoutError:
            continue
        if not os.fork():
            listening.close()
            _attend(client, executable, own_path)
        client.close()
    shutil.rmtree(Path(address).parent, ignore_errors=True)


def _attend(client: socket.socket, executable: str, own_path: list[str]) -> NoReturn:
    """Fork the program; pass signals on to it and its exit status back. It ends where the client was killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.setblocking(True)
    head, files, _, _ = socket.recv_fds(client, 4, 253)
    text = b""
    while len(text) < int.from_bytes(head, "big"):
        text += client.recv(1 << 20)
    request = json.loads(text)
    program = os.fork()
    if not program:
        _become(request, files, executable, own_path)
    for number in files:
        os.close(number)
    ended = os.pidfd_open(program)
    while ended not in (ready := select.select([client, ended], [], [])[0]):
        assert ready
        numbers = client.recv(1)
        os.kill(program, numbers[0] if numbers else signal.SIGKILL)
        if not numbers:
            os._exit(0)
    _, status = os.waitpid(program, 0)
    try:
        client.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
    finally:
        os._exit(0)


def _become(request: dict[str, Any], files: list[int], executable: str, own_path: list[str]) -> NoReturn:
    """Make this process what a new interpreter with these arguments would be, and run the program."""
    status = 1
    try:
        _take_files(request["files"], files)
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        for number in PASSED_ON:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
        sys.executable = executable
        sys.path[:] = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *own_path]
        _forget_parents()
        status = _status_of(request["words"])
        threading._shutdown()  # type: ignore[attr-defined]  # waits for its threads, as every interpreter does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        status = 120
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _take_files(numbers: list[int], files: list[int]) -> None:
    """The client's open files under its numbers, and no others."""
    moved = [os.dup2(file, 1000 + place, inheritable=False) for place, file in enumerate(files)]
    os.closerange(0, 1000)
    for number, file in zip(numbers, moved, strict=True):
        os.dup2(file, number)
        os.close(file)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if number in numbers:
            errors = "backslashreplace" if name == "stderr" else "strict"
            stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _forget_parents() -> None:
    """What `multiprocessing` knows of the process that this one was forked from."""
    multiprocessing.set_start_method(None, force=True)
    multiprocessing.set_executable(sys.executable)
    process._parent_process = None  # type: ignore[attr-defined]
    main = next(kind for kind in process.BaseProcess.__subclasses__() if kind.__name__ == "_MainProcess")
    process._current_process = main()  # type: ignore[attr-defined]
    process._children.clear()  # type: ignore[attr-defined]
    for used, new in (
        (resource_tracker._resource_tracker, resource_tracker.ResourceTracker()),
        (forkserver._forkserver, forkserver.ForkServer()),
    ):
        vars(used).update(vars(new))


def _status_of(words: list[str]) -> int:
    """Run the program; what it ends with."""
    try:
        _run(words)
    except SystemExit as stop:
        if isinstance(stop.code, int | None):
            return (stop.code or 0) & 255
        sys.stderr.write(f"{stop.code}\n")
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _run(words: list[str]) -> None:
    """A module, a text, what comes on stdin, or a file, behind options that change nothing here."""
    while words[0].startswith("-") and words[0] not in ("-", "-m", "-c"):
        words = words[2 if words[0] in ("-W", "-X") else 1 :]
    if words[0] == "-m":
        sys.path.insert(0, os.getcwd())
        sys.argv[:] = words[1:]
        sys.modules.pop(words[1], None)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] in ("-c", "-"):
        sys.path.insert(0, "")
        text, rest = (words[1], words[2:]) if words[0] == "-c" else (sys.stdin.read(), words[1:])
        sys.argv[:] = [words[0], *rest]
        main = sys.modules["__main__"] = type(sys)("__main__")
        exec(compile(text, "<string>", "exec"), main.__dict__)  # noqa: S102 - `python -c`
    else:
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        sys.argv[:] = words
        runpy.run_path(words[0], run_name="__main__")
