"""`tunebook doctor`: what is on this machine, what each recipe needs, and the command for what is missing.

uv run tunebook doctor
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunebook.export import llama_cpp
from tunebook.models import builtin
from tunebook.models.backend import TO_CPU, cache_dir, driver_version, hidden_gpu
from tunebook.needs import downloads, is_set, needs_of_config, needs_of_recipe
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT, shipped
from tunebook.recipe.overrides import PREFIX
from tunebook.recipe.sections import DEFAULT, Recipe
from tunebook.runs.machine import free_ram

MODULES = {"jupyter": "jupyterlab", "pillow": "PIL", "python-dotenv": "dotenv", "pyyaml": "yaml"}
"""Packages that are imported under another name than theirs, but for dashes."""

CORE = ("torch", "transformers", "trl", "peft", "unsloth")
"""Packages whose versions are shown."""

NEEDED_RAM = 7 * 2**30
"""Of the default recipe: its recorded run took 7.1 GB at most (DPO), pages of the model's file included."""

NEEDED_DISK = 2 * 2**30

UNUSABLE = "there is a GPU that cannot be used"


@dataclass(frozen=True)
class Finding:
    """One line of the table. Only what is `broken` stops the default recipe."""

    what: str
    state: str
    fix: str = ""
    """The command, or what else to do."""
    broken: bool = False


def doctor(recipe: Recipe) -> bool:
    """Print what is here and what each recipe in `configs/` needs; whether `recipe` can run here.

    Imports neither Unsloth nor, without an NVIDIA GPU, torch.
    """
    # 1) this machine
    findings = [*interpreter(), *packages(), *hardware(), *disk(recipe), *tools(), *keys()]
    table = Table("", "found", title="this machine")
    for finding in findings:
        text = finding.state
        if finding.fix:
            text += f"\n-> {finding.fix}"
        table.add_row(Text(finding.what), Text(text), style="red" if finding.broken else "")
    Console().print(table)

    # 2) what the recipes need beyond it
    gpu = backend()[0] == "cuda"
    needs_by_recipe = {}
    for path in sorted(shipped("configs").glob("*.yaml")):
        needs_by_recipe[path.stem] = needs_of_config(path.stem, gpu)
    needs_by_recipe[recipe.name] = list(needs_of_recipe(recipe, gpu))
    table = Table("", "need", title="the recipes")
    for name, phrases in needs_by_recipe.items():
        table.add_row(Text(name), Text("\n".join(phrases) or "nothing more"), style="")
    Console().print(table)

    # 3) the first thing that stops this one
    for finding in findings:
        if finding.broken:
            Console(stderr=True).print(
                f"{recipe.name} cannot run here: {finding.what}: {finding.state}. {finding.fix}",
                style="red",
                markup=False,
            )
            return False
    return True


def interpreter() -> Iterator[Finding]:
    """Python, and variables that change what every command does."""
    fix = ""
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        fix = "uv python install 3.12 && uv sync --python 3.12"
    yield Finding("Python", platform.python_version(), fix, broken=bool(fix))
    # Set once and forgotten, they explain a run that nobody understands.
    names = []
    for name in sorted(os.environ):
        if name.startswith(PREFIX) or name in ("TUNEBOOK_RECIPE", "TUNEBOOK_RUN"):
            names.append(name)
    if names:
        fix = f"unset {' '.join(names)}, if you did not mean them"
        yield Finding("overrides from the environment", ", ".join(names), fix)
    # Then every command compiles some 5,000 modules anew.
    torch = importlib.util.find_spec("torch")
    if sys.dont_write_bytecode and torch and not Path(torch.cached or "").exists():
        fix = "unset PYTHONDONTWRITEBYTECODE, or once: uv sync --compile-bytecode"
        yield Finding("start of a command", "PYTHONDONTWRITEBYTECODE makes it some 20 seconds longer", fix)


def packages() -> Iterator[Finding]:
    """The project's own requirements against `uv.lock`.

    One that is missing is broken, one of another version is only named.
    """
    other = []
    for name, version in locked().items():
        installed = _version(name)
        if importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None:
            yield Finding(name, "not installed", "uv sync", broken=True)
        elif version is not None and version != installed:
            other.append(f"{name} {installed} (lock: {version})")
    versions = ", ".join(f"{name} {_version(name)}" for name in CORE)
    if other:
        yield Finding("packages", f"{versions}; not as locked: {', '.join(other)}", "uv sync")
    else:
        yield Finding("packages", f"{versions}; all as locked")


def locked() -> dict[str, str | None]:
    """The project's requirements by name with their locked versions.

    None where the lock has several (for several platforms), or there is no lock.
    """
    path = ROOT / "uv.lock"
    if not path.exists():
        return dict.fromkeys(CORE)
    versions: dict[str, list[str]] = {}
    requirements: list[str] = []
    for package in tomllib.loads(path.read_text(encoding="utf-8"))["package"]:
        versions.setdefault(package["name"], []).append(package.get("version", ""))
        if package["name"] == "tunebook":
            requirements = [requirement["name"] for requirement in package["dependencies"]]
    single = {}
    for name in requirements:
        first, *others = versions[name]
        single[name] = None if others else first
    return single


