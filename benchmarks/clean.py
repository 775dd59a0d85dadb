"""Rewriting rows through an API, at concurrency 64 against a loop that asks one by one.

    uv run python benchmarks/clean.py --out benchmarks/records/clean.json

Rows per second, and peak memory by rows. The server is one on loopback that answers after 200 ms (for the
memory: at once), in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import common
import openai

from tunebook.recipe.files import ROOT

QUESTION = "In row {n}: what is {n} plus 2?"
CONCURRENCY = 64
LATENCY_S = 0.2
TURNS = 3

CODE = """
import json, sys, time
import openai, aiolimiter  # before the clock starts
from tunebook.data import clean
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import CleanConfig
from tunebook.runs.machine import peak_memory_gb
recipe = load_recipe(run="clean")
source, url, concurrency = sys.argv[1:]
recipe.clean = CleanConfig(source=source, url=url, model="m", concurrency=int(concurrency))
started = time.perf_counter()
record = clean.clean(recipe)
seconds = time.perf_counter() - started
rows_per_s = record["rows"]["clean"] / seconds
print(json.dumps({"rows_per_s": rows_per_s, "peak_gb": peak_memory_gb()["process"]}))
"""


@contextlib.contextmanager
def server(folder: Path, latency: float) -> Iterator[str]:
    """The tests' server, without its moods; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = ROOT / "tests" / "helpers" / "api.py"
    command = [sys.executable, str(script), str(port), str(folder / "log")]
    command += ["--calm", "--latency", str(latency)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()  # READY
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.communicate()


def one_by_one(url: str, rows: int) -> float:
    """Rows per second of a loop over the synchronous client."""
    client = openai.OpenAI(base_url=url, api_key="none")
    prompt = (ROOT / "prompt" / "clean_solution.txt").read_text()
    started = time.perf_counter()
    for n in range(rows):
        text = prompt.replace("{question}", QUESTION.format(n=n)).replace("{solution}", "x")
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": text}], max_tokens=1024, temperature=0
        )
    return rows / (time.perf_counter() - started)


def ours(url: str, rows: int, folder: Path) -> dict[str, float]:
    """Rows per second and peak memory of `tunebook clean`, in a process of its own."""
    raw = folder / "raw.jsonl"
    with raw.open("w") as out:
        for n in range(rows):
            row = {"question": QUESTION.format(n=n), "solution": f"{n} + 2 = \\boxed{{{n + 2}}}"}
            out.write(json.dumps(row) + "\n")
    command = [sys.executable, "-c", CODE, str(raw), url, str(CONCURRENCY)]
    env = os.environ | {"TUNEBOOK_RUNS": str(folder / f"runs-{rows}")}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="for the memory"
    )
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    loops = []
    batches = []
    memory = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder, LATENCY_S) as url:
            for turn in range(TURNS):  # the two sides in turn
                loops.append(one_by_one(url, 25))
                (folder / str(turn)).mkdir()
                batches.append(ours(url, 2_000, folder / str(turn))["rows_per_s"])
        with server(folder, 0.0) as url:
            for rows in options.rows:
                memory[str(rows)] = ours(url, rows, folder)["peak_gb"]
    times = common.ratio(batches, loops)
    print(
        f"{times['median']:.0f} times the rows per second ({times['lowest']:.0f} to {times['highest']:.0f}); "
        f"peak memory by rows {memory} GB"
    )
    record = {
        "concurrency": CONCURRENCY,
        "latency_s": LATENCY_S,
        "one_by_one": loops,
        "tunebook": batches,
        "ratio": times,
        "memory_gb": memory,
    }
    common.write(options.out, record, ("openai", "aiohttp"))


if __name__ == "__main__":
    main()
