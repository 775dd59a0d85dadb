"""`tunebook chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from rich.console import Console

from tunebook.chat.conversation import Chat, Models, open_image
from tunebook.generation.local import sees_images
from tunebook.generation.streaming import Drawing
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe


def terminal(
    recipe: Recipe, model: str | None, drawing: Drawing, question: str | None = None, image: str | None = None
) -> None:
    """Ask in the terminal: one question, or a conversation with `/model`, `/reset` and `/quit`."""
    models = Models(recipe)
    chat = Chat(models, model or models.newest, drawing)
    picture = open_image(image) if image else None
    if model is None and chat.model == "base":
        # Not among the answers, which may be read by another program.
        print(f"Nothing is trained in {recipe.run_dir}: the base model answers.", file=sys.stderr)
    if question is not None:
        _say(chat, question, picture)
        return
    console = Console()
    names = ", ".join(models.names)
    console.print(f"{chat.model} answers. /model NAME ({names}), /reset, /quit; Ctrl-C stops an answer.")
    # Loaded before the first question, and refused before the user has typed one.
    with models.use(chat.model) as source:
        if picture is not None and not sees_images(source):
            raise UserError("this model sees no images: leave --image out, or choose a model that does")
    while (line := _line()) is not None and line != "/quit":
        command, _, rest = line.partition(" ")
        try:
            if command == "/reset":
                chat.reset()
            elif command == "/model":
                with models.use(rest.strip()):
                    chat.model = rest.strip()
                console.print(f"{chat.model} answers.")
            elif command.startswith("/"):
                console.print("/model NAME, /reset, /quit")
            elif line:
                _say(chat, line, picture)
                picture = None  # it belongs to the first question
        except UserError as error:
            console.print(f"[red]{error}[/]")


def _say(chat: Chat, question: str, image: Any) -> None:
    """Print the answer as it comes. Closing the generator, as Ctrl-C does here, stops the model."""
    with contextlib.closing(chat.ask(question, image)) as pieces, contextlib.suppress(KeyboardInterrupt):
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


def _line() -> str | None:
    """What the user types; None at the end of the input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
