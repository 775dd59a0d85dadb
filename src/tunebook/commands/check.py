"""Commands that look and change nothing: `recipe show`, `recipe schema`, `doctor`."""

from __future__ import annotations

import json

from typer import Exit, Typer

from tunebook.commands.options import CHECK, START, RecipeOption, RunOption, SetOption, app, read_recipe

recipe_app = Typer(no_args_is_help=True, help="Show a recipe with all its values, or the schema of recipes.")
app.add_typer(recipe_app, name="recipe", rich_help_panel=CHECK)


@recipe_app.command("show")
def show_recipe(recipe: RecipeOption = None, run: RunOption = None, set_: SetOption = None) -> None:
    """The whole resolved recipe as YAML, each value with where it comes from: a file's line, an override.

    uv run tunebook recipe show --recipe smollm2-math --set sft.learning_rate=2e-4
    """
    from tunebook.recipe.show import shown

    print(shown(read_recipe(recipe, run, set_)), end="")


@recipe_app.command("schema")
def print_schema() -> None:
    """The JSON schema of a recipe, with which editors complete and explain its keys.

    uv run tunebook recipe schema > configs/recipe.schema.json
    """
    from tunebook.recipe.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


@app.command(rich_help_panel=START)
def doctor(recipe: RecipeOption = None, run: RunOption = None, set_: SetOption = None) -> None:
    """What is on this machine, what each recipe needs, and the command that mends what is missing.

    Python and packages against `uv.lock`, GPU or CPU and why, bfloat16, memory, disk, optional tools, keys
    (set or not, never their values); for each recipe whether it needs a GPU, the hub, a server. Exit code 1
    when the recipe (the default one, unless `--recipe` says otherwise) cannot run here. Nothing is changed or
    fetched.

        uv run tunebook doctor --recipe my.yaml
    """
    from tunebook import doctor

    if not doctor.doctor(read_recipe(recipe, run, set_)):
        raise Exit(1)
