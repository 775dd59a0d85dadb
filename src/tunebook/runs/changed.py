"""Models that were trained with other settings than the recipe has now."""

from __future__ import annotations

from collections.abc import Iterable

from tunebook.recipe.effects import differences, of_the_weights
from tunebook.recipe.errors import UserError, say_once
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.stages import parse_name

SAID = 4
"""Changed settings that are named."""


def say_changed(recipe: Recipe, names: Iterable[str]) -> None:
    """Say of which models the results are not those of the recipe: only what decides the weights counts."""
    for name in names:
        parsed = parse_name(name)
        if parsed is None or not parsed.spec.trains:
            continue
        recorded = read_json(recipe.run_dir / name / "stage.json").get("settings", {})
        which = (parsed.round,) if parsed.spec.has_rounds else ()
        try:
            now = parsed.spec.folder(recipe, *which).settings
        except UserError:  # what it was made from is gone
            continue
        changed = differences(of_the_weights(recorded), of_the_weights(now))
        if recorded and changed:
            more = ", ..." if len(changed) > SAID else ""
            say_once(
                f"Warning: {name} was trained with other settings than the recipe has now "
                f"({', '.join(changed[:SAID])}{more}). The results are those of the trained model"
            )
