"""The tables of results. Each function makes one; a `Table` renders for terminal, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import rich.table
from markupsafe import Markup, escape
from rich import box
from rich.console import Console

from tunebook.pairs.shortcuts import marked
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json


@dataclass(frozen=True)
class Table:
    """Rows of cells by the name of their column, all with the same columns in the same order.

    A column's name is its heading too, but for those in `headings`.
    """

    rows: list[dict[str, str]]
    headings: dict[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """For README, notebook and report; empty when there are no rows."""
        if not self.rows:
            return ""
        head = self._head()
        lines = [head, ["---"] * len(head), *(row.values() for row in self.rows)]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self, caption: str = "") -> str:
        """For a notebook. Cells and caption are text, escaped here, unless they are `Markup` already."""
        left = "text-align:left; vertical-align:top"
        content = Markup('<caption style="{}">{}</caption>').format(left, caption)
        content += _html_row("th", left, self._head())
        for row in self.rows:
            content += _html_row("td", f"{left}; white-space:pre-wrap; font-family:monospace", row.values())
        # JupyterLab would typeset the dollars of one answer together with those of the next.
        return Markup(
            '<table class="tex2jax_ignore" style="width:100%; table-layout:fixed">{}</table>'
        ).format(content)

    def print(self, title: str) -> None:
        """For the terminal; nothing when there are no rows."""
        table = rich.table.Table(*self._head(), title=title, box=box.SIMPLE)
        for row in self.rows:
            table.add_row(*row.values())
        if self.rows:
            Console().print(table)

    def _head(self) -> list[str]:
        names = self.rows[0] if self.rows else {}
        return [self.headings.get(name, name) for name in names]


def _html_row(tag: str, style: str, cells: Iterable[str]) -> Markup:
    row = Markup()
    for cell in cells:
        row += Markup('<{0} style="{1}">{2}</{0}>').format(tag, style, escape(cell))
    return Markup("<tr>{}</tr>").format(row)


def mark(correct: bool) -> Markup:
    """The checker's verdict on an answer, before its text in HTML."""
    if correct:
        return Markup('<b style="color:#1a7f37">✓</b> ')
    return Markup('<b style="color:#b42318">✗</b> ')


def accuracy_table(results: dict[str, dict[str, Any]]) -> Table:
    """Stages as rows, overall first and then by slice: accuracy with its Wilson 95% interval, and what explains it."""
    rows = []
    for stage, summary in results.items():
        for name, shares in {"all": summary, **summary["slices"]}.items():
            rows.append(
                {
                    "stage": stage if name == "all" else "",
                    "slice": name,
                    "n": str(shares["n"]),
                    "accuracy": _share(shares["accuracy"], shares["interval"]),
                    "boxed": f"{shares['boxed']:.0%}",
                    "cut off": f"{shares['truncated']:.0%}",
                    "no answer": f"{shares['no_answer']:.0%}",
                    "tokens": f"{shares['mean_tokens']:.0f}",
                }
            )
    return Table(rows, {"accuracy": "accuracy (95% interval)"})


def sampled_table(results: dict[str, dict[str, Any]]) -> Table:
    """Sampled answers: mean accuracy of one, share of items with at least one right, and with the most frequent right."""
    rows = []
    for stage, summary in results.items():
        if sampled := summary.get("sampled"):
            rows.append(
                {
                    "stage": stage,
                    "n": str(summary["n"]),
                    "k": str(sampled["k"]),
                    "temperature": str(sampled["temperature"]),
                    "pass@1": f"{sampled['pass@1']:.1%}",
                    "pass@k": f"{sampled['pass@k']:.1%}",
                    "majority of k": f"{sampled['majority']:.1%}",
                }
            )
    return Table(rows)


def image_table(results: dict[str, dict[str, Any]]) -> Table:
    """Accuracy with each item's image, a blank one and another item's. It looks: better with its own, beyond chance."""
    rows = []
    for stage, summary in results.items():
        if images := summary.get("images"):
            gain = images["gain"]
            rows.append(
                {
                    "stage": stage,
                    "n": str(gain["n"]),
                    "true image": f"{images['true']:.1%}",
                    "blank": f"{images['blank']:.1%}",
                    "another's": f"{images['swapped']:.1%}",
                    "gain": _points(gain),
                    "looks at the image": "yes" if gain["interval"][0] > 0 else "not shown",
                }
            )
    return Table(rows, {"gain": "true - blank (95% interval)"})


