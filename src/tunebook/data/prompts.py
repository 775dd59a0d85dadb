"""The recipe's prompt files, put round bare questions."""

from __future__ import annotations

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
