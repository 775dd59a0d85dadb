"""The report card of a run, from the JSON in its folder alone: `report.md`, and `report.html` with its figures inside.

uv run tunebook report
"""

from __future__ import annotations

import base64
import html
import io
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from tunebook.evaluation import plots
from tunebook.evaluation.statistics import ALPHA
from tunebook.evaluation.tables import (
    ABLATED,
    BENCHMARKS,
    BENCHMARKS_COMPARED,
    COLUMNS,
    COMPARED,
    SAMPLED,
    ablated_cells,
    benchmark_cells,
    benchmarks_compared_cells,
    cells,
    compared_cells,
    markdown,
    sampled_cells,
)
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.runs.files import log_history, read_json, write_text

Part = str | tuple[str, Figure]
"""Markdown, or a figure with its name."""


def write(run: Path) -> list[Path]:
    """Write `report.md` (figures in `figures/`) and `report.html`; returns their paths. Raises UserError for a folder without a run."""
    shown = parts(run)
    (run / "figures").mkdir(exist_ok=True)
    lines = []
    for part in shown:
        if isinstance(part, str):
            lines.append(part)
        else:
            part[1].savefig(run / "figures" / f"{part[0]}.png", dpi=120)
            lines.append(f"![{part[0]}](figures/{part[0]}.png)")
    write_text(run / "report.md", "\n\n".join(lines) + "\n")
    write_text(run / "report.html", _html(run.name, shown))
    return [run / "report.md", run / "report.html"]


def parts(run: Path) -> list[Part]:
    """What the report says, in order; what the run does not have is left out."""
    stages = read_json(run / "manifest.json").get("stages")
    if not stages:
        raise UserError(f"{run} holds no finished stage: run `uv run tunebook run` first")
    summary = read_json(run / "eval" / "summary.json")
    found: list[Part | None] = [
        f"# {run.name}",
        _headline(stages, summary),
        *_results(summary),
        *_benchmarks(run),
        *_examples(run, summary),
        "## Data",
        _funnel(stages),
        _pairs(stages),
        ("pass-rate", plots.pass_counts(stages["pairs"]))
        if stages.get("pairs", {}).get("pass_counts")
        else None,
        "## Training",
        ("sft-loss", plots.losses(log_history(run / "sft"))) if log_history(run / "sft") else None,
        _margins(stages),
        ("dpo-metrics", plots.preferences(log_history(run / "dpo"))) if log_history(run / "dpo") else None,
        "## Cost",
        _costs(stages),
        *_parity(run),
        "## How to repeat it",
        _repeat(run, stages),
    ]
    return [part for part in found if part]


def predictions(run: Path, stage: str) -> dict[str, dict[str, Any]]:
    """A stage's predictions by item."""
    return {
        f"{p['source_id']}\n{p['prompt']}": p
        for p in read_records(run / "eval" / stage / "predictions.jsonl")
    }


def _headline(stages: dict[str, Any], summary: dict[str, Any]) -> str:
    recipe = next(iter(stages.values()))["recipe"]
    said = [f"{recipe['model']['base']}, recipe `{recipe['name']}`, seed {recipe['seed']}."]
    for c in summary.get("comparisons", []):
        points, low, high = (100 * x for x in (c["difference"], *c["interval"]))
        verdict = (
            "not shown to be different"
            if c["p"] >= ALPHA or low <= 0 <= high
            else "better"
            if low > 0
            else "worse"
        )
        said.append(
            f"- **{c['second']} against {c['first']}: {verdict}** ({points:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}, n = {c['n']})."
        )
    return "\n".join(said)


def _results(summary: dict[str, Any]) -> list[Part]:
    if not summary:
        return ["## Results", "Not evaluated."]
    stages, found = summary["stages"], summary.get("comparisons", [])
    starred = [
        (*row[:-2], row[-2] + (" *" if c["p"] < ALPHA else ""), row[-1])
        for row, c in zip(compared_cells(found), found, strict=True)
    ]
    return [
        f"## Results on the `{summary['split']}` split",
        ("accuracy", plots.accuracies(stages)),
        markdown(COLUMNS, cells(stages)),
        "Greedy answers; intervals: Wilson 95%. `boxed`, `cut off` and `no answer` tell a gain in format from a gain in skill.",
        *([markdown(SAMPLED, rows)] if (rows := sampled_cells(stages)) else []),
        *([markdown(ABLATED, rows), ABLATED_NOTE] if (rows := ablated_cells(stages)) else []),
        *([markdown(COMPARED, starred)] if starred else []),
        "Every stage answered the same items: differences in points with a paired bootstrap interval, exact McNemar test (\\*: p < 0.05). "
        "`detectable`: the difference that so many items would show four times out of five.",
    ]


ABLATED_NOTE = "The same items with a blank image and with another item's: a model that does as well then answers from the text alone."


def _margins(stages: dict[str, Any]) -> str:
    if not (found := stages.get("dpo", {}).get("image_margins")):
        return ""
    shown = "rewards/margins after DPO: {true:.3f} with the true image, {blank:.3f} with a blank one, {swapped:.3f} with another row's"
    return shown.format(**found) + " (equal: the preference was learnt without looking)."


def _benchmarks(run: Path) -> list[Part]:
    if not (summary := read_json(run / "bench" / "summary.json")):
        return []
    tables = (
        markdown(BENCHMARKS, benchmark_cells(summary)),
        markdown(BENCHMARKS_COMPARED, benchmarks_compared_cells(summary)),
    )
    return ["## Benchmarks (lm-evaluation-harness)", ("benchmarks", plots.scores(summary["tasks"])), *tables]


