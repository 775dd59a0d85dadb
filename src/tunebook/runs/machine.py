"""This process and this machine: rank, memory, versions, hardware."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from tunebook.recipe.files import ROOT

PACKAGES = (
    "tunebook",
    "unsloth",
    "unsloth_zoo",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "math-verify",
)


def rank() -> int:
    """This process's number among those of torchrun; 0 when it is the only one. Rank 0 writes and reports."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def same_for_all(value: Any) -> Any:
    """What the first process has, in every process."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def highest_of_all(number: int, device: Any) -> int:
    """The highest of the numbers that the processes have, in every process.

    Args:
        device: On which the processes talk to each other: the GPU with NCCL.
    """
    if world_size() == 1:
        return number
    import torch

    highest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
    return int(highest)


def environment() -> dict[str, Any]:
    """Code, versions and hardware that a result depends on."""
    lock = ROOT / "uv.lock"
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = []
    torch = _torch_with_a_gpu()
    if torch is not None:
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "git": _git(),
        "lock": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None,
        "versions": versions,
        "hardware": {**processor(), "memory_gb": round(memory / 2**30, 1), "gpus": gpus},
    }


def processor() -> dict[str, Any]:
    """The name of the processor, and how many of its cores this process may use."""
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0))}


def free_ram() -> int:
    """Free bytes of the machine, within the limit of its control group."""
    import psutil

    free = int(psutil.virtual_memory().available)
    groups = Path("/sys/fs/cgroup")
    for limit, used in (  # of the second version of control groups and of the first
        (groups / "memory.max", groups / "memory.current"),
        (groups / "memory/memory.limit_in_bytes", groups / "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # the other version, or `max` for no limit
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def peak_memory_gb() -> dict[str, float]:
    """The process's highest resident memory so far and, on a GPU, the highest allocation there."""
    # Linux counts it in kilobytes.
    peak = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
    torch = _torch_with_a_gpu()
    if torch is not None:
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return peak


def _torch_with_a_gpu() -> Any:
    """PyTorch if it is imported and has a GPU: it is never imported just to ask."""
    torch = sys.modules.get("torch")
    return torch if torch and torch.cuda.is_available() else None


def _git() -> dict[str, Any]:
    """The commit of the project, and whether files differ from it; None where git does not know."""

    def git(*args: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    with contextlib.suppress(OSError):
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    return {"commit": None, "dirty": None}


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
