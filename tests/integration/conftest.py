"""Tests with processes, servers, disks and notebooks."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.fixture
def run_cli():
    """Run `tunebook ...` in a process of its own, as a user does; returns the finished process."""

    def run(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tunebook", *args],
            capture_output=True,
            text=True,
            check=False,
            **kwargs,
        )

    return run
