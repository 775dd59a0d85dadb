"""The inference notebook in a real browser: run it in JupyterLab, ask, see the answer stream in and its LaTeX rendered.

Not part of the test run (it needs Chromium and a trained run):

    uv run --with playwright python tests/browser_check.py --chromium /usr/bin/chromium --screenshot inference.png
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from tunebook.recipe import ROOT

QUESTION = "A rectangle is 12 cm long and 7 cm wide. What is its area in square centimetres?"


def check(page, screenshot: Path) -> None:
    page.wait_for_selector(".jp-Notebook", timeout=120_000)
    page.wait_for_selector("text=Python 3 (ipykernel)", timeout=120_000)
    page.click("text=Run >> nth=0")
    page.click("text=Run All Cells")
    box = page.wait_for_selector("textarea[placeholder='Ask something']", timeout=300_000)
    box.fill(QUESTION)
    page.click("button:has-text('Ask')")
    lengths = []
    answer = page.locator(".jp-RenderedMarkdown:below(:text('You:'))").first
    deadline = time.monotonic() + 180
    while page.locator("mjx-container, .MathJax").count() == 0 or page.locator("button:has-text('Ask')[disabled]").count():
        assert time.monotonic() < deadline, "no answer with rendered LaTeX"
        if answer.count():
            lengths.append(len(answer.inner_text()))
        page.wait_for_timeout(100)
    grown = sorted({n for n in lengths if n})
    assert len(grown) > 2, f"the answer did not stream in: {grown}"
    assert "\\boxed" not in answer.inner_text(), "LaTeX is not rendered"
    page.wait_for_selector("table:has-text('answer:')", timeout=600_000)
    page.locator("textarea[placeholder='Ask something']").scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    page.screenshot(path=screenshot)
    print(f"streamed in {len(grown)} visible steps; LaTeX rendered; screenshot in {screenshot}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--screenshot", type=Path, default=Path("inference.png"))
    given = parser.parse_args()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "notebooks" / "inference.ipynb", folder)  # JupyterLab saves outputs into what it opens
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            f"--port={port}",
            "--IdentityProvider.token=t",
            f"--ServerApp.root_dir={folder}",
        ]
        lab = subprocess.Popen([*command, "--allow-root"], env=os.environ | {"JUPYTER_CONFIG_DIR": folder}, stderr=subprocess.DEVNULL)
        try:
            with sync_playwright() as p:
                flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run"]
                browser = p.chromium.launch(executable_path=given.chromium, args=flags)
                page = browser.new_page(viewport={"width": 1300, "height": 1100})
                for _ in range(60):
                    try:
                        page.goto(f"http://127.0.0.1:{port}/lab/tree/inference.ipynb?token=t")
                        break
                    except Exception:
                        time.sleep(1)
                check(page, given.screenshot)
        finally:
            lab.terminate()
            lab.wait()


if __name__ == "__main__":
    main()
