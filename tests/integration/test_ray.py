"""`tunebook prepare --engine ray` on two nodes, one of which is killed, writes the files of one process."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tunebook.data.prepare import prepare
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.runs import blocks

# Read as Ray is imported: else it starts its workers by `uv run`, in a copy of the working folder.
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
ray = pytest.importorskip("ray", reason="Ray is an extra: uv sync --extra ray")

ROWS = 3_000
BLOCK = 100

# Ray gives a node up whose helpers are not there within 15 s, which on a busy machine they may not be. Most
# of the time they import these two modules, without which jsonschema and requests go on.
SLOW_IMPORTS = ("rfc3987_syntax", "chardet")
LEAN = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
STARTS = 4


def started() -> Any:
    """A Ray cluster of two nodes with one core each, on this machine."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 * 2**20, **LEAN}
    for attempt in range(1, STARTS + 1):
        cluster = Cluster()
        try:
            cluster.add_node(**node)
            cluster.add_node(**node)
            return cluster
        except Exception:
            cluster.shutdown()
            if attempt == STARTS:
                raise
    return None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    for name in SLOW_IMPORTS:
        (site / f"{name}.py").write_text('raise ImportError("not in this test")\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else the other tests go first
        cluster = started()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def rows(tmp_path) -> Path:
    """Rows with duplicates and held-out questions across files of several kinds, and broken ones."""
    spec = importlib.util.spec_from_file_location("chat_rows", ROOT / "benchmarks" / "rows.py")
    chat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chat)
    folder = tmp_path / "rows"
    folder.mkdir()
    drawn = list(chat.rows(ROWS))
    half = ROWS // 2
    lines = [json.dumps(row) for row in drawn[:half]]
    (folder / "a.jsonl").write_text("\n".join([*lines, '{"prompt": "cut', *lines[:50]]))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(drawn[half:]), folder / "b.parquet")
    return folder


def recipe(rows: Path, run: str) -> Recipe:
    sources = [{"path": str(rows)}, {"format": "geometry", "train": 60, "val": 10, "test": 10}]
    return load_recipe(run=run, overrides={"data.sources": sources})


def test_a_users_mistake_on_a_node_is_the_one_line_that_it_is_here(cluster):
    from tunebook.recipe.errors import UserError

    def build():
        raise UserError("model.base: no such model")

    with pytest.raises(UserError, match=r"^model\.base: no such model$"):
        list(blocks.each([1, 2, 3], build, "ray"))


def test_two_nodes_write_the_files_of_one_process_and_one_of_them_is_killed(
    cluster, rows, tmp_path, monkeypatch
):
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    work_on, result = blocks._work_on, blocks._result
    results = []

    def noted(block, shared):
        (nodes / ray.get_runtime_context().get_node_id()).touch()
        return work_on(block, shared)

    def counted(ray, block):
        results.append(block)
        if len(results) == 8:
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        return result(ray, block)

    monkeypatch.setattr(blocks, "_work_on", noted)
    monkeypatch.setattr(blocks, "_result", counted)
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)
    two = recipe(rows, "two")
    of_two = prepare(two, engine="ray")
    assert len(list(nodes.iterdir())) == 2
    assert not cluster.worker_nodes
    assert len(results) > 2 * ROWS / BLOCK

    one = recipe(rows, "one")
    of_one = prepare(one)
    for key in ("rows", "quarantined", "fingerprints", "tokens", "examples"):
        assert of_two[key] == of_one[key], key
    assert of_one["quarantined"].keys() >= {"duplicate", "near-duplicate", "in the test or val split"}
    for name in ("train.parquet", "val.parquet", "test.parquet", "quarantine.jsonl"):
        assert (two.run_dir / "data" / name).read_bytes() == (one.run_dir / "data" / name).read_bytes()
