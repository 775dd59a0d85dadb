"""Every notebook in a real browser: opened in JupyterLab, Run All, no red cell.

While a notebook trains, its curve and its table must grow: two pictures show different steps. In the
inference notebook a question is asked too, and its answer must stream in with its LaTeX rendered.
Leaves a picture of each notebook to look at.

Not part of the test run: it needs Chromium (`apt-get install chromium`; without one on the PATH it asks for
playwright's own) and some minutes. The notebooks are copies whose parameters make them small; they share one
run folder, so give them in order.

    uv run --with playwright python tests/helpers/browser_check.py --pictures pictures
    uv run --with playwright python tests/helpers/browser_check.py --pictures pictures \\
        --recipe mm-math-sample 01_data_prep 02_sft
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import notebook_outputs
from playwright.sync_api import sync_playwright

from tunebook.recipe.files import ROOT

NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
QUESTION = "A rectangle is 12 cm long and 7 cm wide. What is its area in square centimetres?"
SMALL: dict[str, Any] = {
    "sft.max_steps": 30,  # enough to answer in several lines, which are seen to stream in
    "sft.eval_steps": 10,
    "sft.logging_steps": 1,
    "pairs.prompts": 8,
    "pairs.samples": 2,
    "pairs.max_new_tokens": 64,
    "pairs.methods": ["on_policy", "dataset"],  # a model of so few steps gives few pairs of its own
    "pairs.dataset": "resources/sample/preferences.jsonl",
    "pairs.rows": 12,
    "dpo.logging_steps": 1,
    "dpo.max_steps": 6,
    "dpo.per_device_train_batch_size": 1,
    "evaluate.max_new_tokens": 64,
    "evaluate.limit": 8,
    "evaluate.ablation": 4,
    "evaluate.retention": False,
}
DATA = {
    "smollm2-math": {
        "data.sources.0.train": 80,
        "data.sources.0.val": 6,
        "data.sources.0.test": 12,
    },
    "mm-math-sample": {"data.sources.0.rows": 80},
}
TOKEN = "t"
TRAINING = ("02_sft", "04_dpo")


def small_copy(name: str, recipe: str, folder: Path) -> Path:
    """The notebook with small values below its parameters."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    given = {"recipe": recipe, "run": "browser", "overrides": SMALL | DATA[recipe]}
    cell.source += "\n" + "\n".join(f"{key} = {value!r}" for key, value in given.items())
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def growing(page: Any, path: Path) -> int | None:
    """The step that the table of a training has come to, once a curve stands above it.

    Leaves a picture of that moment; None while there is nothing to see.
    """
    cell = page.locator(".jp-CodeCell:has(th:text-is('Training Loss'))")
    lines = cell.locator("tbody tr")
    if not lines.count() or not cell.locator("img").count():
        return None
    step = int(lines.last.locator("td").first.inner_text())
    cell.screenshot(path=path.with_name(f"{path.stem}-step-{step}.png"))
    return step


def run_all(page: Any, path: Path, picture: Path, limit_s: float = 900) -> set[int]:
    """Run every cell and wait for the last one; AssertionError with the text of the first red one.

    Returns the steps at which a growing curve was seen.
    """
    page.wait_for_selector(".jp-Notebook", timeout=120_000)
    page.wait_for_selector("text=Python 3 (ipykernel)", timeout=120_000)
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells")
    deadline = time.monotonic() + limit_s
    steps = set()
    while True:
        page.keyboard.press("Control+s")
        page.wait_for_timeout(2000)
        if path.stem in TRAINING:
            steps.add(growing(page, picture))
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        errors = [output for output in notebook_outputs.outputs(path) if output.output_type == "error"]
        assert not errors, f"{path.stem}: {errors[0].ename}: {errors[0].evalue}"
        if all(c.execution_count for c in cells):
            return steps - {None}
        assert time.monotonic() < deadline, f"{path.stem} has not ended after {limit_s:.0f} s"


