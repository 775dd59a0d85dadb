"""`tunebook pairs`: preference pairs from the SFT model's own answers, each side checked.

    uv run tunebook pairs --recipe smollm2-math --set pairs.samples=8

Several answers are sampled for each training prompt; chosen is one that is verified right, rejected one that is
verified wrong, both of the same prompt, boxed, whole and in the house format.
"""

from __future__ import annotations

import difflib
import hashlib
import html
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tunebook import models
from tunebook.data.checks import NOT_AN_ANSWER
from tunebook.data.prepare import data_stage, load
from tunebook.evaluate import read_predictions
from tunebook.generate import generate
from tunebook.recipe import PairsConfig, Recipe, UserError
from tunebook.run import Stage, finished_key
from tunebook.verify import verifier, verify

Sample = dict[str, Any]
Pair = dict[str, Any]


def pairs(recipe: Recipe, force: bool = False) -> dict[str, Any]:
    """Sample, check and pair; writes `pairs/{train,val}.parquet` and returns the stage's record.

    Samples are kept in `samples.jsonl` as they come and each has its own seed: an interrupted run asks nothing twice and
    ends with the same pairs. Pairs come from the training split alone.

    Raises UserError when the SFT model is missing or no prompt gives a pair.
    """
    stage = pairs_stage(recipe)
    if stage.skip(force):
        return stage.result
    models.backend()
    rows = [row for row in load(recipe, "train") if row["gold"] is not None][: recipe.pairs.prompts]
    with stage.open(resume=not force) as folder:
        samples = _sample(recipe, rows, folder)
        found = build(recipe.pairs, rows, samples, recipe.seed)
        passes = Counter(sum(s["right"] for s in samples[i : i + recipe.pairs.samples]) for i in range(0, len(samples), recipe.pairs.samples))
        if not found:
            raise UserError(
                f"no prompt gave a pair; right answers a prompt: {dict(sorted(passes.items()))}. Raise pairs.temperature or pairs.samples"
            )
        val = {p["source_id"] for p in found if _share(p["source_id"]) < recipe.pairs.val}
        split = {"train": [p for p in found if p["source_id"] not in val], "val": [p for p in found if p["source_id"] in val]}
        for name, part in split.items():
            _write(part, folder / f"{name}.parquet")
        stage.record = {
            "rows": {name: len(part) for name, part in split.items()},
            "strategies": dict(Counter(p["strategy"] for p in found)),
            "pass_counts": {str(k): passes[k] for k in range(recipe.pairs.samples + 1)},
            "tokens": {side: sum(p[f"{side}_tokens"] for p in found) / len(found) for side in ("chosen", "rejected")},
            "length_only_accuracy": _length_only([(p["chosen_tokens"], p["rejected_tokens"]) for p in found]),
            "verifier": verifier(),
        }
    return stage.result


def pairs_stage(recipe: Recipe) -> Stage:
    """The stage that `pairs` fills."""
    settings = {"pairs": recipe.pairs.model_dump(mode="json"), "seed": recipe.seed, "verifier": verifier()}
    return Stage(recipe, "pairs", settings, {"data": data_stage(recipe).key, "sft": finished_key(recipe, "sft")})


def build(config: PairsConfig, rows: list[dict[str, Any]], samples: list[Sample], seed: int) -> list[Pair]:
    """Pairs out of checked samples (`config.samples` in turn for each row). A prompt always right or always wrong gives none."""
    out = []
    for i, row in enumerate(rows):
        own = samples[i * config.samples : (i + 1) * config.samples]
        right = _distinct([s for s in own if s["right"]])
        wrong = _distinct([s for s in own if s["wrong"]])
        strategy = "on_policy"
        if not right and wrong and config.reference_chosen:
            right, strategy = [_reference(row)], "reference"
        candidates = [(c, r) for c in right for r in wrong if _ratio(c, r) <= config.max_length_ratio]
        random.Random(f"{seed}/{row['source_id']}").shuffle(candidates)  # noqa: S311
        used: set[str] = set()
        for chosen, rejected in candidates:
            if len(used) < 2 * config.per_prompt and not used & {chosen["text"], rejected["text"]}:
                used |= {chosen["text"], rejected["text"]}
                out.append(_pair(row, chosen, rejected, strategy))
    return out


def check_sample(text: str, gold: str, truncated: bool) -> dict[str, bool]:
    """Whether a sampled answer can be `right` (chosen) or `wrong` (rejected); what is broken is neither."""
    whole = not truncated and text.strip() != "" and not NOT_AN_ANSWER.search(text) and "### Final Answer" in text
    verdict = verify(text, gold, boxed_only=True)
    boxed = verdict.how == "boxed" and bool((verdict.parsed or "").strip())
    return {"right": whole and boxed and verdict.correct, "wrong": whole and boxed and not verdict.correct}


