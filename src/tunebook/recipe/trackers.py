"""What the losses may be sent to, and whether its package is there."""

from __future__ import annotations

import importlib.util
from typing import Any

from tunebook.recipe.errors import UserError, did_you_mean, shorten

TRACKERS = {
    "azure_ml": ["azureml.core"],
    "clearml": ["clearml"],
    "codecarbon": ["codecarbon"],
    "comet_ml": ["comet_ml"],
    "dagshub": ["dagshub", "mlflow"],
    "dvclive": ["dvclive"],
    "flyte": ["flytekit"],
    "kubeflow": [],
    "mlflow": ["mlflow"],
    "neptune": ["neptune"],
    "swanlab": ["swanlab"],
    "tensorboard": ["tensorboard"],
    "trackio": ["trackio"],
    "wandb": ["wandb"],
}
"""What `report_to` may name in transformers, and the packages that each needs."""


def check_trackers(section: str, values: dict[str, Any]) -> None:
    """Trackers must be known and installed; null means none."""
    if "report_to" not in values:
        return
    named = values["report_to"]
    if named is None or str(named).lower() in ("none", "null", "[]"):
        values["report_to"] = "none"
        return
    names = [named] if isinstance(named, str) else list(named)
    check_installed(f"{section}.report_to", names)


def check_installed(key: str, names: list[str]) -> None:
    """Raises UserError for a tracker that transformers does not know, or whose package is not there."""
    for name in names:
        if name in ("all", "none"):
            continue
        if name not in TRACKERS:
            hint = did_you_mean(str(name), TRACKERS)
            raise UserError(
                f"{key}: no tracker {shorten(name)}{hint}; set none, or one of {', '.join(TRACKERS)}"
            )
        # The package is looked for and not imported, which takes seconds with some.
        for package in TRACKERS[name]:
            if not is_installed(package):
                raise UserError(
                    f"{key}: {name} needs the package {package}, which is not installed: "
                    f"`uv pip install {package.partition('.')[0]}`, or set {key}=none "
                    "(the losses lie in metrics.jsonl of the run folder)"
                )


def is_installed(package: str) -> bool:
    names = [package]
    if package == "tensorboard":
        names.append("tensorboardX")
    for name in names:
        try:
            if importlib.util.find_spec(name) is not None:
                return True
        except ModuleNotFoundError:  # the package around it
            continue
    return False
