"""Signals that end a run in order: Ctrl-C, and what a cluster sends before it takes the machine away."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt
TERMINATED = 143  # 128 + SIGTERM, as a shell has it


@contextlib.contextmanager
def handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """While the block runs, `handler` gets these signals. Only in the main thread."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
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