def summary(record: dict[str, Any]) -> Table:
    """Pairs by strategy, the pass-rate histogram and the length check of a `pairs` record, as a table."""
    table = Table("what", "value", title="pairs")
    table.add_row("pairs (train / val)", f"{record['rows']['train']} / {record['rows']['val']}")
    for strategy, n in record["strategies"].items():
        table.add_row(f"strategy {strategy}", str(n))
    for right, prompts in record["pass_counts"].items():
        table.add_row(f"prompts with {right} right samples", str(prompts))
    table.add_row("mean tokens (chosen / rejected)", f"{record['tokens']['chosen']:.0f} / {record['tokens']['rejected']:.0f}")
    guess = record["length_only_accuracy"]
    warning = " (above 70%: the model may learn length; lower pairs.max_length_ratio)" if guess > 0.7 else " (near 50% is healthy)"
    table.add_row("told apart by length alone", f"{guess:.0%}{warning}")
    return table


def side_by_side(pair: Pair) -> str:
    """A pair as an HTML table, with what rejected changes marked."""
    chosen, rejected = (pair[side][0]["content"] for side in ("chosen", "rejected"))
    marked = []
    for kind, _, _, start, end in difflib.SequenceMatcher(None, chosen, rejected, autojunk=False).get_opcodes():
        part = html.escape(rejected[start:end])
        marked.append(part if kind == "equal" or not part else f"<mark>{part}</mark>")
    cell = '<td style="text-align:left; vertical-align:top"><pre>{}</pre></td>'
    question = html.escape(f"{pair['prompt'][-1]['content']} (answer: {pair['gold']})")
    head = f"<caption>{question}</caption><tr><th>chosen</th><th>rejected</th></tr>"
    return f"<table>{head}<tr>{cell.format(html.escape(chosen))}{cell.format(''.join(marked))}</tr></table>"


def show(record: dict[str, Any]) -> None:
    """Print the summary."""
    Console().print(summary(record))


def _sample(recipe: Recipe, rows: list[dict[str, Any]], folder: Path) -> list[Sample]:
    """All samples in order, those of an interrupted run included; each is checked and on disk before the next batch."""
    config, path = recipe.pairs, folder / "samples.jsonl"
    flat = [(row, k) for row in rows for k in range(config.samples)]
    done = {s["index"] for s in read_predictions(path)}
    if len(done) < len(flat):
        model, tokenizer = models.load(recipe)
        model = models.load_adapters(model, {"sft": recipe.run_dir / "sft" / "adapter"})
        with models.use_adapter(model, "sft") as active, path.open("a", encoding="utf-8") as out:
            out.write("\n" if done else "")  # a kill may have cut the last line short
            batches = generate(
                active,
                tokenizer,
                [row["prompt"] for row, _ in flat],
                max_new_tokens=config.max_new_tokens,
                batch_size=config.batch_size,
                temperature=config.temperature,
                seeds=[_seed(recipe.seed, row["source_id"], k) for row, k in flat],
                skip=done,
                label="sampling",
            )
            for batch in batches:
                for i, answer in batch.items():
                    checked = check_sample(answer.text, flat[i][0]["gold"], answer.truncated)
                    out.write(json.dumps({"index": i, "text": answer.text, "tokens": answer.tokens, "truncated": answer.truncated, **checked}) + "\n")
                out.flush()
    return read_predictions(path)


def _pair(row: dict[str, Any], chosen: Sample, rejected: Sample, strategy: str) -> Pair:
    def message(sample: Sample) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": sample["text"]}]

    return {
        "prompt": row["prompt"],
        "chosen": message(chosen),
        "rejected": message(rejected),
        "source_id": row["source_id"],
        "strategy": strategy,
        "gold": row["gold"],
        "chosen_correct": verify(chosen["text"], row["gold"], boxed_only=True).correct,
        "rejected_correct": verify(rejected["text"], row["gold"], boxed_only=True).correct,
        "chosen_tokens": chosen["tokens"],
        "rejected_tokens": rejected["tokens"],
    }


def _reference(row: dict[str, Any]) -> Sample:
    text = row["completion"][0]["content"]
    return {"text": text, "tokens": max(1, len(text) // 2)}  # an estimate: digits and symbols are tokens of their own


def _distinct(samples: list[Sample]) -> list[Sample]:
    return list({" ".join(s["text"].split()): s for s in reversed(samples)}.values())[::-1]


def _ratio(a: Sample, b: Sample) -> float:
    return float(max(a["tokens"], b["tokens"]) / max(1, min(a["tokens"], b["tokens"])))


def _length_only(lengths: list[tuple[int, int]]) -> float:
    """How often a rule "the shorter (or the longer) one is chosen" would be right, whichever is better; ties count half."""
    shorter = sum((c < r) + 0.5 * (c == r) for c, r in lengths) / len(lengths)
    return max(shorter, 1 - shorter)


def _share(source_id: str) -> float:
    return int(hashlib.sha256(source_id.encode()).hexdigest()[:13], 16) / 16**13


def _seed(seed: int, source_id: str, k: int) -> int:
    return int(hashlib.sha256(f"{seed}/{source_id}/{k}".encode()).hexdigest()[:15], 16)


def _write(rows: list[Pair], path: Path) -> None:
    import datasets

    message = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
    kinds = {"source_id": "string", "strategy": "string", "gold": "string", "chosen_correct": "bool", "rejected_correct": "bool"}
    kinds |= {"chosen_tokens": "int32", "rejected_tokens": "int32"}
    features = datasets.Features({k: message for k in ("prompt", "chosen", "rejected")} | {k: datasets.Value(v) for k, v in kinds.items()})
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features).to_parquet(path)
    datasets.enable_progress_bars()
