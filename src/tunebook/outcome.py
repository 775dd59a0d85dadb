"""What `tunebook run` says of a step that has ended; the whole stands in its notebook."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from tunebook.data import aside
from tunebook.evaluation import first_screen
from tunebook.pairs.summary import FEW, TOO_HIGH, length_alone, remarks
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import log_history, read_json
from tunebook.runs.stages import Step, round_name


def outcome(step: Step, recipe: Recipe) -> list[str]:
    """The lines of a step: what came of its rows, its loss, its pairs, or whether the model is better."""
    folder = recipe.run_dir / round_name(step.spec.name, step.round)
    record = read_json(folder / "stage.json")
    lines = []
    if step.spec.trains and record:
        lines.append(_of_training(folder))
    elif step.spec.name == "data" and record:
        lines += aside.account(record)
    elif step.spec.name == "pairs" and record:
        lines.append(f"pairs: {record['rows']['train']} to train on, {record['rows']['val']} to watch")
        if record.get("length_only_accuracy", 0) > TOO_HIGH and record["rows"]["train"] >= FEW:
            lines.append(f"told apart by length alone: {length_alone(record)}")
        lines += remarks(record, folder.name)
    elif step.spec.name == "eval":
        summary = read_json(recipe.run_dir / "eval" / "summary.json")
        if summary:
            lines += [first_screen.sentence(summary), f"Report: {recipe.run_dir / 'report.html'}"]
    return [line for line in lines if line]


def _of_training(folder: Path) -> str:
    """The loss of the first steps and of the last ones, and where the adapter lies."""
    history = log_history(folder)
    line = f"adapter: {folder / 'adapter'}"
    losses: list[float] = []
    for entry in history:
        # Each log is the mean of the steps since the one before.
        if "loss" in entry:
            losses += [float(entry["loss"])] * (entry["step"] - len(losses))
    few = 10  # one batch says little
    if len(losses) >= 2 * few:
        first, last = fmean(losses[:few]), fmean(losses[-few:])
        line += f"; loss {first:.3f} at first, {last:.3f} at last ({few} steps each)"
    elif losses:
        line += f"; loss {fmean(losses):.3f} over its {len(losses)} steps"
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    if held_out:
        line += f", {float(held_out[-1]):.3f} on held-out rows"
    return line
