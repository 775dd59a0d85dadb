"""Write the executed notebooks of a run as pages with small figures, into resources/notebooks/.

    uv run tunebook run --run small --set sft.max_steps=30 ...
    uv run python scripts/notebook_pages.py runs/small

`scripts/docs_pages.py` puts them among the docs. The commands of the run stand on the first page.
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
from tunebook.runs.files import read_json
from tunebook.runs.manifest import recorded

PAGES = ROOT / "resources" / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"
COLOURS = 32
"""Of a figure: a plot has few."""
TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


def page(path: Path, run: Path, note: str) -> tuple[str, dict[str, bytes]]:
    """A notebook that papermill has executed, as Markdown and its figures by name.

    Widgets are left out, and paths of the machine are cut down to `runs/`.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    resources = {"unique_key": path.stem, "output_files_dir": "."}
    text, made = MarkdownExporter().from_notebook_node(notebook, resources=resources)
    text = TERMINAL.sub("", text).replace(f"{run.parent.resolve()}/", "runs/")
    text = text.replace(f"{ROOT}/", "")
    # The note stands below the title, which is the first line.
    title, _, rest = text.strip().partition("\n")
    figures = {Path(name).name: small(content) for name, content in made["outputs"].items()}
    return f"{title}\n\n{note}\n{rest}\n", figures


def small(png: bytes) -> bytes:
    """A figure in few colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(out, format="png", optimize=True)
    return out.getvalue()


def note(run: Path) -> str:
    """Which run the numbers are of."""
    stages: dict[str, Any] = recorded(run / "manifest.json")
    first = next(iter(stages.values()))
    hardware = first["hardware"]
    changed = [f"`{key}={value['used']}`" for key, value in first["overrides"].items() if key != "run"]
    return (
        '!!! note "A small run"\n'
        f"    Executed on {first['started'][:10]} on {hardware['cores']} CPU cores ({hardware['cpu']}), with the "
        f"recipe `{first['recipe']['name']}` cut short so that it ends in minutes: {', '.join(changed)}. "
        "The model has hardly learnt anything by then. [Results](../results.md) has the whole run.\n"
    )


def main() -> None:
    run = Path(sys.argv[1])
    assert read_json(run / "manifest.json"), f"{run} is no run folder"
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for path in sorted((run / "notebooks").glob("*.ipynb")):
        text, figures = page(path, run, note(run))
        (PAGES / f"{path.stem}.md").write_text(text, encoding="utf-8")
        for name, content in figures.items():
            (PAGES / name).write_bytes(content)


if __name__ == "__main__":
    main()
