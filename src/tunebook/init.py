"""`tunebook init my.csv` writes a recipe for a file of rows, `tunebook new` lays out a project.

uv run tunebook init my.csv --goal sft
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console
from rich.text import Text

from tunebook.checkers.check import Check
from tunebook.data import recognise, sources
from tunebook.data.rows import Reject, Row
from tunebook.data.tokens import open_tokenizer
from tunebook.models.builtin import EMBEDDED
from tunebook.models.turns import Conversation, TurnMarks, trained_spans
from tunebook.pairs import existing
from tunebook.pairs.look import Look, look_at, parsed_columns
from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.files import PACKAGED, shipped
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import Recipe

Goal = Literal["sft", "dpo", "both"]


FEW = 1_000
"""Up to so many rows a tenth is held out for val and for test, else a twentieth."""

SHOWN = 2
"""Rows that are shown as the model will see them."""

# By a part of a model's name, the family default that a recipe for it extends.
FAMILIES = {"smollm": "smollm2", "qwen3": "qwen3", "gemma-3n": "gemma3n", "llama-3": "llama3"}

# Without `--model`: the smallest GPU memory in GB, the family whose values hold, and the model where it is
# another than the family's own. A card of 8 GB has 7.6 of them.
BY_MEMORY = (
    (15, "qwen3", None),
    (7, "llama3", None),
    (3.5, "llama3", "unsloth/Llama-3.2-1B-Instruct"),
)


def init(
    path: str,
    model: str | None = None,
    goal: Goal | None = None,
    out: Path | None = None,
    force: bool = False,
    check: str | None = None,
    columns: str | None = None,
) -> Path:
    """Look at a file, write a recipe of a few lines for it, and print what was seen and what comes next.

    Args:
        path: A file, a pattern, a folder or a hub id, as a source's `path`.
        model: A hub id or a folder. By default what fits this machine.
        goal: By default SFT for rows of questions and answers, DPO for a preference set.
        check: What makes an answer right: the name of a checker, or `my_checks.py:function`.
        columns: Other names of columns, as `prompt=Frage,completion=Antwort`. By default unknown columns are
            taken by parts of their names; of two the first for the prompt.
        out: Where the recipe is written. By default `<name of the file>.yaml` where one works.

    Returns:
        The recipe's path.

    Raises UserError when the file holds no rows that can be read, or the recipe is there already.
    """
    look = look_at(path, parsed_columns(columns))
    if look.guess and not look.form and not columns:
        look = look_at(path, look.guess)
        print(f"{path}: {_taken_for(look.renames)}")
    if not look.form:
        raise UserError(f"{path}: {look.example or 'no rows'}{_proposal(look)}")
    out = out or Path(f"{_stem(path)}.yaml")
    if out.exists() and not force:
        raise UserError(f"{out} is there already: give another --out, or --force to replace it")
    # A guess, which the last lines say, so that another --goal can be given.
    goal = goal or ("dpo" if look.is_preference else "sft")
    family, model = _model(model)
    out.parent.mkdir(parents=True, exist_ok=True)
    before = out.read_bytes() if out.exists() else None
    out.write_text(recipe_text(look, goal, family, model, out, check), encoding="utf-8")
    try:
        recipe = load_recipe(out)
        _ = Check(recipe.check).inputs  # a file that it names is there
        rejects: list[Reject] = []
        examples = list(itertools.islice(_examples(recipe, look, rejects), SHOWN))
    except UserError:
        # What cannot be read back is not left lying about.
        if before is None:
            out.unlink()
        else:
            out.write_bytes(before)
        raise
    _say(look, goal, recipe, out)
    if not examples and rejects:
        print(f"WARNING: no row can be used as it is (the first: {rejects[0].reason}, {rejects[0].detail})")
    _show(recipe, examples)
    _say_next(recipe, goal)
    return out


def _proposal(look: Look) -> str:
    """What `--columns` may be where no form fits; nothing where it would not help."""
    if names := recognise.longest(look.lengths):
        return f"; here: --columns {_columns_option(prompt=names[0], completion=names[1])}"
    if len(look.lengths) < 3 or look.unreadable.keys() != {"unknown columns"}:
        return ""
    sides = recognise.named_sides(look.lengths)
    one = _columns_option(prompt=sides["prompt"], completion=recognise.NOT_NAMED)
    three = _columns_option(**sides)
    return f"; of a preference set three: --columns {three}; of one answer: --columns {one}"


def _taken_for(renames: dict[str, str]) -> str:
    """What a file's columns were taken for, and how to say that it is otherwise."""
    prompt, answer, *others = renames.values()
    if others:
        (worse,) = others
        otherwise = _columns_option(prompt=prompt, chosen=worse, rejected=answer)
        answers = f"{answer!r} for the chosen answer and {worse!r} for the rejected one"
        return f"{prompt!r} is taken for the prompt, {answers}; the other way round: --columns {otherwise}"
    otherwise = _columns_option(prompt=answer, completion=prompt)
    return (
        f"{prompt!r} is taken for the prompt and {answer!r} for the answer; "
        f"the other way round: --columns {otherwise}"
    )


