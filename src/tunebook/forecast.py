"""How long the steps to come of a run will take, from what was timed on this machine, and what they cost."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tunebook.data.storage import training_rows
from tunebook.following import minutes
from tunebook.recipe.effects import rows_a_step
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import duration_s, read_json
from tunebook.runs.machine import processor
from tunebook.runs.stages import CONTROL, STAGES, Step, asked_for, model_names

START_S = 20
"""Seconds until a step's notebook is at work. Its process and the import of Unsloth took 12 to 30."""

ROWS_OF_A_PAIR = 2.5
"""What a pair costs in rows of SFT: two answers, which the reference reads too, without a way back."""


class Work(NamedTuple):
    """What a step has to do."""

    text: str
    units: float
    """Rows, pairs or answers: what its time grows with."""


class Speed(NamedTuple):
    """How fast a stage was."""

    seconds: float
    """For a unit."""
    source: str
    """Where it was timed."""


def forecast(recipe: Recipe, todo: list[Step], timed: dict[str, Speed] | None = None) -> str:
    """One line about the steps to come: of each its size and its time, the whole time, and the cost.

    Args:
        recipe: The recipe, with `price_per_hour` for the cost.
        todo: The steps to come. What `prepare` will take is not foretold: it has not read the rows.
        timed: Speeds by a stage's name that come before those of earlier runs: first steps of this one.

    Returns the line; it is empty while no time is known.
    """
    # What was timed in this run counts more than what an earlier one took.
    speeds = earlier_speeds(recipe) | (timed or {})
    if "sft" in speeds and "dpo" not in speeds:
        seconds, source = speeds["sft"]
        speeds["dpo"] = Speed(ROWS_OF_A_PAIR * seconds, f"{source} (a pair counted as {ROWS_OF_A_PAIR} rows)")
    parts, sources, total, is_whole = [], [], 0.0, True
    for step in todo:
        work = planned(recipe, step)
        # The rows or pairs are not there yet, or the step has nothing that could be counted.
        if work is None:
            if step.name != "prepare":  # which takes seconds, as a rule
                is_whole = False
            continue
        speed = speeds.get(step.spec.name)
        # Its size is said, and the sum is of the others.
        if speed is None:
            parts.append(f"{step.name} {work.text} (never timed here)")
            is_whole = False
            continue
        # A stage's time grows with its rows or answers; loading the model is in the speed.
        seconds = START_S + speed.seconds * work.units
        parts.append(f"{step.name} {work.text}, {minutes(seconds)}")
        sources.append(speed.source)
        total += seconds
    if not sources:
        return ""
    whole = f"{'In all' if is_whole else 'What is known:'} about {minutes(total)}{costs(recipe, total)}"
    return f"Forecast: {'; '.join(parts)}. {whole}. Timed: {', '.join(dict.fromkeys(sources))}."


def costs(recipe: Recipe, seconds: float) -> str:
    """What the time costs at the recipe's price, to be put behind it; empty without a price."""
    price = recipe.price_per_hour
    return f", {price * seconds / 3600:.2f} at {price:g} an hour" if price else ""


def planned(recipe: Recipe, step: Step) -> Work | None:
    """What a step has to do; None where that is not known before another step has run."""
    data = read_json(recipe.run_dir / "data" / "stage.json").get("rows", {})
    name = step.spec.name
    try:
        if name == "eval":
            items = min(data[recipe.evaluate.split], recipe.evaluate.limit or math.inf)
            units = items * len(model_names(recipe))
            return Work(f"{units:,} answers", units)
        if name == "sft":
            return training_work(recipe.sft, len(training_rows(recipe, "sft")), epochs=3)
        if name == "pairs" and "on_policy" in recipe.pairs.methods:
            units = _prompts(recipe) * recipe.pairs.samples
            return Work(f"{units:,} answers", units)
        if name == "dpo":
            return _dpo_work(recipe)
    except (KeyError, UserError):  # the rows or pairs are not there yet
        return None
    return None


def training_work(settings: dict[str, Any], rows: int, epochs: int) -> Work:
    """The steps of a training, as transformers counts them, and the rows that they take.

    Args:
        settings: The section `sft` or `dpo`.
        rows: Rows or pairs to train on.
        epochs: TRL's own number, where the section is silent.
    """
    batch = rows_a_step(settings)
    steps = int(settings.get("max_steps", -1))
    # As transformers has it: -1 means that the epochs decide.
    if steps <= 0:
        steps = math.ceil(float(settings.get("num_train_epochs", epochs)) * math.ceil(rows / batch))
    return Work(f"{steps:,} steps", steps * batch)


def _prompts(recipe: Recipe) -> int:
    rows = len(training_rows(recipe, "pairs"))
    return min(rows, recipe.pairs.prompts or rows)


def _dpo_work(recipe: Recipe) -> Work:
    """DPO's steps over the pairs there are, or over one of each prompt at most."""
    pairs = read_json(recipe.run_dir / "pairs" / "stage.json").get("rows", {}).get("train")
    if pairs is None:
        most = training_work(recipe.dpo, _prompts(recipe) * recipe.pairs.per_prompt, epochs=1)
        work = Work(f"at most {most.text}", most.units)
    else:
        work = training_work(recipe.dpo, pairs, epochs=1)
    # The notebook trains the control too, which reads the same pairs.
    return Work(work.text, 2 * work.units) if asked_for(recipe, STAGES[CONTROL]) else work


def earlier_speeds(recipe: Recipe) -> dict[str, Speed]:
    """How fast each stage was with this base model on this machine: of this run, else of the newest run."""
    manifests = sorted(recipe.run_dir.parent.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    # The last one read wins: this run's own.
    manifests.sort(key=lambda path: path.parent == recipe.run_dir)
    here = processor()
    speeds = {}
    for path in manifests:
        # `eval/sft` is timed as `eval`; of rounds the first one counts.
        for name, record in read_json(path).get("stages", {}).items():
            stage = name.partition("/")[0]
            done = units_done(record)
            hardware = record.get("hardware", {})
            # A run folder may have been copied from another machine.
            is_here = {key: hardware.get(key) for key in here} == here
            base = record.get("recipe", {}).get("model", {}).get("base")
            if stage in STAGES and done and is_here and base == recipe.model.base:
                source = "this run" if path.parent == recipe.run_dir else f"the run {path.parent.name}"
                # vLLM and a model in this process differ many times over.
                engine = record.get("engine", {}).get("name")
                source += f" by {engine}" if engine else ""
                speeds[stage] = Speed(duration_s(record) / done, source)
    return speeds


def units_done(record: dict[str, Any]) -> float:
    """The rows, pairs or answers that a finished stage has taken its time for; 0 where that is not recorded.

    A training that was interrupted was timed in part, so that it says nothing.
    """
    metrics = record.get("metrics", {})
    if metrics and metrics.get("resumed_at_step") is None:
        return float(metrics["steps"] * metrics["effective_batch_size"])
    if "samples" in record:
        return float(sum(record["samples"].values()))
    return float(record.get("summary", {}).get("n", 0))
