"""`tunebook doctor`: what is on this machine, what each recipe needs, and the command that mends what is missing.

uv run tunebook doctor
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunebook.export import llama_cpp
from tunebook.models import builtin
from tunebook.models.backend import cache_dir
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import PREFIX
from tunebook.recipe.secrets import secret
from tunebook.recipe.sections import DEFAULT, ChatSource, MMMathSource, Recipe
from tunebook.runs.machine import free_ram

MODULES = {"jupyter": "jupyterlab", "pillow": "PIL", "python-dotenv": "dotenv", "pyyaml": "yaml"}
"""Packages that are imported under another name than theirs, but for dashes."""


EXTRAS = {
    "lm-eval": ("lm_eval", "`tunebook bench`", "uv sync --extra eval"),
    "deepspeed": ("deepspeed", "ZeRO", "uv sync --extra deepspeed"),
}
"""What is not installed unless asked: its module, what it is for, the command."""


NEEDED_RAM, NEEDED_DISK = 6 * 2**30, 2 * 2**30
"""Of the default recipe: its recorded run took 5.8 GB at most (DPO), pages of the model's file included."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what mends it. Only what is `broken` stops the default recipe."""

    what: str
    found: str
    mend: str = ""
    broken: bool = False


def doctor(recipe: Recipe) -> bool:
    """Print what is here and what each recipe in `configs/` needs; whether `recipe` can run here.

    Imports neither Unsloth nor, without an NVIDIA GPU, torch.
    """
    here = [*interpreter(), *packages(), *hardware(), *disk(recipe), *tools(), *keys()]
    _print(
        "this machine",
        "found",
        [(f.what, f.found + (f"\n-> {f.mend}" if f.mend else ""), "red" if f.broken else "") for f in here],
    )
    gpu = backend()[0] == "cuda"
    needed = {
        name: _needs(name, gpu) for name in sorted(p.stem for p in (ROOT / "configs").glob("*.yaml"))
    } | {recipe.name: [*needs(recipe, gpu)]}
    _print(
        "the recipes",
        "need",
        [(name, "\n".join(phrases) or "nothing more", "") for name, phrases in needed.items()],
    )
    broken = [f for f in here if f.broken]
    if broken:
        Console(stderr=True).print(
            f"{recipe.name} cannot run here: {broken[0].what}: {broken[0].found}. {broken[0].mend}",
            style="red",
            markup=False,
        )
    return not broken


def interpreter() -> Iterator[Finding]:
    """Python, and variables that change what every command does."""
    right = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding(
        "Python",
        platform.python_version(),
        "" if right else "uv python install 3.12 && uv sync --python 3.12",
        not right,
    )
    if given := sorted(
        k for k in os.environ if k.startswith(PREFIX) or k in ("TUNEBOOK_RECIPE", "TUNEBOOK_RUN")
    ):
        yield Finding(
            "overrides from the environment",
            ", ".join(given),
            f"unset {' '.join(given)}, if you did not mean them",
        )


def packages() -> Iterator[Finding]:
    """The project's own requirements against `uv.lock`: one that is missing is broken, one of another version is only said."""
    wanted = locked()
    other = []
    for name, version in wanted.items():
        if importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None:
            yield Finding(name, "not installed", "uv sync", True)
        elif version not in (None, found := _version(name)):
            other.append(f"{name} {found} (lock: {version})")
    here = ", ".join(
        f"{name} {_version(name)}" for name in ("torch", "transformers", "trl", "peft", "unsloth")
    )
    yield Finding(
        "packages",
        f"{here}; " + (f"not as locked: {', '.join(other)}" if other else "all as locked"),
        "uv sync" if other else "",
    )


def locked() -> dict[str, str | None]:
    """The project's requirements by name with their locked versions (None where the lock has several, or there is no lock)."""
    path = ROOT / "uv.lock"
    if not path.exists():
        return dict.fromkeys(("torch", "transformers", "trl", "peft", "unsloth"))
    found: dict[str, list[str]] = {}
    entries: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["package"]
    for entry in entries:
        found.setdefault(entry["name"], []).append(entry.get("version", ""))
    own = next(entry for entry in entries if entry["name"] == "tunebook")
    return {
        d["name"]: found[d["name"]][0] if len(found[d["name"]]) == 1 else None for d in own["dependencies"]
    }


def backend() -> tuple[str, str]:
    """`cuda` or `cpu`, as Unsloth will choose, and why: its variable, then what `nvidia-smi` lists, then whether torch can use it."""
    if os.environ.get("UNSLOTH_FORCE_CPU") == "1":
        return "cpu", "UNSLOTH_FORCE_CPU=1"
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "cpu", "`nvidia-smi` lists no GPU"
    if importlib.util.find_spec("torch") is None:
        return "cpu", "torch is not installed"
    import torch

    if torch.cuda.is_available():
        return "cuda", ", ".join(line.split(" (UUID")[0] for line in listed.splitlines())
    return (
        "cpu",
        f"there is a GPU, but torch {torch.__version__} cannot use it: compare its CUDA {torch.version.cuda} with the one `nvidia-smi` shows",
    )


