"""The tables of results: columns and cells, for terminal, notebook and report."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json

COLUMNS = ("stage", "slice", "n", "accuracy (95% interval)", "boxed", "cut off", "no answer", "tokens")


def cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Stages as rows, overall first and then by slice: accuracy with its Wilson 95% interval, and what explains it."""
    rows = []
    for stage, summary in results.items():
        for name, s in {"all": summary, **summary["slices"]}.items():
            accuracy = f"{s['accuracy']:.1%} ({100 * s['interval'][0]:.1f} to {100 * s['interval'][1]:.1f})"
            shares = [f"{s[k]:.0%}" for k in ("boxed", "truncated", "no_answer")]
            rows.append(
                (
                    stage if name == "all" else "",
                    name,
                    str(s["n"]),
                    accuracy,
                    *shares,
                    f"{s['mean_tokens']:.0f}",
                )
            )
    return rows


SAMPLED = ("stage", "n", "k", "temperature", "pass@1", "pass@k", "majority of k")


def sampled_cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Sampled answers: mean accuracy of one, share of items with at least one right, and with the most frequent one right."""
    rows = []
    for stage, s in results.items():
        if given := s.get("sampled"):
            shares = (f"{given[key]:.1%}" for key in ("pass@1", "pass@k", "majority"))
            rows.append((stage, str(s["n"]), str(given["k"]), str(given["temperature"]), *shares))
    return rows


ABLATED = (
    "stage",
    "n",
    "true image",
    "blank",
    "another's",
    "true - blank (95% interval)",
    "looks at the image",
)


def ablated_cells(results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """Accuracy with each item's image, a blank one and another item's. `looks`: better with the true image, beyond chance."""
    rows = []
    for stage, s in results.items():
        if given := s.get("images"):
            low, high = (100 * bound for bound in given["gain"]["interval"])
            gain = f"{100 * given['gain']['difference']:+.1f} ({low:+.1f} to {high:+.1f})"
            shares = (f"{given[kind]:.1%}" for kind in ("true", "blank", "swapped"))
            rows.append((stage, str(given["gain"]["n"]), *shares, gain, "yes" if low > 0 else "not shown"))
    return rows


COMPARED = ("step", "n", "difference (95% interval)", "won", "lost", "p (exact McNemar)", "detectable")


def compared_cells(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Comparisons as rows; differences in points. `detectable`: what so many items would show four times out of five."""
    rows: list[tuple[str, ...]] = []
    for c in found:
        low, high = (100 * bound for bound in c["interval"])
        p = f"{c['p']:.2g}" if c["p"] >= 1e-4 else "< 0.0001"
        numbers = (
            f"{100 * c['difference']:+.1f} ({low:+.1f} to {high:+.1f})",
            str(c["won"]),
            str(c["lost"]),
            p,
            f"{100 * c['detectable']:.1f}",
        )
        rows.append((f"{c['first']} → {c['second']}", str(c["n"]), *numbers))
    return rows


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table for README, notebook and report."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [columns, ("---",) * len(columns), *rows])


def show(recipe: Recipe, results: dict[str, dict[str, Any]]) -> None:
    """Print accuracies and comparisons."""
    for title, columns, rows in (
        ("held-out accuracy", COLUMNS, cells(results)),
        ("sampled answers", SAMPLED, sampled_cells(results)),
        ("does it look at the image?", ABLATED, ablated_cells(results)),
        (
            "the same items, pair by pair",
            COMPARED,
            compared_cells(read_json(recipe.run_dir / "eval" / "summary.json")["comparisons"]),
        ),
    ):
        print_table(title, columns, rows)


def print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A table for the terminal; nothing when there are no rows."""
    table = Table(*columns, title=title, box=box.SIMPLE)
    for row in rows:
        table.add_row(*row)
    if rows:
        Console().print(table)


BENCHMARKS = ("task", "stage", "n", "score (95% interval)", "metric", "shots")


def benchmark_cells(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Tasks and stages as rows; the interval is Wilson's."""
    rows: list[tuple[str, ...]] = []
    for task, found in summary["tasks"].items():
        for i, (name, s) in enumerate(found.items()):
            score = f"{s['score']:.1%} ({100 * s['interval'][0]:.1f} to {100 * s['interval'][1]:.1f})"
            rows.append(("" if i else task, name, str(s["n"]), score, s["metric"], str(s["shots"])))
    return rows


BENCHMARKS_COMPARED = ("task", *COMPARED)


def benchmarks_compared_cells(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each task's comparisons as rows."""
    return [
        (c["task"], *row)
        for c, row in zip(summary["comparisons"], compared_cells(summary["comparisons"]), strict=True)
    ]


PARITY = (
    "export",
    "items",
    "same top token",
    "Δ log p, mean (max)",
    "prompts equal",
    "answers equal",
    "accuracy adapter → export",
    "",
)


def parity_cells(rows: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The parity table. Δ log p: by how much the log-probability of a token of the adapter's own answers differs (natural log)."""
    out: list[tuple[str, ...]] = []
    for name, r in rows.items():
        accuracy = " → ".join("–" if a is None else f"{a:.0%}" for a in r["accuracy"])
        numbers = (
            f"{r['top_1_agreement']:.1%}",
            f"{r['mean_logp_difference']:.4f} ({r['max_logp_difference']:.3f})",
        )
        shares = (f"{r['prompts_equal']:.0%}", f"{r['answers_equal']:.0%}", accuracy)
        out.append((name, str(r["items"]), *numbers, *shares, "; ".join(r["differs"]) or "equal"))
    return out


def show_parity(rows: dict[str, dict[str, Any]]) -> None:
    """Print the parity table."""
    print_table("each export against the adapter it was made from", PARITY, parity_cells(rows))
