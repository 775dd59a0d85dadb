"""Only with `-m gpu`, and only on a GPU. What was found is printed as a table, and written to a file."""

from __future__ import annotations

import pytest
from gpu_table import LOG, TABLE, write_table


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu"):
        if item.config.getoption("markexpr") != "gpu":
            pytest.skip("fetches and trains large models: asked for with -m gpu")
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


def pytest_terminal_summary(terminalreporter):
    """What the tests on a GPU found, as a table. It is shown for tests that failed too."""
    rows = []
    for name in ("passed", "failed"):
        for report in terminalreporter.stats.get(name, []):
            if report.when == "call":
                rows += [value for key, value in report.user_properties if key == "gpu"]
    if rows:
        write_table(TABLE, rows)
        print(f"\n{TABLE.read_text(encoding='utf-8')}\nWrote {TABLE}; what the commands printed: {LOG}")
