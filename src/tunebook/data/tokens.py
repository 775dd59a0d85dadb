"""Tokens counted as the trainer will see them, without transformers.

A model's `tokenizer.json` and chat template are read by `tokenizers` and Jinja. transformers would load
PyTorch for it, which takes 5 s and 600 MB; preparing data needs neither.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunebook.models import backend, builtin, chat_template, hub
from tunebook.models.chat_template import Messages
from tunebook.models.tokenizer import load_tokenizer
from tunebook.recipe.sections import ModelConfig
from tunebook.runs.files import read_json

FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]


def open_tokenizer(config: ModelConfig) -> Any:
    """The base model's tokenizer: a `FileTokenizer`, or transformers' own where its files do not say all.

    Raises UserError when there is no such model, or when its chat template cannot be used.
    """
    # Where nothing can be read, transformers says why.
    folder = _fetch(config)
    tokenizer = FileTokenizer.read(folder) if folder else None
    if tokenizer is None:
        return load_tokenizer(config)
    chat_template.fit_tokenizer(tokenizer, config)
    return tokenizer


class FileTokenizer:
    """A model's tokenizer without transformers, called as transformers' own is."""

    def __init__(self, text_tokenizer: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> None:
        self.text_tokenizer = text_tokenizer
        # Those that have a name (`bos_token`, `image_token`, ...): chat templates may write them.
        self.special_tokens = special_tokens
        self.eos_token = special_tokens.get("eos_token")
        self.chat_template: str | None = None
        self.added_tokens_decoder = text_tokenizer.get_added_tokens_decoder()

    @classmethod
    def read(cls, folder: Path) -> FileTokenizer | None:
        """Read a model's files; None when they do not say all that transformers would make of them."""
        settings = read_json(folder / "tokenizer_config.json")
        try:
            text_tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the library raises nothing narrower for a file that is missing or damaged
            return None
        # A file may say how its model's training cut and filled texts.
        text_tokenizer.no_truncation()
        text_tokenizer.no_padding()
        # Files of older models keep these apart.
        if "added_tokens_decoder" not in settings:
            settings |= read_json(folder / "special_tokens_map.json")

        special_tokens: dict[str, str] = {}
        named = {name: value for name, value in settings.items() if name.endswith("_token")}
        if isinstance(settings.get("extra_special_tokens"), dict):
            named |= settings["extra_special_tokens"]
        for name, value in named.items():
            special_tokens.update((name, text) for text in _texts(value))

        tokenizer = cls(text_tokenizer, special_tokens)
        tokenizer.chat_template = _template(folder, settings)
        # transformers adds a token that stands in the settings alone, and then splits text at it.
        tokens = set(special_tokens.values())
        for name in ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"):
            tokens.update(_texts(settings.get(name)))
        known_tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
        if not settings or tokens - known_tokens:
            return None
        return tokenizer

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return self.text_tokenizer.get_vocab()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The ids of a text's tokens as `input_ids`."""
        return {"input_ids": self.text_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def apply_chat_template(
        self,
        messages: Messages,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """Messages as text. Raises jinja2.TemplateError where the template refuses them."""
        names: dict[str, Any] = dict(self.special_tokens)
        if self.eos_token:
            names["eos_token"] = self.eos_token
        return _compile(str(self.chat_template)).render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **names,
        )


def _fetch(config: ModelConfig) -> Path | None:
    """The folder with the base model's files; None when they cannot be had."""
    backend.set_environment()
    base = builtin.resolve(config.local_base)
    if Path(base).is_dir():
        return Path(base)
    import httpx
    from huggingface_hub import snapshot_download

    hub.use_if_reachable()

    # Without a network a commit that is on this disk is found by the second try alone.
    for on_disk in (False, True):
        with contextlib.suppress(OSError, ValueError, httpx.HTTPError):
            folder = snapshot_download(
                base, revision=config.revision, allow_patterns=FILES, local_files_only=on_disk
            )
            return Path(folder)
    return None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: of a file of its own, or out of the settings, where it may be one of several."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    return template


def _texts(tokens: Any) -> list[str]:
    """Tokens as text: files have a string for one, or an object with its `content`; many, or by name."""
    if isinstance(tokens, str):
        return [tokens]
    if isinstance(tokens, dict):
        if "content" in tokens:
            return [tokens["content"]]
        tokens = list(tokens.values())
    texts = []
    if isinstance(tokens, list):
        for token in tokens:
            texts += _texts(token)
    return texts


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """A chat template in the sandbox and with the functions that transformers gives it.

    Source: `transformers.utils.chat_template_utils`, which cannot be imported without PyTorch.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    # Jinja's own would write `<`, `&` and `'` as HTML does.
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(template)


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says, for masks; the text is that of the block."""

    tags = {"generation"}  # noqa: RUF012 - so does the class above it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_block_text"), [], [], body).set_lineno(line)

    def _block_text(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
