"""`tunebook prepare` by size: rows per second and peak memory of all its processes.

    uv run python benchmarks/prepare.py --out benchmarks/records/prepare.json

From 1,000 to 1,000,000 chat rows. The rows (`rows.py`) are written to a temporary folder first, which takes
1.5 GB with what `prepare` makes of a million; each size is prepared in a process of its own. `--source` takes
the code of another checkout, to compare.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import common
import rows as chat
import typer

from tunebook.recipe.files import ROOT

SIZES = [1_000, 10_000, 100_000, 1_000_000]

CODE = """
import json, sys, time
from tunebook.recipe.loading import load_recipe
from tunebook.data.prepare import prepare
started = time.perf_counter()
sources = [{"format": "chat", "path": sys.argv[1]}]
record = prepare(load_recipe(run="rows", overrides={"data.sources": sources}))
result = {key: record[key] for key in ("rows", "quarantined", "fingerprints")}
print(json.dumps(result | {"prepare_s": time.perf_counter() - started}))
"""


def prepared(n: int, folder: Path, source: Path) -> dict[str, Any]:
    """Prepare `n` rows; what `common.measured` says, and the record."""
    path = chat.write(folder / "rows.jsonl", n)
    result = common.measured(
        [sys.executable, "-c", CODE, str(path)],
        TUNEBOOK_RUNS=str(folder / "runs"),
        PYTHONPATH=str(source),
        TUNEBOOK_HOME=str(ROOT),
    )
    result |= json.loads(result.pop("out").splitlines()[-1])
    kept = sum(result["rows"].values())
    out = sum(result["quarantined"].values())
    if kept + out != n:
        raise SystemExit(f"{n} rows in, {kept} kept, {out} in the quarantine")
    result["rows_per_s"] = round(n / result["wall_s"], 1)
    return result


def main(
    sizes: Annotated[list[int] | None, typer.Argument()] = None,
    source: Annotated[Path, typer.Option(help="The `src` folder of what is measured.")] = ROOT / "src",
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    results = {}
    for n in sizes or SIZES:
        with tempfile.TemporaryDirectory() as folder:
            result = prepared(n, Path(folder), source)
        results[str(n)] = result
        print(
            f"{n} rows: {result['wall_s']:.0f} s, {result['rows_per_s']:.0f} rows/s, "
            f"{result['cpu_s']:.0f} s of processor, {result['peak_gb']:.2f} GB",
            flush=True,
        )
        # Written after each size: the last one takes minutes.
        common.write(out, {"sizes": results}, ("pyarrow", "tokenizers", "transformers", "numpy"))
    print("| rows | seconds | rows/s | peak memory |\n|---|---|---|---|")
    for n, result in results.items():
        wall, rate, peak = (result[key] for key in ("wall_s", "rows_per_s", "peak_gb"))
        print(f"| {int(n):,} | {wall:.0f} | {rate:,.0f} | {peak:.2f} GB |")


if __name__ == "__main__":
    typer.run(main)
