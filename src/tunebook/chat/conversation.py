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

from tunebook.checkers.maths import verify
from tunebook.data.formats import Prompts
from tunebook.evaluation.items import answers_by_model
from tunebook.evaluation.tables import Table, mark
from tunebook.generation.local import Local, local
from tunebook.generation.streaming import Drawing, stream
from tunebook.models import image_input, loading
from tunebook.models.adapters import load_stages
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.stage import adapter_key
from tunebook.runs.stages import model_names, trained_models


class Models:
    """The models that can be asked, loaded when they first are: the base once, the run's adapters on it, other folders beside."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._loaded: dict[str, Local] = {}

    @property
    def names(self) -> list[str]:
        """`base`, the stages that are trained, and `merged` where it has been exported."""
        return trained_models(self.recipe) + ["merged"] * (self.recipe.run_dir / "export" / "merged").exists()

    @property
    def newest(self) -> str:
        """The last stage that is trained; `base` when none is."""
        return trained_models(self.recipe)[-1]

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Local]:
        """One of `names`, a folder or a hub id, ready to be asked. Raises UserError for anything else."""
        if not name:
            raise UserError(f"no model named: choose from {', '.join(self.names)}")
        if name not in model_names(self.recipe):
            where = str(self.recipe.run_dir / "export" / "merged") if name == "merged" else name
            with local(*self._load(where), None) as source:
                yield source
            return
        adapter_key(self.recipe, name)  # refuses what is not trained
        with local(*self._load(""), None if name == "base" else name) as source:
            yield source

    def _load(self, where: str) -> tuple[Any, Any]:
        """Model and tokenizer of a folder or hub id; of `""` the recipe's base with the run's adapters."""
        if (
            where
            and not (Path(where) / "config.json").exists()
            and not re.fullmatch(r"[\w.-]+/[\w.-]+", where)
        ):
            raise UserError(
                f"no model {where!r}: choose from {', '.join(self.names)}, or give a folder or a hub id such as user/name"
            )
        if where not in self._loaded:
            another = {
                "base": where,
                "revision": None,
                "chat_template": None,
                "eos_token": None,
            }  # these belong to the recipe's base
            config = self.recipe.model.model_copy(update=another if where else {})
            recipe = self.recipe.model_copy(update={"model": config})
            try:
                model, tokenizer = (
                    loading.load(recipe) if where else load_stages(recipe, trained_models(recipe))
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(
                    f"{where or self.recipe.model.base} cannot be loaded: {first_line(error)}"
                ) from None
            self._loaded[where] = Local(model, tokenizer)
        return self._loaded[where].model, self._loaded[where].tokenizer


@dataclass
class Chat:
    """A conversation, prompted as in training (the recipe's system prompt); each answer may come from another model."""

    models: Models
    model: str
    drawing: Drawing = field(default_factory=Drawing)
    messages: Messages = field(default_factory=list)
    shown: dict[int, Any] = field(default_factory=dict)
    """Images (PIL) by the number of the message that they go with; later answers see them too."""

    def ask(self, question: str, image: Any = None) -> Generator[str]:
        """The answer in pieces. Question and answer (as far as it came) go into the history."""
        prompts = Prompts(self.models.recipe)
        asked = [*self.messages, prompts.ask(question)[-1]]
        whole = prompts.with_system(asked)
        shown = self.shown | ({} if image is None else {len(self.messages): image})
        pieces: list[str] = []
        with self.models.use(self.model) as source:
            try:
                for piece in stream(
                    source,
                    whole,
                    self.drawing,
                    {i + len(whole) - len(asked): picture for i, picture in shown.items()},
                ):
                    pieces.append(piece)
                    yield piece
            finally:
                if pieces:
                    self.messages, self.shown = (
                        [*asked, {"role": "assistant", "content": "".join(pieces)}],
                        shown,
                    )


def open_image(path: str | Path | Any) -> Any:
    """An image file (or file object) as RGB. Raises UserError for what is none."""
    try:
        return image_input.read(path.read() if hasattr(path, "read") else Path(path))
    except image_input.BadImage as error:
        raise UserError(f"{getattr(path, 'name', path)}: {error.reason} ({error})") from None


def compare(models: Models, rows: list[dict[str, Any]], names: list[str], max_new_tokens: int) -> str:
    """Rows of a split answered greedily by each model, as HTML; marked right or wrong where a row has an answer."""
    table = Table()
    answers = answers_by_model(models.use, names, rows, max_new_tokens)
    for row, by_model in zip(rows, answers, strict=True):
        gold = row.get("gold")
        question = escape(row["prompt"][-1]["content"])
        if gold is not None:
            question += Markup("<br><b>answer: {}</b>").format(gold)
        cells = {}
        for name, answer in by_model.items():
            cells[name] = answer.text
            if gold is not None:
                correct = verify(answer.text, gold, boxed_only=answer.truncated).correct
                cells[name] = mark(correct) + answer.text
        table.add(question=question, **cells)
    return table.html()


def rendered(answer: str) -> str:
    r"""An answer as Markdown that JupyterLab shows with its LaTeX: `\( \)` and `\[ \]` as dollars, a bare `\boxed{}` as math, lines kept."""
    text = re.sub(r"\\\((.+?)\\\)", r"$\1$", answer, flags=re.DOTALL)
    text = re.sub(r"\\\[(.+?)\\\]", r"$$\1$$", text, flags=re.DOTALL)
    parts = re.split(r"(\$\$.+?\$\$|\$[^$\n]+?\$)", text, flags=re.DOTALL)
    braces = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"
    parts[::2] = [
        re.sub(rf"\\boxed\s*{braces}", lambda m: f"${m[0]}$", part).replace("\n", "  \n")
        for part in parts[::2]
    ]
    return "".join(parts)
