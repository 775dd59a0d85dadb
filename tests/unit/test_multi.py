"""Several processes train what one would, one that dies ends all, memory that runs out costs time and nothing else."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
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
