"""Rewriting rows through an API: rows per second at concurrency 64 against a loop that asks one by one, and memory by rows.

    uv run python benchmarks/clean.py --out benchmarks/records/clean.json

The server is one on loopback that answers after 200 ms (for the memory: at once), in a process of its own.
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
from importlib.metadata import version
from pathlib import Path

import openai

from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.machine import environment

QUESTION = "In row {n}: what is {n} plus 2?"


@contextlib.contextmanager
def server(folder: Path, latency: float) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable,
        str(ROOT / "tests" / "helpers" / "api.py"),
        str(port),
        str(folder / "log"),
        "--calm",
        "--latency",
        str(latency),
    ]
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
            out.write(
                json.dumps({"question": QUESTION.format(n=n), "solution": f"{n} + 2 = \\boxed{{{n + 2}}}"})
                + "\n"
            )
    code = (
        "import json, sys, time\nfrom pathlib import Path\nfrom tunebook.data import clean\nfrom tunebook.recipe import CleanConfig, load_recipe\n"
        "from tunebook.run import peak_memory_gb\n"
        "recipe = load_recipe(run='clean')\nrecipe.clean = CleanConfig(source=sys.argv[1], url=sys.argv[2], model='m', concurrency=64)\n"
        "import openai, aiolimiter\nstarted = time.perf_counter()\nrecord = clean.clean(recipe)\n"
        "print(json.dumps({'rows_per_s': record['rows']['clean'] / (time.perf_counter() - started), 'peak_gb': peak_memory_gb()['process']}))"
    )
    env = os.environ | {"TUNEBOOK_RUNS": str(folder / f"runs-{rows}")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(raw), url], env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="for the memory"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load_recipe()
    found = {
        "concurrency": 64,
        "latency_s": 0.2,
        "versions": {p: version(p) for p in ("openai", "aiohttp")},
        "hardware": environment()["hardware"],
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with server(folder, 0.2) as url:  # the two sides in turn
            loops, batches = [], []
            for i in range(3):
                loops.append(one_by_one(url, 25))
                (folder / str(i)).mkdir()
                batches.append(ours(url, 2_000, folder / str(i))["rows_per_s"])
        ratios = sorted(b / a for a, b in zip(loops, batches, strict=True))
        found |= {
            "one_by_one": loops,
            "tunebook": batches,
            "ratio": {"median": ratios[1], "lowest": ratios[0], "highest": ratios[2]},
        }
        with server(folder, 0.0) as url:
            found["memory_gb"] = {str(rows): ours(url, rows, folder)["peak_gb"] for rows in given.rows}
    print(
        f"{ratios[1]:.0f} times the rows per second ({ratios[0]:.0f} to {ratios[2]:.0f}); peak memory by rows {found['memory_gb']} GB"
    )
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
