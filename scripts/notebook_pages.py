"""Write the executed notebooks of a run as pages with small figures, into resources/notebooks/.

    uv run tunebook run
    uv run python scripts/notebook_pages.py runs/smollm2-math && uv run ruff format resources/notebooks

`scripts/docs_pages.py` puts them among the docs. Each page says with which settings it was run.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import MarkdownExporter
from PIL import Image

from tunebook.recipe.files import ROOT
from tunebook.runs.manifest import recorded

PAGES = ROOT / "resources" / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
COLOURS = 32
"""Of a figure: a plot has few."""
HOME = re.compile(r"/[\w/.-]+/\.cache/")
TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


def page(path: Path, run: Path, note: str) -> tuple[str, dict[str, bytes]]:
    """A notebook that papermill has executed, as Markdown, and its figures by name.

    Paths of the machine are cut down to those of the project.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "outputs" in cell:
            # A page can draw no widget, such as the box in which one pages through items.
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                output.data["text/html"] = flush_left(output.data["text/html"])
    resources = {"unique_key": path.stem, "output_files_dir": "."}
    text, made = MarkdownExporter().from_notebook_node(notebook, resources=resources)
    text = TERMINAL.sub("", text)
    text = HOME.sub("~/.cache/", text.replace(f"{ROOT}/", ""))
    text = text.replace(f"{run.parent.resolve()}/", "runs/").replace("![png](./", "![figure](")
    # The note stands below the title, which is the first line.
    title, _, rest = text.strip().partition("\n")
    figures = {Path(name).name: small(content) for name, content in made["outputs"].items()}
    return f"{title}\n\n{note}\n{rest}\n", figures


def flush_left(html: str) -> str:
    """HTML without empty lines and indents, of which Markdown would make paragraphs and code.

    Nor with the `<p>` that transformers' table of losses opens and never closes: all below would be in it.
    """
    lines = [line.strip() for line in html.removesuffix("<p>").splitlines()]
    return "\n".join(line for line in lines if line)


def small(png: bytes) -> bytes:
    """A figure in few colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(out, format="png", optimize=True)
    return out.getvalue()


def note_of(run: Path) -> str:
    """Which run a page is of."""
    first: dict[str, Any] = next(iter(recorded(run / "manifest.json").values()))
    changed = [f"`{key}={value['used']}`" for key, value in first["overrides"].items() if key != "run"]
    settings = f", with {', '.join(changed)}" if changed else ""
    return (
        '!!! note "Executed"\n'
        f"    By `tunebook run` with the recipe `{first['recipe']['name']}` on a CPU{settings}. "
        "[Results](../results.md) has the numbers.\n"
    )


def main() -> None:
    run = Path(sys.argv[1])
    note = note_of(run)
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        text, figures = page(path, run, note)
        (PAGES / f"{path.stem}.md").write_text(text, encoding="utf-8")
        for name, content in figures.items():
            (PAGES / name).write_bytes(content)


if __name__ == "__main__":
    main()
