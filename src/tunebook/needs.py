"""What a recipe needs that a machine may lack: a GPU, a model or data from the hub, keys of servers, disk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tunebook.models import builtin
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.secrets import secret
from tunebook.recipe.sections import Recipe


def needs_of_recipe(recipe: Recipe, gpu: bool) -> Iterator[str]:
    """What a recipe needs that this machine may lack, a phrase each."""
    # The optimisers of both trainers, if they are named
    optimizers = f"{recipe.sft.get('optim')} {recipe.dpo.get('optim')}"
    if "8bit" in optimizers:
        # bitsandbytes keeps the optimiser's state in 8 bits, on a GPU only.
        yield "a CUDA GPU" if gpu else "a CUDA GPU (not here)"
    base = recipe.model.base
    if base not in (builtin.EMBEDDED, builtin.TINY_VISION) and not Path(recipe.model.local_base).exists():
        yield f"the model {base} from the hub{_in_cache(base)}"
    for source in recipe.data.sources:
        # The project's own problems have no path, its own figures the path `sample`.
        path = getattr(source, "path", "sample")
        if path != "sample" and _from_hub(path):
            yield f"the data {path} from the hub"
    if recipe.pairs.dataset and _from_hub(recipe.pairs.dataset):
        yield f"the pairs {recipe.pairs.dataset} from the hub"
    for server in (recipe.pairs.server, recipe.evaluate.server, recipe.judge and recipe.judge.server):
        if server:
            yield f"a server at {' and '.join(server.urls)} ({is_set(server.api_key_env)})"
    if recipe.clean:
        # The first two may stand in the recipe; a key never does.
        settings = {"BASE_URL": recipe.clean.url, "MODEL": recipe.clean.model, recipe.clean.api_key_env: None}
        unset = [name for name, value in settings.items() if not value and not secret(name)]
        if unset:
            yield f"for `clean` the variables {', '.join(unset)}"
        else:
            yield "for `clean` a server (its variables are set)"


def downloads(recipe: Recipe) -> int:
    """Bytes that a recipe's model takes in the hub's cache: as it is trained, and in 16 bit for a merge.

    From the size in its name (`Qwen3-4B`, `gemma-3n-E4B`); 0 for the project's own models and for folders.
    """
    base = recipe.model.base
    size = re.search(r"(E?)(\d+(?:\.\d+)?)[bB]\b", base)
    if size is None or base == builtin.EMBEDDED or Path(recipe.model.local_base).exists():
        return 0
    # Of an `effective` size there are twice as many weights: Gemma 3n E4B has 7.85 billion.
    weights = float(size[2]) * 1e9 * (2 if size[1] else 1)
    return int(weights * (2 + 0.9 * recipe.model.load_in_4bit))


def is_set(name: str) -> str:
    """Whether a variable is set, in the environment or in `.env`; never its value."""
    return f"{name} is set" if secret(name) else f"{name} is not set"


def needs_of_config(name: str, gpu: bool) -> list[str]:
    """The phrases of `needs_of_recipe` for a shipped recipe, or why it cannot be read."""
    try:
        return list(needs_of_recipe(load_recipe(name), gpu))
    except UserError as error:  # overrides from the environment that are not for this one
        return [str(error)]


def _from_hub(path: str) -> bool:
    return not path.startswith("{run}") and not (Path(path).exists() or (ROOT / path).exists())


def _in_cache(base: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(base, "config.json")
    except ValueError as error:
        return f" ({first_line(error)})"
    return " (in the cache)" if isinstance(file, str) else ""
