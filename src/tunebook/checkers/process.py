"""A checker in a process of its own: a pattern or a user's function that hangs, exits or eats memory ends
this process and not the run.

    python -m tunebook.checkers.process

The first line in is what to run, each further line the rows of one call; a line of JSON comes back for each.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TextIO

from tunebook.checkers import python, texts
from tunebook.checkers.registry import CHECKERS
from tunebook.checkers.texts import Scores
from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.recipe.sections import CheckerConfig

START_S = 300.0  # for the imports of the process and of a user's file, on a machine that is busy


class CheckerFailed(Exception):
    """Why a call gave no scores: one line."""


class CheckerProcess:
    """Asks one checker, whose process is started with the first call and again after one that ended it."""

    def __init__(self, config: CheckerConfig) -> None:
        self.config = config
        self.timeout = config.timeout
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: list[Any]) -> Scores:
        """The scores of some completions.

        Raises CheckerFailed when the checker raises, takes too long, ends or returns what are no scores, and
        UserError when it cannot be loaded.
        """
        # The first call, or the last one ended it.
        process = self.process
        if process is None or process.poll() is not None:
            process = self._start()
        call = {"prompts": prompts, "completions": completions, "columns": columns}
        try:
            reply = self._ask(process, call, self.timeout)
        except KeyboardInterrupt:
            self.stop()  # in a notebook the next call would read this one's reply
            raise
        if "error" in reply:
            raise CheckerFailed(reply["error"])
        scores: Scores = reply["scores"]
        return scores

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tunebook.checkers.process"]
        pipe = subprocess.PIPE
        # A group of its own: what a user's function starts is ended with it.
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        self.process = process
        atexit.register(self.stop)
        # The sections of the recipe read it again over there: nothing is pickled.
        setup = {"config": self.config.model_dump(mode="json"), "folders": self.config.places}
        try:
            reply = self._ask(process, setup, START_S)
        except CheckerFailed as error:
            reply = {"error": str(error)}
        if "error" in reply:
            self.stop()
            raise UserError(f"check: {self.config.name} cannot be loaded: {reply['error']}")
        return process

    def _ask(self, process: subprocess.Popen[str], line: dict[str, Any], timeout: float) -> dict[str, Any]:
        """The reply to a line. Raises CheckerFailed when the process ends or takes too long."""
        # A process that has just died reads no line, and gives no reply.
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(line), file=process.stdin, flush=True)
        assert process.stdout is not None  # noqa: S101 - for the type checker
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        answer = process.stdout.readline() if ready else ""
        if answer:
            reply: dict[str, Any] = json.loads(answer)
            return reply
        # Nothing yet: it hangs. An empty line: it is gone.
        if not ready:
            self.stop()
            raise CheckerFailed(f"took longer than {timeout:g} seconds")
        code = process.wait()
        self.stop()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        raise CheckerFailed(f"ended its process ({how})")

    def stop(self) -> None:
        """End the process and what it has started."""
        process = self.process
        self.process = None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _serve(calls: TextIO, replies: TextIO) -> None:
    """The process's side: what to run in the first line, then a call a line; a reply to each."""
    setup = json.loads(calls.readline())
    config = CheckerConfig.model_validate(setup["config"])
    config.place(setup["folders"])
    function = functools.partial(CHECKERS[config.kind].function, config)
    _reply_with(replies, _prepare, config)
    # A list that grows without end fails here, with an error, before the machine is out of memory.
    limit = int(config.memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in calls:
        call = json.loads(line)
        # Should the run be killed meanwhile, nobody else ends a function that hangs.
        signal.alarm(math.ceil(config.timeout) + 10)
        _reply_with(replies, function, call["prompts"], call["completions"], **call["columns"])
        signal.alarm(0)


def _prepare(config: CheckerConfig) -> None:
    """Load what may be wrong in itself. Raises UserError."""
    if config.kind == "python":
        python.load(config)
    if config.kind == "json":
        texts.load_schema(config)


def _reply_with(replies: TextIO, function: Callable[..., Any], *values: Any, **columns: Any) -> None:
    """Write what a function returns, or in one line what went wrong."""
    try:
        reply = {"scores": function(*values, **columns)}
    except UserError as error:
        reply = {"error": str(error)}
    except Exception as error:
        reply = {"error": f"raised {type(error).__name__}: {shorten(first_line(error), 200)}"}
    print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    # What a user's function prints would be taken for a reply.
    # The copy goes to the run; what is printed goes where errors go, which nobody reads.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        _serve(sys.stdin, output)
