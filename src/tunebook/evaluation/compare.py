"""Runs side by side: `tunebook report runs/a runs/b`. A run and its repetition: `tunebook run --from-manifest`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from tunebook.evaluation.report import predictions
from tunebook.evaluation.statistics import compared_steps
from tunebook.evaluation.tables import COLUMNS, COMPARED, cells, compared_cells, markdown
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError
from tunebook.runs.files import log_history, read_json
from tunebook.runs.manifest import recorded, recorded_recipe


def compare_runs(runs: list[Path]) -> str:
    """Runs side by side as Markdown: what differs in their recipes, accuracies, each stage paired with the first run's where the
    items coincide, and, over the runs, the mean and spread of each step's difference."""
    summaries = {run.name: read_json(run / "eval" / "summary.json") for run in runs}
    if missing := [name for name, s in summaries.items() if not s]:
        raise UserError(f"{missing[0]} has not been evaluated: run `uv run tunebook evaluate` there first")
    names = list(dict.fromkeys(stage for s in summaries.values() for stage in s["stages"]))
    lines = [f"# {' and '.join(summaries)}", "## What differs", _differences(runs), "## Accuracy"]
    rows = [
        (run, stage, *cells({stage: s["stages"][stage]})[0][2:])
        for stage in names
        for run, s in summaries.items()
        if stage in s["stages"]
    ]
    lines.append(markdown(("run", *COLUMNS[:1], *COLUMNS[2:]), rows))
    lines.append(f"## The same items, {runs[0].name} against the others")
    for other in runs[1:]:
        both = {stage: [_marks(run, stage) for run in (runs[0], other)] for stage in names}
        same = {stage: pair for stage, pair in both.items() if pair[0] and pair[0].keys() == pair[1].keys()}
        found = [
            c
            for stage, pair in same.items()
            for c in compared_steps(
                {f"{r.name} {stage}": p for r, p in zip((runs[0], other), pair, strict=True)}
            )
        ]
        lines.append(
            markdown(COMPARED, compared_cells(found))
            if found
            else f"{other.name} answered other items: nothing can be paired."
        )
    lines += ["## Over the runs", _spread(summaries)]
    return "\n\n".join(lines)


def compare_manifests(first: Path, second: Path) -> str:
    """A run and its repetition as a Markdown table, by their manifests: data, input files, settings, pairs, loss by step, weights,
    answers, accuracy, code, versions and hardware; `identical` where they are. Losses and answers come from the files beside the manifests.

    Raises UserError when one is no manifest, or when they have no stage in common.
    """
    names = [sorted(recorded(path)) for path in (first, second)]
    if not set(names[0]) & set(names[1]):
        raise UserError(f"{first} and {second} have no stage in common")
    found = [
        _findings(path, set(names[0]) & set(names[1])) | {"stages": ", ".join(name)}
        for path, name in zip((first, second), names, strict=True)
    ]
    rows = []
    for name in dict.fromkeys([*found[0], *found[1]]):
        a, b = (f.get(name) for f in found)
        if a is None or b is None:
            rows.append((name, "not compared", *("not there" if x is None else "" for x in (a, b))))
        elif a == b:
            rows.append((name, "identical", "", ""))
        elif isinstance(a, dict) and isinstance(b, dict):
            keys = [k for k in {**a, **b} if a.get(k) != b.get(k)]
            rows.append(
                (
                    name,
                    f"**{len(keys)} of {len(a | b)} differ**",
                    *(f"{keys[0]}: {str(x.get(keys[0]))[:60]}" for x in (a, b)),
                )
            )
        else:
            rows.append((name, "**differs**", str(a)[:60], str(b)[:60]))
    return markdown(("what", "", first.parent.name, second.parent.name), rows)


def _findings(manifest: Path, names: set[str]) -> dict[str, Any]:
    """What there is to compare of some stages of a run, by what it is; None for what is not there."""
    stages, beside = (
        {name: stage for name, stage in recorded(manifest).items() if name in names},
        manifest.parent,
    )
    last = max(stages.values(), key=lambda s: str(s["ended"]))
    found: dict[str, Any] = {
        "data": stages.get("data", {}).get("fingerprints"),
        "input files": {
            k: v for s in stages.values() for k, v in s["inputs"].items() if k not in {*stages, "adapter"}
        },
        "settings": _flat({name: s["settings"] for name, s in stages.items()}),
    }
    for name, stage in stages.items():
        if "metrics" in stage:
            history = log_history(beside / name) or (log_history(beside) if name == "sft" else [])
            found[f"{name}: loss by step"] = {e["step"]: e["loss"] for e in history if "loss" in e} or None
            found[f"{name}: weights"] = stage.get("files", {}).get("adapter/adapter_model.safetensors")
        if "strategies" in stage:
            found[f"{name}: pairs"] = {k: stage.get("files", {}).get(f"{k}.parquet") for k in stage["rows"]}
        if "summary" in stage:
            found[f"{name}: answers"] = {
                p["index"]: p["answer"] for p in read_records(beside / name / "predictions.jsonl")
            } or None
            found[f"{name}: right answers"] = stage["summary"]["correct"]
    return found | {
        "code": last["git"]["commit"],
        "lock file": last["lock"],
        "versions": last["versions"],
        "hardware": last["hardware"],
    }


def _marks(run: Path, stage: str) -> dict[str, float]:
    return {item: p["correct"] for item, p in predictions(run, stage).items()}


def _differences(runs: list[Path]) -> str:
    flat = [_recipe(run) for run in runs]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if len({str(f.get(k)) for f in flat}) > 1]
    rows = [(f"`{k}`", *(str(f.get(k, "")) for f in flat)) for k in keys]
    return (
        markdown(("recipe key", *(run.name for run in runs)), rows) if rows else "Nothing in their recipes."
    )


def _recipe(run: Path) -> dict[str, Any]:
    """The recipe that a run's stages were made with, by dotted key, without the names of recipe and run."""
    recipe = recorded_recipe(recorded(run / "manifest.json"))
    return _flat({key: value for key, value in recipe.items() if key not in ("name", "run")})


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {
        k: v for name, inner in value.items() for k, v in _flat(inner, f"{path}.{name}".lstrip(".")).items()
    }


def _spread(summaries: dict[str, Any]) -> str:
    """Mean difference of each step over the runs with its 95% interval (Student's t), as for several seeds."""
    from scipy.stats import t

    steps: dict[str, list[float]] = {}
    for s in summaries.values():
        for c in s["comparisons"]:
            steps.setdefault(f"{c['first']} → {c['second']}", []).append(100 * c["difference"])
    rows: list[tuple[str, ...]] = []
    for step, values in steps.items():
        mean, shown = statistics.mean(values), ""
        if len(values) > 1:
            half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
            shown = f" ({mean - half:+.1f} to {mean + half:+.1f})"
        rows.append((step, str(len(values)), ", ".join(f"{v:+.1f}" for v in values), f"{mean:+.1f}{shown}"))
    return markdown(("step", "runs", "differences", "mean (95% interval)"), rows)
