"""The report card of a run, from the JSON in its folder alone.

uv run tunebook report
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from tunebook.data.rows import evenly
from tunebook.evaluation import first_screen, other_skills, plots, tables
from tunebook.evaluation.page import Part, page
from tunebook.evaluation.statistics import ALPHA, is_graded, mark
from tunebook.evaluation.table import Table
from tunebook.generation.generate import read_records
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.runs import curves
from tunebook.runs.files import duration_s, log_history, read_json, write_text
from tunebook.runs.manifest import recorded_recipe
from tunebook.runs.stages import CONTROL, STAGES

SHOWN = 20
"""Answers side by side, of a run whose answers nothing can check."""

VERDICTS = {"not shown": "not shown to be different", "too few": "too few items to say anything"}

PREFERS = """`prefers`: in how many pairs chosen gained more than rejected, from the first model of the step
to the second. This is what DPO trains; 50% is chance."""


def write(run: Path) -> list[Path]:
    """Write `report.md` (figures in `figures/`) and `report.html`; returns their paths.

    Raises UserError for a folder without a run.
    """
    report = parts(run)
    figures = run / "figures"
    figures.mkdir(exist_ok=True)
    lines = []
    for part in report:
        if isinstance(part, str):
            lines.append(part)
        else:
            name, figure = part
            figure.savefig(figures / f"{name}.png", dpi=120)
            lines.append(f"![{name}](figures/{name}.png)")
    write_text(run / "report.md", "\n\n".join(lines) + "\n")
    write_text(run / "report.html", page(run.name, report))
    return [run / "report.md", run / "report.html"]


def parts(run: Path) -> list[Part]:
    """What the report says, in order; what the run does not have is left out."""
    stages = read_json(run / "manifest.json").get("stages")
    if not stages:
        raise UserError(f"{run} holds no finished stage: run `uv run tunebook run` first")
    summary = read_json(run / "eval" / "summary.json")
    report: list[Part] = [f"# {run.name}"]
    if summary:
        report += [first_screen.sentence(summary), first_screen.overview(summary).markdown()]
    if "retention" in summary:
        report.append(("skills", plots.differences(first_screen.overview_rows(summary))))
    report.append(_headline(stages, summary))
    report += _results(summary)
    report += _win_rates(summary.get("judge"))
    if bench := read_json(run / "bench" / "summary.json"):
        report += [
            "## Benchmarks (lm-evaluation-harness)",
            ("benchmarks", plots.scores(bench["tasks"])),
            tables.benchmark_table(bench["tasks"]).markdown(),
            tables.comparison_table(bench["comparisons"]).markdown(),
        ]
    report += _examples(run, summary)
    report += other_skills.section(run, summary)
    report += ["## Data", _data(stages.get("data", {})), *_pairs(stages.get("pairs"))]
    report += ["## Training", *_training(run, stages)]
    report += ["## Cost", _costs(stages)]
    if exports := read_json(run / "export" / "parity.json"):
        report += ["## Exports, each against the adapter", tables.parity_table(exports).markdown()]
        report += tables.parity_reasons(exports)
    report += ["## How to repeat it", _repeat(run, stages)]
    return list(filter(None, report))


def predictions(run: Path, stage: str) -> dict[str, dict[str, Any]]:
    """A stage's predictions by item."""
    records = read_records(run / "eval" / stage / "predictions.jsonl")
    return {f"{record['source_id']}\n{record['prompt']}": record for record in records}


def _headline(stages: dict[str, Any], summary: dict[str, Any]) -> str:
    """What was trained, and of each comparison whether it shows a difference."""
    recipe = next(iter(stages.values()))["recipe"]
    lines = [f"{recipe['model']['base']}, recipe `{recipe['name']}`, seed {recipe['seed']}."]
    for compared in summary.get("comparisons", []):
        outcome = first_screen.verdict(compared)
        lines.append(_verdict(compared, outcome, first_screen.points(compared)))
    for compared in summary.get("judge", {}).get("comparisons", []):
        low, high = compared["interval"]
        outcome = first_screen.verdict(compared, even=0.5)
        numbers = f"win rate {compared['win_rate']:.1%}, 95% interval {100 * low:.1f} to {100 * high:.1f}"
        lines.append(_verdict(compared, outcome, numbers, "By the judge, "))
    for compared in summary.get("losses", []):
        low, high = compared["interval"]
        # Of losses a lower one is better.
        outcome = first_screen.verdict(compared)
        outcome = {"better": "worse", "worse": "better"}.get(outcome, outcome)
        numbers = f"held-out loss per token {compared['difference']:+.3f}, 95% {low:+.3f} to {high:+.3f}"
        if "prefers" in compared:
            of_pairs = first_screen.by_preference(compared)
            outcome = first_screen.verdict(of_pairs, even=0.5)
            numbers = of_pairs["text"]
        lines.append(_verdict(compared, outcome, numbers))
    return "\n".join(lines)


