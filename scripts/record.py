"""Keep the results of finished runs in `resources/<run>/`.

uv run python scripts/record.py runs/smollm2-math

The tables of the default recipe's run go into README and docs/results.md; those of all runs of
`smollm2-instructions` go into docs/own-answers.md.
"""

import json
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tunebook.evaluation import first_screen, pooled, tables
from tunebook.evaluation.table import Table
from tunebook.recipe.sections import DEFAULT

ROOT = Path(__file__).parents[1]
MARKS = ("<!-- results -->\n", "<!-- /results -->")
MARKS_ELSEWHERE = ("<!-- elsewhere -->\n", "<!-- /elsewhere -->")


def section(folder: Path) -> str:
    """What the README says of a recorded run: where it ran, and one table of all items."""
    summary = json.loads((folder / "summary.json").read_text())
    table = Table(
        accuracy="right (95% interval)",
        cut_off="cut off",
        against="against the model before, in points (95% interval)",
    )
    before = ""
    for stage, results in summary["stages"].items():
        cells = tables.accuracy_cells(results)
        row = {"model": stage, "n": cells["n"], "accuracy": cells["accuracy"], "cut_off": cells["cut_off"]}
        table.add(**row, against=_against(summary["comparisons"], before, stage))
        before = stage
    return (
        "\n\n".join([f"{_where(folder, summary)} ([all tables](docs/results.md)):", table.markdown()]) + "\n"
    )


def details(folder: Path) -> str:
    """What docs/results.md says of a recorded run: all tables."""
    summary = json.loads((folder / "summary.json").read_text())
    paragraphs = [
        f"{_where(folder, summary)}:",
        tables.accuracy_table(summary["stages"]).markdown(),
        "The same items, pair by pair (differences in points):",
        tables.comparison_table(summary["comparisons"]).markdown(),
    ]
    if (folder / "parity.json").exists():
        rows = json.loads((folder / "parity.json").read_text())
        paragraphs += [
            "What was exported, each loaded afresh and compared with the adapter on held-out questions "
            "(Δ log p: of the tokens of the adapter's own answers):",
            tables.parity_table(rows).markdown(),
        ]
    return "\n\n".join(paragraphs) + "\n"


def elsewhere(folder: Path) -> str:
    """What docs/results.md says of a recorded run with the retention suite: how its report card begins."""
    summary = json.loads((folder / "summary.json").read_text())
    quoted = f"> {first_screen.sentence(summary)}"
    return "\n\n".join([quoted, first_screen.overview(summary).markdown()]) + "\n"


def together(folders: list[Path]) -> str:
    """What docs/own-answers.md says of recorded runs of one recipe with several seeds."""
    summaries = {folder.name: json.loads((folder / "summary.json").read_text()) for folder in folders}
    accuracies = Table(**tables.ACCURACY)
    for run, summary in summaries.items():
        for stage, results in summary["stages"].items():
            accuracies.add(run=run, stage=stage, **tables.accuracy_cells(results))
    steps = pooled.by_step(list(summaries.values()))
    paragraphs = [accuracies.markdown()]
    if len(folders) == 1:
        (summary,) = summaries.values()
        paragraphs.append(tables.comparison_table(summary["comparisons"]).markdown())
    else:
        paragraphs += ["All runs together:", pooled.pooled_table(steps).markdown(), pooled.EXPLAINED]
        paragraphs.append("\n".join(f"- {pooled.claim(step, of_step)}" for step, of_step in steps.items()))
    return "\n\n".join(paragraphs) + "\n"


def _where(folder: Path, summary: dict[str, Any]) -> str:
    """How long the run took and on what."""
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    # Exports may have been made at any later time.
    chain = {name: stage for name, stage in stages.items() if "export" not in name}

    sft = stages["sft"]
    trained = f"{sft['rows']['train']} problems, SFT in {_minutes(sft['metrics']['runtime_s'])} minutes"
    if "dpo" in stages:
        pairs = stages["pairs"]["rows"]["train"]
        dpo_minutes = _minutes(stages["dpo"]["metrics"]["runtime_s"])
        all_minutes = _minutes(sum(_seconds(stage) for stage in chain.values()))
        trained += f", DPO on {pairs} pairs in {dpo_minutes}, all stages in {all_minutes}"

    hardware = sft["hardware"]
    peaks = [stage["peak_memory_gb"]["process"] for stage in chain.values() if "peak_memory_gb" in stage]
    where = f"{hardware['cores']} cores of an {hardware['cpu']}, peak memory {max(peaks)} GB"
    return f"One recorded run ({trained} on {where}; `{summary['split']}` split, greedy)"


def _against(comparisons: list[dict[str, Any]], first: str, second: str) -> str:
    """The difference between two models' answers to the same items; empty when they were not compared."""
    for compared in comparisons:
        if (compared["first"], compared["second"]) == (first, second):
            low, high = (100 * end for end in compared["interval"])
            return f"{100 * compared['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
    return ""


def write_compact(manifest: dict[str, Any], path: Path) -> None:
    """Write a run's manifest with one line a stage: whole, and short enough to keep in the repository."""
    stages = [f"{json.dumps(name)}: {json.dumps(stage)}" for name, stage in manifest["stages"].items()]
    head = f'{{"run": {json.dumps(manifest["run"])}, "stages": {{\n'
    path.write_text(head + ",\n".join(stages) + "\n}}\n")


def keep(run: Path) -> Path:
    """Copy a run's manifest and summary to `resources/`, which is what `tunebook report` reads of it."""
    folder = ROOT / "resources" / run.name
    folder.mkdir(exist_ok=True)
    write_compact(json.loads((run / "manifest.json").read_text()), folder / "manifest.json")
    shutil.copy(run / "eval" / "summary.json", folder)
    return folder


def publish(run: Path, folder: Path) -> None:
    """Of the default recipe's run also curves, figures and report; its tables go into README and docs."""
    shutil.copy(run / "sft" / "metrics.jsonl", folder)
    shutil.copy(run / "report.md", folder)
    shutil.copytree(run / "figures", folder / "figures", dirs_exist_ok=True)
    if (run / "export" / "parity.json").exists():
        shutil.copy(run / "export" / "parity.json", folder)
    write_between_marks("README.md", section(folder))
    write_between_marks("docs/results.md", details(folder))
    write_between_marks("docs/results.md", elsewhere(folder), MARKS_ELSEWHERE)


def write_between_marks(name: str, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put the text of a page's results in the place of what stands there."""
    page = ROOT / name
    before, _, rest = page.read_text().partition(marks[0])
    after = rest.partition(marks[1])[2]
    page.write_text(before + marks[0] + text + marks[1] + after)


def own_answers() -> list[Path]:
    """The recorded runs of the recipe `smollm2-instructions`, seed by seed."""
    return sorted((ROOT / "resources").glob("smollm2-instructions*"))


def main(runs: list[Path]) -> None:
    for run in runs:
        folder = keep(run)
        if run.name == DEFAULT:
            publish(run, folder)
    write_between_marks("docs/own-answers.md", together(own_answers()))


def _seconds(stage: dict[str, Any]) -> float:
    """How long a stage took."""
    took = datetime.fromisoformat(stage["ended"]) - datetime.fromisoformat(stage["started"])
    return took.total_seconds()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}"


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
