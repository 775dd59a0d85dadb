"""Chat templates: fitted to the recipe, checked, and rendered."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import read_text
from tunebook.recipe.sections import ModelConfig

Messages = list[dict[str, str]]
"""A conversation: each message has a `role` and its `content`."""

RENDERING_S, RENDERING_BYTES = 10.0, 2**30
"""What a chat template may take for two short messages."""


def fit_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    """Give a tokenizer (or processor) the recipe's chat template and end of turn.

    Raises UserError when it ends up without a template, or lacks the token.
    """
    if config.chat_template:
        tokenizer.chat_template = read_text(config.find_file(config.chat_template))
    if not tokenizer.chat_template:
        raise UserError(
            f"{config.base} has no chat template: set model.chat_template, for example to prompt/plain.jinja"
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
    new_name = folder / "processor_config.json"
    old_name = folder / "preprocessor_config.json"
    return new_name.exists() or old_name.exists()


def render(tokenizer: Any, messages: Messages, count: int, answer_next: bool = True) -> str:
    """Messages as text, by the chat template of a tokenizer or processor.

    The placeholders of `count` images stand before the first question, where TRL puts them in training.
    """
    parts: list[Any] = list(messages)
    if hasattr(tokenizer, "image_processor"):
        from trl.data_utils import prepare_multimodal_messages

        parts = prepare_multimodal_messages(parts, [""] * count)
    return str(tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=answer_next))


def default_system(tokenizer: Any) -> str | None:
    """The system message that the chat template adds to a conversation without one; None: it adds none."""
    question = {"role": "user", "content": "Hi"}
    mark = "SYSTEM-MESSAGE"
    try:
        bare = render(tokenizer, [question], 0, answer_next=False)
        marked = render(tokenizer, [{"role": "system", "content": mark}, question], 0, answer_next=False)
    except Exception:  # whatever a template raises: some take no system message
        return None
    # What stands where a system message of one's own would, between the same texts.
    before, _, after = marked.partition(mark)
    if not bare.startswith(before) or not bare.endswith(after):
        return None
    return bare[len(before) : len(bare) - len(after)].strip() or None


_checked: set[str] = set()
"""Templates that were rendered in this process already."""


def check_template(tokenizer: Any, name: str) -> None:
    """Render two short messages with a tokenizer's (or processor's) chat template, in a process of its own.

    transformers renders in Jinja's sandbox: a template reaches no file and no Python object, but may loop as
    long as it likes. The process is ended when it takes too long.

    Raises UserError for a template that cannot be rendered.
    """
    template = repr(tokenizer.chat_template)
    if template in _checked:
        return
    fork = multiprocessing.get_context("fork")  # the tokenizer as it is, in no time
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_render_or_say_why, args=(tokenizer, sender), daemon=True)
    process.start()
    sender.close()
    reason = f"it takes more than {RENDERING_S:.0f} s"
    try:
        if receiver.poll(RENDERING_S):
            reason = receiver.recv()
    except EOFError:
        reason = "it ended the process"
    process.kill()
    process.join()
    if reason:
        raise UserError(
            f"the chat template of {name} cannot be used: {reason}. "
            "Set model.chat_template, for example to prompt/chatml.jinja"
        )
    _checked.add(template)


def _render_or_say_why(tokenizer: Any, sender: Any) -> None:
    """In the child process: sends an empty text when the template works, else the reason."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + RENDERING_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    messages = []
    for role, text in (("user", "Hi"), ("assistant", "Hello")):
        content: Any = text
        if hasattr(tokenizer, "image_processor"):  # a processor wants every content as a list of parts
            content = [{"type": "text", "text": text}]
        messages.append({"role": role, "content": content})
    try:
        tokenizer.apply_chat_template(messages, tokenize=False)
        tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        sender.send("")
    except Exception as error:
        sender.send(f"{type(error).__name__}: {first_line(error)}")