def comparison_table(comparisons: list[dict[str, Any]]) -> Table:
    """Paired comparisons as rows, differences in points. `detectable`: what so many items show four times of five."""
    rows = []
    for compared in comparisons:
        rows.append(
            {
                "step": f"{compared['first']} → {compared['second']}",
                "n": str(compared["n"]),
                "difference": _points(compared),
                "won": str(compared["won"]),
                "lost": str(compared["lost"]),
                "p": f"{compared['p']:.2g}" if compared["p"] >= 1e-4 else "< 0.0001",
                "detectable": f"{100 * compared['detectable']:.1f}",
            }
        )
    return Table(rows, {"difference": "difference (95% interval)", "p": "p (exact McNemar)"})


def benchmark_table(summary: dict[str, Any]) -> Table:
    """Tasks and stages as rows; the interval is Wilson's."""
    rows = []
    for task, scores in summary["tasks"].items():
        for stage, score in scores.items():
            rows.append(
                {
                    "task": task if stage == next(iter(scores)) else "",
                    "stage": stage,
                    "n": str(score["n"]),
                    "score": _share(score["score"], score["interval"]),
                    "metric": score["metric"],
                    "shots": str(score["shots"]),
                }
            )
    return Table(rows, {"score": "score (95% interval)"})


def benchmark_comparison_table(summary: dict[str, Any]) -> Table:
    """Each task's paired comparisons as rows."""
    table = comparison_table(summary["comparisons"])
    rows = []
    for compared, row in zip(summary["comparisons"], table.rows, strict=True):
        rows.append({"task": compared["task"], **row})
    return replace(table, rows=rows)


def parity_table(exports: dict[str, dict[str, Any]]) -> Table:
    """Each export against the adapter.

    Δ log p: by how much the log-probability of a token of the adapter's own answers differs (natural log).
    """
    rows = []
    for name, parity in exports.items():
        accuracies = ("–" if accuracy is None else f"{accuracy:.0%}" for accuracy in parity["accuracy"])
        rows.append(
            {
                "export": name,
                "items": str(parity["items"]),
                "same top token": f"{parity['top_1_agreement']:.1%}",
                "logp": f"{parity['mean_logp_difference']:.4f} ({parity['max_logp_difference']:.3f})",
                "prompts equal": f"{parity['prompts_equal']:.0%}",
                "answers equal": f"{parity['answers_equal']:.0%}",
                "accuracy": " → ".join(accuracies),
                "verdict": "; ".join(parity["differs"]) or "equal",
            }
        )
    headings = {"logp": "Δ log p, mean (max)", "accuracy": "accuracy adapter → export", "verdict": ""}
    return Table(rows, headings)


def side_by_side(pair: dict[str, Any]) -> str:
    """A preference pair as HTML, with what rejected changes marked."""
    rejected = Markup()
    for part, is_new in marked(pair):
        rejected += Markup("<mark>{}</mark>").format(part) if is_new else escape(part)
    gold = f"answer: {pair['gold']}; " if pair["gold"] else ""
    question = f"{pair['prompt'][-1]['content']} ({gold}{pair['strategy']})"
    return Table([{"chosen": pair["chosen"][0]["content"], "rejected": rejected}]).html(question)


def show(recipe: Recipe, results: dict[str, dict[str, Any]]) -> None:
    """Print accuracies and comparisons."""
    comparisons = read_json(recipe.run_dir / "eval" / "summary.json")["comparisons"]
    accuracy_table(results).print("held-out accuracy")
    sampled_table(results).print("sampled answers")
    image_table(results).print("does it look at the image?")
    comparison_table(comparisons).print("the same items, pair by pair")


def _share(share: float, interval: list[float]) -> str:
    low, high = interval
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _points(compared: dict[str, Any]) -> str:
    low, high = compared["interval"]
    return f"{100 * compared['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
