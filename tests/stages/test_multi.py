"""Memory that runs out, and what DeepSpeed is configured with."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from traces import close, four_rows_a_step, trace

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe


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


@pytest.fixture
def recipe(tiny_recipe, tmp_path) -> Path:
    return four_rows_a_step(tiny_recipe, tmp_path)


def really_kept(recipe, rows: int, length: int) -> int:
    """Bytes that autograd keeps of a real forward pass of the recipe's model."""
    import torch

    from tunebook.models import adapters, loading

    model = adapters.add_lora(loading.load_model(recipe)[0], recipe).train()
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


def test_the_weights_of_the_estimate_are_those_of_the_model(tiny):
    from transformers import AutoModelForCausalLM

    from tunebook.training import memory

    model = AutoModelForCausalLM.from_pretrained(tiny)
    config = load_recipe(overrides={"model.base": str(tiny)}).model
    linear, other, _ = memory.count_parameters(memory.headers(config), {})
    assert linear + other == sum(p.numel() for p in model.parameters())


def test_the_estimate_looks_at_no_class_of_a_model():
    """transformers hands out a class as it was when first asked for.

    Unsloth rewrites it when it loads the model.
    """
    from tunebook.training import memory

    args = SimpleNamespace(
        per_device_train_batch_size=2, bf16=False, fp16=False, gradient_checkpointing=False
    )
    args.optim = "adamw_torch"
    before = set(sys.modules)
    plan = memory.make_plan(load_recipe("mm-math-sample"), args, 100, "sft")
    assert plan.total > 0
    assert not [name for name in set(sys.modules) - before if ".modeling_" in name]


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
    kept = really_kept(apart, rows=4, length=record["preflight"]["longest"])
    assert record["preflight"]["parts"]["activations"] == pytest.approx(kept, rel=0.25)

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
