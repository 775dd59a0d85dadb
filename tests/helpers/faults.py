"""A fork server for the tests of faults: `import unsloth` is paid once, the rest is the real command.

One process imports Unsloth, TRL and what else is slow, once. For each command it forks a process that forgets
tunebook's modules, takes its own arguments, environment and working folder, and calls `tunebook.cli.main()`;
for each Jupyter kernel (see `kernelspec`) one that becomes the kernel; and `python FILE ...` runs a script.
A forked process has a pid of its own, to be killed by.

    python faults.py serve SOCKET            the server; prints READY
    python faults.py ask SOCKET sft ...      `tunebook sft ...` in this process's folder and environment
    python faults.py kernel SOCKET FILE      a kernel by its connection file; ends with its parent
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any


class Command:
    """A process that the server has forked: a command line, or a kernel."""

    def __init__(
        self,
        server: str,
        *argv: str,
        log: Path,
        cwd: Path = Path(),
        env: dict[str, str] | None = None,
        **options: int | str,
    ) -> None:
        """`file_size`: no file may grow beyond so many bytes.

        `stdin`: a file to read from. `kill_at`: it dies by SIGKILL at its n-th change of a file below
        `watch`; how many there were is the last thing it prints.
        """
        self.log = log
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(server)
        environment = dict(os.environ) | (env or {})
        request = {"argv": argv, "env": environment, "cwd": str(cwd.resolve()), "log": str(log), **options}
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self._line())
        self.started = time.monotonic()
        self.code: int | None = None
        self.cpu = 0.0
        """Seconds of processor time that it has taken, known when it has ended."""

    def poll(self, seconds: float = 0) -> int | None:
        """The exit code (negative: the signal), or None when it still runs after so many seconds."""
        if self.code is None and select.select([self.connection], [], [], seconds)[0]:
            code, cpu = self._line().split()
            self.code, self.cpu = int(code), float(cpu)
            self.connection.close()
        return self.code

    def _line(self) -> bytes:
        """The next line of the server's, and no more: a buffer would hide the one after it from `select`."""
        line = b""
        while not line.endswith(b"\n"):
            line += self.connection.recv(1) or b"-9 0\n"
        return line

    def wait(self, seconds: float = 300) -> int:
        """The exit code. Raises TimeoutError."""
        code = self.poll(seconds)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            raise TimeoutError(self.text)
        return code

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")


@contextlib.contextmanager
def server(folder: Path):
    """A server; yields its address."""
    address = str(folder / "server")
    command = [sys.executable, __file__, "serve", address]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    assert any(line == "READY\n" for line in process.stdout)  # what Unsloth says comes first
    try:
        yield address
    finally:
        # Its children too, and without waiting for the end of its output: one that a test has left behind
        # would keep it open, and the whole test run with it.
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def kernelspec(folder: Path, address: str) -> dict[str, str]:
    """The environment in which Jupyter's `python3` is a kernel of the server's."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-S", __file__, "kernel", address, "{connection_file}"]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "forked", "language": "python"})
    )
    return {"JUPYTER_PATH": str(folder)}


def _serve(address: str) -> None:
    from tunebook.models import backend

    backend.backend()
    import ipykernel.kernelapp
    import matplotlib.pyplot
    import papermill
    import trl
    from trl import DPOTrainer, SFTTrainer

    import tunebook.cli  # noqa: F401 - its own imports

    del ipykernel, matplotlib, papermill, trl, DPOTrainer, SFTTrainer
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("READY", flush=True)
    while True:
        connection = listening.accept()[0]
        if os.fork() == 0:
            listening.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> None:
    """Fork the command and tell its pid and its end; when whoever asked for it is gone, kill it."""
    request = json.loads(connection.makefile().readline())
    # The output goes through a pipe, because a limit on the size of files would cut the log itself.
    output, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection.close()
        _become(request, out)
    connection.sendall(f"{pid}\n".encode())
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.set_blocking(output, False)
    while True:
        ended, status, used = os.wait4(pid, os.WNOHANG)
        with contextlib.suppress(BlockingIOError):
            while text := os.read(output, 2**16):
                os.write(log, text)
        if ended:
            cpu_seconds = used.ru_utime + used.ru_stime
            with contextlib.suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(status)} {cpu_seconds:.2f}\n".encode())
            os._exit(0)
        if select.select([connection], [], [], 0.01)[0]:
            # A signal to hand on, or nothing more to read: the other side is gone.
            number = connection.recv(16)
            os.kill(pid, int(number) if number else signal.SIGKILL)


CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def count_changes(folder: str, kill_at: int) -> list[str]:
    """Count from now on the changes of files below a folder, as Python's audit events tell them.

    At the change of that number the process dies; 0 is none.
    """
    seen: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and str(args[0]).startswith(folder):
            seen.append(event)
            if len(seen) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen


def _become(request: dict[str, Any], out: int) -> None:
    """In the forked process: be the command, from its environment to its exit code."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with the server
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    _redirect(request.get("stdin"), out)
    if "file_size" in request:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"], request["file_size"]))
    changes: list[str] = []
    if "watch" in request:
        changes = count_changes(request["watch"], request.get("kill_at", 0))
    for name in list(sys.modules):
        if name.partition(".")[0] == "tunebook":
            del sys.modules[name]
    code = _exit_code(*request["argv"])
    atexit._run_exitfuncs()
    if "watch" in request:
        print(f"\nchanges: {len(changes)}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _redirect(stdin: str | None, out: int) -> None:
    """Read from a file, write to the pipe."""
    if stdin:
        os.dup2(os.open(stdin, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    sys.stderr = os.fdopen(2, "w", buffering=1)


def _exit_code(first: str, *rest: str) -> int:
    """Run a script (`python FILE ...`), a kernel (`kernel FILE`) or `tunebook ...` to its end."""
    try:
        if first == "python":
            sys.argv = list(rest)
            runpy.run_path(rest[0], run_name="__main__")
        elif first == "kernel":
            from ipykernel.kernelapp import launch_new_instance

            sys.argv = ["ipykernel_launcher", "-f", *rest]
            launch_new_instance()
        else:
            sys.argv = ["tunebook", first, *rest]
            from tunebook.cli import main

            main()
    except SystemExit as end:
        if isinstance(end.code, int):
            return end.code
        return 1 if end.code else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _ask(address: str, *argv: str) -> None:
    """Stands for the command in the eyes of a shell."""
    files = Path(f"/proc/{os.getpid()}/fd")
    code = Command(address, *argv, log=files / "1", stdin=str(files / "0")).wait()
    sys.exit(code if code >= 0 else 128 - code)


def _kernel(address: str, *argv: str) -> None:
    """Stand for a kernel in the eyes of Jupyter.

    Ends with it, hands signals on to it, and takes it along at the end.
    """
    parent = os.getppid()
    command = Command(address, "kernel", *argv, log=Path(os.devnull))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda n, _: command.connection.sendall(str(int(n)).encode()))
    while (code := command.poll(0.3)) is None:
        if os.getppid() != parent:
            sys.exit(1)
    sys.exit(code if code >= 0 else 1)


if __name__ == "__main__":
    {"serve": _serve, "ask": _ask, "kernel": _kernel}[sys.argv[1]](*sys.argv[2:])
