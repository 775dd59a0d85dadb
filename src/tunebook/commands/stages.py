"""The commands of stages: each calls the function that the notebooks call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tunebook.commands.options import (
    STEPS,
    BatchSizeOption,
    ContinueOption,
    ControlOption,
    EngineOption,
    EpochsOption,
    ForceOption,
    FreshOption,
    LrOption,
    MaxStepsOption,
    ModelsArgument,
    RecipeOption,
    ResumeOption,
    RoundOption,
    RunOption,
    SeedOption,
    SetOption,
    app,
    of_a_run,
    print_done,
    read_recipe,
)
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set
from tunebook.recipe.sections import DEFAULT, Recipe
from tunebook.runs.stages import STAGES, StageSpec, next_command, round_name

# For the help of `run`.
NAMES = ", ".join(f"`{spec.command}`" for spec in STAGES.values() if spec.notebook)


@app.command(rich_help_panel=STEPS)
def run(
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    first: Annotated[
        str | None, Option("--from", metavar="STEP", help=f"The first step to run: {NAMES}.")
    ] = None,
    until: Annotated[str | None, Option("--until", metavar="STEP", help="The last step to run.")] = None,
    force: ForceOption = False,
    fresh: FreshOption = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Say what would run and why, and do nothing.")] = False,
    manifest: Annotated[
        Path | None,
        Option(
            "--from-manifest",
            metavar="FILE",
            help="Repeat the run of this manifest.json, and say what differs. --run: where.",
        ),
    ] = None,
) -> None:
    """Everything the recipe asks for: the notebooks in order, into `runs/<run>/notebooks/`.

    Its sections say what that is: `sft` asks for SFT, `pairs` or `dpo` for pairs and DPO. Steps whose inputs
    and settings are unchanged are left out.

        uv run tunebook run --until sft
        uv run tunebook run --from-manifest runs/smollm2-math/manifest.json
    """
    from tunebook import pipeline

    if manifest:
        if recipe or set_ or first or until or force or fresh:
            raise UserError("--from-manifest repeats a run as it was: give no option but --run and --dry-run")
        print(pipeline.repeat(manifest, run, dry_run))
        return
    parsed = read_recipe(recipe, run, set_)
    print(parsed.describe())
    if not pipeline.run(parsed, first, until, force, dry_run, fresh):
        print("Nothing to do.")


@app.command(rich_help_panel=STEPS)
def prepare(
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    engine: EngineOption = "local",
) -> None:
    """Read, check and write the data of a recipe.

    Rows that fail a check end in `runs/<run>/data/quarantine.jsonl` with the reason.

        uv run tunebook prepare --set data.sources.0.train=500
    """
    from tunebook.data import prepare

    parsed = read_recipe(recipe, run, set_)
    print(parsed.describe())
    prepare.show(prepare.prepare(parsed, force, engine))
    print_done(parsed, "data", next_command(parsed, "prepare"))


@app.command(rich_help_panel=STEPS)
def clean(
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Rows, tokens and cost, and nothing is asked.")
    ] = False,
) -> None:
    """Rewrite raw solutions into numbered steps by an OpenAI-compatible API, each checked by its answer.

    `API_KEY`, `BASE_URL` and `MODEL` come from the environment or `.env`. Rows that fail the checks twice end
    in `runs/<run>/clean/quarantine.jsonl`.

        uv run tunebook clean --recipe my.yaml --dry-run
    """
    from tunebook.data import clean

    parsed = read_recipe(recipe, run, set_)
    if dry_run:
        print(", ".join(f"{name}: {value:,}" for name, value in clean.estimate(parsed).items()))
        return
    record = clean.clean(parsed, force)
    rows = ", ".join(f"{count} {outcome}" for outcome, count in record["rows"].items())
    print(f"{rows}; {record['requests']} requests, cost {record['cost']:.2f}")
    for question, before, after in clean.examples(parsed):
        print(f"\n--- {question}\n\n{before}\n\n->\n\n{after}")
    print_done(parsed, "clean", parsed.command("prepare"))


@app.command(rich_help_panel=STEPS)
def pairs(
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    number: RoundOption = 1,
) -> None:
    """Preference pairs: chosen verified right, rejected verified wrong.

    By default from the SFT model's own answers. `pairs.methods` also takes `injected_error` and `dataset`;
    `pairs.server` lets an OpenAI-compatible server answer.

        uv run tunebook pairs --set pairs.samples=8 --set 'pairs.methods=[on_policy, injected_error]'
    """
    from tunebook.pairs import pairs, summary

    parsed = read_recipe(recipe, run, set_)
    pairs.pairs(parsed, number, force)
    summary.show(pairs.pairs_stage(parsed, number))
    name = round_name("pairs", number)
    print_done(parsed, name, next_command(parsed, name))


def _add_trainer(spec: StageSpec) -> None:
    """Add the command of a stage that trains."""

    def train(
        recipe: RecipeOption = None,
        run: RunOption = None,
        set_: SetOption = None,
        force: ForceOption = False,
        resume: ResumeOption = True,
        fresh: FreshOption = False,
        number: RoundOption = 1,
        control: ControlOption = False,
        lr: LrOption = None,
        epochs: EpochsOption = None,
        max_steps: MaxStepsOption = None,
        batch_size: BatchSizeOption = None,
        seed: SeedOption = None,
    ) -> None:
        options: dict[str, Any] = {"force": force, "resume": resume, "fresh": fresh, "number": number}
        if control:
            set_ = [*(set_ or []), "dpo.control=true"]
        short = {"lr": lr, "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "seed": seed}
        execute(read_recipe(recipe, run, set_, spec.command, **short), number, options)

    def execute(parsed: Recipe, number: int, options: dict[str, Any]) -> None:
        record = spec.run(parsed, **options)
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        print("  ".join(f"{name}: {value}" for name, value in metrics.items()))
        following = next_command(parsed, round_name(spec.command, number))
        print_done(parsed, f"{round_name(spec.name, number)}/adapter", following)

    # Typer reads the options out of the signature: this one has no --round, which is --continue there.
    def train_once(
        recipe: RecipeOption = None,
        run: RunOption = None,
        set_: SetOption = None,
        force: ForceOption = False,
        resume: ResumeOption = True,
        fresh: FreshOption = False,
        go_on: ContinueOption = False,
        lr: LrOption = None,
        epochs: EpochsOption = None,
        max_steps: MaxStepsOption = None,
        batch_size: BatchSizeOption = None,
        seed: SeedOption = None,
    ) -> None:
        options: dict[str, Any] = {"force": force, "resume": resume, "fresh": fresh, "go_on": go_on}
        short = {"lr": lr, "epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "seed": seed}
        execute(read_recipe(recipe, run, set_, spec.command, **short), 1, options)

    help_text = (
        f"{spec.help} On several GPUs: `NPROC_PER_NODE=4 bash train_{spec.command}.sh`.\n\n"
        f"    uv run tunebook {spec.command} --lr 2e-4 --epochs 2"
    )
    app.command(spec.command, help=help_text, rich_help_panel=STEPS)(train if spec.has_rounds else train_once)


# A row of the table is a command; nothing is to be written here for a new trainer.
for _spec in STAGES.values():
    if _spec.help:
        _add_trainer(_spec)


@app.command(rich_help_panel=STEPS)
def evaluate(
    stages: ModelsArgument = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
    gate_: Annotated[
        bool, Option("--gate", help="Fail when the recipe's `evaluate.gate` does not hold.")
    ] = False,
) -> None:
    """Let each stage's model answer the same held-out items, and compare them pair by pair.

    `--gate` ends with exit code 0 when every rule holds: better, or not worse by more than the rule allows.
    3: not shown by so many items; 4: worse at its task; 5: broken elsewhere (`suite: retention`);
    2: a rule could not be asked.

        uv run tunebook evaluate base sft --set evaluate.split=val --set evaluate.limit=100
    """
    from tunebook.evaluation import evaluate, first_screen, gate, tables

    parsed = read_recipe(recipe, run, set_)
    if stages != ["base"]:
        of_a_run(parsed, run, "evaluate base")
    tables.show(parsed, evaluate.evaluate(parsed, stages, force))
    first_screen.show(parsed)
    print_done(parsed, "eval", next_command(parsed, "evaluate"))
    # Last, so that a failed gate leaves the table and the results.
    failures = gate.gate(parsed) if gate_ else []
    if failures:
        raise gate.GateFailed(failures)


@app.command(rich_help_panel=STEPS)
def sweep(
    over: Annotated[
        list[str],
        Option("--over", metavar="KEY=V1,V2", help="A recipe key and its values; several make a grid."),
    ],
    file: Annotated[str | None, Argument(metavar="[RECIPE]", help="As --recipe.")] = None,
    recipe: RecipeOption = None,
    run: Annotated[
        str | None, Option("--run", help="The name under `runs/`. Default: the recipe's name and `-sweep`.")
    ] = None,
    set_: SetOption = None,
) -> None:
    """Train a run for each setting of a grid, and compare them on the val split.

    What does not depend on the settings is made once. Says whether one is shown to be the best, with a
    correction for their number. The same command goes on after an interruption.

        uv run tunebook sweep my.yaml --over sft.learning_rate=1e-4,2e-4,5e-4 --over lora.r=8,16
    """
    from tunebook.sweep import sweep

    if file and recipe:
        raise UserError(f"two recipes: {file} and --recipe {recipe}")
    print(f"\n{sweep(file or recipe or DEFAULT, over, run, parse_set(set_ or []))}")


@app.command(rich_help_panel=STEPS)
def bench(
    stages: ModelsArgument = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    force: ForceOption = False,
) -> None:
    """Benchmarks of lm-evaluation-harness for each stage's model. Needs `uv sync --extra eval`.

    uv run tunebook bench --set 'evaluate.benchmarks.tasks=[gsm8k]' --set evaluate.benchmarks.limit=200
    """
    from tunebook.evaluation import benchmarks, tables

    parsed = read_recipe(recipe, run, set_)
    if stages != ["base"]:
        of_a_run(parsed, run, "bench base")
    summary = benchmarks.bench(parsed, stages, force)
    tables.benchmark_table(summary["tasks"]).print("benchmarks")
    tables.comparison_table(summary["comparisons"]).print("the same items, pair by pair")
    print_done(parsed, "bench", parsed.command("report"))


@app.command(rich_help_panel=STEPS)
def report(
    runs: Annotated[
        list[str] | None, Argument(help="Run folders. Default: the recipe's. Several are put side by side.")
    ] = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
) -> None:
    """The report card of a run: `report.md` and `report.html` in its folder. Of several runs: a comparison.

    uv run tunebook report runs/smollm2-math runs/trial-2
    """
    from tunebook.evaluation.compare import compare_runs
    from tunebook.evaluation.report import write

    folders = list(map(_run_folder, runs or []))
    folders = folders or [of_a_run(load_recipe(recipe, run), run).run_dir]
    if len(folders) > 1:
        print(compare_runs(folders))
        return
    for path in write(folders[0]):
        print(f"Wrote {path}")


def _run_folder(name: str) -> Path:
    """A run by its folder, wherever it lies, or by its name under `runs/`. Raises UserError for neither."""
    if Path(name).exists():
        return Path(name)
    run = Path(name).name
    return of_a_run(load_recipe(run=run), run).run_dir
