"""Several processes share a step; the first that fails is named; memory is estimated before training."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.stage import Stage
from tunebook.training import arguments, launch, memory
from tunebook.training.arguments import divide_batch, halve_batch
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
    found = divide_batch(rows, steps, processes)
    for _ in range(halved):
        found = halve_batch(*found)
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
    for callback in ("whole_checkpoints", "metrics_file", "health"):
        monkeypatch.setattr(arguments, callback, lambda *args, name=callback: name)
    recipe = load_recipe()
    recipe.sft = {"deepspeed": "configs/deepspeed_zero2.json"}
    alone = arguments.trainer_arguments(Config, recipe, "sft", tmp_path)
    callbacks = arguments.trainer_callbacks(recipe, "sft", alone)
    assert (
        alone.per_device_train_batch_size,
        alone.gradient_accumulation_steps,
        alone.ddp_find_unused_parameters,
    ) == (4, 2, None)
    assert Path(alone.deepspeed) == ROOT / "configs" / "deepspeed_zero2.json"
    assert callbacks == ["whole_checkpoints", "metrics_file", "health"]
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    fourth = arguments.trainer_arguments(Config, recipe, "sft", tmp_path)
    callbacks = arguments.trainer_callbacks(recipe, "sft", fourth)
    assert (
        fourth.per_device_train_batch_size,
        fourth.gradient_accumulation_steps,
        fourth.ddp_find_unused_parameters,
    ) == (2, 1, False)
    recipe.sft = {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 16}
    chosen_later = arguments.trainer_arguments(Config, recipe, "sft", tmp_path)
    assert (chosen_later.per_device_train_batch_size, chosen_later.gradient_accumulation_steps) == (1, 4)
    assert callbacks == ["whole_checkpoints", "health"]  # the first process writes and reports
    recipe.sft = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    with pytest.raises(
        UserError, match=r"sft\.per_device.* 3 x .* 2 = 6 rows a step is no multiple of 4 processes; set sft"
    ):
        arguments.trainer_arguments(Config, recipe, "sft", tmp_path)


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


ALL_STOPPED = ". All processes were stopped; the same command goes on from the last checkpoint"


def test_the_process_that_failed_first_is_named():
    broken = failure(1, 10, "RuntimeError: Connection closed by peer\nmore")
    assert launch.explain({0: broken, 1: failure(-9, 11)}) == (
        "process 1 was ended by SIGKILL (often for want of memory)" + ALL_STOPPED
    )
    # Times are whole seconds: a connection that breaks in the same one is what the error led to.
    assert launch.explain({0: broken, 3: failure(1, 10, "UserError: mask audit: x")}) == (
        "mask audit: x (process 3)"
    )
    assert launch.explain({0: failure(-15, 8), 1: failure(1, 9, "UserError: too much")}) == (
        "too much (process 1)"
    )
    assert launch.explain({0: broken}) == (
        "process 0 failed: RuntimeError: Connection closed by peer (logs/1/error.json)" + ALL_STOPPED
    )
    assert launch.explain({2: failure(3, 1)}) == "process 2 ended with exit code 3" + ALL_STOPPED


SHAPE = SimpleNamespace(
    hidden_size=8,
    intermediate_size=16,
    num_attention_heads=2,
    head_dim=4,
    num_hidden_layers=4,
    vocab_size=50,
)
PLAN = Plan(config=SHAPE, linear=3_000, other=1_000, trainable=100, rows=8, length=10)
KEPT = 20 * 8 + 4 * 2 * (16 + 8)  # of a layer for a token


def test_the_parts_of_the_estimate():
    assert PLAN.parts() == {
        "base model": 8_000,
        "adapter": 400,
        "gradients": 400,
        "optimiser": 800,
        "activations": 80 * 4 * KEPT,
        "logits": 3 * 4 * 80 * 50,
        "allocator overhead": 0,
    }
    changed = replace(PLAN, four_bit=True, checkpointing=True, sides=2, optimizer=2, gaps=0.5, rows=2**20)
    parts = changed.parts()
    tokens = 2**20 * 2 * 10
    assert parts["base model"] == int(3_000 * 4.13 / 8 + 2_000)
    # What enters each layer, and one layer while it is recomputed.
    assert parts["activations"] == tokens * (4 * 8 * 2 + KEPT)
    assert parts["allocator overhead"] == parts["activations"] // 2
    assert (parts["adapter"], parts["optimiser"], parts["logits"]) == (800, 200, 3 * 4 * 16 * 2**20)
    assert replace(PLAN, scores=True).layer() == KEPT + 2 * 10 * 6
    assert replace(PLAN, scores=True, value_bytes=4).layer() == 20 * 8 + 4 * 4 * (16 + 8) + 2 * 10 * 4


def test_the_cheapest_mend_is_named():
    args = SimpleNamespace(per_device_train_batch_size=8, gradient_accumulation_steps=2)
    half = "It would with --set sft.per_device_train_batch_size=4 --set sft.gradient_accumulation_steps=4"
    assert memory.mend(PLAN, PLAN.total - 1, args, "sft") == half
    one = replace(PLAN, rows=1)
    assert memory.mend(PLAN, one.total, args, "sft").endswith(
        "batch_size=1 --set sft.gradient_accumulation_steps=16"
    )
    alone = "It would with --set lora.use_gradient_checkpointing=true"
    assert memory.mend(one, one.total - 1, args, "sft") == alone
    both = replace(one, checkpointing=True)
    assert memory.mend(PLAN, both.total, args, "sft").endswith("--set lora.use_gradient_checkpointing=true")
    assert memory.mend(PLAN, both.total - 3_000, args, "sft").endswith("--set model.load_in_4bit=true")
    assert memory.mend(PLAN, 10, args, "dpo").startswith("Make model.max_seq_length smaller")


def test_weights_are_counted_in_the_headers():
    tensors = [
        ("model.embed_tokens.weight", "BF16", [50, 8]),
        ("model.layers.0.self_attn.q_proj.weight", "BF16", [4, 8]),
        ("model.layers.0.mlp.up_proj.weight", "U8", [128, 1]),  # in 4 bit: 256 parameters, as of 16 by 16
        ("model.layers.0.mlp.up_proj.weight.absmax", "F32", [4]),
        ("model.norm.weight", "BF16", [8]),
        ("lm_head.weight", "BF16", [50, 8]),
    ]
    lora = {"r": 2, "target_modules": ["q_proj", "up_proj"], "modules_to_save": ["lm_head"]}
    expected = (32 + 256, 400 + 4 + 8 + 400, 2 * (4 + 8) + 2 * (16 + 16) + 400)
    assert memory.count_parameters(tensors, lora) == expected
    assert memory.count_parameters(tensors, {"r": 2})[2] == 2 * (4 + 8) + 2 * (16 + 16)


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
