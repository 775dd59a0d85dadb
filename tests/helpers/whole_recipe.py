"""A shipped recipe with every value of its family, for tests that write a recipe of their own out of it."""

from __future__ import annotations

from typing import Any

from tunebook.recipe.loading import load_recipe


def content(name: str) -> dict[str, Any]:
    """The recipe's whole content as YAML can hold it; nothing is left to a family default.

    Without the retention suite: tests that want its 355 items ask for it.
    """
    content = load_recipe(name).model_dump(mode="json", exclude={"stages", "folders"})
    content["evaluate"]["retention"] = False
    return content
