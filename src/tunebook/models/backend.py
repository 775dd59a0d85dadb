"""Unsloth's backend and the environment it is imported in."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import io
import logging
import os
import re
import sys
from pathlib import Path

from platformdirs import user_cache_path

from tunebook.recipe.errors import UserError, first_line
from tunebook.runs.bars import hide_bars_of_libraries

DRIVER = Path("/proc/driver/nvidia/version")
WSL = Path("/usr/lib/wsl/lib/nvidia-smi")
DEVICES = Path("/dev")

NEEDED_DRIVER = {"13": 580, "12": 525}
"""The oldest driver for each CUDA; from NVIDIA's table of minor version compatibility."""

TO_CPU = "For the CPU: UNSLOTH_FORCE_CPU=1 before the command"

OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator: ", "CUBLAS_STATUS_ALLOC_FAILED")
"""What a RuntimeError says for want of memory."""

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
        # Threads that wait give their core away. Else they spin on it, and beside other work, such as a
        # browser, a step of training takes three times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
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
    """Import Unsloth and say which backend it chose: `cuda`, `cpu`, ...

    Raises UserError for a GPU that PyTorch cannot use: Unsloth does not go over to the CPU by itself then.
    """
    set_environment()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            import unsloth
    except NotImplementedError as error:
        reason = hidden_gpu() or f"{first_line(error)}. {TO_CPU}"
        raise UserError(f"there is a GPU that cannot be used: {reason}") from None

    if unsloth.DEVICE_TYPE == "cpu":
        if printed.getvalue():  # that it trains with SFTTrainer; it does with DPOTrainer too
            print(f"Unsloth {unsloth.__version__}: no GPU, so everything runs on the CPU")
        _keep_freed_memory()
        # Of several processes: not `cpu:0`, to which no checkpoint can be loaded.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    else:
        print(printed.getvalue(), end="")
    hide_bars_of_libraries()
    return str(unsloth.DEVICE_TYPE)


def release() -> None:
    """Give back the memory of models that nothing names any more, on a GPU too.

    A trainer and its model name each other, so that Python frees them late. The next model, that of a
    notebook's last cells or of the next stage, would not fit beside them.
    """
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
    trim_heap()


def trim_heap() -> None:
    """Give freed memory back to the system that glibc keeps for later (`_keep_freed_memory`)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine was not enough."""
    import torch

    if isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY):
        return True
    return isinstance(error, torch.OutOfMemoryError | MemoryError)


def driver_version() -> str | None:
    """The version of the NVIDIA driver that this machine's kernel has loaded."""
    try:
        text = DRIVER.read_text()
    except OSError:  # none, or WSL, where the driver is that of Windows
        return None
    match = re.search(r"Kernel Module.*?(\d+\.\d[\d.]*)", text)
    return match[1] if match else None


def torch_build() -> tuple[str, str | None]:
    """PyTorch's version and the CUDA it was built for (None: for CPUs), without importing it."""
    spec = importlib.util.find_spec("torch")
    text = Path(spec.origin).with_name("version.py").read_text() if spec and spec.origin else ""
    values = dict(re.findall(r"^(__version__|cuda)\b.*= '([^']+)'", text, re.MULTILINE))
    return values.get("__version__", "unknown"), values.get("cuda")


def hidden_gpu() -> str | None:
    """Why PyTorch does not see this machine's NVIDIA GPU, and the way out; None without a sign of a GPU.

    The signs are those by which Unsloth refuses to train on the CPU instead.
    """
    if not DRIVER.exists() and not WSL.exists():
        return None
    version, cuda = torch_build()
    driver = driver_version()
    mask = os.environ.get("CUDA_VISIBLE_DEVICES")
    needed = NEEDED_DRIVER.get((cuda or "").partition(".")[0], 0)
    if cuda is None:
        reason = f"PyTorch {version} is a build for CPUs: `uv sync` installs the one for GPUs"
    elif mask is not None:
        reason = f"CUDA_VISIBLE_DEVICES={mask!r} names no GPU of this machine: unset it"
    elif driver and int(driver.partition(".")[0]) < needed:
        reason = (
            f"driver {driver} is too old for PyTorch {version}, whose CUDA {cuda} wants {needed} or newer. "
            "A newer driver helps; or, from driver 525 on, PyTorch's build for CUDA 12.6: "
            f"`{_for_cuda_12()}` with UV_NO_SYNC=1 in the environment from then on"
        )
    elif DRIVER.exists() and not any(DEVICES.glob("nvidia[0-9]*")):
        reason = "this container was started without it: `docker run --gpus all ...`"
    else:
        reason = f"PyTorch {version} (CUDA {cuda}) does not get on with its driver; `nvidia-smi` may say why"
    return f"{reason}. {TO_CPU}"


def _for_cuda_12() -> str:
    """The command that installs PyTorch for older drivers; torchvision has to be of the same build."""
    packages = []
    for name in ("torch", "torchvision"):
        version = importlib.metadata.version(name).partition("+")[0]
        packages.append(f"{name}=={version}")
    return f"uv pip install {' '.join(packages)} --index-url https://download.pytorch.org/whl/cu126"


def on_cpu() -> bool:
    """Whether it is Unsloth's CPU backend that was imported, or none."""
    return bool(getattr(sys.modules.get("unsloth"), "DEVICE_TYPE", "cpu") == "cpu")


def _keep_freed_memory() -> None:
    """Have glibc reuse large freed blocks: returning and faulting them in again took 20% of each step.

    All threads share one heap. Each would keep freed blocks of its own: answers in two threads took a
    gigabyte more with each batch.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(option, 2**30)
        libc.mallopt(-8, 1)  # M_ARENA_MAX
