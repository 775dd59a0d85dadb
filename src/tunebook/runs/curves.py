"""Figures of what a training logs: they grow in the notebook while it runs, and end in the report card."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

DARK = "#1f4e79"
SECOND = "#c9772b"
SMALL = 8
"""Points, of what is written beside the numbers."""

HEALTHY = {
    "loss": "falls",
    "losses/sigmoid": "falls from ln 2",
    "losses/sft": "the chosen answers alone: must not rise",
    "rewards/accuracies": "rises to 0.7 and more; guessing is 0.5",
    "rewards/chosen": "near or above 0; rejected (orange) below it",
    "rewards/margins": "rises slowly from 0",
    "logps/chosen": "must not fall: else lower the rate",
    "learning_rate": "",
    "grad_norm": "no jumps",
}
"""What a healthy DPO run does with each logged metric."""

EXPECTED = {
    "losses/sigmoid": math.log(2),
    "rewards/accuracies": 0.5,
    "rewards/chosen": 0.0,
    "rewards/margins": 0.0,
}
"""Where a metric begins while policy and reference are the same model; of accuracies, what guessing gives."""


def training(history: list[dict[str, Any]]) -> Figure:
    """The figure that fits a stage's `metrics.jsonl`: of preferences where it has some, else of the loss."""
    if any("rewards/margins" in entry for entry in history):
        return preferences(history)
    return losses(history)


def losses(history: list[dict[str, Any]]) -> Figure:
    """Loss on `train` and `val` by step, with learning rate and gradient norm beside it."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    loss, rate, norm = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    _curve(loss, history, "loss", label="train")
    evaluations = [entry for entry in history if "eval_loss" in entry]
    if evaluations:
        steps, values = _points(evaluations, "eval_loss")
        loss.plot(steps, values, "o-", color=SECOND, label="val")
    loss.set(yscale="log", ylabel="loss per trained token")
    # A loss rarely goes through a power of ten, where a logarithmic axis has its marks.
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    loss.yaxis.set_major_formatter("{x:g}")
    loss.minorticks_off()
    if loss.lines:
        loss.legend(frameon=False)
    _curve(rate, history, "learning_rate", smooth=False)
    _curve(norm, history, "grad_norm")
    for axes, title in ((loss, "Loss"), (rate, "Learning rate"), (norm, "Gradient norm")):
        axes.set_title(title, fontsize=10)
        _finish(axes)
    return figure


def preferences(history: list[dict[str, Any]]) -> Figure:
    """The metrics of a DPO run by step: the parts of its loss apart, each with what a healthy run does.

    A dashed line is where a metric begins (`EXPECTED`).
    """
    # A training that does not log its parts apart has the sum.
    logged = set().union(*history)
    parts = sorted((key for key in logged if key.startswith("losses/")), reverse=True)
    metrics = [*(parts or ["loss"]), *(key for key in HEALTHY if not key.startswith("loss"))]
    # Two beside each other, which can be read on half a screen.
    rows = math.ceil(len(metrics) / 2)
    figure = Figure(figsize=(9, 2.3 * rows), layout="constrained")
    grid = figure.subplots(rows, 2).flat
    for axes, metric in zip(grid, metrics, strict=False):
        # The schedule has no noise.
        _curve(axes, history, metric, smooth=metric != "learning_rate")
        if metric == "rewards/chosen":
            _curve(axes, history, "rewards/rejected", colour=SECOND)
        # Where it begins.
        if metric in EXPECTED:
            axes.axhline(EXPECTED[metric], color="black", linestyle="--", linewidth=0.8)
        # What is healthy stands in the second line of the title, smaller.
        axes.set_title(f"{metric}\n", fontsize=10)
        healthy = HEALTHY.get(metric, "")
        axes.text(0.5, 1.03, healthy, transform=axes.transAxes, ha="center", fontsize=7.5, color="#555555")
        _finish(axes)
    for empty in grid[len(metrics) :]:
        empty.set_axis_off()
    return figure


def _points(entries: list[dict[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    """The steps and values of a metric in log entries that have it."""
    entries = [entry for entry in entries if metric in entry]
    return [int(entry["step"]) for entry in entries], [float(entry[metric]) for entry in entries]


def _curve(
    axes: Axes,
    history: list[dict[str, Any]],
    metric: str,
    label: str = "",
    colour: str = DARK,
    smooth: bool = True,
) -> None:
    """A metric by step, smoothed over its raw values; nothing when it was not logged."""
    # Not the closing entry of a run, which has the metrics of the last steps once more and no loss.
    steps, values = _points([entry for entry in history if "loss" in entry], metric)
    if smooth and len(values) > 2:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        values = smoothed(values)
    if values:
        # A single point has no line.
        axes.plot(steps, values, color=colour, label=label, marker="." if len(values) == 1 else None)


def smoothed(values: list[float]) -> list[float]:
    """A moving mean, weighted by a bell as wide as a twentieth of the curve."""
    from scipy.ndimage import gaussian_filter1d

    width = max(1.0, len(values) / 20)
    means: list[float] = gaussian_filter1d(values, width, mode="nearest").tolist()
    return means


def _finish(axes: Axes) -> None:
    """What all panels have: whole steps below, small print, no frame above and at the right."""
    axes.set_xlabel("step", fontsize=SMALL)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
