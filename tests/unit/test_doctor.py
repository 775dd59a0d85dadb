"""`tunebook doctor`: what it finds on this machine, and what it says of what is missing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tunebook import doctor
from tunebook.recipe.loading import load_recipe


@pytest.fixture(autouse=True)
def _keys(monkeypatch):
    for name in ("API_KEY", "BASE_URL", "MODEL", "OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


def test_a_missing_package_is_named_with_its_mend(monkeypatch, capsys):
    real, recipe = importlib.util.find_spec, load_recipe()
    hidden = {"trl", "lm_eval", "deepspeed"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in hidden else real(name, *rest)
    )
    found = {f.what: f for f in [*doctor.packages(), *doctor.tools()]}
    assert (found["trl"].state, found["trl"].fix, found["trl"].broken) == ("not installed", "uv sync", True)
    assert (found["lm-eval (optional)"].fix, found["lm-eval (optional)"].broken) == (
        "uv sync --extra eval",
        False,
    )
    assert found["deepspeed (optional)"].fix == "uv sync --extra deepspeed"
    monkeypatch.setattr(doctor, "needs", lambda recipe, gpu: [])
    monkeypatch.setattr(doctor, "load_recipe", lambda name: recipe)
    assert not doctor.doctor(recipe)
    said = capsys.readouterr()
    assert (
        said.err.strip() == "smollm2-math cannot run here: trl: not installed. uv sync"
        and "-> uv sync" in said.out
    )


def test_another_version_than_locked_is_said_and_no_more(monkeypatch):
    assert set(doctor.locked()) >= {
        "unsloth",
        "trl",
        "torch",
        "transformers",
        "peft",
        "gguf",
        "pillow",
    }
    monkeypatch.setattr(doctor, "locked", lambda: {"trl": "0.1"})
    (found,) = doctor.packages()
    assert (
        f"not as locked: trl {doctor._version('trl')} (lock: 0.1)" in found.state
        and found.fix == "uv sync"
        and not found.broken
    )


def test_how_the_backend_is_decided(monkeypatch):
    monkeypatch.delenv("UNSLOTH_FORCE_CPU", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (_ for _ in ()).throw(FileNotFoundError()))
    assert doctor.backend() == ("cpu", "`nvidia-smi` lists no GPU")
    listed = SimpleNamespace(stdout="GPU 0: NVIDIA A10 (UUID: GPU-1)\nGPU 1: NVIDIA A10 (UUID: GPU-2)\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: listed)
    for usable, wanted in (
        (True, ("cuda", "GPU 0: NVIDIA A10, GPU 1: NVIDIA A10")),
        (False, ("cpu", "there is a GPU, but torch 9 cannot use it")),
    ):
        cuda = SimpleNamespace(is_available=lambda usable=usable: usable)
        monkeypatch.setitem(
            sys.modules,
            "torch",
            SimpleNamespace(cuda=cuda, __version__="9", version=SimpleNamespace(cuda="13.0"), __spec__=True),
        )
        kind, why = doctor.backend()
        assert kind == wanted[0] and why.startswith(wanted[1])


def test_what_stops_the_default_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "free_ram", lambda: 2**30)
    broken = [f for f in doctor.hardware() if f.broken]
    assert [(f.what, f.fix) for f in broken] == [
        ("cores, free memory", "end other programs: smollm2-math wants 6 GB")
    ]
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = {f.what: f for f in doctor.disk(load_recipe())}
    assert (
        found["disk: runs"].broken
        and found["disk: runs"].fix == "export TUNEBOOK_RUNS=/a/larger/folder/of/yours"
    )
    assert not found["disk: hub"].broken and found["disk: hub"].fix.startswith("export HF_HOME=")
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    assert next(doctor.interpreter()).broken


def test_needs_of_a_recipe_with_servers(monkeypatch):
    server = {"url": "https://host/v1", "model": "m"}
    recipe = load_recipe(overrides={"pairs.server": server, "clean": {"source": "raw.jsonl", "model": "m"}})
    assert list(doctor.needs(recipe, False)) == [
        "a server at https://host/v1 (OPENAI_API_KEY is not set)",
        "for `clean` the variables BASE_URL, API_KEY",
    ]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("API_KEY", "k")
    monkeypatch.setenv("BASE_URL", "https://host/v1")
    assert list(doctor.needs(recipe, False)) == [
        "a server at https://host/v1 (OPENAI_API_KEY is set)",
        "for `clean` a server (its variables are set)",
    ]
