"""A sick run stops itself with the reason, and keeps its last good checkpoint and nothing later."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import pytest

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import checksums
from tunebook.training import callbacks


@pytest.fixture(scope="module", autouse=True)
def unsloth():
    from tunebook.models import backend

    assert backend.backend() == "cpu"


def log(step: int, loss: float = 2.0, norm: float = 1.0) -> dict:
    return {"step": step, "loss": loss, "grad_norm": norm}


@pytest.mark.parametrize(
    ("entries", "reason", "at"),
    [
        ([log(1), log(2, math.nan)], "loss is nan", 2),
        ([log(1), log(2, norm=math.inf)], "grad_norm is inf", 2),
        ([log(1), {"step": 1, "eval_loss": math.nan}], "eval_loss is nan", 1),
        ([log(1), {"step": 1, "train_loss": math.inf}], "train_loss is inf", 1),
        (
            [log(1), *(log(i, 10.8, 0.0) for i in range(2, 5))],
            "the gradient is exactly 0 (at a loss of 10.8)",
            4,
        ),
        ([log(1, 3.0), *(log(i, 31.0) for i in range(2, 5))], "the loss has grown from 3 to 31", 4),
        (
            [*(log(i) for i in range(1, 7)), *(log(i, norm=2e3) for i in range(7, 10))],
            "the gradient norm has grown from 1 to 2e+03",
            9,
        ),
        (
            [log(1), log(2, 40.0), log(3, 40.0), {"step": 3, "eval_loss": 2.0}, log(4, 40.0)],
            "the loss has grown from 2 to 40",
            4,
        ),
        (
            [log(1), log(2, 40.0), log(3), log(4, 40.0), log(5, 40.0), log(6)],
            None,
            6,
        ),  # odd batches, not in a row
        (
            [log(1), log(2, 0.0, 0.1), log(3, 0.0, 0.1), log(4, 0.0, 0.1)],
            None,
            4,
        ),  # all is learnt, and still a gradient
        (
            [log(1, 1e-4, 1e-4), *(log(i, 0.5, 0.5) for i in range(2, 9))],
            None,
            8,
        ),  # small numbers may grow a thousandfold
        ([{"step": i, "loss": 2.0} for i in range(1, 9)], None, 8),
    ],
)
def test_what_stops_a_run_and_what_does_not(tmp_path, entries, reason, at):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-10").mkdir()
    watching, state = callbacks.health("sft"), SimpleNamespace(log_history=[], global_step=0)
    args = SimpleNamespace(fp16=False, output_dir=str(tmp_path))

    def go() -> None:
        for entry in entries:
            state.log_history.append(entry)
            state.global_step, control = entry["step"], SimpleNamespace(should_save=True, should_log=False)
            watching.on_step_end(args, state, control)
            assert control.should_log  # before every checkpoint
            try:
                watching.on_log(args, state, control)
            finally:
                wrong = [
                    e
                    for e in state.log_history[-1:]
                    if not math.isfinite(e.get("loss", 0.0)) or e.get("loss", 0) > 10
                ]
                assert control.should_save is False or not wrong

    if reason is None:
        go()
    else:
        with pytest.raises(UserError, match="stopped at step") as error:
            go()
        assert f"stopped at step {at}: {reason}. " in str(error.value) and "\n" not in str(error.value)
        assert "sft.learning_rate" in str(error.value) and ("look at the rows" in str(error.value)) == (
            "exactly 0" in reason
        )
        assert str(error.value).endswith(f"The last good checkpoint is {tmp_path / 'checkpoint-10'}")
    assert state.global_step == at


def test_float16_may_overflow_while_its_scale_is_sought():
    watching, args = callbacks.health("sft"), SimpleNamespace(fp16=True, output_dir="none")
    state = SimpleNamespace(log_history=[], global_step=1)
    for i in range(9):
        state.log_history.append(log(i, norm=math.inf if i < 5 else 1.0))
        watching.on_log(args, state, SimpleNamespace(should_save=True))
    state.log_history.append(log(9, math.nan))
    with pytest.raises(UserError, match=r"loss is nan.*No checkpoint was written before"):
        watching.on_log(args, state, SimpleNamespace(should_save=True))


def test_a_checkpoint_of_a_sick_run_is_never_gone_on_from(tmp_path):
    for step, loss in ((5, 2.0), (10, math.nan), (15, math.nan)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [log(5), log(step, loss)]}))
        (folder / callbacks.CHECKSUMS).write_text(json.dumps(checksums(folder)))
    assert callbacks.last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-5"]


def test_planted_sickness_stops_training(tiny_recipe, monkeypatch):
    """SFT on the tiny model with what makes it sick, in one process.

    A weight that turns NaN, a learning rate of a million, rows without a token to learn.
    """
    import torch
    from trl import SFTTrainer

    from tunebook.training.sft import sft

    real = SFTTrainer.training_step

    def run(name: str, **given) -> tuple[str, object]:
        def step(self, model, inputs, *args, **kwargs):
            if name == "nan" and self.state.global_step == 12:
                next(p for p in model.parameters() if p.requires_grad).data[0] = torch.nan
            if name == "mask" and self.state.global_step >= 3:
                inputs["labels"] = torch.full_like(inputs["labels"], -100)
            return real(self, model, inputs, *args, **kwargs)

        monkeypatch.setattr(SFTTrainer, "training_step", step)
        keys = {
            "max_steps": 30,
            "eval_strategy": "no",
            "save_steps": 5,
            "save_total_limit": 9,
            "logging_steps": 4,
        } | given
        recipe = load_recipe(tiny_recipe, run=name, overrides={f"sft.{k}": v for k, v in keys.items()})
        with pytest.raises(UserError, match="stopped at step") as error:
            sft(recipe)
        assert not (recipe.run_dir / "sft").exists()
        return str(error.value), recipe

    said, recipe = run("nan")
    kept = recipe.run_dir / ".sft.partial" / "checkpoints"
    assert "stopped at step 15: loss is nan" in said and said.endswith(
        f"checkpoint is {kept / 'checkpoint-10'}"
    )  # 15: before that checkpoint
    assert sorted(p.name for p in kept.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-5"]
    monkeypatch.setattr(SFTTrainer, "training_step", real)
    assert sft(recipe)["metrics"]["steps"] == 30  # the same command goes on from the good checkpoint
    said, recipe = run("lr", learning_rate=1e6, warmup_steps=0, max_grad_norm=1e9, logging_steps=1)
    assert "the gradient is exactly 0" in said and said.endswith("No checkpoint was written before")
    said, _ = run("mask", logging_steps=1)
    assert int(said.split("step ")[1].split(":")[0]) <= 6


def test_an_adapter_of_another_lora_section_is_refused(tiny_recipe, tmp_path):
    """Its weights would be scaled otherwise, or a part of them left out.

    DPO's reference would be the same wrong model.
    """
    from tunebook.models import adapters, loading

    def fresh(**lora):
        recipe = load_recipe(tiny_recipe, overrides={f"lora.{key}": value for key, value in lora.items()})
        model, tokenizer = loading.load_model(recipe)
        return adapters.add_lora(model, recipe), tokenizer

    adapters.save_adapter(*fresh(), tmp_path / "adapter")
    adapters.restore_lora(fresh()[0], tmp_path / "adapter")
    for lora, why in (
        ({"lora_alpha": 32}, "lora_alpha was 16"),
        ({"use_rslora": True}, "use_rslora was False"),
        ({"target_modules": ["q_proj", "v_proj"]}, "lora_"),
        ({"r": 8, "lora_alpha": 16}, "r was 16"),
    ):
        with pytest.raises(UserError, match=rf"does not fit the recipe's lora section \(.*{why}"):
            adapters.restore_lora(fresh(**lora)[0], tmp_path / "adapter")


def test_pickled_and_damaged_weights_are_refused(tiny, tiny_recipe, tmp_path):
    """transformers and PEFT would load a `.bin` where there is no safetensors file."""
    import torch
    from safetensors.torch import load_file

    from tunebook.models import adapters, loading

    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    whole = folder / "model.safetensors"
    torch.save(load_file(whole), folder / "pytorch_model.bin")
    recipe = load_recipe(tiny_recipe, overrides={"model.base": str(folder)})
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="must be whole safetensors files"):
        loading.load_model(recipe)
    whole.unlink()
    with pytest.raises(UserError, match="must be whole safetensors files") as error:
        loading.load_model(recipe)
    assert len(str(error.value).splitlines()) == 1
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        adapters.load_adapters(None, {"sft": tmp_path})
    with pytest.raises(UserError, match=r"no whole adapter_model\.safetensors"):
        adapters.restore_lora(None, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(UserError, match=r"no whole adapter_model\.safetensors"):
        adapters.restore_lora(None, tmp_path)
