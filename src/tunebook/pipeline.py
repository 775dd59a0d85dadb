"""`tunebook run`: the notebooks in order, by papermill, into the run folder.

uv run tunebook run --recipe smollm2-math --until sft
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import yaml

from tunebook.data.prepare import data_stage
from tunebook.evaluation.compare import compare_manifests
from tunebook.following import following
from tunebook.forecast import Speed, costs, forecast
from tunebook.interrupting import interrupts_to_kernel
from tunebook.outcome import outcome
from tunebook.recipe.effects import rows_a_step
from tunebook.recipe.errors import NotFinished, UserError
from tunebook.recipe.files import shipped
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import as_options
from tunebook.recipe.sections import Recipe, StageName
from tunebook.runs.files import read_json, write_text
from tunebook.runs.manifest import recorded, recorded_recipe
from tunebook.runs.stage import Stage
from tunebook.runs.stages import CONTROL, STAGES, Step, asked_for, model_names, round_name, steps


def folders(step: Step, recipe: Recipe) -> list[Stage]:
    """The stage folders that a step fills. Raises UserError when a stage before it is missing."""
    if "model" in step.spec.inside:
        return [step.spec.folder(recipe, model) for model in model_names(recipe)]
    if step.spec.has_rounds:
        filled = [step.spec.folder(recipe, step.round)]
        # DPO's notebook trains its control too.
        if step.name == "dpo" and asked_for(recipe, STAGES[CONTROL]):
            filled.append(STAGES[CONTROL].folder(recipe))
        return filled
    return [step.spec.folder(recipe)]


def run(
    recipe: Recipe,
    first: str | None = None,
    last: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    fresh: bool = False,
) -> list[str]:
    """Execute the notebooks from `first` to `last` whose stages are not up to date.

    Executed notebooks lie in `runs/<run>/notebooks/`. Stops at the first failure; what came before stays.
    With `fresh`, a training starts over where an interrupted one of other settings is.

    Returns the names of the steps that were (or would be) run.
    Raises UserError that names the failing notebook, its cell and the error.
    """
    todo = steps(recipe)
    names = list(todo)
    for name in (first, last):
        if name is None or name in names:
            continue
        if name in steps(recipe, all_stages=True):
            raise UserError(
                f"the recipe {recipe.name} does not ask for {name}: name its section, or set `stages`"
            )
        raise UserError(f"no step {name!r}: choose from {', '.join(names)}")
    start = names.index(first) if first else 0
    end = names.index(last) + 1 if last else len(names)
    if start >= end:
        raise UserError(f"nothing lies between --from {first} and --until {last}: {last} comes first")

    # Asked one by one: whether a step is up to date depends on what the steps before it leave.
    seconds: dict[str, float] = {}
    chosen = names[start:end]
    for name in chosen:
        reason: str | None
        if force:
            reason = "--force"
        elif dry_run and seconds:
            reason = f"after {list(seconds)[-1]}"
        else:
            reason = _why(todo[name], recipe)
        if not reason:
            print(f"{name:9} up to date", flush=True)
            continue
        print(f"{name:9} {'would run' if dry_run else 'runs'}: {reason}", flush=True)
        is_next = not seconds or not dry_run
        if is_next and not force and not fresh:
            _refuse_other_settings(todo[name], recipe)
        processes = os.environ.get("NPROC_PER_NODE") if todo[name].spec.trains else None
        if processes:
            rows = rows_a_step(getattr(recipe, todo[name].spec.name))
            print(f"{name:9} in {processes} processes, {rows} rows a step in all", flush=True)
        started = time.monotonic()
        if not dry_run:
            to_come = [todo[later] for later in chosen[chosen.index(name) :]]
            _print_forecast(recipe, to_come)
            partial = [stage.partial for stage in folders(todo[name], recipe)]
            doing = functools.partial(_part, _executed(todo[name], recipe))
            with following(name, partial, forecast=_after_first_steps(recipe, to_come), doing=doing):
                again = force
                if processes:
                    _train_in_processes(todo[name], recipe, force, fresh)
                    again = False  # the notebook finds the adapter, and shows what came of it
                _execute(todo[name], recipe, again, fresh)
            for line in outcome(todo[name], recipe):
                print(f"{name:9} {line}", flush=True)
        seconds[name] = time.monotonic() - started

    if seconds and dry_run:
        _print_forecast(recipe, [todo[name] for name in seconds])
    elif seconds:
        whole = sum(seconds.values())
        parts = [f"{name} {taken / 60:.1f} ({taken / whole:.0%})" for name, taken in seconds.items()]
        print(f"Minutes: {', '.join(parts)}, in all {whole / 60:.1f}{costs(recipe, whole)}")
    return list(seconds)


def _print_forecast(recipe: Recipe, to_come: list[Step]) -> None:
    """Say how long the steps to come will take, as far as it is known."""
    line = forecast(recipe, to_come)
    if line:
        print(line, flush=True)


def _after_first_steps(recipe: Recipe, to_come: list[Step]) -> Callable[[float], str] | None:
    """The forecast that the first timed steps of a training allow; None for a step that trains nothing."""
    spec = to_come[0].spec
    if not spec.trains:
        return None
    rows = rows_a_step(getattr(recipe, spec.name))
    source = f"the first steps of {spec.name}"
    return lambda step_s: forecast(recipe, to_come, {spec.name: Speed(step_s / rows, source)})


def repeat(manifest: Path, name: str | None = None, dry_run: bool = False) -> str:
    """Run again what a manifest records, in the run folder `name` (default: `<run>-again`).

    The recipe comes from the manifest, each section from the stage that it decided, and is kept as
    `recipe.yaml` in the new folder.

    Returns the two runs side by side, as Markdown; with `dry_run` what would be compared.
    Raises UserError for a file that is no manifest, and as `run` does.
    """
    # 1) the recipe, kept beside what it makes
    stages = recorded(manifest)
    name = name or f"{read_json(manifest)['run']}-again"
    folder = load_recipe(overrides={"run": name}).run_dir
    folder.mkdir(parents=True, exist_ok=True)
    done = {path.partition("/")[0] for path in stages}
    # The record is whole: nothing is to be taken from today's family defaults.
    content = {"extends": None, **recorded_recipe(stages), "run": name}
    content["stages"] = [stage for stage in get_args(StageName) if stage in done]
    write_text(folder / "recipe.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    recipe = load_recipe(folder / "recipe.yaml", warn=False)  # nobody has written its many values
    print(recipe.describe())

    # 2) files that the data come from are named in a recipe and not held by it
    recorded_inputs = stages.get("data", {}).get("inputs", {})
    inputs = data_stage(recipe).inputs
    changed = [file for file, digest in inputs.items() if recorded_inputs.get(file) != digest]
    if changed:
        print(f"Warning: changed since {manifest}: {', '.join(changed)}")

    if "continued_from" in stages.get("sft", {}):
        print("Warning: sft was continued (--continue); it is repeated in one go, from the base model")

    # 3) the steps; what the run did not do is not done
    for step in steps(recipe).values():
        if round_name(step.spec.name, step.round) in done:
            run(recipe, step.name, step.name, dry_run=dry_run)
    if dry_run:
        return f"The recipe is {folder / 'recipe.yaml'}. Nothing was run."
    return compare_manifests(manifest, folder / "manifest.json")


def _why(step: Step, recipe: Recipe) -> str | None:
    """Why a step must run; None when its folders are up to date."""
    try:
        filled = folders(step, recipe)
    except NotFinished:  # its key needs that stage's
        return "a stage before it has not run yet"
    for stage in filled:
        if checkpoints := stage.checkpoints():
            return f"{stage.name} is unfinished, up to {checkpoints[-1].name}"
        if not stage.dir.exists():
            return f"{stage.name} is missing"
        if not stage.done:
            return f"inputs or settings of {stage.name} have changed"
    return None


def _refuse_other_settings(step: Step, recipe: Recipe) -> None:
    """Raises UserError for an unfinished training of other settings, before its notebook is started."""
    with contextlib.suppress(NotFinished):
        for stage in folders(step, recipe):
            stage.check()


def _overrides(recipe: Recipe) -> dict[str, Any]:
    """What was overridden, by dotted key, but for `run`, which has an option and a parameter of its own."""
    return {key: used for key, (_, used) in recipe.overrides.items() if key != "run"}


def _train_in_processes(step: Step, recipe: Recipe, force: bool, fresh: bool) -> None:
    """Train on `NPROC_PER_NODE` GPUs by torchrun, as the shell scripts do: a notebook is a single process.

    Raises UserError when a process fails; torchrun's own line says why.
    """
    launched = ["-m", "tunebook.training.launch", "--standalone"]
    launched += ["--nproc-per-node", os.environ["NPROC_PER_NODE"], "-m", "tunebook", step.spec.command]
    launched += ["--recipe", recipe.source, "--run", recipe.run_dir.name]
    launched += as_options(_overrides(recipe))
    if step.spec.has_rounds:
        launched += ["--round", str(step.round)]
    if force:
        launched.append("--force")
    if fresh:
        launched.append("--fresh")
    done = subprocess.run([sys.executable, *launched], check=False)
    if done.returncode:
        raise UserError(f"{step.name} failed in one of {os.environ['NPROC_PER_NODE']} processes, see above")


def _executed(step: Step, recipe: Recipe) -> Path:
    """The notebook of a step, with its results."""
    return recipe.run_dir / "notebooks" / f"{round_name(step.spec.notebook, step.round)}.ipynb"


def _execute(step: Step, recipe: Recipe, force: bool, fresh: bool) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    out = _executed(step, recipe)
    out.parent.mkdir(parents=True, exist_ok=True)
    parameters: dict[str, Any] = {
        "recipe": recipe.source,
        "run": recipe.run_dir.name,
        "overrides": _overrides(recipe),
        "force": force,
    }
    if step.spec.has_rounds:
        parameters["round"] = step.round
    if step.spec.trains:
        parameters["fresh"] = fresh
    try:
        with interrupts_to_kernel() as options:
            papermill.execute_notebook(
                str(shipped("notebooks") / f"{step.spec.notebook}.ipynb"),
                str(out),
                parameters,
                cwd=str(Path.cwd()),
                # It would warn of its connection to this process, which stays on this machine.
                extra_arguments=["--IPKernelApp.log_level=40"],
                **options,
            )
    except PapermillExecutionError as error:
        raise UserError(
            f"{out}, cell {error.exec_count}: {error.ename}: {error.evalue}. "
            "Mend it and run the same command: it goes on there"
        ) from None
    except RuntimeError as error:
        # nbclient's DeadKernelError, or jupyter_client's when the kernel dies as it starts.
        if "Kernel died" not in str(error):
            raise
        raise UserError(
            f"{out}{_part(out)}: the notebook's process was killed "
            "(often for want of memory). Run the same command: it goes on from what was saved"
        ) from None


def _part(notebook: Path) -> str:
    """The part of an executed notebook that it has come to, by its heading, to be put behind what is said."""
    part = ""
    # Papermill writes it anew at each cell: half of it has no cells.
    for cell in read_json(notebook).get("cells", []):
        started = cell["metadata"].get("papermill", {}).get("start_time")
        if started and cell["cell_type"] == "markdown":
            part = f' in "{cell["source"][0].strip("# ").strip()}"'
    return part
