"""Tests of plain Python. Whatever loads PyTorch or starts a process fails here and belongs to another folder."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "unsloth", "datasets")
PROGRAMS = {"git", "uname", "tunebook.checkers.maths"}
"""What may be started all the same: git tells a run's commit, `platform` asks `uname`, the verifier's process can be stopped."""
ADVICE = "tests/unit holds tests of plain Python: this one belongs to tests/stages or tests/integration"


class Refused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Heavy modules are there for whoever reads their source, and to import one is an error."""

    def find_spec(self, name, path=None, target=None):
        if name not in HEAVY:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec:
            spec.loader = self
        return spec

    def create_module(self, spec):
        pytest.fail(f"imports {spec.name}. {ADVICE}")

    def exec_module(self, module):
        raise AssertionError("no such module is ever made")


@pytest.fixture(autouse=True)
def _plain_python(monkeypatch):
    real = subprocess.Popen.__init__

    def start(self, args, *rest, **options):
        if PROGRAMS.isdisjoint(args):
            pytest.fail(f"starts {args}. {ADVICE}")
        real(self, args, *rest, **options)

    def fork():
        pytest.fail(f"forks. {ADVICE}")

    monkeypatch.setattr(subprocess.Popen, "__init__", start)
    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(sys, "meta_path", [Refused(), *sys.meta_path])


def pytest_collection_finish(session):
    """The same for what test files import themselves; with other folders beside this one, those load what they like."""
    folder = Path(__file__).parent
    if all(item.path.is_relative_to(folder) for item in session.items):
        loaded = [name for name in HEAVY if name in sys.modules]
        if loaded:
            raise pytest.UsageError(f"collecting tests/unit imports {', '.join(loaded)}. {ADVICE}")
