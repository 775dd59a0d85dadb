"""What the benchmarks measure with: a process and its children, sides by turns, generated rows."""

from __future__ import annotations

import sys

import pytest

from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import common


def test_a_process_is_measured_with_its_children():
    child = "import time; x = bytearray(200 * 2**20); t = time.process_time()\n"
    child += "while time.process_time() < t + 0.3: pass"
    found = common.measured(
        [
            sys.executable,
            "-c",
            f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print('done')",
        ]
    )
    assert found["out"] == "done\n"
    assert found["wall_s"] >= found["cpu_s"] - 0.05 >= 0.25
    assert 0.19 < found["peak_gb"] < 0.4
    with pytest.raises(UserError, match=r"ended with 3: .*why"):
        common.measured([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"])
