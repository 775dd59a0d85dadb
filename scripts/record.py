"""Keep a finished run's results in `resources/<run>/` and put its table into the README.

uv run python scripts/record.py runs/smollm2-math
"""

import json
import re
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tunebook.evaluation import tables

ROOT = Path(__file__).parents[1]
MARKS = ("<!-- results -->\n", "<!-- /results -->")


def section(folder: Path) -> str:
    """What the README says of a recorded run: where it ran, how long it took, the table."""
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    summary = json.loads((folder / "summary.json").read_text())
    sft, hardware = stages["sft"], stages["sft"]["hardware"]
    trained = f"{sft['rows']['train']} problems, SFT in {sft['metrics']['runtime_s'] / 60:.0f} minutes"
    chain = [s for name, s in stages.items() if "export" not in name]
    peak = max(s["peak_memory_gb"]["process"] for s in chain if "peak_memory_gb" in s)
    if "dpo" in stages:
        seconds = sum(
            (datetime.fromisoformat(s["ended"]) - datetime.fromisoformat(s["started"])).total_seconds()
            for s in chain
        )
        trained += f", DPO on {stages['pairs']['rows']['train']} pairs in {stages['dpo']['metrics']['runtime_s'] / 60:.0f}"
        trained += f", all stages in {seconds / 60:.0f}"
    where = f"{hardware['cores']} cores of an {hardware['cpu']}, peak memory {peak} GB"
    links = f"[report card](resources/{folder.name}/report.md), " if (folder / "report.md").exists() else ""
    links += f"[manifest](resources/{folder.name}/manifest.json)"
    intro = f"One recorded run ({trained} on {where}; `{summary['split']}` split, greedy; {links}):"
    accuracy = tables.accuracy_table(summary["stages"]).markdown()
    paired = tables.comparison_table(summary["comparisons"]).markdown()
    text = f"{intro}\n\n{accuracy}\n\nThe same items, pair by pair (differences in points):\n\n{paired}\n"
    if (folder / "parity.json").exists():
        rows = json.loads((folder / "parity.json").read_text())
        words = "What was exported, each loaded afresh and compared with the adapter on held-out questions"
        text += f"\n{words} (Δ log p: of the tokens of the adapter's own answers):\n\n{tables.parity_table(rows).markdown()}\n"
    return text


def write_compact(manifest: dict[str, Any], path: Path) -> None:
    """Write a run's manifest with one line a stage: whole, and short enough to keep in the repository."""
    stages = [f"{json.dumps(name)}: {json.dumps(stage)}" for name, stage in manifest["stages"].items()]
    head = f'{{"run": {json.dumps(manifest["run"])}, "stages": {{\n'
    path.write_text(head + ",\n".join(stages) + "\n}}\n")


def main(run: Path) -> None:
    folder = ROOT / "resources" / run.name
    folder.mkdir(exist_ok=True)
    write_compact(json.loads((run / "manifest.json").read_text()), folder / "manifest.json")
    for name in ("eval/summary.json", "sft/metrics.jsonl", "report.md"):
        shutil.copy(run / name, folder / Path(name).name)
    shutil.copytree(run / "figures", folder / "figures", dirs_exist_ok=True)
    if (run / "export" / "parity.json").exists():
        shutil.copy(run / "export" / "parity.json", folder)
    readme = ROOT / "README.md"
    start, end = map(re.escape, MARKS)
    readme.write_text(
        re.sub(
            f"({start}).*?({end})",
            lambda m: m[1] + section(folder) + m[2],
            readme.read_text(),
            flags=re.DOTALL,
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
