"""Several processes train what one would, one that dies ends all, memory that runs out costs time and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import yaml

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs import files
from tunebook.runs.stage import Stage
from tunebook.training import arguments, launch, memory
from tunebook.training.arguments import divide_batch
from tunebook.training.memory import Plan


@pytest.mark.parametrize(
    ("rows", "steps", "processes", "halved", "expected"),
    [
        (8, 4, 1, 0, (8, 4)),
        (8, 4, 4, 0, (8, 1)),  # the accumulation goes first: the same micro-batches
        (8, 4, 2, 0, (8, 2)),
        (4, 1, 2, 0, (2, 1)),
        (6, 2, 4, 0, (3, 1)),
        (3, 4, 6, 0, (1, 2)),
        (8, 1, 1, 1, (4, 2)),
        (6, 1, 1, 2, (1, 6)),  # 6, 3, 1
        (8, 4, 2, 3, (1, 16)),
    ],
)
def test_a_step_keeps_its_rows(rows, steps, processes, halved, expected):
    found = divide_batch(rows, steps, processes, halved)
    assert found == expected
    assert found[0] * found[1] * processes == rows * steps


@dataclass
class Config:
    """The part of a trainer's config that `arguments` needs; the defaults are those of Unsloth's on a GPU."""

    output_dir: str
    seed: int = 42
    data_seed: int = 42
    report_to: str = "none"
    max_length: int = 1024
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 2
    ddp_find_unused_parameters: bool | None = None
    logging_nan_inf_filter: bool = True
    deepspeed: str | None = None


def test_arguments_for_several_processes(monkeypatch, tmp_path):
    for callback in ("whole_checkpoints", "metrics_file", "remaining_time", "health"):
        monkeypatch.setattr(arguments, callback, lambda *args, name=callback: name)
    recipe = load_recipe()
    recipe.sft = {"deepspeed": "configs/deepspeed_zero2.json"}
    alone, callbacks = arguments.arguments(Config, recipe, "sft", tmp_path)
    assert (
        alone.per_device_train_batch_size,
        alone.gradient_accumulation_steps,
        alone.ddp_find_unused_parameters,
    ) == (4, 2, None)
    assert Path(alone.deepspeed) == ROOT / "configs" / "deepspeed_zero2.json"
    assert callbacks == ["whole_checkpoints", "metrics_file", "remaining_time", "health"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    fourth, callbacks = arguments.arguments(Config, recipe, "sft", tmp_path)
    assert (
        fourth.per_device_train_batch_size,
        fourth.gradient_accumulation_steps,
        fourth.ddp_find_unused_parameters,
    ) == (2, 1, False)
    assert callbacks == ["whole_checkpoints", "health"]  # the first process writes and reports
    recipe.sft = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    with pytest.raises(
        UserError, match=r"sft\.per_device.* 3 x .* 2 = 6 rows a step is no multiple of 4 processes; set sft"
    ):
        arguments.arguments(Config, recipe, "sft", tmp_path)


def test_torchrun_is_asked_for_what_the_environment_says(tmp_path):
    assert launch.options(1, tmp_path, {}) == ["--standalone", "--nproc-per-node=1", f"--log-dir={tmp_path}"]
    assert launch.options(4, tmp_path, {"NNODES": "1"})[-1] == "--redirects=1:3,2:3,3:3"
    several = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
    assert launch.options(2, tmp_path, several) == [
        *(
            "--nnodes=2",
            "--node-rank=1",
            "--master-addr=10.0.0.1",
            "--master-port=29501",
            "--nproc-per-node=2",
        ),
        *(f"--log-dir={tmp_path}", "--redirects=0:3,1:3"),
    ]
    with pytest.raises(UserError, match="NNODES=2 needs MASTER_ADDR too"):
        launch.options(2, tmp_path, {"NNODES": "2", "NODE_RANK": "0"})


def test_only_the_first_process_writes(monkeypatch):
    first, second = (Stage(load_recipe(), "data", {"x": 1}, {}) for _ in range(2))
    monkeypatch.setenv("RANK", "1")
    with first.open() as folder:
        assert not folder.exists() and not folder.parent.exists()
    monkeypatch.setenv("RANK", "0")
    with first.open() as folder:
        assert folder.exists() and not first.await_rank_0()
    monkeypatch.setenv("RANK", "1")
    assert second.await_rank_0()


def failure(exitcode: int, timestamp: int, message: str | None = None) -> SimpleNamespace:
    text = {"message": message} if message else "-"
    name = signal.Signals(-exitcode).name if exitcode < 0 else "<N/A>"
    return SimpleNamespace(
        exitcode=exitcode,
        timestamp=timestamp,
        message=text,
        signal_name=lambda: name,
        error_file="logs/1/error.json",
    )


def test_the_process_that_failed_first_is_named():
    broken = failure(1, 10, "RuntimeError: Connection closed by peer\nmore")
    assert launch.explain({0: broken, 1: failure(-9, 11)}) == (
        "signal",
        "process 1 was ended by SIGKILL (often for want of memory)",
    )
    assert launch.explain({0: broken, 3: failure(1, 9, "UserError: mask audit: x")}) == (
        "UserError",
        "mask audit: x (process 3)",
    )
    assert launch.explain({0: failure(-15, 8), 1: failure(1, 9, "OutOfMemory: too much")}) == (
        "OutOfMemory",
        "too much (process 1)",
    )
    assert launch.explain({0: broken}) == (
        "RuntimeError",
        "process 0 failed: RuntimeError: Connection closed by peer (logs/1/error.json)",
    )
    assert launch.explain({2: failure(3, 1)}) == ("exit", "process 2 ended with exit code 3")


PLAN = Plan(linear=3_000, other=1_000, trainable=100, width=2, kept=8_000, layers=4, entering=100, logits=500)


def test_the_parts_of_the_estimate():
    expected = {
        "base model": 8_000,
        "adapter": 400,
        "gradients": 400,
        "optimiser": 800,
        "activations": 8_000,
        "logits": 6_000,
    }
    assert PLAN.parts() == expected | {"gaps in the heap": 0}
    changed = Plan(
        **(
            vars(PLAN)
            | {
                "four_bit": True,
                "checkpointing": True,
                "copies": 2,
                "optimizer": 2,
                "gaps": 0.5,
                "logits": 2**40,
            }
        )
    ).parts()
    assert changed["base model"] == int(3_000 * 4.13 / 8 + 2_000)
    assert (
        changed["activations"] == 4 * 100 + 2_000
    )  # what enters each layer, and one layer while it is recomputed
    assert changed["gaps in the heap"] == 1_200
    assert (changed["adapter"], changed["optimiser"], changed["logits"]) == (800, 200, 3 * 4 * 16 * 2**20)


def test_the_cheapest_mend_is_named():
    args = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    half = "It would with --set sft.per_device_train_batch_size=4 --set sft.gradient_accumulation_steps=4"
    assert memory.mend(PLAN, PLAN.total - 1, args, "sft") == half
    base = PLAN.total - 14_000
    assert memory.mend(PLAN, base + 2_000, args, "sft").endswith(
        "batch_size=1 --set sft.gradient_accumulation_steps=16"
    )
    assert memory.mend(PLAN, base + 1_200, args, "sft").endswith("--set lora.use_gradient_checkpointing=true")
    assert memory.mend(PLAN, base - 3_000, args, "sft").endswith("--set model.load_in_4bit=true")
    assert memory.mend(PLAN, 10, args, "dpo").startswith("Make model.max_seq_length smaller")


@pytest.mark.parametrize(
    ("strategy", "every", "limit", "expected"),
    [("steps", 50, None, 5), ("steps", 50, 2, 2), ("epoch", 500, None, 3), ("no", 50, None, 0)],
)
def test_checkpoints_on_disk(strategy, every, limit, expected):
    args = SimpleNamespace(
        save_strategy=strategy, save_steps=every, save_total_limit=limit, num_train_epochs=3
    )
    assert memory.checkpoints(args, 240) == expected


def test_what_cannot_be_estimated_stops_nothing(capsys):
    assert memory.preflight(load_recipe(), SimpleNamespace(), {"tokens": []}, "sft") == {}
    assert capsys.readouterr().out.startswith("No estimate of the memory: ")


def test_deepspeed_takes_its_configuration():
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers.integrations import HfTrainerDeepSpeedConfig

    from tunebook.models import backend

    backend.backend()
    from transformers import TrainingArguments

    config = HfTrainerDeepSpeedConfig(str(ROOT / "configs" / "deepspeed_zero2.json"))
    config.trainer_config_process(
        TrainingArguments(
            output_dir="x", use_cpu=True, per_device_train_batch_size=4, gradient_accumulation_steps=2
        )
    )
    assert config.mismatches == [] and DeepSpeedConfig(config.config).zero_optimization_stage == 2


# What trains.


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Path:
    """The tiny recipe with four rows a step, two at a time; pairs are each solution and it with a wrong box."""
    content = yaml.safe_load(tiny_recipe.read_text())
    exact = {
        "bf16": False,
        "gradient_accumulation_steps": 2,
    }  # in bfloat16 the batch's shape shows in the loss
    content["sft"] |= exact | {"eval_strategy": "no"}
    content["pairs"] = {"methods": ["dataset"], "dataset": str(tmp_path / "pairs.jsonl"), "val": 0}
    content["dpo"] |= exact | {"per_device_train_batch_size": 2, "learning_rate": 5e-3, "max_steps": 8}
    content["dpo"] |= {"loss_type": ["sigmoid"], "loss_weights": [1.0], "logging_steps": 1, "save_steps": 3}
    tiny_recipe.write_text(yaml.safe_dump(content))
    return tiny_recipe


def trace(run_dir: Path, stage: str = "sft") -> dict[int, tuple[float, float]]:
    return {
        e["step"]: (float(e["loss"]), float(e["grad_norm"]))
        for e in files.log_history(run_dir / stage)
        if "loss" in e
    }


def two(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`tunebook ...` in two processes."""
    env = (
        {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "RANK")}
        | {"NPROC_PER_NODE": "2"}
        | environment
    )
    return subprocess.Popen(
        [sys.executable, "-m", "tunebook.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=ROOT,
    )


def close(found: dict[int, tuple[float, float]], expected: dict[int, tuple[float, float]]) -> bool:
    return found.keys() == expected.keys() and all(
        found[k] == pytest.approx(expected[k], abs=1e-4) for k in expected
    )


@pytest.mark.slow
def test_two_processes_train_as_one_and_end_together(recipe):
    """One is killed: the other ends, one line says so. The same command goes on, and the whole trace is that of one process."""
    from tunebook.training.sft import sft

    command = ("sft", "--recipe", str(recipe), "--run", "two")
    killed = two(*command)
    run_dir = load_recipe(recipe, run="two").run_dir
    deadline = time.monotonic() + 240
    while not (run_dir / ".sft.partial" / "checkpoints" / "checkpoint-5" / "checksums.json").exists():
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[1][-2000:]
        time.sleep(0.02)
    workers = sorted(psutil.Process(killed.pid).children(), key=lambda p: int(p.environ()["RANK"]))
    assert [p.environ()["RANK"] for p in workers] == ["0", "1"]
    workers[1].kill()
    start = time.monotonic()
    err = killed.communicate(timeout=60)[1]
    assert (
        killed.returncode == 2 and time.monotonic() - start < 60 and not any(p.is_running() for p in workers)
    )
    line = "tunebook: process 1 was ended by SIGKILL (often for want of memory). All processes were stopped; the same command goes on"
    assert err.splitlines()[-1].startswith(line) and "Traceback" not in err and err.count("tunebook: ") == 1
    assert not (run_dir / "sft").exists()

    again = two(*command)
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, err[-2000:]
    assert (
        out.count("Mask audit") == 1
        and re.search(r"Going on from checkpoint-\d+", out)
        and out.count("Wrote ") == 1
    )
    metrics = json.loads((run_dir / "sft" / "stage.json").read_text())["metrics"]
    assert (metrics["effective_batch_size"], metrics["processes"], metrics["per_device_batch_size"]) == (
        4,
        2,
        2,
    )
    one = load_recipe(recipe, run="one")
    alone = sft(one)["metrics"]
    assert close(trace(run_dir), trace(one.run_dir)) and len(trace(run_dir)) == 20
    assert metrics["tokens"] == alone["tokens"] and metrics["steps"] == alone["steps"] == 20


@pytest.mark.slow
def test_dpo_in_two_processes_with_too_little_memory(recipe, tmp_path):
    """The second process runs out of memory: both start again with half the per-device batch, and the trace is that of one process."""
    from tunebook.data.storage import load
    from tunebook.models import backend
    from tunebook.pairs.pairs import pairs
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    backend.backend()
    one = load_recipe(recipe, run="one")
    sft(load_recipe(recipe, run="one"))
    with (tmp_path / "pairs.jsonl").open("w") as out:
        for row in load(one, "train"):
            right = row["completion"][0]["content"]
            pair = {
                "prompt": row["prompt"],
                "chosen": right,
                "rejected": re.sub(r"boxed\{.*\}", "boxed{12345}", right),
                "answer": row["gold"],
            }
            out.write(json.dumps(pair) + "\n")
    pairs(one)
    shutil.copytree(one.run_dir, one.run_dir.with_name("two"))
    alone = dpo(one)["metrics"]
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text("""
import os
if os.environ.get("RANK") == "1" and "TUNEBOOK_HALVINGS" not in os.environ:
    import torch
    whole, calls = torch.Tensor.backward, []
    def backward(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return whole(self, *args, **kwargs)
    torch.Tensor.backward = backward
""")
    both = two(
        "dpo",
        "--recipe",
        str(recipe),
        "--run",
        "two",
        PYTHONPATH=f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}",
    )
    out, err = both.communicate(timeout=300)
    assert both.returncode == 0, err[-2000:]
    assert (
        "out of memory with 2 rows a device (process 1): all processes start again with half of them" in out
    )
    assert "Going on from checkpoint-3" in out and "Traceback" not in err
    run_dir = one.run_dir.with_name("two")
    metrics = json.loads((run_dir / "dpo" / "stage.json").read_text())["metrics"]
    assert (metrics["effective_batch_size"], metrics["per_device_batch_size"], metrics["steps"]) == (4, 1, 8)
    assert alone["effective_batch_size"] == 4
    assert close(trace(run_dir, "dpo"), trace(one.run_dir, "dpo"))