def _columns_option(**columns: str) -> str:
    """What stands behind `--columns`, safe to type in a shell."""
    return shlex.quote(",".join(f"{ours}={theirs}" for ours, theirs in columns.items()))


NEW = ("configs", "prompt", "notebooks", "resources/sample")
"""What `tunebook new` lays out."""


def new(folder: Path) -> None:
    """Lay out recipes, prompts, notebooks and sample data in a folder: a project to work in.

    Raises UserError when the folder holds something already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and not empty: give the name of a new folder")
    for name in NEW:
        shutil.copytree(PACKAGED / name, folder / name)
    (folder / ".gitignore").write_text("runs/\n.env\n", encoding="utf-8")


def _stem(path: str) -> str:
    """`my` of `data/my.jsonl.gz`; of a pattern or a hub id a name that can be a file's."""
    name = Path(path.rstrip("/")).name.split(".")[0].replace("*", "").strip("-_ ")
    return name or "recipe"


def _model(model: str | None) -> tuple[str, str | None]:
    """The family default to extend, and the model where it is not the family's own."""
    if model is None:
        memory = gpu_memory_gb()
        for least, family, smaller in BY_MEMORY:
            if memory >= least:
                return family, smaller
        return "smollm2", None
    # By its name: a model that is not fetched yet cannot be asked.
    for part, family in FAMILIES.items():
        if part in model.lower():
            return family, None if model == EMBEDDED else model
    return "base", model


def gpu_memory_gb() -> float:
    """The memory of the first GPU that `nvidia-smi` lists, in GB; 0 without one."""
    if os.environ.get("UNSLOTH_FORCE_CPU") == "1":
        return 0.0
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return float(listed.splitlines()[0]) / 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0.0


def recipe_text(
    look: Look, goal: Goal, family: str, model: str | None, out: Path, check: str | None = None
) -> str:
    """The recipe as YAML: the schema for editors, how to run it, and what is asked for."""
    schema = os.path.relpath(shipped("configs") / "recipe.schema.json", out.parent)
    lines = [
        f"# yaml-language-server: $schema={schema}",
        f"# tunebook run --recipe {out}",
        f"extends: {family}",
    ]
    if model:
        lines.append(f"model: {{base: {_quoted(model)}}}")
    if check:
        lines.append(f"check: {_quoted(check)}")
    path = _quoted(_from(look.path, out.parent))
    if look.renames:
        path += f", columns: {_quoted(look.renames)}"
    if look.is_preference:
        lines.append(f"pairs: {{dataset: {path}}}")
        if goal != "dpo":
            raise UserError(
                f"{look.path} is a preference set, with which DPO alone can be done (--goal dpo). "
                "For SFT before it give the recipe a `data` section too"
            )
        return "\n".join([*lines, "dpo:"]) + "\n"
    # A twentieth of two hundred rows would be ten: too few to show anything.
    share = 0.1 if look.rows <= FEW and not look.has_more else 0.05
    lines.append(f"data: {{sources: [{{path: {path}, val: {share}, test: {share}}}]}}")
    if goal in ("sft", "both"):
        lines.append("sft:")
    if goal in ("dpo", "both"):
        of_what = "questions" if check else "questions with an `answer`"
        lines.append(f"# The model answers {of_what}; a right and a wrong answer to one make a pair.")
        lines.append("pairs: {methods: [on_policy]}")
    return "\n".join(lines) + "\n"


