"""A model's tokenizer and chat template read from its files by `tokenizers` and Jinja.

transformers would load PyTorch for it, which takes 5 s and 600 MB; preparing data needs neither.
"""

from __future__ import annotations

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

from tunebook.models import backend, builtin, chat_template
from tunebook.models.chat_template import Messages
from tunebook.models.tokenizer import load_tokenizer
from tunebook.recipe.sections import ModelConfig
from tunebook.runs.files import read_json

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What is read of a model."""


def open_tokenizer(config: ModelConfig) -> Any:
    """The base model's tokenizer: a `FileTokenizer`, or transformers' own where its files do not say all.

    Raises UserError when there is no such model, or when its chat template cannot be used.
    """
    folder = _download(config)
    tokenizer = FileTokenizer.read(folder) if folder else None
    if tokenizer is None:
        return load_tokenizer(config)
    chat_template.fit_tokenizer(tokenizer, config)
    return tokenizer


class FileTokenizer:
    """A model's tokenizer without transformers, used as transformers' is: only what this project asks of one."""

    def __init__(
        self, text_tokenizer: tokenizers.Tokenizer, special_tokens: dict[str, str], template: str | None
    ) -> None:
        self.text_tokenizer = text_tokenizer
        self.special_tokens = special_tokens
        self.chat_template = template
        self.added_tokens_decoder = text_tokenizer.get_added_tokens_decoder()

    @classmethod
    def read(cls, folder: Path) -> FileTokenizer | None:
        """Read a model's files; None when they do not say all that transformers would make of them."""
        settings = read_json(folder / "tokenizer_config.json")
        try:
            text_tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the library raises nothing narrower for a file that is missing or damaged
            return None
        text_tokenizer.no_truncation()
        text_tokenizer.no_padding()
        if "added_tokens_decoder" not in settings:
            settings |= read_json(folder / "special_tokens_map.json")
        tokenizer = cls(text_tokenizer, _special_tokens(settings), _template(folder, settings))
        # transformers adds a token that stands in the settings alone, and then splits text at it.
        known_tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
        if not settings or _all_tokens(settings) - known_tokens:
            return None
        return tokenizer

    @property
    def eos_token(self) -> str | None:
        """The token that ends an answer; chat templates may write it."""
        return self.special_tokens.get("eos_token")

    @eos_token.setter
    def eos_token(self, token: str) -> None:
        self.special_tokens["eos_token"] = token

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return self.text_tokenizer.get_vocab()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """The ids of a text's tokens as `input_ids`."""
        encoding = self.text_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoding.ids}

    def apply_chat_template(
        self, messages: Messages, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """Messages as text. Raises jinja2.TemplateError where the template refuses them."""
        template = _compile(str(self.chat_template))
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.special_tokens,
        )


def _download(config: ModelConfig) -> Path | None:
    """The folder with the base model's files; None when they cannot be had (transformers then says why)."""
    backend.set_environment()
    base = builtin.resolve(config.base)
    if Path(base).is_dir():
        return Path(base)
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(base, revision=config.revision, allow_patterns=list(FILES))
        )
    except (OSError, ValueError):
        return None


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """The tokens that have a name (`eos_token`, `image_token`, ...), which chat templates may write."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    extra = settings.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    texts = {name: _text(value) for name, value in named.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _all_tokens(settings: dict[str, Any]) -> set[str | None]:
    """Every token that the settings name."""
    tokens: set[str | None] = set(_special_tokens(settings).values())
    tokens.update(map(_text, settings.get("added_tokens_decoder", {}).values()))
    for name in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(settings.get(name), list):
            tokens.update(map(_text, settings[name]))
    return tokens


def _text(token: Any) -> str | None:
    """A token as text: files have a string, or an object with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: of a file of its own, or out of the settings, where it may be one of several."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {one["name"]: one["template"] for one in template}.get("default")
    return template


@functools.lru_cache(maxsize=8)
def _compile(template: str) -> jinja2.Template:
    """A chat template in the sandbox and with the functions that transformers gives it.

    Source: `transformers.utils.chat_template_utils`, which cannot be imported without PyTorch.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
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


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
