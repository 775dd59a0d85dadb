"""`manifest.json`: what every finished stage recorded, enough to repeat the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError
from tunebook.runs.files import read_json


def manifest(run_dir: Path) -> dict[str, Any]:
    """Every finished stage's record by name: enough to repeat the run."""
    found = (
        sorted(run_dir.glob("*/stage.json"))
        + sorted(run_dir.glob("e*/*/stage.json"))
        + sorted(run_dir.glob("bench/*/*/stage.json"))
    )
    return {"run": run_dir.name, "stages": {str(p.parent.relative_to(run_dir)): read_json(p) for p in found}}


def recorded(manifest: Path) -> dict[str, Any]:
    """The stages that a manifest records. Raises UserError when it holds none."""
    if not (stages := read_json(manifest).get("stages")):
        raise UserError(f"{manifest} is no manifest of a run: give runs/<run>/manifest.json")
    return dict(stages)


DECIDES = {
    "data": ("data", "seed", "clean"),
    "sft": ("model", "lora", "sft"),
    "pairs": ("pairs",),
    "dpo": ("dpo",),
    "eval/base": ("evaluate",),
}
"""The recipe's sections that a stage's result depends on."""


def recorded_recipe(recorded_stages: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a run whose stages may each have had overrides of their own."""
    content = dict(next(iter(recorded_stages.values()))["recipe"])
    for stage in DECIDES.keys() & recorded_stages.keys():
        content |= {section: recorded_stages[stage]["recipe"][section] for section in DECIDES[stage]}
    rounds = [int(name.partition("-")[2] or 1) for name in recorded_stages if name.partition("-")[0] == "dpo"]
    return content | {"pairs": content["pairs"] | {"rounds": max([1, *rounds])}}
