"""Signals that end a run in order: Ctrl-C, and what a cluster sends before it takes the machine away."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt
TERMINATED = 143  # 128 + SIGTERM, as a shell has it
TWIN_S = 0.5
"""The same signal so soon again is the same one: without a terminal `uv run` repeats it after 0.2 seconds."""


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """While the block runs, `handler` gets these signals, twins once. Only in the main thread."""
    under_way = set()

    def handle_once(number: int, frame: Any) -> None:
        if number in under_way:
            return
        under_way.add(number)
        handler(number, frame)
        # Awaited here: after the step under way, which may take long, nobody knows when a twin has come.
        time.sleep(TWIN_S)
        under_way.discard(number)

    before = {number: signal.signal(number, handle_once) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def end_by(number: int) -> NoReturn:
    """End as one does after a signal: KeyboardInterrupt after a Ctrl-C, SystemExit (143) after the others."""
    if number != signal.SIGINT:
        sys.exit(TERMINATED)
    raise KeyboardInterrupt
