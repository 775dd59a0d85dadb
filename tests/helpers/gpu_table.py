"""What `pytest -m gpu` leaves behind."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from tunebook.recipe.files import ROOT

TABLE = ROOT / "runs" / "gpu-test.md"
"""Worth sending back: which card, which versions, how fast, how much memory, whether answers end."""

LOG = ROOT / "runs" / "gpu-test.log"
"""What the commands printed."""


def write_table(path: Path, rows: list[str]) -> None:
    """Card, driver and versions, and below them the rows of the stages."""
    import torch

    from tunebook.models.backend import driver_version

    card = torch.cuda.get_device_properties(0)
    versions = [f"driver {driver_version()}", f"torch {torch.__version__}"]
    for name in ("triton", "unsloth", "trl", "transformers", "peft", "bitsandbytes"):
        versions.append(f"{name} {importlib.metadata.version(name)}")
    lines = [
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, capability {card.major}.{card.minor}",
        ", ".join(versions),
        "",
        "| recipe | stage | seconds | GPU memory, GB | tokens a second | loss, or what was found |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
