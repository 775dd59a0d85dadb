"""`tunebook doctor`: what it finds on this machine, and what it says of what is missing."""

from __future__ import annotations

import importlib.abc
import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tunebook import doctor, needs
from tunebook.models import backend
from tunebook.recipe.errors import UserError
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
    monkeypatch.setattr(doctor, "needs_of_recipe", lambda recipe, gpu: [])
    monkeypatch.setattr(doctor, "needs_of_config", lambda name, gpu: [])
    assert not doctor.doctor(recipe)
    said = capsys.readouterr()
    assert (
        said.err.strip() == "smollm2-math cannot run here: trl: not installed. uv sync"
        and "-> uv sync" in said.out
    )


def test_a_python_that_keeps_no_bytecode_is_said_where_nothing_is_compiled(tmp_path, monkeypatch):
    def said() -> list[str]:
        return [f.fix for f in doctor.interpreter() if f.what == "start of a command"]

    compiled = tmp_path / "torch.pyc"
    torch = SimpleNamespace(cached=str(compiled))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: torch)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert said() == ["unset PYTHONDONTWRITEBYTECODE, or once: uv sync --compile-bytecode"]
    compiled.touch()
    assert said() == []
    compiled.unlink()
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert said() == []


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
        (False, ("cpu", "there is a GPU that cannot be used: torch 9 cannot use it")),
    ):
        cuda = SimpleNamespace(is_available=lambda usable=usable: usable)
        monkeypatch.setitem(
            sys.modules,
            "torch",
            SimpleNamespace(cuda=cuda, __version__="9", version=SimpleNamespace(cuda="13.0"), __spec__=True),
        )
        kind, why = doctor.backend()
        assert kind == wanted[0] and why.startswith(wanted[1])


OLD = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"


@pytest.mark.parametrize(
    ("driver", "device", "build", "variables", "says"),
    [
        (
            OLD,
            "nvidia0",
            "13.0",
            {},
            "driver 535.104.05 is too old for PyTorch 2.14.1, whose CUDA 13.0 wants 580",
        ),
        (OPEN, "", "13.0", {}, "this container was started without it: `docker run --gpus all ...`"),
        (OPEN, "nvidia0", None, {}, "PyTorch 2.14.1 is a build for CPUs: `uv sync`"),
        (OPEN, "nvidia0", "13.0", {"CUDA_VISIBLE_DEVICES": "7"}, "CUDA_VISIBLE_DEVICES='7' names no GPU"),
        (OPEN, "nvidia0", "13.0", {}, "PyTorch 2.14.1 (CUDA 13.0) does not get on with its driver"),
    ],
    ids=["old driver", "container", "CPU build", "mask", "unknown"],
)
def test_a_gpu_that_cannot_be_used_is_one_line_with_the_way_out(
    monkeypatch, tmp_path, driver, device, build, variables, says
):
    """In every command that loads a model, and in `doctor`, where it stops the default recipe too."""
    monkeypatch.delenv("UNSLOTH_FORCE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "version").write_text(driver)
    if device:
        (tmp_path / device).touch()
    monkeypatch.setattr(backend, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(backend, "DEVICES", tmp_path)
    monkeypatch.setattr(backend, "torch_build", lambda: ("2.14.1", build))

    class Refusing(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "unsloth":
                raise NotImplementedError("Unsloth cannot find any torch accelerator? You need a GPU.")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
        patch.delitem(sys.modules, "unsloth", raising=False)
        with pytest.raises(UserError) as refused:
            backend.backend()
    line = str(refused.value)
    assert line.startswith(f"there is a GPU that cannot be used: {says}") and "\n" not in line
    assert line.endswith("For the CPU: UNSLOTH_FORCE_CPU=1 before the command")
    if driver == OLD:
        assert "`uv pip install torch==" in line and "https://download.pytorch.org/whl/cu126" in line

    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: (_ for _ in ()).throw(FileNotFoundError()))
    cuda = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2", __spec__=True))
    finding = next(doctor.hardware())
    assert finding.broken and finding.state == f"cpu ({line})"


def test_a_gpu_is_shown_with_its_memory_and_what_triton_lacks(monkeypatch, tmp_path):
    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=24 * 2**30)
    cuda = SimpleNamespace(
        device_count=lambda: 1,
        get_device_properties=lambda number: properties,
        get_arch_list=lambda: ["sm_75", "sm_80", "sm_90", "compute_120"],
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, __version__="2.14.1"))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    gpu, triton = doctor.graphics()
    assert gpu.state.startswith("NVIDIA L4, 24 GB, compute capability 8.9, driver") and not gpu.broken
    assert triton.broken and "lacks a C compiler and " in triton.state and "Python.h" in triton.state
    properties.major, properties.minor = 7, 0
    assert next(doctor.graphics()).broken


def test_the_disk_that_a_recipe_needs():
    assert needs.downloads(load_recipe()) == 0
    sizes = {name: needs.downloads(load_recipe(name)) / 1e9 for name in ("qwen3-4b-base", "gemma3n-mm-math")}
    assert sizes == {"qwen3-4b-base": pytest.approx(11.6), "gemma3n-mm-math": pytest.approx(23.2)}


def test_what_stops_the_default_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "free_ram", lambda: 2**30)
    broken = [f for f in doctor.hardware() if f.broken]
    assert [(f.what, f.fix) for f in broken] == [
        ("cores, free memory", "end other programs: smollm2-math wants 7 GB")
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
    assert list(needs.needs_of_recipe(recipe, False)) == [
        "a server at https://host/v1 (OPENAI_API_KEY is not set)",
        "for `clean` the variables BASE_URL, API_KEY",
    ]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("API_KEY", "k")
    monkeypatch.setenv("BASE_URL", "https://host/v1")
    assert list(needs.needs_of_recipe(recipe, False)) == [
        "a server at https://host/v1 (OPENAI_API_KEY is set)",
        "for `clean` a server (its variables are set)",
    ]
