"""More than one GPU: the same command in several processes, by torchrun.

    NPROC_PER_NODE=4 uv run tunebook sft --recipe my.yaml

The variables have torchrun's names: NPROC_PER_NODE (a number or `gpu`) and, for several machines, NNODES, NODE_RANK,
MASTER_ADDR and MASTER_PORT.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.machine import halvings, rank

GRACE = 5.0
"""Seconds that a process with a broken connection waits before it says so: the one that died is to be found first."""


def launched(recipe: Recipe) -> bool:
    """Whether `NPROC_PER_NODE` asks for processes; then this command has been run in each of them when it returns.

    They end together: when one fails, all are stopped. When one runs out of memory, all start again from the last checkpoint
    with half the per-device batch (on one machine; on several, run the command again).

    Raises UserError in one line that says which process failed and why.
    """
    if not os.environ.get("NPROC_PER_NODE") or "RANK" in os.environ:
        return False
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import determine_local_world_size, parse_args, run

    try:
        processes = determine_local_world_size(os.environ["NPROC_PER_NODE"])
    except ValueError as error:
        raise UserError(f"NPROC_PER_NODE={os.environ['NPROC_PER_NODE']}: {first_line(error)}") from None
    logs = recipe.run_dir / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    command = parse_args([*options(processes, logs, os.environ), "-m", "tunebook.cli"])
    command.training_script_args = sys.argv[
        1:
    ]  # not through its parser, which would take `--run` for one of its own
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    logging.disable(logging.ERROR)  # torchrun's own report of a failure is a page; ours is a line
    while True:
        try:
            run(command)
            shutil.rmtree(logs, ignore_errors=True)
            with contextlib.suppress(OSError):
                logs.parent.rmdir()  # where no failed run has left its own
            return True
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as failed:
            kind, line = explain(failed.failures)
            print(file=sys.stderr)  # a progress bar was cut off in the middle of its line
        if kind != "OutOfMemory" or os.environ.get("NNODES", "1") != "1":
            raise UserError(
                line
                if kind == "UserError"
                else f"{line}. All processes were stopped; the same command goes on from the last checkpoint"
            )
        print(
            f"{line}: all processes start again with half of them and twice the accumulation; a step has as many rows as before.",
            flush=True,
        )
        os.environ["TUNEBOOK_HALVINGS"] = str(halvings() + 1)


def options(processes: int, logs: Path, environment: Mapping[str, str]) -> list[str]:
    """torchrun's options. The first process keeps the terminal, what the others print goes to files in `logs`.

    Raises UserError when several machines are asked for and it isn't said where the first one is.
    """
    names = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: environment[name] for name in names if environment.get(name)}
    several = given.get("NNODES", "1") != "1"
    missing = [name for name in names[1:3] if name not in given]
    if several and missing:
        raise UserError(f"NNODES={given['NNODES']} needs {missing[0]} too")
    where = (
        [f"--{name.lower().replace('_', '-')}={value}" for name, value in given.items()]
        if several
        else ["--standalone"]
    )
    silent = range(0 if int(given.get("NODE_RANK", 0)) else 1, processes)
    redirects = [f"--redirects={','.join(f'{i}:3' for i in silent)}"] if silent else []
    return [*where, f"--nproc-per-node={processes}", f"--log-dir={logs}", *redirects]


def explain(failures: Mapping[int, Any]) -> tuple[str, str]:
    """The kind of error and one line about the process that failed first, out of torchrun's `ProcessFailure`s by rank.

    One that was killed comes first, since an error in another is then what it led to; one that torchrun itself ended comes last.
    """
    number, failure = min(
        failures.items(),
        key=lambda item: (item[1].exitcode == -signal.SIGTERM, item[1].exitcode >= 0, item[1].timestamp),
    )
    if failure.exitcode < 0:
        cause = " (often for want of memory)" if failure.signal_name() == "SIGKILL" else ""
        return "signal", f"process {number} was ended by {failure.signal_name()}{cause}"
    if not isinstance(failure.message, dict):
        return "exit", f"process {number} ended with exit code {failure.exitcode}"
    kind, _, text = failure.message["message"].partition(": ")
    text = next(iter(text.strip().splitlines()), "")
    if kind in ("UserError", "OutOfMemory"):
        return kind, f"{text} (process {number})"
    return kind, f"process {number} failed: {kind}: {text} ({failure.error_file})"


def is_worker() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_ERROR_FILE" in os.environ


def work(command: Callable[[], Any]) -> None:
    """Run the command as one of several processes: an error is left to torchrun, and only the first process talks."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    if rank():
        os.environ["TQDM_DISABLE"] = "1"
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 - for the life of the process
    try:
        command()
    except Exception as error:
        if re.search(r"gloo|nccl|peer|socket", f"{type(error).__name__} {error}", re.I):
            time.sleep(GRACE)
        if rank():
            traceback.print_exc()
        get_error_handler().record_exception(error)
        sys.stderr.flush()
        os._exit(1)  # an orderly end would wait for the other processes