def hardware() -> Iterator[Finding]:
    """Backend, bfloat16, cores and memory."""
    kind, why = backend()
    lost = why.startswith("there is a GPU")
    yield Finding("backend", f"{kind} ({why})", "uv sync, or a newer driver" if lost else "")
    yield Finding(
        "bfloat16",
        "in hardware"
        if bfloat16(kind)
        else "not in hardware: model.dtype null trains in float32 on a CPU, float16 on a GPU",
    )
    ram, cores = free_ram(), len(os.sched_getaffinity(0))
    short = ram < NEEDED_RAM
    yield Finding(
        "cores, free memory",
        f"{cores}, {ram / 2**30:.1f} GB",
        f"end other programs: {DEFAULT} wants {NEEDED_RAM // 2**30} GB" if short else "",
        short,
    )


def bfloat16(kind: str) -> bool:
    """Whether it is computed in hardware: on a CPU as Unsloth asks (AMX or AVX512-BF16), on a GPU from compute capability 8 on."""
    if kind == "cuda":
        import torch

        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        return any(flag in Path("/proc/cpuinfo").read_text().split() for flag in ("amx_bf16", "avx512_bf16"))
    except OSError:
        return False


def disk(recipe: Recipe) -> Iterator[Finding]:
    """Free space where runs, converted models and the hub's files go."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    for what, place, variable in (
        ("runs", recipe.run_dir.parent, "TUNEBOOK_RUNS"),
        ("cache", cache_dir(), "TUNEBOOK_CACHE"),
        ("hub", hub, "HF_HOME"),
    ):
        there = next(p for p in (place, *place.parents) if p.exists())
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        short = free < NEEDED_DISK or not writable
        found = f"{free / 2**30:.1f} GB free in {place}" + (
            "" if writable else ", which is not yours to write"
        )
        yield Finding(
            f"disk: {what}",
            found,
            f"export {variable}=/a/larger/folder/of/yours" if short else "",
            short and what != "hub",
        )


def tools() -> Iterator[Finding]:
    """The embedded model and what is optional."""
    made = (cache_dir() / f"{builtin.EMBEDDED}-v{builtin.FORMAT}" / "config.json").exists()
    yield Finding(
        builtin.EMBEDDED, "converted" if made else "is converted on first use (some seconds, 270 MB)"
    )
    for name, (module, purpose, mend) in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        yield Finding(
            f"{name} (optional)",
            _version(name) or "here" if there else f"not installed: for {purpose}",
            "" if there else mend,
        )
    try:
        yield Finding("GGUF converter (optional)", str(llama_cpp.converter()))
    except UserError:
        yield Finding(
            "GGUF converter (optional)",
            "not here: for `--to gguf` and `ollama`",
            "uv run tunebook export --install-tools (0.4 MB)",
        )


def keys() -> Iterator[Finding]:
    """Which keys are set, in the environment or in `.env`; never their values."""
    names = ("API_KEY", "BASE_URL", "MODEL", "OPENAI_API_KEY", "HF_TOKEN")
    yield Finding("keys", ", ".join(f"{name} {'is set' if secret(name) else 'is not set'}" for name in names))


def needs(recipe: Recipe, gpu: bool) -> Iterator[str]:
    """What a recipe needs that this machine may lack, a phrase each."""
    base = recipe.model.base
    if any("8bit" in str(section.get("optim")) for section in (recipe.sft, recipe.dpo)):
        yield "a CUDA GPU" + ("" if gpu else " (not here)")
    if base not in (builtin.EMBEDDED, builtin.TINY_VISION) and not Path(base).exists():
        yield f"the model {base} from the hub{_in_cache(base)}"
    for source in recipe.data.sources:
        if (
            isinstance(source, ChatSource | MMMathSource)
            and source.path != "sample"
            and _from_hub(source.path)
        ):
            yield f"the data {source.path} from the hub"
    if recipe.pairs.dataset and _from_hub(recipe.pairs.dataset):
        yield f"the pairs {recipe.pairs.dataset} from the hub"
    if recipe.pairs.server:
        name = recipe.pairs.server.api_key_env
        yield f"a server at {recipe.pairs.server.url} ({name} {'is set' if secret(name) else 'is not set'})"
    if recipe.clean:
        unset = [
            n
            for n, given in (("BASE_URL", recipe.clean.url), ("MODEL", recipe.clean.model), ("API_KEY", None))
            if not given and not secret(n)
        ]
        yield "for `clean` " + (
            f"the variables {', '.join(unset)}" if unset else "a server (its variables are set)"
        )


def _needs(name: str, gpu: bool) -> list[str]:
    try:
        return list(needs(load_recipe(name), gpu))
    except UserError as error:  # overrides from the environment that are not for this one
        return [str(error)]


def _from_hub(path: str) -> bool:
    return not path.startswith("{run}") and not (Path(path).exists() or (ROOT / path).exists())


def _in_cache(base: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    try:
        return " (in the cache)" if isinstance(try_to_load_from_cache(base, "config.json"), str) else ""
    except ValueError as error:
        return f" ({first_line(error)})"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print(title: str, head: str, lines: list[tuple[str, str, str]]) -> None:
    table = Table("", head, title=title)
    for what, found, style in lines:
        table.add_row(Text(what), Text(found), style=style)
    Console().print(table)
