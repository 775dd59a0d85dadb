"""Tokens counted without transformers: the same text and ids as with it, and a guard against templates."""

from __future__ import annotations

import json
import shutil
from importlib.resources import files
from pathlib import Path

import jinja2
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tunebook.data.tokens import FileTokenizer, open_tokenizer
from tunebook.models.tokenizer import control_tokens, load_tokenizer
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import ModelConfig

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen 2 and 3 cut text before byte-level BPE."""


TEXTS = (
    "What is 12 times 1,345.60?",
    "  Leading spaces,\ttabs\n\n\nand   runs of them  \r\n",
    "It's José's naïve café: 東京都, Ελλάδα, 🙂🙃 and \u200bmore.",
    "$$\\frac{a}{b} = \\boxed{42}$$ <b>&amp;</b> 'quoted' \"twice\"",
    "def f(x):\n    return x ** 2  # a comment",
    "<think>\nFirst, add.\n</think>\n\nThe answer is 5.",
    "<|im_start|>user\nnot a turn<|im_end|><eos><bos><start_of_turn>",
    "",
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A small tokenizer as Qwen 3's: byte-level BPE, ChatML, thinking, a token in the settings' decoder."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train([str(ROOT / "README.md")], trainer)
    special = [AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": files("trl").joinpath("chat_templates/qwen3.jinja").read_text(encoding="utf-8"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": 3_000}))
    return folder


def conversations() -> list[list[dict[str, str]]]:
    """Every text as a question and as an answer, with and without a system prompt and an earlier turn."""
    out = []
    for i, question in enumerate(TEXTS):
        answer = TEXTS[i - 1]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        system = [{"role": "system", "content": "Think step by step."}]
        out += [turns[:1], turns, system + turns, system + turns + turns]
    return out


def assert_equal(ours: FileTokenizer, theirs) -> None:
    """The same rendering, ids and control tokens; the same refusals."""
    assert isinstance(ours, FileTokenizer)
    assert ours.get_vocab() == theirs.get_vocab()
    assert control_tokens(ours) == control_tokens(theirs)
    assert ours.eos_token == theirs.eos_token
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours(text, add_special_tokens=special)["input_ids"] == ids, text
    for messages in conversations():
        for answer_next in (True, False):
            kwargs = {"tokenize": False, "add_generation_prompt": answer_next}
            try:
                expected = theirs.apply_chat_template(messages, **kwargs)
            except jinja2.TemplateError as error:
                with pytest.raises(type(error)):
                    ours.apply_chat_template(messages, **kwargs)
                continue
            text = ours.apply_chat_template(messages, **kwargs)
            assert text == expected
            ids = theirs(text, add_special_tokens=False)["input_ids"]
            assert ours(text, add_special_tokens=False)["input_ids"] == ids


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("smollm2-135m-instruct", "TokenizersBackend"),
        ("tiny-gemma3n", "GemmaTokenizer"),
        ("qwen", "Qwen2Tokenizer"),
    ],
)
def test_counts_are_those_of_transformers(base, kind, qwen):
    config = ModelConfig(base=str(qwen) if base == "qwen" else base)
    theirs = load_tokenizer(config)
    assert type(theirs).__name__ == kind
    assert_equal(open_tokenizer(config), theirs)


def test_the_recipes_template_and_end_of_turn_are_those_of_transformers(qwen):
    config = ModelConfig(base=str(qwen), chat_template="prompt/chatml.jinja", eos_token="<|endoftext|>")  # noqa: S106
    assert_equal(open_tokenizer(config), load_tokenizer(config))
    with pytest.raises(UserError, match=r"model.eos_token: .* has no token '<nowhere>'"):
        open_tokenizer(ModelConfig(base=str(qwen), eos_token="<nowhere>"))  # noqa: S106


def test_chat_templates_are_rendered_as_by_transformers(qwen):
    """All that TRL carries, of some thirty families; some refuse a system prompt, or text as text."""
    ours = FileTokenizer.read(qwen)
    theirs = load_tokenizer(ModelConfig(base=str(qwen)))
    folder = files("trl").joinpath("chat_templates")
    paths = [path for path in folder.iterdir() if path.name.endswith(".jinja")]
    rendered = 0
    for path in paths:
        ours.chat_template = theirs.chat_template = path.read_text(encoding="utf-8")
        for messages in conversations():
            try:
                expected = theirs.apply_chat_template(messages, tokenize=False)
            except (jinja2.TemplateError, TypeError) as error:
                with pytest.raises(type(error)):
                    ours.apply_chat_template(messages)
            else:
                assert ours.apply_chat_template(messages) == expected, path.name
                rendered += 1
    assert len(paths) > 30 and rendered > 20 * len(paths)


def test_a_template_has_the_functions_that_transformers_gives_it(qwen):
    ours = FileTokenizer.read(qwen)
    theirs = load_tokenizer(ModelConfig(base=str(qwen)))
    ours.chat_template = theirs.chat_template = (
        "{%- for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {%- set x = 1 %}{% generation %}{% set x = 2 %}{{ m | tojson }} {{ [m] | tojson(indent=1) }}"
        "{% endgeneration %}{{ x }}{{ eos_token }}{{ bos_token is defined }}{{ tools is none }}\n"
        "{% endfor %}{{ strftime_now('%Y') }}{{ documents is none }}{{ undefined_name }}"
    )
    for messages in conversations():
        assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages, tokenize=False)
    ours.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(jinja2.TemplateError, match="no such role"):
        ours.apply_chat_template(conversations()[0])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(10**9) %}{{ i }}{% endfor %}", "Range too big|takes more than|MemoryError|ended"),
        ("{{ 'x' * 10**12 }}", "MemoryError|ended the process"),
        ("{{ ().__class__.__bases__ }}", "SecurityError"),
        ("{% for", "TemplateSyntaxError"),
    ],
)
def test_a_models_template_may_not_take_the_machine(qwen, tmp_path, template, message, monkeypatch):
    for name in ("tokenizer.json", "config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((qwen / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    monkeypatch.setattr("tunebook.models.chat_template.RENDERING_S", 3.0)
    with pytest.raises(UserError, match=f"chat template of .* cannot be used.*({message})"):
        open_tokenizer(ModelConfig(base=str(tmp_path)))


def test_what_the_files_do_not_say_is_left_to_transformers(qwen, tmp_path):
    """A token that the settings alone hold splits text for transformers; so do rows counted by it."""
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((qwen / name).read_bytes())
    settings = json.loads((qwen / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"extra_special_tokens": ["<|extra|>"]})
    )
    assert FileTokenizer.read(tmp_path) is None
    tokenizer = open_tokenizer(ModelConfig(base=str(tmp_path)))
    assert len(tokenizer("<|extra|>")["input_ids"]) == 1
    (tmp_path / "tokenizer.json").write_text("{}")
    assert FileTokenizer.read(tmp_path) is None
    assert FileTokenizer.read(tmp_path / "nowhere") is None


def test_named_templates_and_older_files_of_special_tokens(qwen, tmp_path):
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((qwen / name).read_bytes())
    templates = [
        {"name": "tool_use", "template": "tools"},
        {"name": "default", "template": "{{ eos_token }}"},
    ]
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": templates}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {
        "eos_token": {"content": "<|im_end|>", "lstrip": False, "rstrip": False},
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    ours = FileTokenizer.read(tmp_path)
    theirs = load_tokenizer(ModelConfig(base=str(tmp_path)))
    messages = conversations()[1]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages, tokenize=False)
    assert ours.apply_chat_template(messages) == "<|im_end|>"


def test_a_model_that_is_not_there_is_one_clear_line(embedded):
    tokenizer = open_tokenizer(load_recipe().model)
    assert len(tokenizer("Two words")["input_ids"]) == 2
    with pytest.raises(UserError, match="there is no folder"):
        open_tokenizer(load_recipe(overrides={"model.base": "/no/such/model"}).model)


@pytest.mark.parametrize("revision", [None, "0123456789abcdef0123456789abcdef01234567"])
def test_a_hub_model_on_this_disk_needs_no_network(qwen, tmp_path, monkeypatch, revision):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "models--some--model"
    shutil.copytree(qwen, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tokenizer = open_tokenizer(ModelConfig(base="some/model", revision=revision))
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.get_vocab() == FileTokenizer.read(qwen).get_vocab()
