"""Only with `-m gpu`, and only on a GPU; what was measured is printed as a table."""

from __future__ import annotations

import pytest


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        if item.config.getoption("markexpr") != "gpu":
            pytest.skip("fetches and trains large models: asked for with -m gpu")
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


def pytest_terminal_summary(terminalreporter):
    """What the tests on a GPU found, as a table."""
    rows = []
    for name in ("passed", "failed"):
        for report in terminalreporter.stats.get(name, []):
            if report.when == "call":
                rows += [value for key, value in report.user_properties if key == "gpu"]
    if rows:
        print()
        print("| recipe | stage | seconds | GPU memory, GB | loss, or what was found |")
        print("|---|---|---|---|---|")
        print(*rows, sep="\n")
