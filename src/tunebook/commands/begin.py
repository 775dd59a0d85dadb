"""Commands to begin with: `init`, `new`, `recipes`, `notebooks`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from tunebook.commands.options import START, app
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import shipped


@app.command(rich_help_panel=START)
def init(
    rows: Annotated[str, Argument(metavar="FILE", help="Your rows: a file, pattern, folder or hub id.")],
    model: Annotated[
        str | None, Option("--model", "-m", help="A hub id or a folder. Default: what fits this machine.")
    ] = None,
    goal: Annotated[
        Literal["sft", "dpo", "both"] | None,
        Option("--goal", help="Default: SFT for questions and answers, DPO for a preference set."),
    ] = None,
    out: Annotated[
        Path | None, Option("--out", "-o", help="The recipe to write. Default: the file's name with `.yaml`.")
    ] = None,
    force: Annotated[bool, Option("--force", help="Replace the recipe that is there.")] = False,
    check: Annotated[
        str | None,
        Option(
            "--check",
            help="What makes an answer right: maths (the default), exact, contains, json, instructions, or a "
            "function of yours, my_checks.py:function.",
        ),
    ] = None,
    columns: Annotated[
        str | None,
        Option(
            "--columns",
            metavar="NAMES",
            help="Which of your columns are prompt and completion (or chosen, rejected, answer, system).",
        ),
    ] = None,
) -> None:
    """Look at your rows and write a recipe of a few lines for them.

    Says which form the rows have and how many can be read, shows two of them as the model will see them, with
    what is trained on between `>>>` and `<<<`, and prints the commands that come next.

        uv run tunebook init my.csv

        uv run tunebook init my.csv --model unsloth/Qwen3-4B-Instruct-2507

        uv run tunebook init my.csv --columns prompt=Frage,completion=Antwort

        uv run tunebook init my.csv --goal both --check json
    """
    from tunebook import init

    init.init(rows, model, goal, out, force, check, columns)


@app.command(rich_help_panel=START)
def new(folder: Annotated[Path, Argument(help="The folder to make.")]) -> None:
    """Lay out a project: the shipped recipes, prompts, notebooks and sample data in a new folder.

    There `tunebook` finds them, and writes `runs/`.

        uv run tunebook new my-project
    """
    from tunebook import init

    init.new(folder)
    print(f"Made {folder}. Next: cd {folder} && tunebook run, or jupyter lab notebooks")


@app.command(rich_help_panel=START)
def recipes(
    copy: Annotated[
        str | None, Option("--copy", metavar="NAME", help="Copy this recipe to where you work.")
    ] = None,
) -> None:
    """The shipped recipes, a line each.

    uv run tunebook recipes --copy smollm2-math
    """
    paths = {path.stem: path for path in sorted(shipped("configs").glob("*.yaml"))}
    if copy is None:
        for name, path in paths.items():
            # The first line names the schema for editors, the second says what the recipe is.
            print(f"{name:20} {path.read_text(encoding='utf-8').splitlines()[1].removeprefix('# ')}")
        return
    if copy not in paths:
        raise UserError(f"no recipe {copy!r}; there are: {', '.join(paths)}")
    target = Path(f"{copy}.yaml")
    if target.exists():
        raise UserError(f"{target} is there already")
    shutil.copyfile(paths[copy], target)
    print(f"Wrote {target}. Next: tunebook run --recipe {target}")


@app.command(rich_help_panel=START)
def notebooks(
    copy: Annotated[bool, Option("--copy", help="Copy them into `notebooks/` where you work.")] = False,
) -> None:
    """The shipped notebooks, a line each. They run in order, in JupyterLab or by papermill.

    uv run tunebook notebooks --copy
    """
    paths = sorted(shipped("notebooks").glob("*.ipynb"))
    if not copy:
        for path in paths:
            title = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"][0]
            print(f"{path.stem:14} {title.strip('# ').strip()}")
        return
    folder = Path("notebooks")
    folder.mkdir(exist_ok=True)
    for path in paths:
        if (folder / path.name).exists():
            raise UserError(f"{folder / path.name} is there already")
    for path in paths:
        shutil.copyfile(path, folder / path.name)
    print(f"Wrote {len(paths)} notebooks to {folder}. Next: jupyter lab {folder}")
