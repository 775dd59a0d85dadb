"""Faults: kills at random moments, full disks, damaged files, Ctrl-C, dead kernels. No work is lost, and every command ends as if nothing had been.

The commands are the real ones from argument parsing to exit code, each in a process of its own; only `import unsloth` is shared: the
processes are forked from one that has done it (`faults.py`). Models are tiny, all settings else those of the default recipe.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import faults
import pytest
import yaml

from tunebook.generate import read_records
from tunebook.recipe import ROOT
from tunebook.run import read_json

pytestmark = pytest.mark.slow

ANSWER = "### Solution\n1. Look: 3 + 4 = 7\n### Final Answer\n\\boxed{7}"
KILLS = {"prepare": 3, "sft": 4, "pairs": 3, "dpo": 3, "evaluate": 3, "export": 1, "clean": 1, "run": 2}


class World:
    """A recipe on a tiny model, in which each command takes seconds, and an undisturbed run of all of it."""

    def __init__(self, server: str, folder: Path, embedded: Path) -> None:
        self.server, self.folder, self.runs, self.logs = server, folder, folder / "runs", 0
        self.env = {"TUNEBOOK_RUNS": str(self.runs), "OMP_NUM_THREADS": "1", "PAPERMILL_DISABLE": "", **faults.kernelspec(folder / "jupyter", server)}
        assert self.start("python", str(Path(__file__).with_name("tiny_qwen3.py")), str(folder / "model"), str(embedded)).wait() == 0
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe(folder)))

    def start(self, *argv: str, **how) -> faults.Command:
        """A command under way."""
        self.logs += 1
        return faults.Command(self.server, *argv, log=self.folder / f"{self.logs:03}.log", env=self.env | how.pop("env", {}), **{"cwd": ROOT, **how})

    def run(self, step: str, *argv: str, run: str = "straight", **how) -> faults.Command:
        """A command of the recipe that has ended."""
        command = self.start(step, *argv, "--recipe", str(self.recipe), "--run", run, **how)
        command.wait()
        return command

    def copy(self, name: str, *without: str) -> Path:
        """The undisturbed run under another name, without some stages."""
        shutil.rmtree(self.runs / name, ignore_errors=True)
        return shutil.copytree(self.runs / "straight", self.runs / name, ignore=shutil.ignore_patterns("manifest.json", ".lock", ".owner.json", *without))


def recipe(folder: Path) -> dict:
    """Learn one answer by heart from 24 rows; sampled hot it is sometimes another."""
    rows = [{"prompt": f"How many umbrellas has room {n}?", "completion": ANSWER, "answer": "7"} for n in range(36)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = yaml.safe_load((ROOT / "configs" / "smollm2-math.yaml").read_text()) | {"name": "tiny"}
    base = {"base": str(folder / "model"), "dtype": "float32", "chat_template": "prompt/chatml.jinja", "eos_token": "<|im_end|>"}
    content["model"] |= base
    content["data"] |= {"for_pairs": 0, "near_duplicate": 1.0}
    content["data"]["sources"] = [{"format": "chat", "path": str(folder / "rows.jsonl"), "val": 0.1, "test": 0.25}]
    trained = {"per_device_train_batch_size": 4, "eval_strategy": "no", "logging_steps": 1, "save_steps": 4}
    content["sft"] |= trained | {"max_steps": 40, "learning_rate": 2e-2}
    content["dpo"] |= trained | {"max_steps": 12, "learning_rate": 1e-3}
    content["pairs"] |= {"prompts": 12, "samples": 4, "temperature": 1.2, "max_new_tokens": 48, "batch_size": 6, "val": 0, "max_length_ratio": 3}
    content["evaluate"] |= {"max_new_tokens": 48, "batch_size": 4}
    content["export"] |= {"to": ["adapter"], "items": 2}
    return content


@pytest.fixture(scope="module")
def world(tmp_path_factory, embedded):
    folder = tmp_path_factory.mktemp("faults")
    with faults.server(folder) as server:
        made = World(server, folder, embedded)
        made.seconds, made.changes = {}, {}
        for step in ("prepare", "sft", "pairs", "dpo", "evaluate", "export"):
            start = time.monotonic()
            command = made.run(step, watch=str(made.runs))
            made.seconds[step] = time.monotonic() - start
            assert command.code == 0, command.text
            made.changes[step] = int(command.text.rpartition("changes: ")[2])
        yield made


def test_times(world):
    print(world.seconds, world.changes)
