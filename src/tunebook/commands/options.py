"""The program, and the options that several of its commands have."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer
from typer.core import TyperGroup

from tunebook.recipe.errors import UserError, did_you_mean
from tunebook.recipe.files import ROWS_SUFFIXES
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set
from tunebook.recipe.sections import DEFAULT, Recipe
from tunebook.runs.blocks import Engine

# The groups of `tunebook --help`.
START, STEPS, USE, CHECK = "Start", "Stages", "Use", "Check"

# What people type, and what does it here.
OTHER_WORDS = {
    "train": "`tunebook sft` trains on answers, `tunebook dpo` on preferences, `tunebook run` does all",
    "finetune": "`tunebook sft` trains on answers, `tunebook dpo` on preferences, `tunebook run` does all",
    "fine-tune": "`tunebook sft` trains on answers, `tunebook dpo` on preferences, `tunebook run` does all",
    "eval": "`tunebook evaluate`",
    "test": "`tunebook evaluate`",
    "benchmark": "`tunebook bench`",
    "infer": "`tunebook chat`",
    "inference": "`tunebook chat`",
    "generate": "`tunebook chat`",
    "ask": "`tunebook chat`",
    "data": "`tunebook prepare`",
    "preprocess": "`tunebook prepare`",
    "merge": "`tunebook export --to merged`",
    "gguf": "`tunebook export --to gguf`",
    "ollama": "`tunebook export --to ollama`",
    "schema": "`tunebook recipe schema`",
    "config": "`tunebook recipe show`",
    "start": "`tunebook init my.csv`",
    "list": "`tunebook recipes`",
    "predict": "`tunebook chat`",
    "resume": "the same command again: an interrupted stage goes on from its last checkpoint",
    "upload": "`tunebook export --push USER/NAME`",
    "push": "`tunebook export --push USER/NAME`",
    "help": "`tunebook --help`, or `--help` behind a command",
    "version": "`tunebook --version`",
}
OF_A_TRAINER = "say of which training: `--set sft.{0}=...` or `--set dpo.{0}=...`"
OTHER_OPTIONS = {
    "--data": "`tunebook init my.csv` writes a recipe for your rows",
    "--dataset": "`tunebook init my.csv` writes a recipe for your rows",
    "--config": "`--recipe my.yaml`",
    "-c": "`--recipe my.yaml`",
    "--model": "`--set model.base=...`",
    "--output": "`--run NAME`, the folder under runs/",
    "--output-dir": "`--run NAME`, the folder under runs/",
    "--output_dir": "`--run NAME`, the folder under runs/",
    "--lr": OF_A_TRAINER.format("learning_rate"),
    "--learning-rate": OF_A_TRAINER.format("learning_rate"),
    "--epochs": OF_A_TRAINER.format("num_train_epochs"),
    "--max-steps": OF_A_TRAINER.format("max_steps"),
    "--batch-size": OF_A_TRAINER.format("per_device_train_batch_size"),
    "--seed": "`--set seed=...`",
    "--report-to": "`--set track=wandb`",
}


class Commands(TyperGroup):
    """Answers words and options that other tools use with what does it here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first argument names. Raises UserError for what is known from elsewhere."""
        # A command of that name, should there be one some day, comes first.
        if args and args[0] in OTHER_WORDS and args[0] not in self.commands:
            raise UserError(f"there is no command {args[0]!r}: {OTHER_WORDS[args[0]]}")
        if args and args[0] in self.commands:
            _answer_others(self.commands[args[0]], args[0], args[1:])
        return super().resolve_command(ctx, args)


def _answer_others(command: Any, name: str, args: list[str]) -> None:
    """Raises UserError for an option of other tools, and for a file that a command does not take."""
    options: list[str] = []
    takes_words = hasattr(command, "commands")
    for parameter in command.params:
        options += parameter.opts
        takes_words = takes_words or parameter.param_type_name == "argument"
    # Also written as `--lr=2e-4`.
    for word in args:
        option = word.partition("=")[0]
        if option in OTHER_OPTIONS and option not in options:
            raise UserError(f"`tunebook {name}` has no option {option}: {OTHER_OPTIONS[option]}")
    file = args[0] if args else ""
    if not takes_words and file.endswith((".yaml", ".yml")):
        raise UserError(f"give the recipe as an option: `tunebook {name} --recipe {file}`")
    if not takes_words and file.endswith(ROWS_SUFFIXES):
        raise UserError(f"`tunebook init {file}` writes a recipe for these rows; `tunebook {name}` reads it")


app = Typer(
    cls=Commands,
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
EngineOption = Annotated[
    Engine, Option("--engine", help="`ray`: on all machines of a Ray cluster, or all cores of this one.")
]
ResumeOption = Annotated[
    bool, Option("--resume/--no-resume", help="Go on from the last checkpoint of an interrupted run.")
]
FreshOption = Annotated[
    bool,
    Option(
        "--fresh", help="Start over where an interrupted training of other settings is; it is kept aside."
    ),
]
ContinueOption = Annotated[
    bool,
    Option(
        "--continue",
        help="Train the finished adapter further: the steps or epochs are added, the rows may be others.",
    ),
]
# The short names that the notebooks have as parameters.
LrOption = Annotated[float | None, Option("--lr", help="The learning rate.")]
EpochsOption = Annotated[float | None, Option("--epochs", help="How often all rows are read.")]
MaxStepsOption = Annotated[int | None, Option("--max-steps", help="End after so many steps.")]
BatchSizeOption = Annotated[int | None, Option("--batch-size", help="Rows at a time on each device.")]
SeedOption = Annotated[int | None, Option("--seed", help="Of rows, adapter and batches.")]
ControlOption = Annotated[
    bool,
    Option(
        "--control",
        help="Train the control too: the likelihood of the same chosen answers alone (`dpo.control`).",
    ),
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

        uv run tunebook init my.csv         a recipe for your own rows

        uv run tunebook run -r my.yaml      all that the recipe asks for

        uv run tunebook sft -r my.yaml --set sft.learning_rate=1e-4

        uv run tunebook chat -r my.yaml     ask what is trained
    """


run_folders: list[Path] = []
"""The run folders that this process has been at work in: the traceback of an unknown error goes there."""


def read_recipe(
    recipe: str | None, run: str | None, set_: list[str] | None, stage: str | None = None, **short: Any
) -> Recipe:
    """The recipe that the options `--recipe`, `--run`, `--set` and, of a `stage`, the short ones mean."""
    overrides: dict[str, Any] = parse_set(set_ or [])
    parsed = load_recipe(recipe, run, overrides, stage, **short)
    run_folders.append(parsed.run_dir)
    return parsed


def of_a_run(recipe: Recipe, run: str | None, base_alone: str = "") -> Recipe:
    """The recipe of a command that reads what a run has left. Raises UserError where `--run` names no run.

    Without it the base model would answer for a name with a typo. `base_alone` is how to ask for just that.
    """
    if run is None or recipe.run_dir.exists():
        return recipe
    runs = recipe.run_dir.parent
    others = (folder.name for folder in runs.glob("*/"))
    way_out = f"; the base model alone: `{recipe.command(base_alone)}`" if base_alone else ""
    raise UserError(f"no run {run!r} in {runs}{did_you_mean(run, others)}{way_out}")


def print_done(recipe: Recipe, what: str, following: str) -> None:
    """The last line of a stage's command."""
    print(f"Wrote {recipe.run_dir / what}. Next: {following}")
