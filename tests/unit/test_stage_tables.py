"""A stage's table: lines in the terminal, HTML in a notebook."""

from __future__ import annotations

from rich.text import Text

from tunebook.runs.tables import Table


def table() -> Table:
    made = Table("split", "rows", title="data")
    made.add_row("train", "1,299")
    made.add_row(Text("val <b>"), "120")
    made.caption = Text("quarantined: nothing")
    return made


def test_a_notebook_gets_html_and_no_drawing():
    (kind, html) = next(iter(table()._repr_mimebundle_(include=None, exclude=None).items()))
    assert kind == "text/html" and not set(html) & set("┃│━─┏")
    assert html.count("<tr>") == 3 and "<b>data</b>" in html and "<p>quarantined: nothing</p>" in html
    assert "val &lt;b&gt;" in html  # a row may hold anything


def test_a_table_without_head_has_none():
    plain = Table(title="training", show_header=False)
    plain.add_row("steps", "3")
    assert "<th" not in plain._repr_mimebundle_()["text/html"]


def test_the_terminal_gets_lines(capsys):
    table().show()
    assert "│ train" in capsys.readouterr().out
