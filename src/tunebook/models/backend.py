"""Unsloth's backend and the environment it is imported in."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from pathlib import Path

from platformdirs import user_cache_path

from tunebook.recipe.errors import UserError


def set_environment() -> None:
    """Defaults for the libraries below, set before they are imported; what the user has set wins.

    No telemetry (TRL, Hugging Face, Unsloth), no llama.cpp installed behind the user's back, Unsloth's compiled
    code in the user's cache instead of the working folder.
    """
    for key, value in {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_AUTO_INSTALL": "0",
        "UNSLOTH_COMPILE_LOCATION": str(cache_dir() / "unsloth_compiled_cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(key, value)
    for name in (
        "torch.utils._pytree",
        "bitsandbytes.backends.cpu.ops",
    ):  # warn at every import of what no user can mend
        logging.getLogger(name).setLevel(logging.ERROR)


def cache_dir() -> Path:
    """Where converted models lie: `$TUNEBOOK_CACHE`, or the user's cache folder. Raises UserError for a user without a home."""
    found = Path(os.environ.get("TUNEBOOK_CACHE") or user_cache_path("tunebook"))
    if found.parts[0] == "~":
        raise UserError(
            "this user has no home folder: set TUNEBOOK_CACHE (and HF_HOME) to a folder for models"
        )
    return found


def backend() -> str:
    """Import Unsloth and say which backend it chose: `cuda`, `cpu`, ..."""
    set_environment()
    import unsloth

    if unsloth.DEVICE_TYPE == "cpu":
        _keep_freed_memory()
        os.environ["ACCELERATE_TORCH_DEVICE"] = (
            "cpu"  # of several processes: not `cpu:0`, to which no checkpoint can be loaded
        )
    return str(unsloth.DEVICE_TYPE)


def on_cpu() -> bool:
    """Whether it is Unsloth's CPU backend that was imported, or none."""
    return bool(getattr(sys.modules.get("unsloth"), "DEVICE_TYPE", "cpu") == "cpu")


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks: returning and faulting them in again at every step took 20% of the time."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 2**30)
