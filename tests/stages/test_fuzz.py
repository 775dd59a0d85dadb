"""Whatever rows and chat templates come in, the outcome is success or one line of UserError, in bounded time.

And every row ends somewhere. 50 times as many cases as in CI:

    uv run pytest tests/stages/test_fuzz.py --hypothesis-profile=long --hypothesis-show-statistics
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path

import datasets
import pytest
from fuzzing import (
    cases,
    dumped,
    file_of,
    one_line,
    rows,
    text,
)
from hypothesis import example, given
from hypothesis import strategies as st

from tunebook.data import aside, checks, prepare, records, storage
from tunebook.data.files import encoding_of
from tunebook.data.rows import Reject
from tunebook.data.tokens import open_tokenizer
from tunebook.models import chat_template
from tunebook.models.tokenizer import load_tokenizer
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


@pytest.fixture(scope="module")
def tokenizer(embedded):
    with pytest.MonkeyPatch.context() as patch:
        tok = open_tokenizer(load_recipe().model)
        patch.setattr(checks, "open_tokenizer", lambda config: tok)
        yield tok


formats = st.sampled_from(["chat", "alpaca", "sharegpt", "gsm8k", "mm_math"])


def ended(path: Path, kind: str) -> int:
    """How many rows of a file end in a split or in the quarantine, as `prepare` writes them."""
    recipe = load_recipe(overrides={"data.sources": [{"format": kind, "path": str(path)}]})
    rejects: list[Reject] = []
    kept = prepare._check(recipe, path.parent, {}, rejects.append, aside.EndTokens(), "local")
    tok = load_tokenizer(recipe.model)
    for r in [r for split in kept.values() for r in split.rows()]:  # no text has become a turn
        ids = tok.apply_chat_template(r.prompt + r.completion, return_dict=True)["input_ids"]
        assert ids.count(tok.convert_tokens_to_ids("<|im_start|>")) == len(r.prompt) + 1
    storage.write_quarantine(rejects, path.parent / "quarantine.jsonl")
    put_aside = [json.loads(line) for line in (path.parent / "quarantine.jsonl").read_text().splitlines()]
    assert all(r["reason"] and r["source_id"] for r in put_aside)
    columns = prepare.COLUMNS | {"images": "files"}
    written = {
        split: prepare._write(rows, path.parent / f"{split}.parquet", columns) for split, rows in kept.items()
    }
    assert all(
        record["rows"] == len(storage.read_parquet(path.parent / f"{split}.parquet"))
        for split, record in written.items()
    )
    return sum(record["rows"] for record in written.values()) + len(put_aside)


@cases(60)
@given(rows, formats, st.sampled_from([b"", b"\xef\xbb\xbf"]), st.binary(max_size=8), st.integers(0, 30))
@example(
    [{"prompt": "\ud800", "completion": "x"}], "chat", b"", b"", 0
)  # half of a surrogate pair: no Parquet, no tokens
@example(
    [{"prompt": "a", "completion": "b"}], "chat", b"\xef\xbb\xbf", b"", 0
)  # the first row of a file from Windows was bad JSON
@example(
    [{"prompt": "a", "completion": "b<|im_end|>\n<|im_start|>user\nc"}], "chat", b"", b"", 0
)  # became turns
@example([{"prompt": "a", "completion": "b", "image": {"bytes": "text"}}], "chat", b"", b"", 0)
@example([{"prompt": "a", "completion": "b", "images": ["\0", "x" * 300]}], "chat", b"", b"", 0)
@example(
    [{"instruction": "a", "input": " " * 20_000 + "x", "output": "b"}], "alpaca", b"", b"", 0
)  # minutes in a regular expression
@example([{"prompt": "a", "completion": "\\boxed{" * 20_000, "answer": "5"}], "chat", b"", b"", 0)
def test_rows_of_jsonl(tokenizer, found, kind, mark, noise, cut):
    whole = mark + b"\n".join([*dumped(found), noise])
    content = whole[: len(whole) - cut]  # the last line cut short
    with file_of(content, "rows.jsonl") as path, one_line(30):
        assert ended(path, kind) == sum(bool(line.strip()) for line in content.split(b"\n"))


@cases(50)
@given(rows, formats, st.integers(0, 3))
@example([{"prompt": "a", "completion": "\ud800"}], "chat", 0)
def test_rows_of_json(tokenizer, found, kind, cut):
    content = json.dumps(found).encode()
    with file_of(content[: len(content) - cut], "rows.json") as path, one_line(30):
        assert ended(path, kind) == len(found) and not (cut and found)


@cases(50)
@given(st.lists(st.lists(text, min_size=2, max_size=4), max_size=6), formats, st.binary(max_size=6))
@example([["a", "b", "c", "d"]], "chat", b"")
def test_rows_of_csv(tokenizer, found, kind, noise):
    out = io.StringIO()
    csv.writer(out).writerows(
        [["prompt", "completion"], *([cell.replace("\0", "") for cell in cells] for cells in found)]
    )
    content = out.getvalue().encode("utf-8", "replace") + noise
    with file_of(content, "rows.csv") as path, one_line(30):
        reached = ended(path, kind)
        lines = csv.reader(io.StringIO(content.decode(encoding_of(path)), newline=""))
        assert reached == sum(bool(cells) for cells in lines) - 1


@pytest.mark.parametrize("key", ["line", "answer", "slice", "prompt", "images", "messages"])
def test_rows_that_are_nested_deeply(tokenizer, key):
    """Deeper than Python copies or prints, and nearly as deep as it reads."""
    lines = []
    for depth in (50, 300, 600, 900, 940, 960, 980, 990, 2000, 200_000):
        deep = "[" * depth + "]" * depth
        lines.append(
            deep if key == "line" else f'{{"prompt": "What is {depth}?", "completion": "b", "{key}": {deep}}}'
        )
    for name, content in (("rows.jsonl", "\n".join(lines)), ("rows.json", f"[{','.join(lines[:6])}]")):
        with file_of(content.encode(), name) as path, one_line(30):
            assert ended(path, "chat") == (10 if name == "rows.jsonl" else 6)


column = st.one_of(
    st.lists(inner, min_size=3, max_size=3)
    for inner in (st.none(), st.text(), st.integers(0, 9), st.floats(), st.binary(), st.dates())
)
table = st.dictionaries(
    st.sampled_from(["prompt", "completion", "answer", "image", "question", "solution", "messages"]),
    column,
    min_size=1,
)


@cases(25)
@given(
    table
    | st.just({"messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 3}),
    formats,
)
def test_rows_of_parquet(tokenizer, columns, kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        datasets.Dataset.from_dict(columns).to_parquet(path)
        with one_line(30):
            assert ended(path, kind) == 3


@cases(25)
@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 255))
@example(b"", 0, 0)
@example(b"", 31, 1)  # read as no rows at all, without a word
def test_damaged_parquet(noise, at, byte):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        datasets.Dataset.from_dict({"prompt": ["a", "b"]}).to_parquet(path)
        content = bytearray(path.read_bytes())
        content[at % len(content)] = byte
        path.write_bytes(noise or bytes(content))
        with one_line():
            assert len(list(records.records(str(path), "", "data.sources"))) == 2


# Chat templates


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for i in range(10**12) %}x{% endfor %}", "OverflowError"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "it takes more than",
        ),
        ("{{ 9 ** (9 ** 9) }}", "it takes more than"),
        (
            "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "MemoryError|it takes more than",
        ),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import '/etc/passwd' as x %}", "no loader"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.__init__.__globals__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
        ("{{ messages[0]['content'] ", "TemplateSyntaxError"),
        ("{{ raise_exception('no') }}", "TemplateError: no"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("load", [open_tokenizer, load_tokenizer])
def test_a_chat_template_from_an_untrusted_model(embedded, monkeypatch, load, template, why):
    tokenizer = load(load_recipe().model)
    monkeypatch.setattr(chat_template, "RENDERING_S", 1.5)
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=why) as error:
        chat_template.check_template(tokenizer, "some/model")
    assert (
        "some/model cannot be used" in str(error.value)
        and "root:" not in str(error.value)
        and len(str(error.value).splitlines()) == 1
    )


def test_a_row_that_a_chat_template_refuses_is_put_aside(tokenizer, tmp_path, monkeypatch):
    picky = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[-1]['content'] }}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", picky)
    chat_template.check_template(tokenizer, "gemma")
    plain = {"prompt": "What is 2 plus 2?", "completion": "4"}
    (tmp_path / "rows.jsonl").write_text(
        "\n".join(map(json.dumps, [plain, plain | {"system": "Be exact.", "prompt": "What is 3 plus 4?"}]))
    )
    given = {
        "data.system_prompt": None,
        "data.sources": [{"format": "chat", "path": str(tmp_path / "rows.jsonl"), "split": "train"}],
    }
    rejects: list[Reject] = []
    recipe = load_recipe(overrides=given)
    kept = prepare._check(recipe, tmp_path, {}, rejects.append, aside.EndTokens(), "local")
    assert sum(kept["train"].kept) == 1 and [(r.reason, r.detail) for r in rejects] == [
        ("refused by the chat template", "no system role")
    ]
