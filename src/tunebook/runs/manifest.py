"""`manifest.json`: what every finished stage recorded, enough to repeat the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError
from tunebook.runs.files import read_json
from tunebook.runs.stages import STAGES, parse_name


def manifest(run_dir: Path) -> dict[str, Any]:
    """The records of all finished stages of a run folder, as `manifest.json` holds them."""
    # Only where stages lie: a search through all folders would take long where there are many images.
    stages = {}
    for spec in STAGES.values():
        below = "".join("/*" for _ in spec.inside)
        patterns = [f"{spec.name}{below}"]
        if spec.has_rounds:
            patterns.append(f"{spec.name}-*{below}")
        for pattern in patterns:
            for path in sorted(run_dir.glob(f"{pattern}/stage.json")):
                stages[path.parent.relative_to(run_dir).as_posix()] = read_json(path)
    return {"run": run_dir.name, "stages": stages}


def recorded(manifest: Path) -> dict[str, Any]:
    """The records of the stages in a manifest, by name. Raises UserError when it holds none."""
    stages = read_json(manifest).get("stages")
    if not stages:
        raise UserError(f"{manifest} is no manifest of a run: give runs/<run>/manifest.json")
    return dict(stages)


def recorded_recipe(stages: dict[str, Any]) -> dict[str, Any]:
    """The recipe with which the stages of a manifest were made.

    Each stage may have had overrides of its own, so each section comes from the stage that it decides.
    """
    first = next(iter(stages.values()))
    sections: dict[str, Any] = {}
    rounds = 1
    for name, stage in stages.items():
        parsed = parse_name(name)
        if parsed is not None:
            rounds = max(rounds, parsed.round)
            for section in parsed.spec.decides:
                sections.setdefault(section, stage["recipe"][section])
    recipe = {**first["recipe"], **sections}
    # The recipe may ask for more rounds than were run.
    recipe["pairs"] = {**recipe["pairs"], "rounds": rounds}
    return recipe
