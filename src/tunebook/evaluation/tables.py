"""The tables of results. Each function makes one; a `Table` renders for terminal, Markdown and HTML."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from tunebook.evaluation.statistics import is_graded
from tunebook.evaluation.table import Table
from tunebook.pairs.shortcuts import marked
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json


def mark(correct: bool) -> Markup:
    """The checker's verdict on an answer, before its text in HTML."""
    if correct:
        return Markup('<b style="color:#1a7f37">✓</b> ')
    return Markup('<b style="color:#b42318">✗</b> ')


def accuracy_table(results: dict[str, dict[str, Any]]) -> Table:
    """Accuracy of each stage, overall and by slice, with Wilson's interval and what explains it."""
    table = Table(**ACCURACY)
    for stage, summary in results.items():
        if "accuracy" not in summary:  # nothing could be checked
            continue
        with_score = is_graded(results)
        table.add(stage=stage, slice="all", **accuracy_cells(summary, with_score))
        for name, shares in summary["slices"].items():
            table.add(stage="", slice=name, **accuracy_cells(shares, with_score))
    return table


# The headings of `accuracy_cells`.
ACCURACY = {
    "accuracy": "accuracy (95% interval)",
    "score": "mean score (95% interval)",
    "cut_off": "cut off",
    "no_answer": "no answer",
}


def accuracy_cells(shares: dict[str, Any], with_score: bool = False) -> dict[str, str]:
    """The part of a row that says how well the items of a stage, or of a slice, were answered.

    `boxed` and `no answer` are of maths alone.
    """
    cells = {"n": str(shares["n"]), "accuracy": _share(shares["accuracy"], shares["interval"])}
    if with_score and "score" in shares:
        cells["score"] = _share(shares["score"], shares["score_interval"])
    if "boxed" in shares:
        cells["boxed"] = f"{shares['boxed']:.0%}"
    cells["cut_off"] = f"{shares['truncated']:.0%}"
    if "no_answer" in shares:
        cells["no_answer"] = f"{shares['no_answer']:.0%}"
    cells["tokens"] = f"{shares['mean_tokens']:.0f}"
    return cells


def loss_table(results: dict[str, dict[str, Any]]) -> Table:
    """Of stages whose answers nothing can check: how likely held-out answers are, how long their own."""
    table = Table(
        loss="loss per token (95% interval)", ended="own answers that end", length="tokens of an answer"
    )
    for stage, summary in results.items():
        if "loss" in summary:
            low, high = summary["loss_interval"]
            answers = summary["answers"]  # None of rows with tools, which cannot be asked as text
            table.add(
                stage=stage,
                n=summary["n"],
                loss=f"{summary['loss']:.3f} ({low:.3f} to {high:.3f})",
                perplexity=f"{summary['perplexity']:.2f}",
                ended=f"{answers['ended']:.0%} of {answers['n']}" if answers else "–",
                length=f"{answers['mean_tokens']:.0f}" if answers else "–",
            )
    return table


def loss_comparison_table(comparisons: list[dict[str, Any]]) -> Table:
    """Paired comparisons of held-out losses: below 0 the second model finds the held-out answers likelier.

    `prefers`, of pairs: in how many of them chosen gained more than rejected.
    """
    table = Table(difference="change of the loss (95% interval)", p="p (sign test)")
    for compared in comparisons:
        low, high = compared["interval"]
        prefers = {}
        if "prefers" in compared:
            prefers["prefers"] = _share(compared["prefers"], compared["prefers_interval"])
        table.add(
            step=f"{compared['first']} → {compared['second']}",
            n=compared["n"],
            difference=f"{compared['difference']:+.3f} ({low:+.3f} to {high:+.3f})",
            lower=compared["lower"],
            higher=compared["higher"],
            p=p_value(compared["p"]),
            **prefers,
        )
    return table


def sampled_table(results: dict[str, dict[str, Any]]) -> Table:
    """Of sampled answers: one right, at least one of an item's right, the most frequent one right."""
    table = Table(one="pass@1", any="pass@k", majority="majority of k")
    for stage, summary in results.items():
        if sampled := summary.get("sampled"):
            table.add(
                stage=stage,
                n=summary["n"],
                k=sampled["k"],
                temperature=sampled["temperature"],
                one=f"{sampled['pass@1']:.1%}",
                any=f"{sampled['pass@k']:.1%}",
                majority="–" if sampled["majority"] is None else f"{sampled['majority']:.1%}",
            )
    return table


def image_table(results: dict[str, dict[str, Any]]) -> Table:
    """Accuracy with each item's image, a blank one and another item's.

    A model looks at the image when it is better with the true one, beyond chance.
    """
    table = Table(
        true="true image", other="another's", gain="true - blank (95% interval)", looks="looks at the image"
    )
    for stage, summary in results.items():
        if images := summary.get("images"):
            gain = images["gain"]
            table.add(
                stage=stage,
                n=gain["n"],
                true=f"{images['true']:.1%}",
                blank=f"{images['blank']:.1%}",
                other=f"{images['swapped']:.1%}",
                gain=points(gain),
                looks="yes" if gain["interval"][0] > 0 else "not shown",
            )
    return table


