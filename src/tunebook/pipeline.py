"""`tunebook run`: the notebooks in order, by papermill, into the run folder.

uv run tunebook run --recipe smollm2-math --until sft
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunebook.data.prepare import data_stage
from tunebook.evaluation.compare import compare_manifests
from tunebook.evaluation.evaluate import eval_stage
from tunebook.pairs.pairs import pairs_stage
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json, write_text
from tunebook.runs.manifest import recorded, recorded_recipe
from tunebook.runs.stage import Stage, round_name, stages
from tunebook.training.dpo import dpo_stage
from tunebook.training.sft import sft_stage


@dataclass(frozen=True)
class Step:
    """A notebook, its own parameters, and the stage folders that it fills."""

    notebook: str
    stages: Callable[[Recipe], list[Stage]]
    number: int | None = None
    """The round, where the notebook has one."""

    @property
    def out(self) -> str:
        """The executed notebook's name."""
        return round_name(self.notebook, self.number or 1)


def steps(recipe: Recipe) -> dict[str, Step]:
    """What `tunebook run` does, in order: pairs and DPO once for each of the recipe's rounds."""
    found = {
        "prepare": Step("01_data_prep", lambda r: [data_stage(r)]),
        "sft": Step("02_sft", lambda r: [sft_stage(r)]),
    }
    for number in range(1, recipe.pairs.rounds + 1):
        found[round_name("pairs", number)] = Step("03_dpo_pairs", _in_round(pairs_stage, number), number)
        found[round_name("dpo", number)] = Step("04_dpo", _in_round(dpo_stage, number), number)
    return found | {"evaluate": Step("05_evaluate", lambda r: [eval_stage(r, name) for name in stages(r)])}


def _in_round(stage: Callable[[Recipe, int], Stage], number: int) -> Callable[[Recipe], list[Stage]]:
    return lambda recipe: [stage(recipe, number)]


def run(
    recipe: Recipe,
    recipe_name: str,
    first: str | None = None,
    last: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Execute the notebooks from `first` to `last` whose stages are not up to date; returns the steps that were (or would be) run.

    Executed notebooks lie in `runs/<run>/notebooks/`. Stops at the first failure; what came before stays.

    Raises UserError that names the failing notebook, its cell and the error.
    """
    todo = steps(recipe)
    names = list(todo)
    for name in (first, last):
        if name is not None and name not in names:
            raise UserError(f"no step {name!r}: choose from {', '.join(names)}")
    chosen = names[names.index(first) if first else 0 : names.index(last) + 1 if last else None]
    ran, took = list[str](), list[float]()
    for name in chosen:
        reason = "--force" if force else f"after {ran[-1]}" if dry_run and ran else _why(todo[name], recipe)
        print(
            f"{name:9} {'would run: ' if dry_run and reason else 'runs: ' if reason else ''}{reason or 'up to date'}",
            flush=True,
        )
        if reason:
            ran.append(name)
            if not dry_run:
                started = time.monotonic()
                _execute(todo[name], recipe, recipe_name, force)
                took.append(time.monotonic() - started)
    if took:
        parts = (
            f"{name} {seconds / 60:.1f} ({seconds / sum(took):.0%})"
            for name, seconds in zip(ran, took, strict=True)
        )
        print(f"Minutes: {', '.join(parts)}, in all {sum(took) / 60:.1f}")
    return ran


def repeat(manifest: Path, name: str | None = None) -> str:
    """Run again what a manifest records, in the run folder `name` (default: `<run>-again`); returns the two runs side by side, as Markdown.

    The recipe comes from the manifest, each section from the stage that it decided, and is kept as `recipe.yaml` in the new folder.

    Raises UserError for a file that is no manifest, and as `run` does.
    """
    recorded_stages = recorded(manifest)
    name = name or f"{read_json(manifest)['run']}-again"
    content = recorded_recipe(recorded_stages) | {"run": name}
    folder = load_recipe(overrides={"run": name}).run_dir
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    recipe = load_recipe(folder / "recipe.yaml")
    print(recipe.describe())
    changed = [
        n
        for n, digest in data_stage(recipe).inputs.items()
        if recorded_stages.get("data", {}).get("inputs", {}).get(n) != digest
    ]
    if changed:
        print(f"Warning: changed since {manifest}: {', '.join(changed)}")
    names = {name.partition("/")[0] for name in recorded_stages}
    for step in steps(recipe):
        if {"prepare": "data", "evaluate": "eval"}.get(step, step) in names:
            run(recipe, str(folder / "recipe.yaml"), step, step)
    return compare_manifests(manifest, folder / "manifest.json")


def _why(step: Step, recipe: Recipe) -> str | None:
    """Why a step must run; None when its folders are up to date."""
    try:
        stages = step.stages(recipe)
    except UserError:
        return "a stage before it has not run yet"
    stale = [stage for stage in stages if not stage.done]
    if not stale:
        return None
    return (
        f"{stale[0].name} is missing"
        if not stale[0].dir.exists()
        else f"inputs or settings of {stale[0].name} have changed"
    )


def _execute(step: Step, recipe: Recipe, recipe_name: str, force: bool) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out = recipe.run_dir / "notebooks" / f"{step.out}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    parameters: dict[str, Any] = {
        "recipe": recipe_name,
        "run": recipe.run_dir.name,
        "overrides": {key: used for key, (_, used) in recipe.overrides.items() if key != "run"},
        "force": force,
    } | ({"round": step.number} if step.number else {})
    quiet = [
        "--IPKernelApp.log_level=40"
    ]  # it would warn of its connection to this process, which stays on this machine
    try:
        papermill.execute_notebook(
            str(ROOT / "notebooks" / f"{step.notebook}.ipynb"),
            str(out),
            parameters,
            cwd=str(Path.cwd()),
            extra_arguments=quiet,
        )
    except PapermillExecutionError as error:
        raise UserError(
            f"{out}, cell {error.exec_count}: {error.ename}: {error.evalue}. Mend it and run the same command: it goes on there"
        ) from None
    except RuntimeError as error:  # nbclient's DeadKernelError, or jupyter_client's when it dies as it starts
        if "Kernel died" not in str(error):
            raise
        raise UserError(
            f"{out}, cell {_reached(out)}: the notebook's process was killed (often for want of memory). Run the same command: "
            "it goes on from what was saved"
        ) from None


def _reached(notebook: Path) -> int:
    """The number of the code cell that an executed notebook has come to."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return sum(
        cell["cell_type"] == "code" and bool(cell["metadata"]["papermill"]["start_time"]) for cell in cells
    )
