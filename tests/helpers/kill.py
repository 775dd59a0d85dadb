"""A command that is killed in the middle of its work."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

SECONDS = 240


def tunebook(*args: str, when: Callable[[], bool], env: dict[str, str] | None = None) -> str:
    """Run `tunebook ...` and end it by SIGKILL as soon as `when` holds; returns what it printed.

    Fails when it ends before that.
    """
    command = [sys.executable, "-m", "tunebook", *args]
    with (
        tempfile.TemporaryFile("w+") as out,
        subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        deadline = time.monotonic() + SECONDS
        while not when() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        ended = process.poll()
        process.kill()
        process.wait()
        out.seek(0)
        output = out.read()
    assert ended is None and when(), output[-2000:]
    return output
