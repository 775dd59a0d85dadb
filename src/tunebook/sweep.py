"""`tunebook sweep`: a run for each setting of a grid, compared on the val split.

uv run tunebook sweep smollm2-math --over sft.learning_rate=1e-4,2e-4,5e-4 --over lora.r=8,16
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from pathlib import Path
from typing import Any

from tunebook.evaluation.choice import choice_table, choose, item_scores, same_items, verdict
from tunebook.evaluation.evaluate import eval_stage, evaluate
from tunebook.pipeline import folders
from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.recipe.yaml_files import parse_value
from tunebook.runs.files import fingerprint, read_json, write_json, write_text
from tunebook.runs.stage import Stage
from tunebook.runs.stages import model_names, steps


def sweep(source: str | None, over: list[str], run: str | None, overrides: dict[str, Any]) -> str:
    """Train and evaluate a run for each setting of the grid; returns the verdict and the table, as Markdown.

    They lie in `runs/<run>/sweep.md` too, with `sweep.png` and `sweep.json`; the runs beside it, in
    `runs/<run>-<setting>`. A stage that does not depend on what differs is made once. Called again, it goes
    on where it was.

    Args:
        source: The recipe.
        over: The grid: `sft.learning_rate=1e-4,2e-4`, one key each.
        run: The sweep's name. None: the recipe's name and `sweep`.
        overrides: Of the recipe, for all settings.

    Raises UserError for a mistake in any of the settings before one is trained, and when none can be.
    """
    # 1) the recipe of every setting is read
    name = run or f"{load_recipe(source, overrides=overrides).run_dir.name}-sweep"
    settings = named(name, grid(over))
    recipes = {}
    for each, setting in settings.items():
        recipes[each] = load_recipe(source, each, {**overrides, **setting, "evaluate.split": "val"})
    # 2) the runs
    failed: dict[str, str] = {}
    earlier: list[Path] = []  # whose stages a later run may take over
    for number, (each, recipe) in enumerate(recipes.items(), 1):
        print(f"\n[{number}/{len(recipes)}] {each}", flush=True)
        try:
            make(recipe, earlier)
        except UserError as error:
            # A rate at which the loss explodes is a result of the sweep, not its end.
            failed[each] = str(error)
            print(f"failed: {error}", flush=True)
        earlier.append(recipe.run_dir)
    # 3) the comparison
    model = model_names(next(iter(recipes.values())))[-1]
    scores = {}
    for each, recipe in recipes.items():
        if each not in failed:
            scores[each] = item_scores(recipe.run_dir, model)
    if len(scores) < 2:
        raise UserError(f"fewer than two settings could be trained: {next(iter(failed.values()))}")
    return _write(next(iter(recipes.values())).run_dir.with_name(name), settings, scores, failed)


def grid(over: list[str]) -> list[dict[str, Any]]:
    """Every combination of the values: `["lora.r=8,16"]` -> `[{"lora.r": 8}, {"lora.r": 16}]`.

    Raises UserError when there are not at least two.
    """
    # Of each key the values that it takes.
    values = {}
    for item in over:
        key, _, text = item.partition("=")
        parsed = parse_value(f"[{text}]")
        values[key.strip()] = parsed if isinstance(parsed, list) else []
    combinations = [dict(zip(values, each, strict=True)) for each in itertools.product(*values.values())]
    if len(combinations) < 2:
        raise UserError("--over: name a key and two values or more, as in --over sft.learning_rate=1e-4,2e-4")
    return combinations


def named(sweep_name: str, combinations: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The settings by the names of their runs, which say what was set: another value moves none of them."""
    settings = {}
    for setting in combinations:
        words = []
        for key, value in setting.items():
            words.append(re.sub(r"[^\w.]+", "-", f"{key.rpartition('.')[2]}-{value}").strip("-"))
        name = "-".join([sweep_name, *words])
        if len(name) > 100 or name in settings:
            name = f"{sweep_name}-{fingerprint(setting)[:12]}"
        settings[name] = setting
    return settings


def make(recipe: Recipe, earlier: list[Path]) -> None:
    """Train and evaluate what a recipe asks for; what an earlier run has already, it takes over."""
    chain = steps(recipe).values()
    for step in chain:
        if step.spec.name == "eval":
            continue
        # A key may need a stage that is made on the way, such as what `dpo.start` names.
        with contextlib.suppress(UserError):
            for stage in folders(step, recipe):
                take_over(stage, earlier)
        options = {"number": step.round} if step.spec.has_rounds else {}
        step.spec.run(recipe, **options)
    models = ["base", model_names(recipe)[-1]]
    for model in models:
        take_over(eval_stage(recipe, model), earlier)
    if not evaluate(recipe, models):
        raise UserError("no val rows to compare the settings on: raise `val` of a data source")


def take_over(stage: Stage, earlier: list[Path]) -> None:
    """Put an earlier run's result into a stage's folder, if it is of the same settings and inputs."""
    if stage.done:
        return
    made_from = stage.input_hashes()
    for run in earlier:
        source = run / stage.name
        record = read_json(source / "stage.json")
        if record.get("key") != stage.key or record.get("made_from") != made_from:
            continue
        # Whole or not at all, whenever it is killed.
        copy = stage.dir.with_name(f".{stage.dir.name}.copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, copy_function=_link)
        shutil.rmtree(stage.dir, ignore_errors=True)
        copy.rename(stage.dir)
        print(f"{stage.name} is that of {run.name}")
        return


def _link(source: str, target: str) -> None:
    """One file in two places, where the disk can do that: files of a stage are replaced, never changed."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write(
    folder: Path, settings: dict[str, Any], scores: dict[str, dict[Any, float]], failed: dict[str, str]
) -> str:
    """Compare, and write `sweep.json`, `sweep.md` and `sweep.png`; returns the Markdown."""
    from tunebook.evaluation import plots

    choice = choose(same_items(scores))
    short = {each: shorten(reason, 120) for each, reason in failed.items()}
    # A log-probability is below 0, a score never.
    is_score = min(of_model["mean"] for of_model in choice["models"].values()) >= 0
    unit = "share of right answers, or mean score" if is_score else "log-probability of a held-out token"
    text = f"{verdict(choice)}\n\n{choice_table(settings, choice, short).markdown()}\n\nMean: {unit}.\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sweep.json", {"settings": settings, "failed": failed, **choice})
    write_text(folder / "sweep.md", text)
    plots.settings(choice).savefig(folder / "sweep.png", dpi=150)
    return text
