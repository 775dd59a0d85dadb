"""The Ollama template, rendered by Go's own text/template, against the tokenizer's chat template."""

from __future__ import annotations

import json
import re

import go_template
import pytest

from tunebook.export.modelfile import modelfile, seams, template, unsaid
from tunebook.recipe.errors import UserError

SYSTEM = {"role": "system", "content": 'Answer "briefly".\n\\boxed{}'}
TALK = [
    {"role": "user", "content": "1 + 1?\n  <b>&"},
    {"role": "assistant", "content": "\n### Solution\n2 {{ .Role }} "},
    {"role": "user", "content": "And 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "é π 🙂"},
]
CONVERSATIONS = [TALK[:n] for n in (1, 3, 5)] + [[SYSTEM, *TALK[:n]] for n in (1, 3, 5)]

ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
MERGED_SYSTEM = (  # like Gemma's: no system turn, a bos, another name for the assistant
    "{{ bos_token }}{% set start = '' %}"
    "{% if messages[0].role == 'system' %}{% set start = messages[0].content + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n"
    "{{ start if loop.first else '' }}{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}{{ m.role }}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer(embedded):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded)


def by_go(source: str, messages: list[dict[str, str]], tmp_path) -> str:
    """The template as Ollama executes it: Go's text/template over `.Messages` with `.Role` and `.Content`."""
    (tmp_path / "t").write_text(source, encoding="utf-8")
    values = {"Messages": [{"Role": m["role"], "Content": m["content"]} for m in messages]}
    (tmp_path / "v.json").write_text(json.dumps(values, ensure_ascii=False))
    go_template.render_template(str(tmp_path / "t"), str(tmp_path / "v.json"), str(tmp_path / "out"))
    return (tmp_path / "out").read_text(encoding="utf-8")


@pytest.mark.parametrize("jinja", [None, ZEPHYR, MERGED_SYSTEM], ids=["own", "zephyr", "merged system"])
def test_go_renders_what_the_tokenizer_renders(tokenizer, tmp_path, monkeypatch, jinja):
    if jinja:
        monkeypatch.setattr(tokenizer, "chat_template", jinja)
    source = template(seams(tokenizer))
    for messages in CONVERSATIONS:
        wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert by_go(source, messages, tmp_path) == wanted.removeprefix(tokenizer.bos_token)


def test_the_file_keeps_its_syntax(tokenizer):
    """The grammar of Ollama's Modelfile: a command and its value per line.

    Values over several lines are in triple quotes.
    """
    text = modelfile("../gguf-q8_0/x.gguf", tokenizer, ["<|im_end|>"], "Two\nlines.", 384)
    found = re.findall(
        r'^(FROM|TEMPLATE|SYSTEM|PARAMETER) (""".*?"""|[^\n]*)$', text, flags=re.DOTALL | re.MULTILINE
    )
    assert [command for command, _ in found] == [
        "FROM",
        "TEMPLATE",
        "SYSTEM",
        "PARAMETER",
        "PARAMETER",
        "PARAMETER",
    ]
    assert "".join(f"{command} {value}\n" for command, value in found) == text  # nothing is left over
    assert found[1][1].count('"""') == 2 and found[2][1] == '"""Two\nlines."""'
    assert 'PARAMETER stop "<|im_end|>"\n' in text
    long = modelfile("x.gguf", tokenizer, [], None, 262_144)
    assert "# The model reads up to 262144 tokens" in long and "PARAMETER num_ctx 32768\n" in long


def test_a_template_that_seams_cannot_say_is_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", NUMBERED)
    with pytest.raises(UserError, match="write the Modelfile by hand"):
        seams(tokenizer)


NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + ZEPHYR
)


def test_a_template_that_raises_for_a_system_message_is_one_line(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", NO_SYSTEM + ZEPHYR)
    with pytest.raises(UserError, match=r"raises 'System role not supported' for .*system.*by hand$"):
        seams(tokenizer)


def test_what_a_modelfile_has_no_place_for_is_said(tokenizer, monkeypatch):
    assert unsaid(tokenizer, "{question}") == []
    (sentence,) = unsaid(tokenizer, "Solve this step by step.\n\n{question}")
    assert "data.user_prompt (Solve this step by step. {question})" in sentence
    monkeypatch.setattr(tokenizer, "chat_template", "{{ strftime_now('%d %b %Y') }}" + ZEPHYR)
    (sentence,) = unsaid(tokenizer, "{question}")
    assert "today's date" in sentence
