"""A table of results, for terminal, Markdown and HTML."""

from __future__ import annotations

from typing import Any

import jinja2
import rich.table
from rich import box
from rich.console import Console


class Table:
    """Rows of cells by the name of their column; of a column that a row lacks there is a dash.

    Args:
        headings: Of the columns whose name is not their heading.
    """

    def __init__(self, **headings: str) -> None:
        self.headings = headings
        self.rows: list[dict[str, str]] = []

    def add(self, **cells: Any) -> None:
        """Add a row. What is not text is written as `str` writes it."""
        # `Markup` is text: `str` would make it plain, and `html` would escape it.
        self.rows.append({name: cell if isinstance(cell, str) else str(cell) for name, cell in cells.items()})

    def markdown(self) -> str:
        """For README, notebook and report; empty when there are no rows."""
        if not self.rows:
            return ""
        head = self._head()
        lines = [head, ["---"] * len(head), *self._cells()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self, caption: str = "") -> str:
        """For a notebook. Cells and caption are text, escaped here, unless they are `Markup` already."""
        return str(HTML.render(caption=caption, head=self._head(), rows=self._cells()))

    def print(self, title: str) -> None:
        """For the terminal; nothing when there are no rows."""
        table = rich.table.Table(*self._head(), title=title, box=box.SIMPLE)
        for cells in self._cells():
            table.add_row(*cells)
        if self.rows:
            Console().print(table)

    def _head(self) -> list[str]:
        return [self.headings.get(name, name) for name in self._names()]

    def _cells(self) -> list[list[str]]:
        return [[row.get(name, "–") for name in self._names()] for row in self.rows]

    def _names(self) -> list[str]:
        names: dict[str, str] = {}
        for row in self.rows:
            names |= row
        return list(names)


# JupyterLab would typeset the dollars of one answer together with those of the next: no TeX.
HTML = jinja2.Template(
    """<table class="tex2jax_ignore" style="width:100%; table-layout:fixed">
<caption style="text-align:left">{{ caption }}</caption>
<tr>{% for name in head %}<th style="text-align:left">{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}
<td style="text-align:left; vertical-align:top; white-space:pre-wrap; font-family:monospace">{{ cell }}</td>
{% endfor %}</tr>{% endfor %}
</table>""",
    autoescape=True,
)
