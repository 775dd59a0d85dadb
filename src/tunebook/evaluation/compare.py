"""Runs side by side: `tunebook report runs/a runs/b`. A run and its repetition: `tunebook run --from-manifest`."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from tunebook.evaluation.report import predictions
from tunebook.evaluation.statistics import compared_steps
from tunebook.evaluation.tables import Table, accuracy_table, comparison_table
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError
from tunebook.runs.files import log_history, read_json
from tunebook.runs.manifest import recorded, recorded_recipe


def compare_runs(runs: list[Path]) -> str:
    """Runs side by side as Markdown.

    What differs in their recipes; accuracies; each stage paired with the first run's where the items are the
    same; and over the runs the mean and spread of each step's difference.
    """
    summaries = {}
    for run in runs:
        summaries[run.name] = read_json(run / "eval" / "summary.json")
        if not summaries[run.name]:
            raise UserError(f"{run.name} has not been evaluated: run `uv run tunebook evaluate` there first")
    stages = list(dict.fromkeys(stage for summary in summaries.values() for stage in summary["stages"]))
    first = runs[0]
    parts = [
        f"# {' and '.join(summaries)}",
        "## What differs",
        _differing_settings(runs),
        "## Accuracy",
        _accuracies(summaries, stages),
        f"## The same items, {first.name} against the others",
    ]
    for other in runs[1:]:
        comparisons = _paired(first, other, stages)
        if comparisons:
            parts.append(comparison_table(comparisons).markdown())
        else:
            parts.append(f"{other.name} answered other items: nothing can be paired.")
    return "\n\n".join([*parts, "## Over the runs", _spread(summaries)])


def _differing_settings(runs: list[Path]) -> str:
    """The recipe keys that are not the same in all runs."""
    settings = {str(run): _recipe(run) for run in runs}
    keys = dict.fromkeys(key for flat in settings.values() for key in flat)
    rows = []
    for key in keys:
        values = {run: str(flat.get(key)) for run, flat in settings.items()}
        if len(set(values.values())) > 1:
            shown = {run: str(flat.get(key, "")) for run, flat in settings.items()}
            rows.append({"recipe key": f"`{key}`", **shown})
    if not rows:
        return "Nothing in their recipes."
    return Table(rows, {str(run): run.name for run in runs}).markdown()


def _accuracies(summaries: dict[str, Any], stages: list[str]) -> str:
    """Each stage's accuracy in every run that has it, without its slices."""
    rows = []
    headings: dict[str, str] = {}
    for stage in stages:
        for run, summary in summaries.items():
            if stage in summary["stages"]:
                table = accuracy_table({stage: summary["stages"][stage]})
                row = {"run": run, **table.rows[0]}
                del row["slice"]
                rows.append(row)
                headings = table.headings
    return Table(rows, headings).markdown()


def _paired(first: Path, other: Path, stages: list[str]) -> list[dict[str, Any]]:
    """The comparisons of two runs' models, of the stages in which both answered the same items."""
    comparisons = []
    for stage in stages:
        first_scores = _scores(first, stage)
        other_scores = _scores(other, stage)
        if first_scores and first_scores.keys() == other_scores.keys():
            scores = {f"{first.name} {stage}": first_scores, f"{other.name} {stage}": other_scores}
            comparisons += compared_steps(scores)
    return comparisons


def _scores(run: Path, stage: str) -> dict[str, float]:
    return {item: prediction["correct"] for item, prediction in predictions(run, stage).items()}


def _spread(summaries: dict[str, Any]) -> str:
    """Mean difference of each step over the runs with its 95% interval (Student's t), as for several seeds."""
    from scipy.stats import t

    steps: dict[str, list[float]] = {}
    for summary in summaries.values():
        for compared in summary["comparisons"]:
            step = f"{compared['first']} → {compared['second']}"
            steps.setdefault(step, []).append(100 * compared["difference"])
    rows = []
    for step, values in steps.items():
        mean = statistics.mean(values)
        interval = ""
        if len(values) > 1:
            half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
            interval = f" ({mean - half:+.1f} to {mean + half:+.1f})"
        rows.append(
            {
                "step": step,
                "runs": str(len(values)),
                "differences": ", ".join(f"{value:+.1f}" for value in values),
                "mean (95% interval)": f"{mean:+.1f}{interval}",
            }
        )
    return Table(rows).markdown()