def _verdict(compared: dict[str, Any], outcome: str, numbers: str, by: str = "") -> str:
    """A line of the headline."""
    outcome = VERDICTS.get(outcome, outcome)
    return f"- **{by}{_question(compared)}: {outcome}** ({numbers}, n = {compared['n']})."


def _question(compared: dict[str, Any]) -> str:
    """What a comparison asks."""
    models = f"{compared['second']} against {compared['first']}"
    if compared["first"] == CONTROL:
        return f"What preference added to likelihood ({models})"
    return models


def _results(summary: dict[str, Any]) -> list[Part]:
    """Accuracies and paired comparisons."""
    if not summary:
        return ["## Results", "Not evaluated."]
    stages = summary["stages"]
    if "losses" in summary:
        losses = tables.loss_comparison_table(summary["losses"]).markdown()
        return [
            f"## Results on the `{summary['split']}` split",
            tables.loss_table(stages).markdown(),
            "No held-out row has an answer that could be checked, so this is how likely the held-out answers "
            "are to each model: a lower loss is better. Perplexity is e to the loss. "
            "Intervals: bootstrap over rows, 95%.",
            losses,
            PREFERS if "| prefers |" in losses else "",
        ]
    comparisons = summary.get("comparisons", [])
    compared_table = tables.comparison_table(comparisons)
    for compared, row in zip(comparisons, compared_table.rows, strict=True):
        if compared["p"] < ALPHA:
            row["p"] += " *"  # explained below the table
    image_table = tables.image_table(stages)
    image_note = ""
    if image_table.rows:
        image_note = (
            "The same items with a blank image and with another item's: "
            "a model that does as well then answers from the text alone."
        )
    # Tables without rows are empty text, which `parts` leaves out.
    return [
        f"## Results on the `{summary['split']}` split",
        ("accuracy", plots.accuracies(stages)),
        tables.accuracy_table(stages).markdown(),
        _explained(stages),
        tables.sampled_table(stages).markdown(),
        image_table.markdown(),
        image_note,
        compared_table.markdown(),
        "Every stage answered the same items: differences in points with a paired bootstrap interval, "
        "exact McNemar test (\\*: p < 0.05). "
        "`detectable`: the difference that so many items would show four times out of five; a dash: none.",
    ]


def _win_rates(judge: dict[str, Any] | None) -> list[Part]:
    """What the judge says of the models' answers, and how far it can be trusted."""
    if not judge:
        return []
    return [
        "## Win rates by the judge",
        tables.win_rate_table(judge["comparisons"]).markdown(),
        "The judge read both answers in both orders; where it contradicts itself the comparison is a tie, "
        "half a win. `at equal length`: the win rate without what the difference of the lengths explains. "
        "`first place` and `longer` are near 50% where the judge has no bias.",
        tables.agreement_text(judge.get("agreement")),
    ]


def _explained(stages: dict[str, Any]) -> str:
    """What stands below the table of accuracies."""
    if is_graded(stages):
        return (
            "Greedy answers; intervals: of the accuracy Wilson 95%, of the mean score bootstrap 95%. "
            "An answer counts as right from `check.threshold` on; comparisons are of the scores, "
            "and `p` is that of the sign test."
        )
    text = "Greedy answers; intervals: Wilson 95%."
    if any("boxed" in summary for summary in stages.values()):
        text += " `boxed`, `cut off` and `no answer` tell a gain in format from a gain in skill."
    return text


def _examples(run: Path, summary: dict[str, Any]) -> list[Part]:
    """Two items that the last model won over the one before it, and two that it lost."""
    stages = list(summary.get("stages", {}))[-2:]
    if len(stages) < 2:
        return []
    if "losses" in summary:
        return _answers(run, list(summary["stages"]))
    after = predictions(run, stages[1])
    examples: dict[str, list[Part]] = {"won": [], "lost": []}
    for item, first in predictions(run, stages[0]).items():
        second = after.get(item)
        if second is None:
            continue
        mark_before = mark(first)
        mark_after = mark(second)
        if mark_before is None or mark_after is None or mark_before == mark_after:
            continue
        outcome = "won" if mark_after > mark_before else "lost"
        gold = f" (answer: {first['gold']})" if first["gold"] is not None else ""
        examples[outcome].append(
            f"**{outcome}**: {first['prompt']}{gold}\n\n"
            f"{stages[0]}:\n\n```text\n{first['answer']}\n```\n\n"
            f"{stages[1]}:\n\n```text\n{second['answer']}\n```"
        )
    texts = examples["won"][:2] + examples["lost"][:2]
    if not texts:
        return []
    return [f"## Won and lost, {stages[0]} → {stages[1]}", *texts]


