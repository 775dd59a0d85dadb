"""Runs side by side, and a run beside its repetition.

uv run tunebook report runs/a runs/b
uv run tunebook run --from-manifest runs/a/manifest.json
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunebook.evaluation import pooled
from tunebook.evaluation.held_out import LOSSES, compare_losses
from tunebook.evaluation.report import predictions
from tunebook.evaluation.statistics import column, compared_steps, is_graded, marks
from tunebook.evaluation.table import Table
from tunebook.evaluation.tables import (
    ACCURACY,
    accuracy_cells,
    comparison_table,
    loss_comparison_table,
    loss_table,
)
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError
from tunebook.runs.files import log_history, read_json
from tunebook.runs.manifest import recorded, recorded_recipe

SEEDS = ("seed", "data_seed")
"""The keys by which repetitions of a training differ."""


def compare_runs(runs: list[Path]) -> str:
    """Runs side by side as Markdown, finished ones or those of `resources/`.

    What they show together, of several seeds say; what differs in their recipes; accuracies; each stage
    paired with the first run's where the items are the same.
    """
    summaries = {}
    stages: dict[str, None] = {}  # of all runs, in the order in which they come
    for run in runs:
        summary = results_of(run)
        if not summary:
            raise UserError(f"{run.name} has not been evaluated: run `uv run tunebook evaluate` there first")
        summaries[run.name] = summary
        stages |= dict.fromkeys(summary["stages"])
    first = runs[0]
    settings = _differing_settings(runs)
    steps = pooled.by_step(list(summaries.values()))
    claims = [f"- {pooled.claim(step, of_step)}" for step, of_step in steps.items()]
    parts = [f"# {' and '.join(summaries)}"]
    if steps:
        parts += ["## Over the runs", _what_spreads(settings), "\n".join(claims)]
        parts += [pooled.pooled_table(steps).markdown(), pooled.EXPLAINED]
    parts += ["## What differs", settings.markdown() or "Nothing in their recipes."]
    if accuracies := _accuracies(summaries, stages):
        parts += ["## Accuracy", accuracies]
    if losses := _losses_of_answers(summaries, stages):
        parts += ["## Held-out answers", losses]
    parts.append(f"## The same items, {first.name} against the others")
    for other in runs[1:]:
        comparisons = _paired(first, other, stages)
        changes = _paired_losses(first, other, stages)
        parts.append(comparison_table(comparisons).markdown())
        parts.append(loss_comparison_table(changes).markdown())
        if not comparisons and not changes:
            parts.append(f"{other.name} answered other items, or its answers are not kept: none is paired.")
    return "\n\n".join(filter(None, parts))


def results_of(run: Path) -> dict[str, Any]:
    """The results of a run's evaluation; a recorded run keeps them beside its manifest."""
    return read_json(run / "eval" / "summary.json") or read_json(run / "summary.json")


def _differing_settings(runs: list[Path]) -> Table:
    """The recipe keys that are not the same in all runs."""
    settings = {str(run): _recipe(run) for run in runs}
    keys = dict.fromkeys(itertools.chain.from_iterable(settings.values()))
    table = Table(key="recipe key", **{str(run): run.name for run in runs})  # two may have one name
    for key in keys:
        values = {str(flat.get(key)) for flat in settings.values()}
        if len(values) > 1:
            table.add(key=f"`{key}`", **{run: flat.get(key, "") for run, flat in settings.items()})
    return table


def _what_spreads(settings: Table) -> str:
    """What the spread over runs is the spread of, by the settings in which they differ."""
    keys = [row["key"].strip("`") for row in settings.rows]
    others = [key for key in keys if key.rpartition(".")[2] not in SEEDS]
    if others:
        return "The runs differ in other settings than their seeds (below), which adds to the spread."
    if not keys:
        return "The runs have the same seeds: what another seed would give is not among them."
    return ""


def _accuracies(summaries: dict[str, Any], stages: Iterable[str]) -> str:
    """Each stage's accuracy in every run that has it, without its slices."""
    table = Table(**ACCURACY)
    with_score = any(is_graded(summary["stages"]) for summary in summaries.values())
    for stage in stages:
        for run, summary in summaries.items():
            if "accuracy" in summary["stages"].get(stage, {}):
                table.add(run=run, stage=stage, **accuracy_cells(summary["stages"][stage], with_score))
    return table.markdown()


