"""Tests with processes, servers, disks and notebooks."""

from __future__ import annotations

import subprocess
import sys

import faults
import pytest


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory):
    """The address of a process that has imported Unsloth: commands and kernels are forked from it."""
    with faults.server(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture
def forked_kernels(fork_server, tmp_path, monkeypatch):
    """Notebooks run in kernels that are forked from the server, and none waits for Unsloth's import."""
    for name, value in faults.kernelspec(tmp_path / "jupyter", fork_server).items():
        monkeypatch.setenv(name, value)


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
