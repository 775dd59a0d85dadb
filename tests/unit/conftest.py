"""Tests of plain Python.

Whatever loads PyTorch or starts a process fails here and belongs to another folder.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest

from tunebook import cli

HEAVY = ("torch", "transformers", "unsloth", "datasets")
PROGRAMS = {"git", "uname", "tunebook.checkers.formulas.algebra"}
"""What may be started all the same.

git tells a run's commit, `platform` asks `uname`, the verifier's process is there to be stopped.
"""
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Around each test of this folder and all its fixtures; the hook is called for those of others too."""
    if not item.path.is_relative_to(Path(__file__).parent):
        return (yield)
    start = subprocess.Popen.__init__

    def start_if_known(self, args, *rest, **options):
        if PROGRAMS.isdisjoint(args):
            pytest.fail(f"starts {args}. {ADVICE}")
        start(self, args, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", start_if_known)
        patch.setattr(sys, "meta_path", [Refused(), *sys.meta_path])
        return (yield)


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """Run `tunebook ...` in this process; returns what the finished process of a user's command would be."""

    def run(*args: str, cwd: Path | None = None, env: dict[str, str] | None = None):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["tunebook", *args])
            if cwd:
                patch.chdir(cwd)
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                cli.main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(args, end.value.code or 0, out, err)

    return run


def pytest_collection_finish(session):
    """The same for what test files import themselves.

    With other folders beside this one, those load what they like.
    """
    # The embedded model's folder is made once on a machine, by PyTorch: here, in a process of its own.
    code = "from tunebook.models.builtin import embedded_model; embedded_model()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    folder = Path(__file__).parent
    loaded = [name for name in HEAVY if name in sys.modules]
    if loaded and all(item.path.is_relative_to(folder) for item in session.items):
        raise pytest.UsageError(f"collecting tests/unit imports {', '.join(loaded)}. {ADVICE}")