def _examples(run: Path, summary: dict[str, Any]) -> list[Part]:
    names = list(summary.get("stages", {}))[-2:]
    if len(names) < 2:
        return []
    before, after = (predictions(run, name) for name in names)
    lines: list[Part] = [f"## Won and lost, {names[0]} → {names[1]}"]
    for word, wanted in (("won", (False, True)), ("lost", (True, False))):
        keys = [k for k in before if k in after and (before[k]["correct"], after[k]["correct"]) == wanted][:2]
        for p, q in ((before[k], after[k]) for k in keys):
            answers = "".join(
                f"\n\n{name}:\n\n```text\n{r['answer']}\n```" for name, r in zip(names, (p, q), strict=True)
            )
            lines.append(f"**{word}**: {p['prompt']} (answer: {p['gold']}){answers}")
    return lines if len(lines) > 1 else []


def _funnel(stages: dict[str, Any]) -> str:
    data = stages.get("data", {})
    rows: list[tuple[str, ...]] = [(f"rows for {split}", str(n)) for split, n in data.get("rows", {}).items()]
    rows += [(f"quarantined: {reason}", str(n)) for reason, n in data.get("quarantined", {}).items()]
    return markdown(("data", "rows"), rows)


def _pairs(stages: dict[str, Any]) -> str | None:
    if not (pairs := stages.get("pairs")):
        return None
    rows: list[tuple[str, ...]] = [(f"pairs for {split}", str(n)) for split, n in pairs["rows"].items()]
    rows += [(f"strategy {name}", str(n)) for name, n in pairs["strategies"].items()]
    rows += [(f"quarantined: {reason}", str(n)) for reason, n in (pairs.get("quarantined") or {}).items()]
    return markdown(
        ("preference pairs", "n"),
        [*rows, ("told apart by length alone", f"{pairs['length_only_accuracy']:.0%}")],
    )


def _costs(stages: dict[str, Any]) -> str:
    rows, total = [], 0.0
    for name, s in stages.items():
        seconds = (datetime.fromisoformat(s["ended"]) - datetime.fromisoformat(s["started"])).total_seconds()
        total += seconds
        metrics = s.get("metrics", {})
        memory = ", ".join(f"{gb} GB {where}" for where, gb in s["peak_memory_gb"].items())
        rows.append(
            (
                name,
                f"{seconds / 60:.1f}",
                str(metrics.get("steps") or ""),
                f"{metrics.get('tokens') or '':,}" if metrics.get("tokens") else "",
                memory,
            )
        )
    return markdown(
        ("stage", "minutes", "steps", "tokens trained", "peak memory"),
        [*rows, ("all", f"{total / 60:.1f}", "", "", "")],
    )


def _parity(run: Path) -> list[Part]:
    from tunebook.evaluation.tables import PARITY, parity_cells

    rows = read_json(run / "export" / "parity.json")
    return ["## Exports, each against the adapter", markdown(PARITY, parity_cells(rows))] if rows else []


def _repeat(run: Path, stages: dict[str, Any]) -> str:
    last = list(stages.values())[-1]
    entries = [s for s in stages.values() if s.get("git")]
    commits = sorted({str(s["git"]["commit"]) for s in entries})
    dirty = " (with uncommitted changes)" if any(s["git"]["dirty"] for s in entries) else ""
    recipe, hardware = last["recipe"], last["hardware"]
    where = f"{hardware['cores']} cores of {hardware['cpu']}, {hardware['memory_gb']} GB" + "".join(
        f", {gpu}" for gpu in hardware["gpus"]
    )
    manifest = shlex.quote(f"{run.relative_to(ROOT) if run.is_relative_to(ROOT) else run}/manifest.json")
    return (
        f"```bash\ngit checkout {commits[0] if commits else '?'} && uv sync\nuv run tunebook run --from-manifest {manifest}\n```\n\n"
        f"Commits of the stages: {', '.join(commits)}{dirty}. Run on {where}.\n\n"
        f"The recipe in full:\n\n```yaml\n{yaml.safe_dump(recipe, sort_keys=False).strip()}\n```"
    )


def _html(title: str, shown: list[Part]) -> str:
    """One file with its figures inside, by nbconvert from a notebook of Markdown and figures."""
    from nbconvert import HTMLExporter
    from nbformat import v4

    notebook = v4.new_notebook(metadata={"title": html.escape(title)})
    for part in shown:
        if isinstance(part, str):
            notebook.cells.append(v4.new_markdown_cell(part))
        else:
            out = io.BytesIO()
            part[1].savefig(out, format="png", dpi=120)
            data = {"image/png": base64.b64encode(out.getvalue()).decode()}
            notebook.cells.append(
                v4.new_code_cell(
                    outputs=[
                        v4.new_output(
                            "display_data",
                            data,
                            metadata={"image/png": {"width": int(100 * part[1].get_figwidth())}},
                        )
                    ]
                )
            )
    # No script from elsewhere: the file is whole without a network.
    exporter = HTMLExporter(
        template_name="lab", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    exporter.mathjax_url = exporter.require_js_url = exporter.jquery_url = ""
    return str(exporter.from_notebook_node(notebook)[0]).replace('<script src=""></script>', "")