def ask(page: Any) -> str:
    """Ask in the inference notebook's box; how the answer came."""
    box = page.wait_for_selector("textarea[placeholder='Ask something']", timeout=300_000)
    box.fill(QUESTION)
    page.click("button:has-text('Ask')")
    lengths = []
    answer = page.locator(".jp-RenderedMarkdown:below(:text('You:'))").first
    deadline = time.monotonic() + 180
    while (
        page.locator("mjx-container, .MathJax").count() == 0
        or page.locator("button:has-text('Ask')[disabled]").count()
    ):
        assert time.monotonic() < deadline, "no answer with rendered LaTeX"
        if answer.count():
            lengths.append(len(answer.inner_text()))
        page.wait_for_timeout(100)
    grown = sorted({n for n in lengths if n})
    assert len(grown) > 2, f"the answer did not stream in: {grown}"
    assert "\\boxed" not in answer.inner_text(), "LaTeX is not rendered"
    return f"; the answer streamed in {len(grown)} visible steps, its LaTeX is rendered"


def whole_picture(page: Any, path: Path) -> None:
    """The notebook from its first cell to its last.

    JupyterLab draws only the cells that are in view, so all are brought into view.
    """
    page.set_viewport_size({"width": 1300, "height": 9000})
    page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    page.wait_for_timeout(1500)
    bottom = page.evaluate(
        "Math.max(...[...document.querySelectorAll('.jp-Notebook .jp-Cell')]"
        ".map(cell => cell.getBoundingClientRect().bottom))"
    )
    page.screenshot(path=path, clip={"x": 0, "y": 0, "width": 1300, "height": min(9000, bottom + 20)})


def noise(path: Path) -> list[str]:
    """The lines that a notebook writes to stderr: what is read needs no warnings and no progress bars."""
    text = ""
    for output in notebook_outputs.outputs(path):
        if output.output_type == "stream" and output.name == "stderr":
            text += output.text
    return text.splitlines()


def request(port: int, path: str, method: str = "GET") -> Any:
    with urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{port}{path}?token={TOKEN}", method=method)
    ) as answer:
        return json.loads(answer.read() or "null")


def start_lab(folder: Path, runs: Path) -> tuple[subprocess.Popen[bytes], int]:
    """JupyterLab over `folder`, ready to be asked, and its port."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
    ]
    env = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / ".config"), "TUNEBOOK_RUNS": str(runs)}
    lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, stderr=subprocess.DEVNULL)
    for _ in range(120):
        try:
            request(port, "/api/status")
            return lab, port
        except OSError:
            time.sleep(0.5)
    lab.terminate()
    raise SystemExit("JupyterLab does not start")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", default=NOTEBOOKS, help="in order; all of them if none is named"
    )
    parser.add_argument("--recipe", default="smollm2-math", choices=list(DATA))
    parser.add_argument(
        "--chromium", default=shutil.which("chromium"), help="a browser; playwright's own if there is none"
    )
    parser.add_argument("--pictures", type=Path, default=Path("pictures"))
    parser.add_argument(
        "--runs", type=Path, help="where `runs/` lies; kept, so that a later call goes on there"
    )
    given = parser.parse_args()
    given.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as p:
        folder = Path(temporary) / "notebooks"  # JupyterLab saves outputs into what it opens
        folder.mkdir()
        lab, port = start_lab(folder, given.runs or Path(temporary) / "runs")
        try:
            flags = [
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-sync",
                "--no-first-run",
            ]
            browser = p.chromium.launch(executable_path=given.chromium, args=flags)
            for name in given.notebooks:
                path, start = small_copy(name, given.recipe, folder), time.monotonic()
                # JupyterLab draws only what is in view: all of it, while the notebook runs.
                page = browser.new_page(viewport={"width": 1300, "height": 5000})
                page.goto(f"http://127.0.0.1:{port}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")
                picture = given.pictures / f"{given.recipe}-{name}.png"
                steps = run_all(page, path, picture)
                if name in TRAINING:
                    assert len(steps) > 1, f"{name}: no curve was seen to grow, but at steps {steps}"
                    print(f"{name}: curve and table were seen at the steps {sorted(steps)}")
                said = ask(page) if name == "inference" and given.recipe == "smollm2-math" else ""
                page.keyboard.press("Control+b")  # the file browser away
                whole_picture(page, picture)
                stderr = noise(path)
                seconds = f"{time.monotonic() - start:.0f} s"
                print(f"{name}: no red cell in {seconds}, {len(stderr)} lines on stderr{said}", flush=True)
                for line in stderr:
                    print(f"    {line[:200]}")
                page.close()
                for kernel in request(port, "/api/kernels"):
                    request(port, f"/api/kernels/{kernel['id']}", "DELETE")
        finally:
            lab.terminate()
            lab.wait()


if __name__ == "__main__":
    main()