def win_rate_table(comparisons: list[dict[str, Any]]) -> Table:
    """What the judge says of two models' answers; above 50% the second is better.

    `contradicted`: other verdicts in the other order, counted as ties. `first place`, `longer`: how often it
    took the answer shown first, and the longer one; both are near 50% where it has no bias.
    """
    table = Table(
        win_rate="win rate (95% interval)",
        controlled="at equal length",
        p="p (sign test)",
        place="first place",
        refused="no verdict",
    )
    for compared in comparisons:
        table.add(
            step=f"{compared['first']} → {compared['second']}",
            n=compared["n"],
            win_rate=_share(compared["win_rate"], compared["interval"]),
            controlled=_percent(compared["length_controlled"]),
            won=compared["won"],
            lost=compared["lost"],
            tied=compared["tied"],
            p=p_value(compared["p"]),
            contradicted=compared["contradicted"],
            place=_percent(compared["first_place"]),
            longer=_percent(compared["longer"]),
            refused=compared["refused"],
        )
    return table


def agreement_text(agreement: dict[str, Any] | None) -> str:
    """How often the judge and people choose alike; empty where no choices of people are there."""
    if not agreement:
        return ""
    n = agreement["n"]
    if not agreement["decided"]:
        return f"Of {n} human choices the judge decides none."
    share = _share(agreement["share"], agreement["interval"])
    cases = f"the {agreement['decided']} cases of {n} that it decides"
    return f"The judge prefers what people chose in {share} of {cases}."


def comparison_table(comparisons: list[dict[str, Any]]) -> Table:
    """Paired comparisons, differences in points; those of benchmarks with their task.

    `detectable`: the difference that so many items would show four times out of five.
    """
    table = Table(difference="difference (95% interval)", p="p (exact McNemar)")
    for compared in comparisons:
        task = {"task": compared["task"]} if "task" in compared else {}
        table.add(
            **task,
            step=f"{compared['first']} → {compared['second']}",
            n=compared["n"],
            difference=points(compared),
            won=compared["won"],
            lost=compared["lost"],
            p=p_value(compared["p"]),
            # Of so few items that no difference would show, a dash.
            detectable=f"{100 * compared['detectable']:.1f}" if compared["detectable"] <= 1 else "–",
        )
    return table


def benchmark_table(tasks: dict[str, dict[str, Any]]) -> Table:
    """Benchmark scores by task and stage; the interval is Wilson's."""
    table = Table(score="score (95% interval)")
    for task, scores in tasks.items():
        for stage, score in scores.items():
            table.add(
                task=task if stage == next(iter(scores)) else "",
                stage=stage,
                n=score["n"],
                score=_share(score["score"], score["interval"]),
                metric=score["metric"],
                shots=score["shots"],
            )
    return table


def parity_table(exports: dict[str, dict[str, Any]]) -> Table:
    """Each export against the adapter.

    Δ log p: by how much the log-probability of a token of the adapter's own answers differs (natural log).
    """
    table = Table(
        agreement="same top token",
        logp="Δ log p, mean (max)",
        prompts="prompts equal",
        answers="answers equal",
        accuracy="accuracy adapter → export",
        verdict="",
    )
    for name, parity in exports.items():
        cells: dict[str, Any] = dict.fromkeys(("items", *table.headings), "–")
        if parity.get("items"):  # else it could not be loaded to be compared
            accuracies = ("–" if accuracy is None else f"{accuracy:.0%}" for accuracy in parity["accuracy"])
            cells = {
                "items": parity["items"],
                "agreement": f"{parity['top_1_agreement']:.1%}",
                "logp": f"{parity['mean_logp_difference']:.4f} ({parity['max_logp_difference']:.3f})",
                "prompts": f"{parity['prompts_equal']:.0%}",
                "answers": f"{parity['answers_equal']:.0%}",
                "accuracy": " → ".join(accuracies),
            }
        # The reasons are sentences, which would stand in the cell a word a line: `parity_reasons`.
        verdict = "unverified" if parity["differs"] else "equal"
        table.add(export=name, **{**cells, "verdict": parity.get("note") or verdict})
    return table


def parity_reasons(exports: dict[str, dict[str, Any]]) -> list[str]:
    """Why each export that is unverified is so; to stand below the table."""
    reasons = []
    for name, row in exports.items():
        if row["differs"]:
            reasons.append(f"{name} is not the model that was trained: {'; '.join(row['differs'])}")
    return reasons


def side_by_side(pair: dict[str, Any]) -> str:
    """A preference pair as HTML, with what rejected changes marked."""
    rejected = Markup()
    for part, is_new in marked(pair):
        rejected += Markup("<mark>{}</mark>").format(part) if is_new else escape(part)
    gold = f"answer: {pair['gold']}; " if pair["gold"] else ""
    table = Table()
    table.add(chosen=pair["chosen"][0]["content"], rejected=rejected)
    return table.html(f"{pair['prompt'][-1]['content']} ({gold}{pair['strategy']})")


def show(recipe: Recipe, results: dict[str, dict[str, Any]]) -> None:
    """Print accuracies and comparisons."""
    if not results:
        return
    summary = read_json(recipe.run_dir / "eval" / "summary.json")
    loss_table(results).print("held-out answers")
    loss_comparison_table(summary.get("losses", [])).print("the same answers, one by one")
    accuracy_table(results).print("held-out accuracy")
    sampled_table(results).print("sampled answers")
    image_table(results).print("does it look at the image?")
    comparison_table(summary["comparisons"]).print("the same items, pair by pair")
    judge = summary.get("judge", {})
    win_rate_table(judge.get("comparisons", [])).print("win rates by the judge")
    if agreement := agreement_text(judge.get("agreement")):
        print(agreement)


def p_value(p: float) -> str:
    """As tables show it."""
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _share(share: float, interval: list[float]) -> str:
    low, high = interval
    return f"{share:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def points(compared: dict[str, Any]) -> str:
    """A difference in points with its interval, as tables show it."""
    low, high = compared["interval"]
    return f"{100 * compared['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
