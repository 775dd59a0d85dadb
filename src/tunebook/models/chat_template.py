"""Chat templates: fitted to the recipe, checked, and rendered."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import find_file, read_text
from tunebook.recipe.sections import ModelConfig


def fit_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    """Give a tokenizer (or processor) the recipe's chat template and end of turn. Raises UserError when it ends up without a template,
    or lacks the token."""
    if config.chat_template:
        tokenizer.chat_template = read_text(find_file(config.chat_template))
    if not tokenizer.chat_template:
        raise UserError(
            f"{config.base} has no chat template: set model.chat_template, for example to prompt/chatml.jinja"
        )
    check_template(tokenizer, config.base)
    text = text_tokenizer(tokenizer)
    if config.eos_token:
        if config.eos_token not in text.get_vocab():
            raise UserError(f"model.eos_token: {config.base} has no token {config.eos_token!r}")
        text.eos_token = config.eos_token


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer in a processor; a tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def has_processor(folder: Path) -> bool:
    """Whether a model or adapter was saved with a processor: it sees images."""
    return any((folder / name).exists() for name in ("processor_config.json", "preprocessor_config.json"))


RENDERING_S, RENDERING_BYTES = 10.0, 2**30
"""What a chat template may take for two short messages."""


_checked: set[str] = set()


def check_template(tokenizer: Any, name: str) -> None:
    """Render two short messages with a tokenizer's (or processor's) chat template, in a process that is ended when it takes too long.

    transformers renders in Jinja's sandbox: a template reaches no file and no Python object, but may loop as long as it likes.
    Raises UserError for one that cannot be rendered.
    """
    template = repr(tokenizer.chat_template)
    if template in _checked:
        return
    fork = multiprocessing.get_context("fork")  # the tokenizer as it is, in no time
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=_render, args=(tokenizer, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        why = ours.recv() if ours.poll(RENDERING_S) else f"it takes more than {RENDERING_S:.0f} s"
    except EOFError:
        why = "it ended the process"
    process.kill()
    process.join()
    if why:
        raise UserError(
            f"the chat template of {name} cannot be used: {why}. Set model.chat_template, for example to prompt/chatml.jinja"
        )
    _checked.add(template)


def _render(tokenizer: Any, answer: Any) -> None:
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + RENDERING_BYTES,) * 2)
    parts = hasattr(tokenizer, "image_processor")  # a processor wants every content as a list of parts
    texts = {"user": "Hi", "assistant": "Hello"}
    said = [
        {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
        for role, text in texts.items()
    ]
    try:
        tokenizer.apply_chat_template(said, tokenize=False)
        tokenizer.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)
        answer.send("")
    except Exception as error:
        answer.send(f"{type(error).__name__}: {first_line(error)}")


Messages = list[dict[str, str]]


def render(tokenizer: Any, messages: Messages, count: int, answer_next: bool = True) -> str:
    """Messages as text by the chat template of a tokenizer or processor, with the placeholders of `count` images before the first
    question, where TRL puts them in training."""
    given: list[Any] = list(messages)
    if hasattr(tokenizer, "image_processor"):
        from trl.data_utils import prepare_multimodal_messages

        given = prepare_multimodal_messages(given, [""] * count)
    return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=answer_next))
