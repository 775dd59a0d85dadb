"""Figures of what the stages recorded, for notebooks to show and reports to save."""

from __future__ import annotations

import itertools
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tunebook.evaluation.statistics import column, is_graded

GREY = "#9a9a9a"
DARK = "#1f4e79"
LIGHT = "#7fa8d1"
COLOURS = (GREY, DARK, LIGHT)  # of stages, in turn


def lengths(tokens: dict[str, list[int]], limit: int) -> Figure:
    """Histogram of tokens per row by split, with the model's limit where it is near."""
    figure, axes = _figure(7, 3)
    colours = [DARK, GREY, "#d9d9d9"][: len(tokens)]
    axes.hist(list(tokens.values()), bins=30, stacked=True, label=list(tokens), color=colours)
    longest = max(itertools.chain.from_iterable(tokens.values()), default=0)
    if limit < 2 * longest:  # else the line would squeeze the bars
        axes.axvline(limit, color="black", linestyle="--", label=f"max_seq_length {limit}")
    axes.set(xlabel="tokens in a row", ylabel="rows", title="Length of prompt and completion")
    axes.legend(frameon=False)
    return figure


def accuracies(results: dict[str, dict[str, Any]]) -> Figure:
    """Accuracy of each stage, in all and by slice, with 95% intervals; of graded answers the mean score."""
    any_stage = next(iter(results.values()))
    # A checker may say nothing of a whole slice in one stage.
    common = set.intersection(*(set(summary["slices"]) for summary in results.values()))
    slices = ["all", *(name for name in any_stage["slices"] if name in common)]
    figure, axes = _figure(7, 3)
    # A graded answer is seldom wholly right: its accuracy would say little.
    graded = is_graded(results)
    key = "score" if graded else "accuracy"
    interval = "score_interval" if graded else "interval"
    label = "mean score" if graded else "accuracy"
    width = 0.8 / len(results)
    for i, (stage, summary) in enumerate(results.items()):
        by_slice = {"all": summary, **summary["slices"]}
        scores = [by_slice[name] for name in slices]
        # The stages' bars stand side by side, centred on the mark of their slice.
        left = (i - (len(results) - 1) / 2) * width
        axes.bar(
            numpy.arange(len(slices)) + left,
            column(scores, key),
            width * 0.95,
            yerr=_errors(scores, key, interval),
            capsize=3,
            label=stage,
            color=COLOURS[i % len(COLOURS)],
        )
    axes.set_xticks(range(len(slices)), slices)
    axes.set(ylabel=label, ylim=(0, 1), title=f"Held-out problems (n = {any_stage['n']})")
    axes.legend(frameon=False)
    return figure


def settings(choice: dict[str, Any]) -> Figure:
    """The mean of each setting of a sweep with its 95% interval; grey are those worse than the best."""
    names = list(choice["models"])
    figure, axes = _figure(8, 1 + 0.4 * len(names))
    for row, name in enumerate(names):
        model = choice["models"][name]
        is_open = name == choice["best"] or name in choice["rivals"]
        colour = COLOURS[0] if is_open else "grey"
        errors = _errors([model], "mean")
        axes.errorbar([model["mean"]], [row], xerr=errors, fmt="o", color=colour, capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"mean over {choice['n']} val items", title="Grey: worse than the best")
    return figure


def scores(tasks: dict[str, dict[str, Any]]) -> Figure:
    """Benchmark scores: tasks as rows, a point with its 95% interval for each stage."""
    figure, axes = _figure(7, 1 + 0.6 * len(tasks))
    # In the order in which they first come; a task may lack some.
    stages = list(dict.fromkeys(itertools.chain.from_iterable(tasks.values())))
    for i, stage in enumerate(stages):
        # The stages' points stand one below the other, centred on the line of their task.
        below = 0.18 * (i - (len(stages) - 1) / 2)
        rows = []
        points = []
        for row, by_stage in enumerate(tasks.values()):
            if stage in by_stage:
                rows.append(row + below)
                points.append(by_stage[stage])
        axes.errorbar(
            column(points, "score"),
            rows,
            xerr=_errors(points, "score"),
            label=stage,
            fmt="osD^v"[i % 5],
            color=COLOURS[i % len(COLOURS)],
            capsize=3,
        )
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.set(xlabel="score", xlim=(0, 1), title="Benchmarks")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


def differences(rows: list[dict[str, Any]]) -> Figure:
    """The task and each other skill: the last model minus base, in points, with 95% intervals.

    Args:
        rows: Of `first_screen.overview_rows`.
    """
    figure, axes = _figure(7, 1 + 0.35 * len(rows))
    for place, row in enumerate(rows):
        colour = DARK if row["verdict"] in ("better", "worse") else GREY
        low, high = row["interval"]
        axes.plot([100 * low, 100 * high], [place, place], color=colour)
        axes.plot([100 * row["difference"]], [place], "o", color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['what']} (n = {row['n']})" for row in rows])
    title = "What training changed (blue: shown, grey: not)"
    axes.set(xlabel="points, last model minus base", title=title)
    axes.invert_yaxis()
    return figure


def pass_counts(record: dict[str, Any]) -> Figure:
    """How many prompts had 0, 1, 2, ... right samples, of the record of `pairs`. Grey bars give no pair.

    Of pairs by the margin of their scores (`pairs.min_margin` with a `check`) none is grey.
    """
    counts: dict[str, int] = record["pass_counts"]
    # Always right: nothing to reject. Never right: nothing to choose, unless the reference stands in.
    barren = [max(counts, key=int)]
    if "reference" not in record["strategies"]:
        barren.append("0")
    settings = record.get("settings", {})
    by_margin = "check" in settings and settings["pairs"]["min_margin"] is not None
    if by_margin:
        barren = []
    figure, axes = _figure(5, 3)
    colours = [GREY if count in barren else DARK for count in counts]
    axes.bar(list(counts), list(counts.values()), color=colours)
    title = "Pass rate" if by_margin else "Pass rate (grey: no pair)"
    axes.set(xlabel="right samples of a prompt", ylabel="prompts", title=title)
    return figure


def pair_lengths(pairs: Any) -> Figure:
    """Tokens of chosen and rejected. Where they differ much, the model may learn length."""
    figure, axes = _figure(5, 3)
    tokens = [pairs["chosen_tokens"], pairs["rejected_tokens"]]
    axes.hist(tokens, bins=20, label=["chosen", "rejected"], color=[DARK, GREY])
    axes.set(xlabel="tokens", ylabel="pairs", title="Length of chosen and rejected")
    axes.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one plot, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _errors(scores: list[dict[str, Any]], key: str, interval: str = "interval") -> Any:
    """How far the intervals reach below the scores, and above."""
    values = numpy.array(column(scores, key))
    low, high = numpy.array(column(scores, interval)).T
    return numpy.array([values - low, high - values])
