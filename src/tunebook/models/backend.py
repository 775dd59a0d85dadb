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

NOISY = ("torch.utils._pytree", "bitsandbytes.backends.cpu.ops")
"""Loggers that warn at every import of what no user can mend."""


def set_environment() -> None:
    """Defaults for the libraries below, set before they are imported; what the user has set wins."""
    defaults = {
        # No telemetry: TRL, Hugging Face, Unsloth.
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        # No llama.cpp installed behind the user's back.
        "UNSLOTH_AUTO_INSTALL": "0",
        # Unsloth's compiled code goes to the user's cache instead of the working folder.
        "UNSLOTH_COMPILE_LOCATION": str(cache_dir() / "unsloth_compiled_cache"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    for key, value in defaults.items():
        os.environ.setdefault(key, value)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def cache_dir() -> Path:
    """Where converted models lie: `$TUNEBOOK_CACHE`, or the user's cache folder.

    Raises UserError for a user without a home.
    """
    folder = Path(os.environ.get("TUNEBOOK_CACHE") or user_cache_path("tunebook"))
    if folder.parts[0] == "~":
        raise UserError(
            "this user has no home folder: set TUNEBOOK_CACHE (and HF_HOME) to a folder for models"
        )
    return folder


def backend() -> str:
    """Import Unsloth and say which backend it chose: `cuda`, `cpu`, ..."""
    set_environment()
    import unsloth

    if unsloth.DEVICE_TYPE == "cpu":
        _keep_freed_memory()
        # Of several processes: not `cpu:0`, to which no checkpoint can be loaded.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    return str(unsloth.DEVICE_TYPE)


def on_cpu() -> bool:
    """Whether it is Unsloth's CPU backend that was imported, or none."""
    return bool(getattr(sys.modules.get("unsloth"), "DEVICE_TYPE", "cpu") == "cpu")


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks: returning and faulting them in again took 20% of each step."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 2**30)