def _from(path: str, folder: Path) -> str:
    """A local path as the recipe names it, from its own folder; a hub id as it is."""
    place = Path(path)
    is_local = place.exists() or (place.parent.is_dir() and not place.is_absolute() and len(place.parts) == 1)
    if place.is_absolute() or not is_local:
        return path
    return os.path.relpath(path, folder)


def _quoted(value: str | dict[str, str]) -> str:
    """A value as YAML within one line."""
    dumped = yaml.safe_dump(value, width=1_000, allow_unicode=True, default_flow_style=True, sort_keys=False)
    return dumped.removesuffix("\n...\n").strip()


def _examples(recipe: Recipe, look: Look, rejects: list[Reject]) -> Iterator[dict[str, Any]]:
    """Rows as they are trained on, or pairs; the first that cannot be used goes to `rejects`."""
    with tempfile.TemporaryDirectory() as folder:
        found: Iterator[Any] = sources.read(recipe, Path(folder))
        if look.is_preference:
            found = existing.read(recipe, len, Path(folder))
        for item in found:
            if isinstance(item, Reject):
                rejects[:] = rejects[:1] or [item]
            else:
                yield vars(item) if isinstance(item, Row) else item


def _say(look: Look, goal: Goal, recipe: Recipe, out: Path) -> None:
    """What was seen in the file, in a few plain lines."""
    more = "more than " if look.has_more else ""
    kind = "preference pairs" if look.is_preference else "rows"
    readable = look.rows - look.unreadable.total()
    print(f"{look.path}: {more}{readable} {kind} of the form {look.form} ({', '.join(look.columns)})")
    if look.unreadable:
        reasons = ", ".join(f"{count} {reason}" for reason, count in look.unreadable.most_common())
        print(f"  not readable: {reasons} (the first: {shorten(look.example, 200)})")
    goals = {"sft": "SFT", "dpo": "DPO", "both": "SFT, then DPO on the model's own right and wrong answers"}
    print(f"  goal: {goals[goal]} of {recipe.model.base}")
    print(f"Wrote {out}; `tunebook recipe show --recipe {out}` prints all its values")


def _show(recipe: Recipe, examples: list[dict[str, Any]]) -> None:
    """The examples rendered by the model's chat template; between `>>>` and `<<<` is what carries loss."""
    try:
        tokenizer = open_tokenizer(recipe.model)
    except UserError as error:
        print(f"  the rows are not shown as the model sees them: {error}")
        return
    console = Console(highlight=False, soft_wrap=True)
    for number, example in enumerate(examples, 1):
        learns = "it learns what stands between >>> and <<<"
        if "chosen" in example:
            learns = "of what stands between >>> and <<<, chosen gets likelier than rejected"
        print(f"\nRow {number} as the model sees it; {learns}:\n")
        if "chosen" in example:
            for side in ("chosen", "rejected"):
                pair = {"prompt": example["prompt"], "completion": example[side]}
                console.print(f"({side})", _marked(pair, tokenizer, "last"))
        else:
            console.print(_marked(example, tokenizer, recipe.data.train_on or "all"))


def _marked(row: dict[str, Any], tokenizer: Any, train_on: str) -> Text:
    """A row's rendered text with marks around each turn that carries loss."""
    text = Conversation.of(row).render(tokenizer)
    try:
        spans = trained_spans(row, tokenizer, TurnMarks.of(tokenizer), train_on)
    except (ValueError, UserError):  # turns cannot be told apart: the last answer is trained, as TRL does it
        before = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        spans = [(len(before), len(text))]
    # As text: a row's own markup is none of ours.
    shown = Text()
    end = 0
    for start, stop in spans:
        shown.append(text[end:start], "dim")
        shown.append(f">>>{text[start:stop]}<<<", "green")
        end = stop
    return shown.append(text[end:], "dim")


def _say_next(recipe: Recipe, goal: Goal) -> None:
    """The commands that come next."""
    stage = "sft" if goal == "sft" else "dpo"
    commands = {
        "run --dry-run": "what will be done",
        "run": "all of it, to a report",
        f"chat --model {stage}": "afterwards: ask it",
    }
    width = max(len(recipe.command(words)) for words in commands)
    print("\nNext:")
    for words, what in commands.items():
        print(f"  {recipe.command(words):{width}}   {what}")
