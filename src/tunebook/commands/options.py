"""The program, and the options that several of its commands have."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set
from tunebook.recipe.sections import DEFAULT, Recipe

app = Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # locals may hold secrets
)

# Options that several commands have.
RecipeOption = Annotated[
    str | None, Option("--recipe", "-r", help=f"A name in `configs/` or a YAML file. Default: `{DEFAULT}`.")
]
RunOption = Annotated[
    str | None, Option("--run", help="The folder under `runs/`. Default: the recipe's name.")
]
SetOption = Annotated[
    list[str] | None,
    Option("--set", "-s", metavar="KEY=VALUE", help="Override a recipe key; may be repeated."),
]
ForceOption = Annotated[bool, Option("--force", help="Run again though nothing has changed, from the start.")]
ResumeOption = Annotated[
    bool, Option("--resume/--no-resume", help="Go on from the last checkpoint of an interrupted run.")
]
RoundOption = Annotated[
    int,
    Option(
        "--round", min=1, help="Iterated DPO: round 2 starts from round 1's model, with the next prompts."
    ),
]
ModelsArgument = Annotated[
    list[str] | None,
    Argument(help="`base`, `sft`, `dpo`, `dpo-2`, ... Default: base and all that are trained."),
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(importlib.metadata.version("tunebook"))
        raise Exit


@app.callback()
def program(
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Fine-tune an open model with Unsloth and TRL: data, SFT, preference pairs, DPO, evaluation, export.

    Each command reads a recipe (`configs/*.yaml`) and the stage before it, and writes one folder of
    `runs/<run>/`. A stage whose inputs and settings are unchanged is not run again (`--force` does).

        uv run tunebook doctor                                what this machine lacks, and for which recipe
        uv run tunebook run                                   the whole chain of the default recipe
        uv run tunebook recipe show --recipe my.yaml          all values, and where each comes from
        uv run tunebook sft --recipe my.yaml --run trial-2    another recipe, another run folder
        uv run tunebook sft --set sft.learning_rate=2e-4      one value changed
        uv run tunebook chat                                  ask what is trained
    """


def read_recipe(recipe: str | None, run: str | None, set_: list[str] | None) -> Recipe:
    """The recipe that the options `--recipe`, `--run` and `--set` mean."""
    overrides: dict[str, Any] = parse_set(set_ or [])
    return load_recipe(recipe, run, overrides)


def print_done(recipe: Recipe, what: str, following: str) -> None:
    """The last line of a stage's command."""
    print(f"Wrote {recipe.run_dir / what}. Next: {following}")
