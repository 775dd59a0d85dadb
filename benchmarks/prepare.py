"""`tunebook prepare` by size: rows per second and peak memory of all its processes, from 1,000 to 1,000,000 chat rows.

    uv run python benchmarks/prepare.py --out benchmarks/records/prepare.json

The rows (`rows.py`) are written to a temporary folder first, which takes 1.5 GB with what `prepare` makes of a million; each size
is prepared in a process of its own. `--source` takes the code of another checkout, to compare.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import common
import rows as chat
import typer

from tunebook.recipe.files import ROOT

CODE = """
import json, os, sys, time
from tunebook.recipe.loading import load_recipe
from tunebook.data.prepare import prepare
started = time.perf_counter()
record = prepare(load_recipe(run="rows", overrides={"data.sources": [{"format": "chat", "path": sys.argv[1]}]}))
print(json.dumps({key: record[key] for key in ("rows", "quarantined", "fingerprints")} | {"prepare_s": time.perf_counter() - started}))
"""


def prepared(n: int, folder: Path, source: Path) -> dict[str, object]:
    """Prepare `n` rows; what `common.measured` says, and the record."""
    path = chat.write(folder / "rows.jsonl", n)
    done = common.measured(
        [sys.executable, "-c", CODE, str(path)],
        TUNEBOOK_RUNS=str(folder / "runs"),
        PYTHONPATH=str(source),
        TUNEBOOK_HOME=str(ROOT),
    )
    found = done | json.loads(done.pop("out").splitlines()[-1])
    kept, out = sum(found["rows"].values()), sum(found["quarantined"].values())
    if kept + out != n:
        raise SystemExit(f"{n} rows in, {kept} kept, {out} in the quarantine")
    return found | {"rows_per_s": round(n / found["wall_s"], 1)}


def main(
    sizes: Annotated[list[int], typer.Argument()] = [1_000, 10_000, 100_000, 1_000_000],  # noqa: B006 - typer copies it
    source: Annotated[Path, typer.Option(help="The `src` folder of the code that is measured.")] = ROOT
    / "src",
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    found = {}
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            found[str(n)] = f = prepared(n, Path(folder), source)
        print(
            f"{n} rows: {f['wall_s']:.0f} s, {f['rows_per_s']:.0f} rows/s, {f['cpu_s']:.0f} s of processor, {f['peak_gb']:.2f} GB",
            flush=True,
        )
        common.write(out, {"sizes": found}, ("pyarrow", "tokenizers", "transformers", "numpy"))
    print("| rows | seconds | rows/s | peak memory |\n|---|---|---|---|")
    for n, f in found.items():
        print(f"| {int(n):,} | {f['wall_s']:.0f} | {f['rows_per_s']:,.0f} | {f['peak_gb']:.2f} GB |")


if __name__ == "__main__":
    typer.run(main)
