"""What SFT and DPO evaluate on and record, with stand-ins for trainer and model."""

from __future__ import annotations

import json
import math
import signal
from types import SimpleNamespace

import datasets
import pytest

from tunebook.recipe.files import ROOT
from tunebook.training import audits


def test_the_audit_measures_the_plain_loss_whatever_is_trained_on():
    import contextlib

    import torch

    def compute_loss(model, inputs):
        trainer._metrics["eval"]["rewards/margins"] = [0.0]
        plain = trainer.loss_types == ["sigmoid"] and not trainer.aux_loss_enabled
        return torch.tensor(
            (0.5 if plain else 0.8) * trainer.loss_weights[0] * (0.1 if trainer.use_weighting else 1.0)
        )

    trained = {
        "loss_types": ["hinge"],
        "loss_weights": [2.0],
        "use_weighting": True,
        "aux_loss_enabled": True,
    }
    trainer = SimpleNamespace(
        model=torch.nn.Linear(1, 1),
        data_collator=list,
        _prepare_inputs=list,
        _metrics={"eval": {}},
        compute_loss=compute_loss,
        compute_loss_context_manager=contextlib.nullcontext,
        **trained,
    )
    assert audits._measured(trainer, [{}], 2) == (0.5, {"rewards/margins": 0.0})
    assert {name: getattr(trainer, name) for name in trained} == trained and trainer.model.training


def test_the_audit_takes_no_more_rows_at_a_time_than_a_training_batch():
    """Eight pairs are sixteen sequences, which need not fit where one pair does."""
    import contextlib

    import torch

    sizes = []

    def compute_loss(model, inputs):
        sizes.append(len(inputs))
        mean = sum(row["value"] for row in inputs) / len(inputs)
        for name in ("rewards/margins", "rewards/chosen", "rewards/rejected", "logps/chosen"):
            trainer._metrics["eval"][name] = [mean]
        return torch.tensor(math.log(2) + mean)

    values = [0.004, -0.004, 0.002, -0.002, 0.0, 0.003, -0.003]
    trainer = SimpleNamespace(
        model=torch.nn.Linear(1, 1),
        args=SimpleNamespace(per_device_train_batch_size=2),
        train_dataset=datasets.Dataset.from_dict({"value": values}),
        data_collator=list,
        _prepare_inputs=list,
        _metrics={"eval": {}},
        compute_loss=compute_loss,
        compute_loss_context_manager=contextlib.nullcontext,
        loss_types=[],
        loss_weights=[],
        use_weighting=False,
        aux_loss_enabled=False,
    )
    audit = audits.audit_step_0(trainer, None)
    assert sizes == [2, 2, 2, 1]
    assert audit["loss"] == pytest.approx(math.log(2), abs=1e-6) and audit["margin"] == pytest.approx(0)


@pytest.mark.parametrize(("name", "most"), [("02_sft", 1), ("04_dpo", 3)])
@pytest.mark.parametrize("held_out", [0, 2, 5])
def test_notebooks_show_what_held_out_rows_there_are(name, most, held_out):
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "evaluate.answers" in "".join(cell["source"]))
    rows = []
    for i in range(held_out):
        right = [{"content": "It is 7."}]
        rows.append({"prompt": [{"content": f"{i}?"}], "gold": "7", "completion": right})
    shown: list[str] = []

    def answers(model, tokenizer, adapters, asked, limit):
        return [dict.fromkeys(adapters, f"says {row['prompt']}") for row in asked]

    given = {
        "rec": SimpleNamespace(evaluate=SimpleNamespace(max_new_tokens=8)),
        "model": None,
        "tokenizer": None,
        "evaluate": SimpleNamespace(answers=answers, examples=lambda rec, count: rows[:count]),
        "dpo_stage": lambda rec, round: SimpleNamespace(name="dpo"),
        "policy_name": lambda rec, round: "sft",
        "round": 1,
        "open_all": list,
        "Markdown": str,
        "display": lambda *what: shown.extend(what),
    }
    exec(source, given)  # noqa: S102 - the notebook's own cell
    assert sum("says" in text for text in shown if text.startswith("*")) == min(most, held_out) * (
        2 if name == "02_sft" else 3
    )


def test_a_sigterm_after_ctrl_c_lets_the_step_end_and_a_second_ctrl_c_does_not():
    """papermill#508: plain papermill sends SIGTERM soon after it has interrupted the notebook."""
    from tunebook.training.trainer import _checkpoint_on_interrupt

    callbacks = []
    trainer = SimpleNamespace(add_callback=callbacks.append)
    control = SimpleNamespace()
    with pytest.raises(KeyboardInterrupt), _checkpoint_on_interrupt(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        callbacks[0].on_step_end(
            SimpleNamespace(device="cpu"), SimpleNamespace(global_step=1, max_steps=9), control
        )
    assert control.should_save and control.should_training_stop

    reached = []
    with pytest.raises(KeyboardInterrupt), _checkpoint_on_interrupt(trainer):
        signal.raise_signal(signal.SIGTERM)
        reached.append("after SIGTERM")
        signal.raise_signal(signal.SIGINT)
        reached.append("after Ctrl-C")
    assert reached == ["after SIGTERM"]