def backend() -> tuple[str, str]:
    """`cuda` or `cpu`, as Unsloth will choose, and why.

    Decided by its variable, then by what `nvidia-smi` lists, then by whether torch can use it.
    """
    if os.environ.get("UNSLOTH_FORCE_CPU") == "1":
        return "cpu", "UNSLOTH_FORCE_CPU=1"
    listed = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    hidden = hidden_gpu()
    if not listed and not hidden:
        return "cpu", "`nvidia-smi` lists no GPU"
    if importlib.util.find_spec("torch") is None:
        return "cpu", "torch is not installed"
    import torch  # there is a GPU: what torch says is worth the seconds

    if torch.cuda.is_available():
        return "cuda", ", ".join(line.split(" (UUID")[0] for line in listed.splitlines())
    return "cpu", f"{UNUSABLE}: {hidden or f'torch {torch.__version__} cannot use it. {TO_CPU}'}"


def hardware() -> Iterator[Finding]:
    """Backend, bfloat16, cores and memory."""
    kind, why = backend()
    # Unsloth refuses such a machine, the default recipe too.
    yield Finding("backend", f"{kind} ({why})", broken=why.startswith(UNUSABLE))
    if kind == "cuda":
        yield from graphics()
    if bfloat16(kind):
        yield Finding("bfloat16", "in hardware")
    else:
        dtypes = "model.dtype null trains in float32 on a CPU, float16 on a GPU"
        yield Finding("bfloat16", f"not in hardware: {dtypes}")
    ram = free_ram()
    state = f"{len(os.sched_getaffinity(0))}, {ram / 2**30:.1f} GB"
    fix = ""
    if ram < NEEDED_RAM:
        fix = f"end other programs: {DEFAULT} wants {NEEDED_RAM // 2**30} GB"
    yield Finding("cores, free memory", state, fix, broken=bool(fix))


def graphics() -> Iterator[Finding]:
    """Memory, capability and driver of each GPU, and what Triton compiles its kernels with."""
    import torch

    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        capability = f"{gpu.major}.{gpu.minor}"
        state = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, compute capability {capability}"
        fix = ""
        if capability not in torch_capabilities():
            fix = f"PyTorch {torch.__version__} has no kernels for it: another card, or {TO_CPU}"
        yield Finding(f"GPU {number}", f"{state}, driver {driver_version()}", fix, broken=bool(fix))
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    missing = []
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        missing.append("a C compiler")
    if not header.exists():
        missing.append(str(header))
    if missing:
        fix = "apt-get install gcc python3-dev"
        yield Finding("Triton", f"compiles kernels and lacks {' and '.join(missing)}", fix, broken=True)


def torch_capabilities() -> list[str]:
    """Compute capabilities for which the installed PyTorch has kernels, their own or older ones that fit."""
    import torch

    capabilities = []
    for name in torch.cuda.get_arch_list():
        match = re.fullmatch(r"sm_(\d+)(\d)[a-z]?", name)
        if match:
            # Kernels for 8.0 run on 8.6 and 8.9 too.
            capabilities += [f"{match[1]}.{minor}" for minor in range(int(match[2]), 10)]
    return capabilities


def bfloat16(kind: str) -> bool:
    """Whether it is computed in hardware.

    On a CPU as Unsloth asks (AMX or AVX512-BF16), on a GPU from compute capability 8 on.
    """
    if kind == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        # Only Linux has this file.
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def disk(recipe: Recipe) -> Iterator[Finding]:
    """Free space where runs, converted models and the hub's files go."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield _disk("runs", recipe.run_dir.parent, "TUNEBOOK_RUNS")
    yield _disk("cache", cache_dir(), "TUNEBOOK_CACHE")
    # The default recipe fetches nothing from the hub.
    yield replace(_disk("hub", hub, "HF_HOME", downloads(recipe)), broken=False)


def tools() -> Iterator[Finding]:
    """The embedded model and what is optional."""
    model = cache_dir() / f"{builtin.EMBEDDED}-v{builtin.FORMAT}" / "config.json"
    state = "converted" if model.exists() else "is converted on first use (some seconds, 270 MB)"
    yield Finding(builtin.EMBEDDED, state)
    yield _extra("lm-eval", "lm_eval", "`tunebook bench`", "uv sync --extra eval")
    yield _extra("deepspeed", "deepspeed", "ZeRO", "uv sync --extra deepspeed")
    what = "GGUF converter (optional)"
    try:
        yield Finding(what, str(llama_cpp.converter()))
    except UserError:
        fix = "uv run tunebook export --install-tools (0.4 MB)"
        yield Finding(what, "not here: for `--to gguf` and `ollama`", fix)


def keys() -> Iterator[Finding]:
    """Which keys are set, in the environment or in `.env`; never their values."""
    names = ("API_KEY", "BASE_URL", "MODEL", "OPENAI_API_KEY", "HF_TOKEN")
    yield Finding("keys (optional)", ", ".join(is_set(name) for name in names))


def _extra(name: str, module: str, purpose: str, command: str) -> Finding:
    """A package that is not installed unless the user asks for it."""
    # `find_spec` looks and does not import, which would take seconds.
    if importlib.util.find_spec(module) is None:
        return Finding(f"{name} (optional)", f"not installed: for {purpose}", command)
    return Finding(f"{name} (optional)", _version(name) or "here")


def _disk(what: str, place: Path, variable: str, needed: int = 0) -> Finding:
    """Free space in a folder that may not be there yet, and whether it can be written."""
    needed += NEEDED_DISK
    # The nearest folder that exists lies on the same disk.
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    state = f"{free / 2**30:.1f} GB free in {place}"
    writable = os.access(existing, os.W_OK)
    if not writable:
        state += ", which is not yours to write"
    if needed > NEEDED_DISK:
        state += f"; the recipe's model takes {needed / 2**30:.0f} GB"
    if writable and free >= needed:
        return Finding(f"disk: {what}", state)
    return Finding(f"disk: {what}", state, f"export {variable}=/a/larger/folder/of/yours", broken=True)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
