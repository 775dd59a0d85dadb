"""Ctrl-C and SIGTERM on `tunebook run`: the notebook's process is told, and saves a checkpoint first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.runs import signals
from tunebook.runs.stages import parse_name
from tunebook.training.callbacks import CHECKSUMS, step_of

SAID = b"\nInterrupted: the notebook ends after the step under way. Ctrl-C again ends at once.\n"


def what_is_kept(run: Path) -> str:
    """What an interruption has left in a run folder: a training's last checkpoint, or that there is none."""
    begun = sorted(run.glob(".*.partial/started.json"), key=lambda path: path.stat().st_mtime)
    name = begun[-1].parent.name.removeprefix(".").removesuffix(".partial") if begun else ""
    stage = parse_name(name)
    if stage is None or not stage.spec.trains:
        return "what was saved is kept"
    # One without checksums was cut short.
    steps = [step_of(file.parent) for file in begun[-1].parent.glob(f"checkpoints/*/{CHECKSUMS}")]
    if steps:
        return f"checkpoint-{max(steps)} of {name} is kept"
    return f"there is no checkpoint of {name} yet, it starts anew"


@contextlib.contextmanager
def interrupts_to_kernel() -> Iterator[dict[str, Any]]:
    """While the block runs, the first Ctrl-C, SIGTERM or SIGUSR1 interrupts the notebook's kernel.

    A training there ends after its step, with a checkpoint; the second signal ends all at once. Left to
    itself, nbclient gives the kernel five seconds, which a large model's step and checkpoint exceed.

    Yields what papermill is to be called with.

    Raises KeyboardInterrupt after a Ctrl-C, and SystemExit (143) after one of the others.
    """
    if threading.current_thread() is not threading.main_thread():
        yield {}
        return
    from jupyter_client.manager import AsyncKernelManager

    managers = []
    received = []

    class Manager(AsyncKernelManager):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            managers.append(self)

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        os.write(2, SAID)
        for manager in managers:
            # The kernel alone: what it has started (a data loader's workers) it ends itself.
            pid = getattr(manager.provisioner, "pid", None)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)

    def stop(**kwargs: Any) -> None:
        # A signal between two cells interrupts none of them.
        if received:
            raise KeyboardInterrupt

    with signals.handled_by(interrupt):
        try:
            yield {"kernel_manager_class": Manager, "on_cell_start": stop}
        except Exception:
            # What papermill makes of the interrupted cell.
            if not received:
                raise
    if received:
        signals.end_by(received[0])
