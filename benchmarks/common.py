"""What the benchmarks share: a process measured with its children, sides compared by turns, the record."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tunebook.recipe.errors import UserError
from tunebook.runs.machine import environment


def measured(command: list[str], ok: tuple[int, ...] = (0,), **env: str) -> dict[str, Any]:
    """Run a command to its end and measure it with the processes that it starts.

    Returns seconds by the clock (`wall_s`) and of processor (`cpu_s`), the highest sum of their resident
    memory (`peak_gb`), taken every 50 ms, and what the command printed (`out`). Pages that processes share
    count once for each, so the sum is rather too high.

    Raises UserError when it ends with another exit code than `ok`.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | env)
        watcher = Watcher(process.pid)
        watcher.start()
        # wait4 says what the process and its children used, which Popen.wait does not.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.ended.set()
        watcher.join()
        out.seek(0)
        err.seek(0)
        if process.returncode not in ok:
            raise UserError(f"{' '.join(command)} ended with {process.returncode}: {err.read()[-2000:]}")
        return {
            "wall_s": wall,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_gb": watcher.peak / 2**30,
            "out": out.read(),
        }


class Watcher(threading.Thread):
    """Adds up the resident memory of a process and its children until it is told that they have ended."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid = pid
        self.ended = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self.ended.wait(0.05):
            total = 0
            # A process may end while it is looked at.
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(self.pid)
                for process in (parent, *parent.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        total += process.memory_info().rss
            self.peak = max(self.peak, total)


def by_turns(sides: dict[str, Callable[[], dict[str, Any]]], times: int) -> dict[str, list[dict[str, Any]]]:
    """Each side so many times, one after the other, the order turned round every time."""
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(times):
        for name in in_turn(sides, number):
            results[name].append(sides[name]())
    return results


def in_turn(sides: Iterable[str], number: int) -> list[str]:
    """The order of a turn: to and fro, so that no side always comes after the same other one."""
    names = list(sides)
    if number % 2:
        names.reverse()
    return names


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": round(statistics.median(values), 4),
        "lowest": round(min(values), 4),
        "highest": round(max(values), 4),
    }


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """`ours` over `theirs`, turn by turn."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


PRODUCTS = {
    "aten::mm",
    "aten::bmm",
    "aten::addmm",
    "aten::baddbmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
}
"""The profiler's names for matrix products: the operations that do them, not those that call these."""


def products(profiler: Any, seconds: float) -> dict[str, float]:
    """How much of some work were matrix products, which no setting spares?

    Args:
        profiler: Torch's, with `with_flops`, after the work.
        seconds: How long the work took.
    """
    operations = [operation for operation in profiler.key_averages() if operation.key in PRODUCTS]
    busy = sum(operation.self_cpu_time_total for operation in operations) / 1e6
    gflop = sum(operation.flops for operation in operations) / 1e9
    return {"s": round(seconds, 2), "matrix_products_s": round(busy, 2), "gflop": round(gflop)}


def write(out: Path | None, results: dict[str, Any], packages: tuple[str, ...] = ()) -> None:
    """The record with versions and machine, as JSON; nothing without a file."""
    if out is None:
        return
    here = environment()
    versions = {"python": here["versions"]["python"]}
    for name in packages:
        versions[name] = version(name)
    record = {**results, "versions": versions, "commit": here["git"], "hardware": here["hardware"]}
    out.write_text(json.dumps(record, indent=1) + "\n")
