"""The curves of a training: raw and smoothed, with what is expected of DPO."""

from __future__ import annotations

import math

import numpy
import pytest

from tunebook.runs import curves

SFT = [
    {"step": 5 * i, "loss": 2 / i, "learning_rate": 1e-3 / i, "grad_norm": "0.5"} for i in range(1, 11)
] + [{"step": 25, "eval_loss": 0.6}, {"step": 50, "eval_loss": 0.4}, {"step": 50, "train_loss": 0.5}]
CLOSING = {"step": 8, "rewards/chosen": 9.0, "rewards/margins": 9.0, "train_loss": 0.5}


def dpo(**more: float) -> list[dict]:
    entry = {
        "loss": 1.2,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.2,
        "rewards/margins": 0.3,
        "rewards/accuracies": 0.7,
        "logps/chosen": -20.0,
        "learning_rate": 1e-5,
        "grad_norm": 1.0,
    }
    return [{"step": i, **entry, **more} for i in range(1, 9)] + [CLOSING]


def panels(figure):
    return {axes.get_title().strip(): axes for axes in figure.axes if axes.axison}


def test_losses_are_smoothed_over_the_raw_ones_beside_rate_and_norm():
    axes = panels(curves.training(SFT))
    assert list(axes) == ["Loss", "Learning rate", "Gradient norm"]
    raw, smooth, val = axes["Loss"].lines
    assert list(raw.get_ydata()) == [2 / i for i in range(1, 11)] and raw.get_alpha() < 1
    assert list(raw.get_xdata()) == list(smooth.get_xdata()) == list(range(5, 51, 5))
    # Smoother: it bends less, and ends near where the raw curve does.
    bends = [numpy.abs(numpy.diff(line.get_ydata(), 2)).sum() for line in (raw, smooth)]
    assert bends[1] < bends[0] and smooth.get_ydata()[-1] == pytest.approx(0.2, abs=0.03)
    assert (list(val.get_xdata()), list(val.get_ydata())) == ([25, 50], [0.6, 0.4])
    assert list(axes["Learning rate"].lines[0].get_ydata()) == [1e-3 / i for i in range(1, 11)]
    assert list(axes["Gradient norm"].lines[-1].get_ydata()) == pytest.approx([0.5] * 10)


def test_dpo_has_the_parts_of_its_loss_apart_and_where_each_metric_begins():
    axes = panels(curves.training(dpo(**{"losses/sigmoid": 0.6, "losses/sft": 0.01})))
    assert list(axes)[:2] == ["losses/sigmoid", "losses/sft"] and "loss" not in axes
    dashed = {name: [line for line in a.lines if line.get_linestyle() == "--"] for name, a in axes.items()}
    begins = {name: lines[0].get_ydata()[0] for name, lines in dashed.items() if lines}
    assert begins == {
        "losses/sigmoid": math.log(2),
        "rewards/accuracies": 0.5,
        "rewards/chosen": 0.0,
        "rewards/margins": 0.0,
    }
    # chosen raw and smoothed, rejected raw and smoothed, without the closing entry of the run
    chosen, _, rejected, _ = axes["rewards/chosen"].lines[:4]
    assert list(chosen.get_ydata()) == [0.1] * 8 and list(rejected.get_ydata()) == [-0.2] * 8


def test_an_older_dpo_run_has_its_loss_as_one():
    assert next(iter(panels(curves.training(dpo())))) == "loss"


@pytest.mark.parametrize("history", [[], SFT[:1], dpo()[:1]])
def test_the_first_moments_can_be_drawn(history, tmp_path):
    curves.training(history).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000