def compare_manifests(first: Path, second: Path) -> str:
    """A run and its repetition as a Markdown table, by their manifests; `identical` where they are.

    Data, input files, settings, pairs, loss by step, weights, answers, accuracy, code, versions and hardware.
    Losses and answers come from the files beside the manifests.

    Raises UserError when one is no manifest, or when they have no stage in common.
    """
    first_stages = recorded(first)
    second_stages = recorded(second)
    common = first_stages.keys() & second_stages.keys()
    if not common:
        raise UserError(f"{first} and {second} have no stage in common")
    first_results = _results(first.parent, first_stages, common)
    second_results = _results(second.parent, second_stages, common)
    rows = []
    for name in {**first_results, **second_results}:
        verdict, first_value, second_value = _compared(first_results.get(name), second_results.get(name))
        rows.append({"what": name, "verdict": verdict, "first": first_value, "second": second_value})
    headings = {"verdict": "", "first": first.parent.name, "second": second.parent.name}
    return Table(rows, headings).markdown()


def _compared(first: Any, second: Any) -> tuple[str, str, str]:
    """Whether two results are identical, and of each what differs first."""
    if first is None or second is None:
        return (
            "not compared",
            "" if first is not None else "not there",
            "" if second is not None else "not there",
        )
    if first == second:
        return "identical", "", ""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return "**differs**", str(first)[:60], str(second)[:60]
    keys = {**first, **second}
    differing = [key for key in keys if first.get(key) != second.get(key)]
    key = differing[0]
    verdict = f"**{len(differing)} of {len(keys)} differ**"
    return verdict, f"{key}: {str(first.get(key))[:60]}", f"{key}: {str(second.get(key))[:60]}"


def _results(run: Path, recorded_stages: dict[str, Any], common: set[str]) -> dict[str, Any]:
    """What there is to compare of the stages that both runs have, by what it is; None for what is not there."""
    stages = {name: stage for name, stage in recorded_stages.items() if name in common}
    results: dict[str, Any] = {
        "data": stages.get("data", {}).get("fingerprints"),
        "input files": _input_files(stages),
        "settings": _flat({name: stage["settings"] for name, stage in stages.items()}),
    }
    for name, stage in stages.items():
        files = stage.get("files", {})
        if "metrics" in stage:
            results[f"{name}: loss by step"] = _losses(run, name)
            results[f"{name}: weights"] = files.get("adapter/adapter_model.safetensors")
        if "strategies" in stage:
            results[f"{name}: pairs"] = {split: files.get(f"{split}.parquet") for split in stage["rows"]}
        if "summary" in stage:
            answers = read_records(run / name / "predictions.jsonl")
            results[f"{name}: answers"] = {p["index"]: p["answer"] for p in answers} or None
            results[f"{name}: right answers"] = stage["summary"]["correct"]
    last = max(stages.values(), key=lambda stage: str(stage["ended"]))
    results["code"] = last["git"]["commit"]
    results["lock file"] = last["lock"]
    results["versions"] = last["versions"]
    results["hardware"] = last["hardware"]
    results["stages"] = ", ".join(sorted(recorded_stages))
    return results


def _input_files(stages: dict[str, Any]) -> dict[str, str]:
    """The hashes of the files that the stages read, without what other stages have made."""
    files = {}
    for stage in stages.values():
        for name, file_hash in stage["inputs"].items():
            if name not in stages and name != "adapter":
                files[name] = file_hash
    return files


def _losses(run: Path, stage: str) -> dict[int, float] | None:
    history = log_history(run / stage)
    if not history and stage == "sft":  # a recorded run keeps it beside the manifest
        history = log_history(run)
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry} or None


def _recipe(run: Path) -> dict[str, Any]:
    """The recipe that a run's stages were made with, by dotted key, without the names of recipe and run."""
    recipe = recorded_recipe(recorded(run / "manifest.json"))
    return _flat({key: value for key, value in recipe.items() if key not in ("name", "run")})


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings as {dotted key: value}."""
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{path}.{name}".lstrip("."))
    return flat
