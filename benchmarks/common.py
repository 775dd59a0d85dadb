"""What the benchmarks share: a process measured with its children, two sides compared by turns, the record."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tunebook.recipe.errors import UserError
from tunebook.runs.machine import environment


def measured(command: list[str], ok: tuple[int, ...] = (0,), **env: str) -> dict[str, Any]:
    """Run a command to its end: seconds by the clock (`wall_s`) and of processor (`cpu_s`), with those of the processes it started;
    the highest sum of their resident memory (`peak_gb`), looked at every 50 ms; what it printed (`out`).

    Pages that processes share count once for each, so the sum is rather too high.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        started, ended, peak = time.perf_counter(), threading.Event(), [0]
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | env)
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, peak))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        out.seek(0)
        err.seek(0)
        if process.returncode not in ok:
            raise UserError(f"{' '.join(command)} ended with {process.returncode}: {err.read()[-2000:]}")
        return {
            "wall_s": wall,
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_gb": peak[0] / 2**30,
            "out": out.read(),
        }


def _watch(pid: int, ended: threading.Event, peak: list[int]) -> None:
    while not ended.wait(0.05):
        total = 0
        try:
            parent = psutil.Process(pid)
            family = [parent, *parent.children(recursive=True)]
        except psutil.Error:
            continue
        for process in family:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)


def by_turns(sides: dict[str, Callable[[], dict[str, Any]]], times: int) -> dict[str, list[dict[str, Any]]]:
    """Each side so many times, one after the other, the order turned round every time."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for i in range(times):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            found[name].append(sides[name]())
    return found


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
    """Of work that took so long under torch's profiler (`with_flops`): how much of it were matrix products, which no setting spares?"""
    found = [op for op in profiler.key_averages() if op.key in PRODUCTS]
    busy, flop = sum(op.self_cpu_time_total for op in found) / 1e6, sum(op.flops for op in found) / 1e9
    return {"s": round(seconds, 2), "matrix_products_s": round(busy, 2), "gflop": round(flop)}


def write(out: Path | None, found: dict[str, Any], packages: tuple[str, ...] = ()) -> None:
    """The record with versions and machine, as JSON."""
    where = environment()
    versions = {"python": where["versions"]["python"]} | {name: version(name) for name in packages}
    if out:
        out.write_text(
            json.dumps(
                found | {"versions": versions, "commit": where["git"], "hardware": where["hardware"]},
                indent=1,
            )
            + "\n"
        )
