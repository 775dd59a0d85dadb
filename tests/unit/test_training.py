"""What SFT and DPO evaluate on and record, with stand-ins for trainer and model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tunebook.recipe.effects import of_the_weights
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import checksums, write_json
from tunebook.training import memory
from tunebook.training.arguments import check_val_rows, eval_rows
from tunebook.training.callbacks import CHECKSUMS, after_the_end
from tunebook.training.trainer import _train


def arguments(**given) -> SimpleNamespace:
    plain = {
        "eval_strategy": "steps",
        "do_eval": True,
        "eval_on_start": False,
        "save_strategy": "steps",
        "logging_steps": 5,
        "eval_steps": 5,
        "save_steps": 5,
        "lr_scheduler_type": "linear",
    }
    return SimpleNamespace(**plain | {"load_best_model_at_end": False} | given)


@pytest.mark.parametrize(
    ("free_gb", "steps", "chosen"),
    [(100, 16, (16, 1)), (100, 12, (4, 3)), (2.0, 16, (2, 8)), (0.1, 16, (1, 16)), (None, 16, (1, 16))],
)
def test_auto_takes_the_rows_that_fit_and_a_step_keeps_its_own(monkeypatch, capsys, free_gb, steps, chosen):
    """A row of this plan takes 0.81 GB, all else next to nothing; 85% of the free memory are filled."""
    config = SimpleNamespace(
        num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9, vocab_size=100
    )
    plan = memory.Plan(config, linear=0, other=0, trainable=0, rows=1, length=1024)
    assert plan.total / 2**30 == pytest.approx(0.81, abs=0.01)
    monkeypatch.setattr(memory, "make_plan", lambda recipe, args, longest, section: plan)

    def available():
        if free_gb is None:
            raise OSError("no such file")
        return int(free_gb * 2**30), "GPU"

    monkeypatch.setattr(memory, "available", available)
    recipe = load_recipe(overrides={"sft.per_device_train_batch_size": "auto"})
    args = SimpleNamespace(per_device_train_batch_size=1, gradient_accumulation_steps=steps, max_length=1024)
    memory.choose_batch(recipe, args, {"tokens": [10, 1024]}, "sft")
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == chosen
    assert f"auto: {chosen[0]} at a time, {chosen[1]} times a step" in capsys.readouterr().out
    same = {"sft": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}}
    assert of_the_weights(same) == of_the_weights(
        {"sft": {"per_device_train_batch_size": "auto", "gradient_accumulation_steps": 16}}
    )


def test_other_words_than_auto_are_no_batch():
    with pytest.raises(UserError, match="per_device_train_batch_size"):
        load_recipe(overrides={"sft.per_device_train_batch_size": "many"})


def test_without_val_rows_nothing_is_evaluated(capsys):
    args = arguments(eval_on_start=True)
    check_val_rows(args, ["a row"], "sft", "x")
    assert eval_rows(args, ["a row"]) == ["a row"] and args.eval_strategy == "steps"
    check_val_rows(args, [], "dpo", "pairs.val")
    assert eval_rows(args, []) is None
    assert (args.eval_strategy, args.do_eval, args.eval_on_start) == ("no", False, False)
    assert (
        capsys.readouterr().out
        == "No val rows, so nothing is evaluated during training (dpo.eval_strategy: no); "
        "pairs.val sets some apart.\n"
    )
    check_val_rows(args, [], "dpo", "pairs.val")
    assert eval_rows(args, []) is eval_rows(args, ["a row"]) is None
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("load_best_model_at_end", True),
        ("lr_scheduler_type", "reduce_lr_on_plateau"),
        ("save_strategy", "best"),
    ],
)
def test_what_rests_on_evaluations_is_refused_without_val_rows(key, value):
    with pytest.raises(
        UserError,
        match=rf"^no val rows to evaluate on, and sft\.{key} cannot do without: "
        "raise `val` of a data source, add rows",
    ):
        check_val_rows(arguments(**{key: value}), [], "sft", "`val` of a data source")
    check_val_rows(arguments(**{key: value}), [1], "sft", "")
    assert eval_rows(arguments(**{key: value}), [1]) == [1]


def recorded(folder, losses: list[float], resumed: int, group: dict[str, float], args=None) -> dict:
    """What is recorded of a run that has gone on from a checkpoint.

    The loss that transformers then gives is that of the later steps alone, over all steps. Logged every
    fifth step.
    """
    history = [
        {"step": i, "loss": sum(losses[i - 5 : i]) / 5, "num_tokens": 10.0 * i}
        for i in range(5, resumed + 1, 5)
    ]
    if resumed:
        checkpoint = folder / "checkpoints" / f"checkpoint-{resumed}"
        checkpoint.mkdir(parents=True)
        state = {"global_step": resumed, "max_steps": 20}
        state["log_history"] = [*history, {"step": resumed, "eval_loss": 9.0}]
        write_json(checkpoint / "trainer_state.json", state)
        write_json(checkpoint / CHECKSUMS, checksums(checkpoint))
    output = SimpleNamespace(
        training_loss=sum(losses[resumed:]) / len(losses), metrics={"train_runtime": 1.0}
    )
    args = args or arguments()
    vars(args).update(train_batch_size=1, gradient_accumulation_steps=1, world_size=1, learning_rate=2e-4)
    trainer = SimpleNamespace(
        model=SimpleNamespace(named_parameters=lambda: []),
        args=args,
        optimizer=SimpleNamespace(param_groups=[group]),
        state=SimpleNamespace(global_step=len(losses), log_history=history, best_model_checkpoint=None),
        train=lambda resume_from_checkpoint: output,
    )
    return _train(trainer, folder)


@pytest.mark.parametrize("resumed", [0, 10, 20], ids=["straight", "resumed", "nothing left"])
def test_the_mean_loss_is_that_of_all_steps(tmp_path, resumed):
    metrics = recorded(tmp_path, [float(i) for i in range(1, 21)], resumed, {"initial_lr": 2e-4, "lr": 0.0})
    assert metrics["train_loss"] == 10.5
    assert metrics["resumed_at_step"] == (resumed or None)


def test_a_training_that_goes_on_says_at_which_step(tmp_path, capsys):
    recorded(tmp_path / "first", [1.0] * 20, 0, {"initial_lr": 2e-4})
    assert capsys.readouterr().out == ""
    recorded(tmp_path / "later", [1.0] * 20, 10, {"initial_lr": 2e-4})
    assert capsys.readouterr().out == "Going on from checkpoint-10 of the interrupted run, at step 11.\n"
    # Interrupted before anything was saved
    (tmp_path / "metrics.jsonl").touch()
    recorded(tmp_path, [1.0] * 20, 0, {"initial_lr": 2e-4})
    assert "left no checkpoint: training begins at step 1." in capsys.readouterr().out


def test_going_on_a_share_of_the_steps_is_the_number_that_the_checkpoint_holds(tmp_path):
    """Else transformers warns: `eval_steps: 0.1 (from args) != 1 (from trainer_state.json)`."""
    args = arguments(eval_steps=0.15, save_steps=None)
    recorded(tmp_path / "first", [1.0] * 20, 0, {}, args)
    assert args.eval_steps == 0.15
    recorded(tmp_path / "later", [1.0] * 20, 10, {}, args)
    assert (args.logging_steps, args.eval_steps, args.save_steps) == (5, 3, None)


def test_a_schedule_that_keeps_no_first_rate_is_recorded_with_the_one_it_was_given(tmp_path):
    assert recorded(tmp_path, [1.0], 0, {"lr": 5e-5})["optimizer_learning_rate"] == 2e-4
    assert recorded(tmp_path, [1.0], 0, {"initial_lr": 1e-4, "lr": 5e-5})["optimizer_learning_rate"] == 1e-4


def test_what_comes_only_after_the_last_step_is_said():
    """GPT2-Chinese#60 (more warmup than training), LlamaFactory#5467 (no checkpoint was there)."""
    args = SimpleNamespace(learning_rate=2e-4, lr_scheduler_type="linear", get_warmup_steps=lambda steps: 100)
    args.eval_strategy = args.save_strategy = "steps"
    args.eval_steps = args.save_steps = 500
    assert after_the_end(args, 63, "sft") == [
        "Warning: sft.warmup_steps: 100 of 63 steps, so the learning rate never gets to 0.0002",
        "Warning: sft.eval_steps: 500 of 63 steps, so val is never looked at",
        "Warning: sft.save_steps: 500 of 63 steps, so a crash before the end loses all",
    ]
    assert after_the_end(args, 5, "sft") == []
    assert after_the_end(args, 500, "sft") == []
    args.lr_scheduler_type, args.eval_strategy, args.save_strategy = "constant", "no", "epoch"
    assert after_the_end(args, 63, "sft") == []
