"""More than one GPU: the same command in several processes, by torchrun.

    NPROC_PER_NODE=4 bash train_sft.sh --recipe my.yaml
    uv run python -m tunebook.training.launch --standalone --nproc-per-node 4 -m tunebook sft --recipe my.yaml

The second line is torchrun with its own options, but a failure ends with one line instead of a page.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from tunebook.runs.machine import rank
from tunebook.runs.signals import INTERRUPTED, SIGNALS, TERMINATED

SAVING_S = 90
"""Seconds that the processes have after a signal, to end their step and write a checkpoint.

torchrun's own 30 are few for a large model. `--shutdown-timeout` sets another number.
"""

# What errors say that come of another process's end.
CONNECTION = re.compile("gloo|nccl|peer|socket", re.I)


def is_worker() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def work(command: Callable[[], Any]) -> None:
    """Run the command as one of several processes: the first one prints, an error goes to torchrun's file."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if rank():
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of the process
    try:
        command()
    except Exception as error:
        get_error_handler().record_exception(error)
        sys.stdout.flush()
        os._exit(1)  # an orderly end would wait for the other processes
    except SystemExit as end:
        if end.code not in (INTERRUPTED, TERMINATED):
            raise
        sys.stdout.flush()
        os._exit(end.code)


def main(arguments: list[str]) -> None:
    """torchrun; a process that fails ends all, with one line that says which it was and why.

    After a signal the processes write a checkpoint, and the exit code is 143 (130 after Ctrl-C).
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.disable(logging.ERROR)  # torchrun's own report
    end = arguments.index("-m") + 2
    options = parse_args(arguments[:end])
    options.training_script_args = arguments[end:]  # its parser would take `--run` for an option of its own
    options.shutdown_timeout = options.shutdown_timeout or SAVING_S
    options.signals_to_handle += ",SIGUSR1"
    try:
        run(options)
    except SignalException as received:
        _end(received.sigval)
    except ChildFailedError as error:
        # The signal has reached the processes first, or those of another machine.
        if all(failure.exitcode in (INTERRUPTED, TERMINATED) for failure in error.failures.values()):
            _end(signal.SIGTERM)
        print(f"\ntunebook: {explain(error.failures)}", file=sys.stderr)  # a progress bar may stand there
        sys.exit(2)


def _end(number: int) -> NoReturn:
    """End after a signal, once the processes have written their checkpoint."""
    import psutil

    # Slurm sends SIGTERM to each process of a job, and `uv run` hands it on: the second one has ended
    # torchrun's waiting. A second Ctrl-C means what it does elsewhere.
    children = psutil.Process().children()
    for later in SIGNALS:
        signal.signal(later, signal.SIG_IGN)
    patience = 0 if number == signal.SIGINT else SAVING_S
    _, alive = psutil.wait_procs(children, timeout=patience)
    for child in alive:
        child.kill()
    print("\ntunebook: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
    sys.exit(INTERRUPTED if number == signal.SIGINT else TERMINATED)


def explain(failures: Mapping[int, Any]) -> str:
    """One line about the process that failed first, out of torchrun's `ProcessFailure`s by rank."""

    def order(number: int) -> tuple[Any, ...]:
        # What torchrun itself ended comes last, what was killed first: errors in the others follow from that.
        failure = failures[number]
        ended, killed = failure.exitcode == -signal.SIGTERM, failure.exitcode < 0
        return ended, not killed, bool(CONNECTION.search(str(failure.message))), failure.timestamp

    number = min(failures, key=order)
    failure = failures[number]
    if failure.exitcode < 0:
        reason = f"process {number} was ended by {failure.signal_name()}"
        if failure.exitcode == -signal.SIGKILL:
            reason += " (often for want of memory)"
    elif isinstance(failure.message, dict):
        kind, _, text = failure.message["message"].partition(": ")
        text = next(iter(text.splitlines()), "")
        if kind == "UserError":
            return f"{text} (process {number})"
        reason = f"process {number} failed: {kind}: {text} ({failure.error_file})"
    else:
        reason = f"process {number} ended with exit code {failure.exitcode}"
    return f"{reason}. All processes were stopped; the same command goes on from the last checkpoint"


if __name__ == "__main__":
    main(sys.argv[1:])
