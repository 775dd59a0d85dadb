"""Files in every kind, compression, encoding and layout in which people have their rows."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from tunebook.data import files
from tunebook.data.records import all_records
from tunebook.data.rows import Reject
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import ChatSource

ROWS = [
    {"prompt": f"Which bird is number {i}?", "completion": f"Bird {i} is a tern, é."} for i in range(1, 4)
]


def rows_of(path):
    """The rows of a path by their source ids, or of a reject its reason and detail."""
    found = {}
    for source_id, record in all_records(str(path), "train", "data.sources"):
        found[source_id] = (record.reason, record.detail) if isinstance(record, Reject) else record
    return found


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(separator: str, rows=ROWS) -> str:
    lines = [separator.join(rows[0])]
    for row in rows:
        lines.append(separator.join(f'"{value}"' for value in row.values()))
    return "\n".join(lines) + "\n"


def parquet(rows) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def zst(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    ".jsonl": jsonl(ROWS),
    ".ndjson": jsonl(ROWS),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": table(",").encode(),
    ".tsv": table("\t").encode(),
    ".parquet": parquet(ROWS),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_every_kind_of_file_is_read_compressed_or_not(tmp_path, kind, compression):
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zst}[compression]
    path = tmp_path / f"birds{kind}{compression}"
    path.write_bytes(packed(CONTENTS[kind]))
    assert rows_of(path) == {f"{path.name}:{i}": row for i, row in enumerate(ROWS, 1)}


def test_damaged_and_unknown_files_are_one_line(tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(CONTENTS[".jsonl"] * 50)[:90])
    (tmp_path / "no.jsonl.zst").write_bytes(b"plain text")
    (tmp_path / "bad.parquet").write_bytes(CONTENTS[".parquet"][:-9])
    for name in ("cut.jsonl.gz", "no.jsonl.zst", "bad.parquet"):
        with pytest.raises(UserError, match=rf"data\.sources: cannot read .*{name} \(.+\)"):
            rows_of(tmp_path / name)
    (tmp_path / "rows.bin").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cannot read .*rows\.bin; give a \.jsonl, .*\.parquet file"):
        rows_of(tmp_path / "rows.bin")
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cannot read .*rows\.xlsx: save it as `CSV UTF-8` in Excel"):
        rows_of(tmp_path / "rows.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"the folder .*empty holds no .*; .* give a pattern such as"):
        rows_of(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no file matches .*none-\*\.csv"):
        rows_of(tmp_path / "none-*.csv")
    with pytest.raises(UserError, match=r"data\.sources: no folder \./nowhere"):
        rows_of("./nowhere")


def test_patterns_and_folders_are_read_in_sorted_order(tmp_path, capsys):
    for name, row in zip(("b.jsonl", "a.jsonl", "c.jsonl.gz"), ROWS, strict=True):
        content = jsonl([row])
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / "deep" / "down").mkdir(parents=True)
    (tmp_path / "deep" / "down" / "b.jsonl").write_bytes(jsonl(ROWS[:2]))
    expected = {"a.jsonl:1": ROWS[1], "b.jsonl:1": ROWS[0], "c.jsonl.gz:1": ROWS[2]}
    assert list(rows_of(tmp_path).items()) == list(expected.items())
    assert "rows of a.jsonl, b.jsonl, c.jsonl.gz" in capsys.readouterr().out
    assert list(rows_of(tmp_path / "[ab].jsonl")) == ["a.jsonl:1", "b.jsonl:1"]
    # Below the folder in which names begin to vary, so that no two rows have one id.
    assert list(rows_of(tmp_path / "**" / "b.jsonl")) == [
        "b.jsonl:1",
        "deep/down/b.jsonl:1",
        "deep/down/b.jsonl:2",
    ]
    # A path is looked for beside the recipe first.
    source = ChatSource(path="unused")
    source.place([str(tmp_path), str(tmp_path / "deep")])
    assert list(rows_of(files.located(source, "b.*"))) == ["b.jsonl:1"]
    assert list(rows_of(files.located(source, "down"))) == ["b.jsonl:1", "b.jsonl:2"]
    assert [files.located(source, name) for name in ("org/rows", "./x", "x-*.csv")] == [
        "org/rows",
        "./x",
        "x-*.csv",
    ]
    # A bracket may be a part of a name.
    (tmp_path / "x[1].jsonl").write_bytes(jsonl(ROWS[:1]))
    assert list(rows_of(tmp_path / "x[1].jsonl")) == ["x[1].jsonl:1"]


def test_a_stage_notices_an_edit_in_any_of_its_files(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    first.write_bytes(jsonl(ROWS[:1]))
    second.write_bytes(gzip.compress(jsonl(ROWS[1:])))

    def hashes() -> list[str]:
        return [
            files.content_hash(str(path), "key") for path in (first, second, tmp_path, tmp_path / "*.jsonl*")
        ]

    before = hashes()
    assert len(set(before[:3])) == 3 and before == hashes() and all(before)
    second.write_bytes(gzip.compress(jsonl(ROWS)))
    changed = [old != new for old, new in zip(before, hashes(), strict=True)]
    assert changed == [False, True, True, True]
    (tmp_path / "c.jsonl").write_bytes(jsonl(ROWS))
    assert files.content_hash(str(tmp_path), "key") != before[2]
    assert files.content_hash("HuggingFaceH4/ultrafeedback_binarized", "key") == ""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (table(";").encode("utf-8-sig"), "columns are separated by ';'"),
        (("sep=;\r\n" + table(";")).encode(), "columns are separated by ';'"),
        (table("\t").encode(), r"columns are separated by '\t'"),
        (table("|").encode(), "columns are separated by '|'"),
        (table(",").encode("cp1252"), "not UTF-8, read as cp1252"),
        (table(",").encode("latin-1"), "not UTF-8, read as cp1252"),
        (table("\t").encode("utf-16"), "not UTF-8, read as utf-16"),
        (table(";").encode("utf-16-le"), "not UTF-8, read as utf_16_le"),
        (table(", ").encode(), ""),
        (table(",").replace("prompt,", " prompt ,").encode(), ""),
        (("\n\n" + table(",")).replace("\n", "\r\n").encode(), ""),
    ],
)
def test_a_table_in_any_dialect(tmp_path, capsys, content, said):
    (tmp_path / "birds.csv").write_bytes(content)
    assert rows_of(tmp_path / "birds.csv") == {f"birds.csv:{i}": row for i, row in enumerate(ROWS, 1)}
    printed = capsys.readouterr().out
    assert f"birds.csv: {said}" in printed if said else printed == ""


@pytest.mark.parametrize(
    ("header", "names"),
    [
        ('"Question\n(short)";"Answer\n(team)"', ["Question\n(short)", "Answer\n(team)"]),
        ("Question, short;Answer", ["Question, short", "Answer"]),
        ("answer;answer;answer", ["answer", "answer.1"]),
        ("question;answer;;", ["question", "answer"]),
    ],
)
def test_a_header_may_have_line_breaks_commas_and_a_name_twice(tmp_path, capsys, header, names):
    (tmp_path / "t.csv").write_text(f"{header}\nWho, me?;You.\n")
    (row,) = rows_of(tmp_path / "t.csv").values()
    assert {name: row[name] for name in names} == dict(zip(names, ["Who, me?", "You."], strict=True))
    if "answer.1" in names:
        assert "t.csv: a further column 'answer' is read as 'answer.1'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Où est la gare ? À côté… 5 €"),
        ("cp1251", "Как дела сегодня, мой друг? Хорошо, спасибо большое."),
        ("gb18030", "什么是光合作用？植物用光制造养分，放出氧气。"),
        ("cp932", "日本の首都はどこですか。東京です。"),
    ],
)
def test_other_encodings_are_recognised(tmp_path, encoding, text):
    long_beginning = "ascii,only\n" * 20_000  # what is looked at begins where it is no longer ASCII
    (tmp_path / "t.csv").write_bytes(
        (f"prompt,completion\n{long_beginning}" + f'"{text}",ok\n' * 3).encode(encoding)
    )
    assert rows_of(tmp_path / "t.csv")["t.csv:20002"] == {"prompt": text, "completion": "ok"}


def test_a_few_broken_bytes_in_utf8_are_no_other_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes(
        "prompt,completion\nä,ö\nü,ß\né,è\n".encode() + b"\xe4,x\n" + "ä,ö\n".encode() * 9
    )
    with pytest.raises(UserError, match=r"cannot read .*t\.csv \('utf-8' codec can't decode byte 0xe4"):
        rows_of(tmp_path / "t.csv")


def test_rows_that_a_quote_has_swallowed_are_said(tmp_path, capsys):
    rows = [f"question {i};answer {i};{i}" for i in range(40)]
    rows[9] = '"question 9;answer 9;9'
    rows[20] = 'question 20";answer 20;20'
    (tmp_path / "t.csv").write_text("\n".join(["q;a;n", *rows]))
    assert len(rows_of(tmp_path / "t.csv")) == 29
    assert (
        "WARNING: t.csv: lines of row 10 look like rows of their own: is a quote before"
        in capsys.readouterr().out
    )
    # Lines of prose, a list and a table with fewer columns are a text like any other.
    texts = ["One; two.\nThree.\nFour.", "- a;b\n- c;d\n- e;f\n- g;h", "x\n\ny\n\nz"]
    cells = "".join(f'q;"{text}";1\n' for text in texts)
    (tmp_path / "prose.csv").write_text("q;a;n\n" + cells)
    assert [row["a"] for row in rows_of(tmp_path / "prose.csv").values()] == texts
    (tmp_path / "one.csv").write_text('text\n"a\nb\nc\nd"\n')
    assert len(rows_of(tmp_path / "one.csv")) == 1
    assert "WARNING" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "line"),
    [('q;a\nx;y\n"b" ad;z\n', 3), ('sep=;\nq;a\nx;y\n\nc;"open\nmore;x\n', 5)],
)
def test_a_quote_that_does_not_fit_is_named_by_its_line(tmp_path, content, line):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(
        UserError, match=f"in the row that begins in line {line}: a quote in a quoted text is"
    ):
        rows_of(tmp_path / "t.csv")


def test_cells_too_many_are_named_and_cells_too_few_are_empty(tmp_path):
    (tmp_path / "t.csv").write_text(
        "prompt,completion\nWhy?,Because, of course\nWho?\nWhat?,This.,,\n\nSo?,Yes.\n"
    )
    assert rows_of(tmp_path / "t.csv") == {
        "t.csv:1": ("too many cells", "3 cells, the header has 2: put quotes round text with ',' in it"),
        "t.csv:2": {"prompt": "Who?", "completion": None},
        "t.csv:3": {"prompt": "What?", "completion": "This."},
        "t.csv:4": {"prompt": "So?", "completion": "Yes."},
    }


def test_an_array_is_read_under_either_name_and_out_of_its_wrapping(tmp_path, capsys):
    array = json.dumps(ROWS)
    (tmp_path / "one.jsonl").write_text(array)
    (tmp_path / "many.jsonl").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": ROWS}, indent=2))
    (tmp_path / "wrapped.jsonl").write_text(json.dumps({"examples": ROWS, "n": 3}) + "\n")
    (tmp_path / "lines.json").write_bytes(jsonl(ROWS))
    (tmp_path / "utf16.jsonl").write_bytes(jsonl(ROWS).decode().encode("utf-16"))
    for name in ("one.jsonl", "many.jsonl", "wrapped.json", "wrapped.jsonl", "lines.json", "utf16.jsonl"):
        assert list(rows_of(tmp_path / name).values()) == ROWS, name
    printed = capsys.readouterr().out
    assert "one.jsonl: one array of 3 rows" in printed and "wrapped.json: the 3 rows under 'data'" in printed
    # A row of its own, though lists of objects are in it.
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    sides = {"prompt": chat["messages"][:1], "completion": chat["messages"][1:]}
    for row in (chat, sides):
        for name in ("row.json", "row.jsonl"):
            (tmp_path / name).write_text(json.dumps(row))
            assert rows_of(tmp_path / name) == {f"{name}:1": row}
    # A list of anything else in a .jsonl file is no row.
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    assert rows_of(tmp_path / "list.jsonl") == {"list.jsonl:1": ("schema", "not an object")}


def test_json_that_holds_no_rows_says_how_it_should(tmp_path):
    columns = {"prompt": ["a", "b"], "completion": ["c", "d"]}
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    by_number = {name: dict(zip("01", column, strict=True)) for name, column in columns.items()}
    (tmp_path / "pandas.json").write_text(json.dumps(by_number))
    for name in ("columns.json", "pandas.json"):
        with pytest.raises(UserError, match=r"columns instead of rows; with pandas: to_json"):
            rows_of(tmp_path / name)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ROWS, "test": ROWS}))
    with pytest.raises(
        UserError, match="several lists of rows: train, test; save the one that is meant alone"
    ):
        rows_of(tmp_path / "splits.json")