def really_kept(recipe, rows: int, length: int) -> int:
    """Bytes that autograd keeps of a real forward pass of the recipe's model."""
    import torch

    from tunebook.models import adapters, loading

    model = adapters.add_lora(loading.load(recipe)[0], recipe).train()
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    ids = torch.zeros((rows, length), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model.get_base_model().get_decoder()(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False
        )
    return sum(size for key, (size, _) in kept.items() if key not in own)


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_batch_and_changes_nothing(recipe, monkeypatch, capsys):
    from tunebook.training.sft import sft

    straight = load_recipe(
        recipe,
        run="straight",
        overrides={"sft.per_device_train_batch_size": 4, "sft.gradient_accumulation_steps": 1},
    )
    record = sft(straight)
    import torch
    import transformers

    apart = load_recipe(
        recipe, overrides={"model.share_prompts": False, "model.attn_implementation": "eager"}
    )  # as it is counted
    assert record["preflight"]["parts"]["activations"] == really_kept(
        apart, rows=4, length=record["preflight"]["longest"]
    )

    step, seen = transformers.Trainer.training_step, []

    def scarce(self, model, inputs, *args, **kwargs):
        seen.append(len(inputs["input_ids"]))
        if (self.state.global_step >= 7 and seen[-1] > 2) or (self.state.global_step >= 12 and seen[-1] > 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", scarce)
    short = load_recipe(
        recipe, run="short", overrides={k: v for k, (_, v) in straight.overrides.items() if k != "run"}
    )
    capsys.readouterr()
    metrics = sft(short)["metrics"]
    out = capsys.readouterr().out
    assert (
        out.count("Out of memory with ") == 2
        and "with 4 rows a device: goes on with 2, accumulating 2 times" in out
    )
    assert out.count("Going on from checkpoint-5") == 1 and out.count("Going on from checkpoint-10") == 1
    assert (metrics["per_device_batch_size"], metrics["effective_batch_size"]) == (1, 4)
    assert (
        close(trace(short.run_dir), trace(straight.run_dir))
        and metrics["tokens"] == record["metrics"]["tokens"]
    )

    monkeypatch.setattr(
        transformers.Trainer,
        "training_step",
        lambda *a, **k: (_ for _ in ()).throw(RuntimeError("DefaultCPUAllocator: no")),
    )
    never = load_recipe(recipe, run="never", overrides={"sft.max_steps": 2})
    with pytest.raises(UserError, match=r"one row at a time: set lora\.use_gradient_checkpointing=true"):
        sft(never)
    assert capsys.readouterr().out.count("Out of memory with ") == 1  # 2 rows, then 1
