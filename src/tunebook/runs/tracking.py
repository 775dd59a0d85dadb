"""`track`: the numbers of a run in TensorBoard, Weights & Biases, Trackio, MLflow or SwanLab as well.

transformers hands on the losses while it trains, accelerate what is measured afterwards. Nothing leaves this
machine unless the recipe names a tracker that sends it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tunebook.recipe.effects import leaves
from tunebook.recipe.sections import Recipe
from tunebook.runs.machine import rank

PROJECT = "tunebook"
"""Where trackers have projects, all runs stand side by side in this one."""

# Under which name each tracker takes that of a run; the others are given it in another way.
RUN_NAME = {"wandb": "name", "trackio": "name", "swanlab": "experiment_name", "mlflow": "run_name"}


def folder(recipe: Recipe) -> Path:
    """Where TensorBoard's files lie: `tensorboard --logdir runs/<run>/tracking`."""
    return recipe.run_dir / "tracking"


def trainer_settings(recipe: Recipe, section: str) -> dict[str, Any]:
    """What transformers' trainers are told of the recipe's trackers; also sets what they read from variables.

    The name of a project that is set already wins; where TensorBoard writes is the run folder.
    """
    if not recipe.track:
        return {}
    # Not a default: SFT and DPO of one process have folders of their own.
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder(recipe) / section)
    for name in ("WANDB_PROJECT", "SWANLAB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.setdefault(name, PROJECT)
    return {
        "report_to": list(recipe.track),
        "run_name": f"{recipe.run_dir.name}-{section}",
        "project": PROJECT,
    }


def track(recipe: Recipe, stage: str, values: dict[str, Any]) -> None:
    """Hand the numbers among `values` to the recipe's trackers, as one entry of a run `<run>-<stage>`.

    Names of nested values are joined: `{"sft": {"accuracy": 0.5}}` becomes `sft/accuracy`. A tracker that
    fails is one line: what was measured is in the run folder in any case.
    """
    numbers = _numbers(values)
    if not recipe.track or not numbers or rank():
        return
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers ask which process they are in
    run = f"{recipe.run_dir.name}-{stage}"
    for name in recipe.track:
        kind = LOGGER_TYPE_TO_CLASS[name]
        try:
            if kind.requires_logging_directory:
                tracker = kind(stage, str(folder(recipe)))
            else:
                tracker = kind(PROJECT, **{RUN_NAME[name]: run})
            tracker.start()
            tracker.log(numbers, step=0)
            tracker.finish()
        except Exception as error:
            print(f"Warning: {name} did not take the numbers of {stage}: {type(error).__name__}: {error}")


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    numbers = {}
    for key, value in leaves(values, separator="/").items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[key] = float(value)
    return numbers