def _answers(run: Path, stages: list[str]) -> list[Part]:
    """Some items with every model's answer below them."""
    by_stage = {stage: predictions(run, stage) for stage in stages}
    if not by_stage[stages[0]]:
        return []
    items = evenly(list(by_stage[stages[0]]), SHOWN)
    parts: list[Part] = [f"## {len(items)} answers, side by side"]
    for item in items:
        first = by_stage[stages[0]][item]
        lines = [f"**{first['prompt']}**"]
        if reference := first.get("reference"):
            lines.append(f"the row's own answer:\n\n```text\n{reference}\n```")
        for stage in stages:
            answer = by_stage[stage].get(item)
            if answer is not None:
                lines.append(f"{stage}:\n\n```text\n{answer['answer']}\n```")
        parts.append("\n\n".join(lines))
    return parts


def _data(data: dict[str, Any]) -> str:
    table = Table()
    for split, n in data.get("rows", {}).items():
        table.add(data=f"rows for {split}", rows=n)
    for reason, n in data.get("quarantined", {}).items():
        table.add(data=f"quarantined: {reason}", rows=n)
    return table.markdown()


def _pairs(pairs: dict[str, Any] | None) -> list[Part]:
    if not pairs:
        return []
    table = Table(pairs="preference pairs")
    for split, n in pairs["rows"].items():
        table.add(pairs=f"pairs for {split}", n=n)
    for strategy, n in pairs["strategies"].items():
        table.add(pairs=f"strategy {strategy}", n=n)
    for reason, n in (pairs.get("quarantined") or {}).items():
        table.add(pairs=f"quarantined: {reason}", n=n)
    table.add(pairs="told apart by length alone", n=f"{pairs['length_only_accuracy']:.0%}")
    report: list[Part] = [table.markdown()]
    if pairs.get("pass_counts"):
        report.append(("pass-rate", plots.pass_counts(pairs)))
    return report


def _training(run: Path, stages: dict[str, Any]) -> list[Part]:
    """The curves of each stage that trains, and whether a preference was learnt from the images."""
    report: list[Part] = []
    for spec in STAGES.values():
        if not spec.trains:
            continue
        if margins := stages.get(spec.name, {}).get("image_margins"):
            report.append(
                f"rewards/margins after {spec.name.upper()}: {margins['true']:.3f} with the true image, "
                f"{margins['blank']:.3f} with a blank one, {margins['swapped']:.3f} with another row's "
                "(equal: the preference was learnt without looking)."
            )
        history = log_history(run / spec.name)
        if history:
            # The names of the figures' files.
            is_of_pairs = any("rewards/margins" in entry for entry in history)
            kind = "metrics" if is_of_pairs else "loss"
            report.append((f"{spec.name}-{kind}", curves.training(history)))
    return report


def _costs(stages: dict[str, Any]) -> str:
    table = Table(tokens="tokens trained", memory="peak memory")
    total = 0.0
    for name, stage in stages.items():
        minutes = duration_s(stage) / 60
        total += minutes
        metrics = stage.get("metrics", {})
        table.add(
            stage=name,
            minutes=f"{minutes:.1f}",
            steps=metrics.get("steps") or "",
            tokens=f"{metrics['tokens']:,}" if metrics.get("tokens") else "",
            memory=", ".join(f"{gb} GB {place}" for place, gb in stage["peak_memory_gb"].items()),
        )
    table.add(stage="all", minutes=f"{total:.1f}", steps="", tokens="", memory="")
    return table.markdown()


def _repeat(run: Path, stages: dict[str, Any]) -> str:
    """The commands that make this run again, where it ran, and its recipe in full."""
    commits = set()  # stages may have been made by different ones
    dirty = ""
    for stage in stages.values():
        if git := stage.get("git"):
            commits.add(str(git["commit"]))
            dirty = " (with uncommitted changes)" if git["dirty"] else dirty
    commit = min(commits, default="?")
    hardware = list(stages.values())[-1]["hardware"]
    machine = [f"{hardware['cores']} cores of {hardware['cpu']}", f"{hardware['memory_gb']} GB"]
    machine += hardware["gpus"]
    # Of a run in the project, the path as one types it there.
    folder = run.relative_to(ROOT) if run.is_relative_to(ROOT) else run
    manifest = shlex.quote(f"{folder}/manifest.json")
    recipe = yaml.safe_dump(recorded_recipe(stages), sort_keys=False).strip()
    return (
        f"```bash\ngit checkout {commit} && uv sync\n"
        f"uv run tunebook run --from-manifest {manifest}\n```\n\n"
        f"Commits of the stages: {', '.join(sorted(commits))}{dirty}. Run on {', '.join(machine)}.\n\n"
        f"The recipe in full:\n\n```yaml\n{recipe}\n```"
    )
