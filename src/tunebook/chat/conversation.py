"""Talk to the models of a run: `tunebook chat` in the terminal, and what the inference notebook stands on.

uv run tunebook chat --question "A rectangle is 3 cm by 4 cm. What is its area?"
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from tunebook.checkers.check import Check
from tunebook.data.prompts import Prompts, trained_system
from tunebook.evaluation.items import answers_by_model
from tunebook.evaluation.table import Table
from tunebook.evaluation.tables import mark
from tunebook.generation.local import Local, local
from tunebook.generation.streaming import Drawing, stream
from tunebook.models import backend, image_input, loading
from tunebook.models.adapters import load_stages
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.stage import adapter_key
from tunebook.runs.stages import model_names, trained_models

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")

FORMULA = re.compile(r"(\$\$.+?\$\$|\$[^$\n]+?\$)", re.DOTALL)

BOXED = re.compile(r"\\boxed\s*\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}")
"""`\boxed{}` with braces in it, up to two levels deep."""


class Models:
    """The models that can be asked, loaded when they first are.

    The recipe's base has the run's adapters on it, so that its stages are one model. Another folder or hub id
    takes its place in memory: two models may not fit on a GPU.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._merged = recipe.run_dir / "export" / "merged"
        # The folder or hub id that is in memory (empty: the recipe's base), with its model and tokenizer.
        self._loaded: tuple[str, Any, Any] | None = None

    @property
    def names(self) -> list[str]:
        """`base`, the stages that are trained, and `merged` where it has been exported."""
        names = trained_models(self.recipe)
        if self._merged.exists():
            names.append("merged")
        return names

    @property
    def newest(self) -> str:
        """The last stage that is trained; `base` when none is."""
        return trained_models(self.recipe)[-1]

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Local]:
        """One of `names`, a folder or a hub id, ready to be asked. Raises UserError for anything else."""
        if not name:
            raise UserError(f"no model named: choose from {', '.join(self.names)}")
        adapter = None
        where = name
        if name == "merged":
            where = str(self._merged)
        elif name in model_names(self.recipe):
            adapter_key(self.recipe, name)  # refuses what is not trained
            where = ""
            if name != "base":
                adapter = name
        with local(*self._load(where), adapter) as source:
            yield source

    def _load(self, where: str) -> tuple[Any, Any]:
        """Model and tokenizer of a folder or hub id; of `""` the recipe's base with the run's adapters."""
        is_folder = (Path(where) / "config.json").exists()
        if where and not is_folder and not HUB_ID.fullmatch(where):
            raise UserError(
                f"no model {where!r}: choose from {', '.join(self.names)}, "
                "or give a folder or a hub id such as user/name"
            )
        if self._loaded is None or self._loaded[0] != where:
            if self._loaded:
                self._loaded = None
                backend.release()
            # What transformers, PEFT and the hub raise for a folder or id that is no model
            try:
                if where:
                    model, tokenizer = self._load_other(where)
                else:
                    model, tokenizer = load_stages(self.recipe, trained_models(self.recipe))
            except (OSError, ValueError, RuntimeError) as error:
                name = where or self.recipe.model.base
                raise UserError(f"{name} cannot be loaded: {first_line(error)}") from None
            self._loaded = where, model, tokenizer
        return self._loaded[1], self._loaded[2]

    def _load_other(self, where: str) -> tuple[Any, Any]:
        # Revision, template and end of turn are those of the recipe's base, not of another model.
        changes: dict[str, Any] = {"base": where, "revision": None, "chat_template": None, "eos_token": None}
        if where == str(self._merged):
            # Else it is quantised once more, and is not the model that was exported.
            changes["load_in_4bit"] = False
        config = self.recipe.model.model_copy(update=changes)
        return loading.load_model(self.recipe.model_copy(update={"model": config}))


@dataclass
class Chat:
    """A conversation, prompted as in training (the recipe's system prompt).

    Each answer may come from another model.
    """

    models: Models
    model: str
    drawing: Drawing = field(default_factory=Drawing)
    messages: Messages = field(default_factory=list)
    images: dict[int, Any] = field(default_factory=dict)
    """Images (PIL) by the number of the message that they go with; later answers see them too."""

    def ask(self, question: str, image: Any = None) -> Generator[str]:
        """The answer in pieces. Question and answer (as far as it came) go into the history."""
        prompts = Prompts(self.models.recipe)
        prompts.system = trained_system(self.models.recipe)
        messages = [*self.messages, prompts.ask(question)[-1]]
        images = dict(self.images)
        if image is not None:
            images[len(self.messages)] = image
        # The system message, which is not part of the history, moves the messages on by one.
        prompt = prompts.with_system(messages)
        moved = len(prompt) - len(messages)
        images_of_prompt = {number + moved: picture for number, picture in images.items()}
        # An answer that is stopped halfway is part of the conversation; one that never began is not.
        pieces: list[str] = []
        with self.models.use(self.model) as source:
            try:
                for piece in stream(source, prompt, self.drawing, images_of_prompt):
                    pieces.append(piece)
                    yield piece
            finally:
                if pieces:
                    self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
                    self.images = images

    def reset(self) -> None:
        """Begin a new conversation."""
        self.messages = []
        self.images = {}


def open_image(path: str | Path | Any) -> Any:
    """An image file (or file object) as RGB. Raises UserError for what is none."""
    try:
        return image_input.read(path.read() if hasattr(path, "read") else Path(path))
    except image_input.BadImage as error:
        raise UserError(f"{getattr(path, 'name', path)}: {error.reason} ({error})") from None


def compare(models: Models, rows: list[dict[str, Any]], names: list[str], max_new_tokens: int) -> str:
    """Rows of a split answered greedily by each model, as HTML.

    Answers are marked right or wrong where the recipe's `check` can say it.
    """
    table = Table()
    check = Check(models.recipe.check)
    answers = answers_by_model(models.use, names, rows, max_new_tokens)
    for row, by_model in zip(rows, answers, strict=True):
        gold = row.get("gold")
        question = escape(row["prompt"][-1]["content"])
        if gold is not None:
            question += Markup("<br><b>answer: {}</b>").format(gold)
        cells = {}
        for name, answer in by_model.items():
            cells[name] = answer.text
            correct = check.judge(row, answer.text, answer.truncated).correct
            if correct is not None:
                cells[name] = mark(correct) + answer.text
        table.add(question=question, **cells)
    return table.html()


def rendered(answer: str) -> str:
    r"""An answer as Markdown that JupyterLab shows with its LaTeX.

    `\( \)` and `\[ \]` become dollars, a bare `\boxed{}` becomes math, and lines are kept.
    """
    # Jupyter knows dollars only.
    text = re.sub(r"\\\((.+?)\\\)", r"$\1$", answer, flags=re.DOTALL)
    text = re.sub(r"\\\[(.+?)\\\]", r"$$\1$$", text, flags=re.DOTALL)
    pieces = []
    for number, piece in enumerate(FORMULA.split(text)):
        # Every second piece is a formula, which stays as it is; the others lie between formulas.
        if number % 2 == 0:
            piece = BOXED.sub(r"$\g<0>$", piece).replace("\n", "  \n")
        pieces.append(piece)
    return "".join(pieces)
