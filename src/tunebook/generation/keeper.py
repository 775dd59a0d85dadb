"""Runs a program that ends with its parent, however that ends: a kill leaves no server on the GPU.

    python -m tunebook.generation.keeper COMMAND ...

The parent holds the other end of this process's standard input. When that is closed, COMMAND and all that it
has started are told to end, and killed when they do not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 15
"""Seconds that a program has to end by itself."""


def keep(command: list[str]) -> int:
    """Run a command until it ends or the parent is gone; returns its exit code."""
    # In a group of its own: the processes that it starts are in it, and are ended with it.
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_parent, args=(process,), daemon=True).start()
    code = process.wait()
    _signal(process, signal.SIGKILL)  # what it has left
    return code if code >= 0 else 128 - code


def _end_with_parent(process: subprocess.Popen[bytes]) -> None:
    while os.read(0, 1024):
        pass
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to the program's whole group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(keep(sys.argv[1:]))
