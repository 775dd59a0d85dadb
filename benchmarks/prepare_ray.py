"""`tunebook prepare --engine ray` beside one process: the same files, and what each costs.

    uv run python benchmarks/prepare_ray.py --out benchmarks/records/prepare_ray.json

200,000 chat rows in eight files are prepared by one process, and on a Ray cluster of two nodes of one core
each on this machine. The second node is killed in mid-run. Says whether the files are the same byte by byte.
The processor's time of the driver bounds what more machines can bring.
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

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT

FILES = 8

CODE = """
import json, os, sys, time
folder, run, kill_after = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine, cluster = "local", None
result = {}
if kill_after:
    engine = "ray"
    started = time.perf_counter()
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    import ray
    from ray.cluster_utils import Cluster
    from tunebook.runs import blocks
    node = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    result["start_s"] = time.perf_counter() - started
    of_block, count = blocks._result, [0]
    def counted(*arguments):
        count[0] += 1
        if count[0] == kill_after:
            cluster.remove_node(second, allow_graceful=False)
        return of_block(*arguments)
    blocks._result = counted

from tunebook.recipe.loading import load_recipe
from tunebook.data.prepare import prepare
recipe = load_recipe(run=run, overrides={"data.sources": [{"format": "chat", "path": folder}]})
started, started_cpu = time.perf_counter(), time.process_time()
record = prepare(recipe, engine=engine)
result |= {key: record[key] for key in ("rows", "quarantined", "fingerprints")}
result |= {"prepare_s": time.perf_counter() - started, "driver_cpu_s": time.process_time() - started_cpu}
result["peak_gb"] = record["peak_memory_gb"]["process"]
if cluster:
    result["blocks"] = count[0]
    result["nodes_left"] = len(cluster.list_all_nodes())
    ray.shutdown()
    cluster.shutdown()
print(json.dumps(result))
"""


def prepared(folder: Path, run: str, kill_after: int) -> dict[str, Any]:
    """Prepare the rows of a folder; with `kill_after` on two nodes, one killed after so many blocks."""
    result = common.measured(
        [sys.executable, "-c", CODE, str(folder / "rows"), run, str(kill_after)],
        TUNEBOOK_RUNS=str(folder / "runs"),
        TUNEBOOK_HOME=str(ROOT),
        OMP_NUM_THREADS="1",
    )
    return json.loads(result["out"].splitlines()[-1])  # type: ignore[no-any-return]


def main(
    n: Annotated[int, typer.Argument(help="Rows.")] = 200_000,
    kill_after: Annotated[int, typer.Option(help="Blocks until the second node is killed.")] = 100,
    note: Annotated[str, typer.Option(help="What else ran on the machine, for the record.")] = "",
    out: Annotated[Path | None, typer.Option(help="Where the figures are written as JSON.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        files = [(folder / "rows" / f"{number}.jsonl").open("w") for number in range(FILES)]
        for number, row in enumerate(chat.rows(n)):
            files[number * FILES // n].write(json.dumps(row) + "\n")
        for file in files:
            file.close()

        results = {
            "one process": prepared(folder, "one", 0),
            "two nodes": prepared(folder, "two", kill_after),
        }
        for file in ("train.parquet", "val.parquet", "test.parquet", "quarantine.jsonl"):
            one, two = (folder / "runs" / run / "data" / file for run in ("one", "two"))
            if one.read_bytes() != two.read_bytes():
                raise UserError(f"{file} differs")
    for side, result in results.items():
        print(
            f"{side}: {result['prepare_s']:.0f} s, {result['driver_cpu_s']:.0f} s of processor in the driver"
        )
    record = {"rows": n, "note": note, "identical": True, "sides": results}
    common.write(out, record, ("ray", "pyarrow", "tokenizers"))


if __name__ == "__main__":
    typer.run(main)
