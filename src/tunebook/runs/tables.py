"""Tables that a stage shows of itself: drawn with lines in the terminal, as HTML in a notebook."""

from __future__ import annotations

from typing import Any

import jinja2
import rich.table
from rich.console import Console
from rich.text import Text

# JupyterLab would typeset dollars of a cell together with those of the next: no TeX.
HTML = jinja2.Template(
    """<table class="tex2jax_ignore">
{% if title %}<caption style="text-align:left"><b>{{ title }}</b></caption>{% endif %}
{% if head %}<tr>{% for name in head %}<th style="text-align:left">{{ name }}</th>{% endfor %}</tr>{% endif %}
{% for row in rows %}<tr>{% for cell in row %}
<td style="text-align:left; vertical-align:top; overflow-wrap:anywhere">{{ cell }}</td>
{% endfor %}</tr>{% endfor %}
</table>
{% if below %}<p>{{ below }}</p>{% endif %}""",
    autoescape=True,
)


class Table(rich.table.Table):
    """A table of rich that a notebook shows as HTML, and not as a drawing of one."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None, **kwargs: Any) -> dict[str, str]:
        """IPython's hook, which rich has too."""
        # rich keeps cells by column, HTML wants rows.
        columns = [list(column.cells) for column in self.columns]
        rows = [[_plain(cell) for cell in cells] for cells in zip(*columns, strict=True)]
        head = [_plain(column.header) for column in self.columns] if self.show_header else []
        html = HTML.render(title=_plain(self.title), head=head, rows=rows, below=_plain(self.caption))
        return {"text/html": html}

    def show(self) -> None:
        """Print it, or display it where this runs in a notebook."""
        console = Console()
        if console.is_jupyter:
            from IPython.display import display

            display(self)
        else:
            console.print(self)


def _plain(text: Any) -> str:
    """The text of a title or a cell."""
    return text.plain if isinstance(text, Text) else str(text or "")