def _losses_of_answers(summaries: dict[str, Any], stages: Iterable[str]) -> str:
    """How likely each run's models find the held-out answers, where nothing can check what they say."""
    results = {}
    for stage in stages:
        for run, summary in summaries.items():
            if "loss" in summary["stages"].get(stage, {}):
                results[f"{run} {stage}"] = summary["stages"][stage]
    return loss_table(results).markdown()


def _paired(first: Path, other: Path, stages: Iterable[str]) -> list[dict[str, Any]]:
    """The comparisons of two runs' models, of the stages in which both answered the same items."""
    comparisons = []
    for stage in stages:
        first_scores = _scores(first, stage)
        other_scores = _scores(other, stage)
        if first_scores and first_scores.keys() == other_scores.keys():
            scores = {f"{first.name} {stage}": first_scores, f"{other.name} {stage}": other_scores}
            comparisons += compared_steps(scores)
    return comparisons


def _paired_losses(first: Path, other: Path, stages: Iterable[str]) -> list[dict[str, Any]]:
    """The same of the losses of held-out answers."""
    comparisons = []
    for stage in stages:
        folders = {f"{run.name} {stage}": run / "eval" / stage for run in (first, other)}
        items = [column(read_records(folder / LOSSES), "source_id") for folder in folders.values()]
        if items[0] and items[0] == items[1]:
            comparisons += compare_losses(folders)
    return comparisons


def _scores(run: Path, stage: str) -> dict[str, float]:
    """The score of each item, or 1 for right and 0 for wrong; of answers that nothing can check, nothing."""
    # By the item's text: two runs may have numbered their items otherwise.
    return marks(predictions(run, stage))


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
    table = Table(verdict="", first=first.parent.name, second=second.parent.name)
    for name in {**first_results, **second_results}:
        table.add(what=name, **_compared(first_results.get(name), second_results.get(name)))
    return table.markdown()


def _compared(first: Any, second: Any) -> dict[str, str]:
    """Whether two results are identical, and of each what differs first."""
    if first is None or second is None:
        verdict = "not compared"
        first = "not there" if first is None else ""
        second = "not there" if second is None else ""
    elif first == second:
        verdict = "identical"
        first = second = ""
    elif isinstance(first, dict) and isinstance(second, dict):
        keys = {**first, **second}
        differing = [key for key in keys if first.get(key) != second.get(key)]
        verdict = f"**{len(differing)} of {len(keys)} differ**"
        key = differing[0]
        first = f"{key}: {str(first.get(key))[:60]}"
        second = f"{key}: {str(second.get(key))[:60]}"
    else:
        verdict = "**differs**"
        first = str(first)[:60]
        second = str(second)[:60]
    return {"verdict": verdict, "first": first, "second": second}


def _results(run: Path, recorded_stages: dict[str, Any], common: set[str]) -> dict[str, Any]:
    """What there is to compare of the stages that both runs have; None for what is not there."""
    stages = {name: stage for name, stage in recorded_stages.items() if name in common}
    # Hashes and numbers where there are some: equal ones mean that all behind them is equal.
    results: dict[str, Any] = {
        "data": stages.get("data", {}).get("fingerprints"),
        "input files": _input_files(stages),
        "settings": _flat({name: stage["settings"] for name, stage in stages.items()}),
    }
    for name, stage in stages.items():
        files = stage.get("files", {})
        if "metrics" in stage:  # it was trained
            results[f"{name}: loss by step"] = _losses(run, name)
            results[f"{name}: weights"] = files.get("adapter/adapter_model.safetensors")
        if "strategies" in stage:  # it made pairs
            results[f"{name}: pairs"] = {split: files.get(f"{split}.parquet") for split in stage["rows"]}
        if "summary" in stage:  # it was evaluated
            answers = read_records(run / name / "predictions.jsonl")
            results[f"{name}: answers"] = {p["index"]: p["answer"] for p in answers} or None
            if "loss" in stage["summary"]:
                results[f"{name}: held-out loss"] = stage["summary"]["loss"]
            else:
                results[f"{name}: right answers"] = stage["summary"]["correct"]
    # Stages may have been made on different days; the last one speaks for the run.
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
