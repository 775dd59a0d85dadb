"""Figures, from what the stages recorded. Each function returns a matplotlib figure; a notebook shows it, a report saves it."""

from __future__ import annotations

import html
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from tunebook.pairs.shortcuts import marked

GREY = "#9a9a9a"


DARK = "#1f4e79"


def lengths(tokens: dict[str, list[int]], limit: int) -> Figure:
    """Histogram of tokens per row by split, with the model's limit where it is near."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(
        list(tokens.values()),
        bins=30,
        stacked=True,
        label=list(tokens),
        color=[DARK, GREY, "#d9d9d9"][: len(tokens)],
    )
    longest = max((max(t) for t in tokens.values() if t), default=0)
    if limit < 2 * longest:
        axes.axvline(limit, color="black", linestyle="--", label=f"max_seq_length {limit}")
    axes.set(xlabel="tokens in a row", ylabel="rows", title="Length of prompt and completion")
    axes.legend(frameon=False)
    return figure


def losses(history: list[dict[str, Any]]) -> Figure:
    """Training and evaluation loss by step, from a stage's `metrics.jsonl`."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for key, label, colour, marker in (("loss", "train", GREY, ""), ("eval_loss", "val", DARK, "o")):
        points = [(entry["step"], float(entry[key])) for entry in history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, color=colour, marker=marker)
    axes.set(xlabel="step", ylabel="loss per trained token", yscale="log", title="Loss")
    axes.yaxis.set_major_locator(
        LogLocator(subs=(1, 1.5, 2, 3, 5, 7))
    )  # a loss rarely goes through a power of ten
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


def accuracies(results: dict[str, dict[str, Any]]) -> Figure:
    """Accuracy of each stage, in all and by slice, with 95% Wilson intervals."""
    slices = ["all", *next(iter(results.values()))["slices"]]
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(results)
    for i, (stage, summary) in enumerate(results.items()):
        parts = [summary if name == "all" else summary["slices"][name] for name in slices]
        heights = [p["accuracy"] for p in parts]
        errors = [
            [p["accuracy"] - p["interval"][0] for p in parts],
            [p["interval"][1] - p["accuracy"] for p in parts],
        ]
        where = [x + (i - (len(results) - 1) / 2) * width for x in range(len(slices))]
        axes.bar(
            where,
            heights,
            width * 0.95,
            yerr=errors,
            capsize=3,
            label=stage,
            color=[GREY, DARK, "#7fa8d1"][i % 3],
        )
    axes.set_xticks(range(len(slices)), slices)
    axes.set(
        ylabel="accuracy", ylim=(0, 1), title=f"Held-out problems (n = {next(iter(results.values()))['n']})"
    )
    axes.legend(frameon=False)
    return figure


def scores(tasks: dict[str, dict[str, Any]]) -> Figure:
    """Benchmark scores: tasks as rows, a point with its 95% interval for each stage."""
    figure = Figure(figsize=(7, 1 + 0.6 * len(tasks)), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for found in tasks.values() for name in found))
    for i, name in enumerate(names):
        points = [
            (row + 0.18 * (i - (len(names) - 1) / 2), found[name])
            for row, found in enumerate(tasks.values())
            if name in found
        ]
        values = [s["score"] for _, s in points]
        errors = [
            [s["score"] - s["interval"][0] for _, s in points],
            [s["interval"][1] - s["score"] for _, s in points],
        ]
        colour = [GREY, DARK, "#7fa8d1"][i % 3]
        axes.errorbar(
            values,
            [y for y, _ in points],
            xerr=errors,
            label=name,
            fmt="osD^v"[i % 5],
            color=colour,
            capsize=3,
        )
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.set(xlabel="score", xlim=(0, 1), title="Benchmarks")
    axes.invert_yaxis()
    axes.legend(frameon=False)
    return figure


HEALTHY = {
    "loss": "falls from ln 2 (plus the NLL term)",
    "rewards/accuracies": "rises to 0.7 and more",
    "rewards/chosen": "near or above 0",
    "rewards/rejected": "falls below chosen",
    "rewards/margins": "rises slowly",
    "logps/chosen": "must not fall: lower the rate or raise the NLL weight",
}
"""What a healthy DPO run does with each logged metric."""


def preferences(history: list[dict[str, Any]]) -> Figure:
    """The metrics of a DPO run by step, each with what a healthy run does."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axes, (key, healthy) in zip(figure.subplots(2, 3).flat, HEALTHY.items(), strict=True):
        points = [(entry["step"], float(entry[key])) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), color=DARK)
        axes.set_title(f"{key}\n", fontsize=10)
        axes.text(0.5, 1.03, healthy, transform=axes.transAxes, ha="center", fontsize=7.5, color="#555555")
        axes.set_xlabel("step", fontsize=8)
    return figure


def pass_counts(record: dict[str, Any]) -> Figure:
    """How many prompts had 0, 1, 2, ... right samples, of the record of `pairs`. Those at the ends give no pair; where the reference
    stands in, those that were never right do."""
    counts: dict[str, int] = record["pass_counts"]
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    barren = [max(counts, key=int)] + ["0"] * ("reference" not in record["strategies"])
    axes.bar(list(counts), list(counts.values()), color=[GREY if k in barren else DARK for k in counts])
    axes.set(xlabel="right samples of a prompt", ylabel="prompts", title="Pass rate (grey: no pair)")
    return figure


def pair_lengths(pairs: Any) -> Figure:
    """Tokens of chosen and rejected. Where they differ much, the model may learn length."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    sides = ("chosen", "rejected")
    axes.hist([pairs[f"{side}_tokens"] for side in sides], bins=20, label=sides, color=[DARK, GREY])
    axes.set(xlabel="tokens", ylabel="pairs", title="Length of chosen and rejected")
    axes.legend(frameon=False)
    return figure


def side_by_side(pair: dict[str, Any]) -> str:
    """A pair as an HTML table, with what rejected changes marked."""
    chosen = html.escape(pair["chosen"][0]["content"])
    rejected = "".join(
        f"<mark>{html.escape(part)}</mark>" if new else html.escape(part) for part, new in marked(pair)
    )
    left = "text-align:left; vertical-align:top"
    cell = f'<td style="{left}; white-space:pre-wrap; font-family:monospace">{{}}</td>'
    known = f"answer: {pair['gold']}; " if pair["gold"] else ""
    question = html.escape(f"{pair['prompt'][-1]['content']} ({known}{pair['strategy']})")
    head = f'<caption style="{left}">{question}</caption><tr><th style="{left}">chosen</th><th style="{left}">rejected</th></tr>'
    return f'<table style="width:100%; table-layout:fixed">{head}<tr>{cell.format(chosen)}{cell.format(rejected)}</tr></table>'
