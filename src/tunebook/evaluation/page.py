"""A report as one HTML file with its figures inside."""

from __future__ import annotations

import base64
import html
import io

from matplotlib.figure import Figure

Part = str | tuple[str, Figure]


STYLE = """<style>
.jp-RenderedHTMLCommon table { margin-left: 0; }
.jp-RenderedHTMLCommon pre { margin-bottom: 1em; }
@media (max-width: 700px) {
  .jp-RenderedHTMLCommon table { display: block; overflow-x: auto; }
}
</style>
"""
"""Tables stand on the left, as the text does; on a narrow screen one that is too wide can be moved."""


def page(title: str, report: list[Part]) -> str:
    """One file with its figures inside, by nbconvert from a notebook of Markdown."""
    from nbconvert import HTMLExporter
    from nbformat import v4

    notebook = v4.new_notebook(metadata={"title": html.escape(title)})
    for part in report:
        text = part if isinstance(part, str) else _embedded(*part)
        notebook.cells.append(v4.new_markdown_cell(text))
    exporter = HTMLExporter(template_name="lab", exclude_input_prompt=True)
    # No script from elsewhere: the file is whole without a network.
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    page, _ = exporter.from_notebook_node(notebook)
    return str(page).replace('<script src=""></script>', "").replace("</head>", f"{STYLE}</head>", 1)


def _embedded(name: str, figure: Figure) -> str:
    """A figure as HTML that holds its pixels, at 100 pixels an inch."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    data = base64.b64encode(png.getvalue()).decode()
    width = int(100 * figure.get_figwidth())
    return f'<img alt="{name}" width="{width}" src="data:image/png;base64,{data}">'
