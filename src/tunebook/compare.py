"""Runs side by side: `tunebook report runs/a runs/b`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from tunebook.evaluate import COLUMNS, COMPARED, cells, compared_cells, markdown
from tunebook.paired import compared_steps
from tunebook.recipe import UserError
from tunebook.report import predictions
from tunebook.run import read_json


def compare_runs(runs: list[Path]) -> str:
    """Runs side by side as Markdown: what differs in their recipes, accuracies, each stage paired with the first run's where the
    items coincide, and, over the runs, the mean and spread of each step's difference."""
    summaries = {run.name: read_json(run / "eval" / "summary.json") for run in runs}
    if missing := [name for name, s in summaries.items() if not s]:
        raise UserError(f"{missing[0]} has not been evaluated: run `uv run tunebook evaluate` there first")
    names = list(dict.fromkeys(stage for s in summaries.values() for stage in s["stages"]))
    lines = [f"# {' and '.join(summaries)}", "## What differs", _differences(runs), "## Accuracy"]
    rows = [(run, stage, *cells({stage: s["stages"][stage]})[0][2:]) for stage in names for run, s in summaries.items() if stage in s["stages"]]
    lines.append(markdown(("run", *COLUMNS[:1], *COLUMNS[2:]), rows))
    lines.append(f"## The same items, {runs[0].name} against the others")
    for other in runs[1:]:
        both = {stage: [_marks(run, stage) for run in (runs[0], other)] for stage in names}
        same = {stage: pair for stage, pair in both.items() if pair[0] and pair[0].keys() == pair[1].keys()}
        found = [
            c for stage, pair in same.items() for c in compared_steps({f"{r.name} {stage}": p for r, p in zip((runs[0], other), pair, strict=True)})
        ]
        lines.append(markdown(COMPARED, compared_cells(found)) if found else f"{other.name} answered other items: nothing can be paired.")
    lines += ["## Over the runs", _spread(summaries)]
    return "\n\n".join(lines)


def _marks(run: Path, stage: str) -> dict[str, float]:
    return {item: p["correct"] for item, p in predictions(run, stage).items()}


def _differences(runs: list[Path]) -> str:
    flat = [_flat(next(iter(read_json(run / "manifest.json")["stages"].values()))["recipe"]) for run in runs]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if len({str(f.get(k)) for f in flat}) > 1 and k not in ("run", "name")]
    rows = [(f"`{k}`", *(str(f.get(k, "")) for f in flat)) for k in keys]
    return markdown(("recipe key", *(run.name for run in runs)), rows) if rows else "Nothing in their recipes."


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for name, inner in value.items() for k, v in _flat(inner, f"{path}.{name}".lstrip(".")).items()}


def _spread(summaries: dict[str, Any]) -> str:
    """Mean difference of each step over the runs with its 95% interval (Student's t), as for several seeds."""
    from scipy.stats import t

    steps: dict[str, list[float]] = {}
    for s in summaries.values():
        for c in s["comparisons"]:
            steps.setdefault(f"{c['first']} → {c['second']}", []).append(100 * c["difference"])
    rows: list[tuple[str, ...]] = []
    for step, values in steps.items():
        half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        mean = statistics.mean(values)
        rows.append((step, str(len(values)), ", ".join(f"{v:+.1f}" for v in values), f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"))
    return markdown(("step", "runs", "differences", "mean (95% interval)"), rows)
