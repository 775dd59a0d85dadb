"""The recipe's prompt files, put round bare questions."""

from __future__ import annotations

from pathlib import Path

from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import read_text
from tunebook.recipe.sections import Recipe


class Prompts:
    """The recipe's prompt files, read once, wrapped round bare questions."""

    def __init__(self, recipe: Recipe) -> None:
        data = recipe.data
        self.system: str | None = None
        self.user = "{question}"
        if data.system_prompt:
            self.system = read_text(data.find_file(data.system_prompt)).strip()
        if data.user_prompt:
            self.user = read_text(data.find_file(data.user_prompt)).strip()
        if "{question}" not in self.user:
            raise UserError(f"{data.user_prompt} has no {{question}}")

    def ask(self, question: str) -> Messages:
        """A bare question as the model gets to see it, the same in training, evaluation and chat."""
        return self.with_system([{"role": "user", "content": self.user.replace("{question}", question)}])

    def with_system(self, messages: Messages) -> Messages:
        """Put the recipe's system prompt first, unless the conversation has one."""
        if self.system is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system}, *messages]


LOOKED_AT = 1_000
"""Rows whose system messages are compared: a recipe of one system prompt has it in each."""


def trained_systems(recipe: Recipe) -> list[str]:
    """The system messages that a run's model was trained with: one, several, or none.

    That of the recipe; else those which stand in the training rows themselves, or in the pairs of DPO alone.
    """
    own = Prompts(recipe).system
    if own:
        return [own]
    for name in ("data", "pairs"):
        path = recipe.run_dir / name / "train.parquet"
        if path.exists():
            return _systems_of(path)
    return []


def trained_system(recipe: Recipe) -> str | None:
    """The one system message that a run's model was trained with; None where there is none, or several."""
    systems = trained_systems(recipe)
    return systems[0] if len(systems) == 1 else None


def _systems_of(path: Path) -> list[str]:
    import pyarrow.parquet

    prompts = pyarrow.parquet.read_table(path, columns=["prompt"], memory_map=True)["prompt"]
    systems: dict[str, None] = {}
    for messages in prompts.slice(0, LOOKED_AT).to_pylist():
        has_system = bool(messages) and messages[0]["role"] == "system"
        systems[messages[0]["content"] if has_system else ""] = None
    # One that only some rows have is not that of the model.
    return [] if list(systems) == [""] else list(systems)
