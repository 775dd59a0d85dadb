"""A shipped recipe with every value of its family, for tests that write a recipe of their own out of it."""

from __future__ import annotations

from typing import Any

from tunebook.recipe.loading import load_recipe


def content(name: str) -> dict[str, Any]:
    """The recipe's whole content as YAML can hold it; nothing is left to a family default."""
    return load_recipe(name).model_dump(mode="json", exclude={"stages", "folders"})
