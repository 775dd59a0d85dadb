"""`tunebook pairs`: preference pairs, each side checked.

    uv run tunebook pairs --recipe smollm2-math --set pairs.samples=8

`on_policy`: several answers are sampled for each training prompt; chosen is one that is verified right, rejected one
that is verified wrong. `injected_error`: the model is asked for a flawed solution, chosen is the reference.
`dataset`: an existing preference set. Whatever the method, one output format.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunebook import models
from tunebook.data import preferences
from tunebook.data.checks import without, words
from tunebook.data.preferences import COLUMNS, Pair, Sample, build, check_sample, format_only, length_ratio, make_pair, marked, reference, told_apart
from tunebook.data.prepare import data_stage, prepare, read_parquet, training_rows, write_parquet, write_quarantine
from tunebook.data.records import is_file
from tunebook.data.rows import Reject, Row, images_of, share
from tunebook.data.tokens import looked_at, text_counter
from tunebook.generate import Answer, Local, Sampling, answer_file, local, repeats
from tunebook.recipe import PairsConfig, Recipe, ServerConfig, UserError, find_file, read_text
from tunebook.run import Stage, file_hash, finished_key, policy_name, round_name
from tunebook.verify import verifier

NOTICED = 32
"""Answers before a model is said to have collapsed."""


@dataclass
class Work:
    """What a method has to work with, and what it leaves beside its pairs."""

    recipe: Recipe
    rows: list[dict[str, Any]]
    folder: Path
    source: Callable[[], AbstractContextManager[Local | ServerConfig]]
    count_tokens: Callable[[str], int]
    number: int
    record: dict[str, Any] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)
    control: Callable[[Row], Reject | None] = lambda _: None
    """The check for control tokens in the text."""
    answered: int = 0
    repeating: int = 0

    def fits(self, row: dict[str, Any], text: str) -> bool:
        """Whether the trainer takes a row's prompt with this answer whole: `prepare` has counted it with the row's own solution, as the
        chat template renders it and with its images."""
        tokens = int(row["tokens"]) - self.count_tokens(row["completion"][0]["content"]) + self.count_tokens(text)
        return tokens <= self.recipe.model.max_seq_length

    def notice(self, answer: Answer) -> None:
        """Count an answer. Raises UserError when nearly all so far repeat one piece of text to their end: such a model gives no pairs."""
        self.answered += 1
        self.repeating += repeats(answer.text)
        if self.answered >= NOTICED and self.repeating > 0.9 * self.answered:
            raise UserError(
                f"{self.repeating} of {self.answered} answers repeat one piece of text to their end, the model that answers has collapsed: "
                "train it again with a lower learning_rate, or lower pairs.temperature"
            )


def pairs(recipe: Recipe, number: int = 1, force: bool = False) -> dict[str, Any]:
    """Make, check and write `pairs/{train,val}.parquet` (`pairs-2/`, ... in a later round); returns the stage's record.

    Answers are kept as they come and each has its own seed: an interrupted run asks nothing twice and ends with the same
    pairs. Prompts come from the training split alone.

    Raises UserError when the model to sample from is missing, a server does not answer, or nothing gives a pair.
    """
    stage = pairs_stage(recipe, number)
    if stage.skip(force):
        return stage.result
    if _uses_model(recipe):
        models.backend()  # Unsloth comes before whatever imports transformers
    prepare(recipe)
    with stage.open(resume=not force) as folder, text_counter(recipe.model) as (count, control):
        asked = [] if recipe.pairs.methods == ["dataset"] else _rows(recipe, number)
        work = Work(recipe, asked, folder, _opener(recipe, number), lambda text: count(text) + 1, number)
        work.control = without(control)
        found = [pair for method in recipe.pairs.methods for pair in METHODS[method](work)]
        write_quarantine(work.rejects, folder / "quarantine.jsonl")
        if not found:
            raise UserError(f"nothing gave a pair{_why_none(work.record)}")
        split = _split(found, recipe.pairs.val)
        columns = COLUMNS | ({"images": "files"} if any(p["images"] for p in found) else {})
        for name, part in split.items():
            write_parquet(part, folder / f"{name}.parquet", **columns)
        stage.record = {
            "rows": {name: len(part) for name, part in split.items()},
            "strategies": dict(Counter(p["strategy"] for p in found)),
            "tokens": {side: sum(p[f"{side}_tokens"] for p in found) / len(found) for side in ("chosen", "rejected")},
            "length_only_accuracy": told_apart([(p["chosen_tokens"], p["rejected_tokens"]) for p in found]),
            "format_only_accuracy": format_only(found),
            "verifier": verifier(),
            **work.record,
        }
    return stage.result


def _split(found: list[Pair], val: float) -> dict[str, list[Pair]]:
    """By prompt: a hash of the first pair's id decides where all pairs of a prompt go."""
    first: dict[str, str] = {}
    ids = [first.setdefault(preferences.asked(p), p["source_id"]) for p in found]
    drawn = {i for i in ids if share(f"pairs/{i}") < val}
    drawn = drawn if len(drawn) < len(set(ids)) else set()  # of a handful, all to train
    numbered = list(zip(ids, found, strict=True))
    return {"train": [p for i, p in numbered if i not in drawn], "val": [p for i, p in numbered if i in drawn]}


def _why_none(record: dict[str, Any]) -> str:
    """What became of the samples, and what helps; of an existing set its rejects are in the quarantine."""
    counts = record.get("samples") or {}
    if not counts:
        return "; look at quarantine.jsonl"
    helps = {
        "broken": "train SFT longer or raise pairs.max_new_tokens: they are cut off or without a box",
        "too long": "raise model.max_seq_length",
    }.get(max(counts, key=lambda kind: int(counts[kind])), "raise pairs.temperature, pairs.samples or pairs.prompts")
    return f": of {sum(counts.values())} samples {', '.join(f'{n} are {kind}' for kind, n in counts.items())}; {helps}"


def existing_pairs(recipe: Recipe, number: int = 1) -> None:
    """Before DPO: make the pairs of an existing set where they are missing, as SFT prepares its data. Sampling takes long and is asked for."""
    if set(recipe.pairs.methods) == {"dataset"} and not pairs_stage(recipe, number).done:
        models.backend()  # what comes after it in this process wants it first
        pairs(recipe, number)


def pairs_stage(recipe: Recipe, number: int = 1) -> Stage:
    """The stage that `pairs` fills in a round. Raises UserError when the model to sample from is missing."""
    config = recipe.pairs
    settings = {
        "pairs": config.model_dump(
            mode="json", exclude={"rounds": True, "compare": True, "server": {"concurrency", "timeout", "retries", "api_key_env"}}
        )
    }
    inputs = {"data": data_stage(recipe).key}
    if _uses_model(recipe):
        inputs[policy_name(number)] = finished_key(recipe, policy_name(number))
    files = [f"prompt/{strategy}.txt" for strategy in config.strategies] if "injected_error" in config.methods else []
    files += [config.dataset] if config.dataset and is_file(config.dataset) else []
    inputs |= {name: file_hash(find_file(name)) for name in files}
    return Stage(recipe, round_name("pairs", number), {**settings, "seed": recipe.seed, "round": number, "verifier": verifier()}, inputs)


def on_policy(work: Work) -> list[Pair]:
    """Right and wrong samples of the same prompt. A prompt always right or always wrong gives no pair (see `reference_chosen`)."""
    config = work.recipe.pairs
    flat = [(row, k) for row in work.rows for k in range(config.samples)]
    seeds = [_seed(work, row["source_id"], str(k)) for row, k in flat]

    def record(i: int, answer: Answer) -> Sample:
        work.notice(answer)
        return _sample(work, flat[i][0], answer, seeds[i])

    prompts = [row["prompt"] for row, _ in flat]
    shown = [images_of(row) for row, _ in flat]
    samples = answer_file(work.folder / "samples.jsonl", work.source(), prompts, _sampling(config, seeds), record, "sampling", shown)
    passes = Counter(sum(s["verdict"] == "right" for s in samples[i : i + config.samples]) for i in range(0, len(samples), config.samples))
    work.record |= {"pass_counts": {str(k): passes[k] for k in range(config.samples + 1)}, "samples": _verdicts(samples)}
    found = build(config, work.rows, samples, work.count_tokens)
    paired = {p["source_id"] for p in found}
    own = [{s["verdict"] for s in samples[i : i + config.samples]} for i in range(0, len(samples), config.samples)]
    fates = ("paired" if row["source_id"] in paired else unpaired(verdicts) for row, verdicts in zip(work.rows, own, strict=True))
    work.record["prompts"] = dict(Counter(fates).most_common())
    return found


def unpaired(verdicts: set[str]) -> str:
    """Why samples of these verdicts gave no pair."""
    never = next((f"never {verdict}" for verdict in ("right", "wrong") if verdict not in verdicts), "")
    return "too long" if never and "too long" in verdicts else never or "lengths too far apart"


def injected_error(work: Work) -> list[Pair]:
    """The model (or a server) is asked for a solution with one kind of flaw; chosen is the reference solution.

    Kept are those that really end wrong; a `process_error` is kept with either answer.
    """
    config = work.recipe.pairs
    drawn = [random.Random(f"{work.recipe.seed}/{work.number}/{row['source_id']}").choice(config.strategies) for row in work.rows]  # noqa: S311
    texts = {s: read_text(find_file(f"prompt/{s}.txt")) for s in config.strategies}
    prompts, seeds = [], [_seed(work, row["source_id"], "error") for row in work.rows]
    for row, strategy in zip(work.rows, drawn, strict=True):
        parts = {"{question}": row["prompt"][-1]["content"], "{solution}": row["completion"][0]["content"]}
        prompts.append([{"role": "user", "content": _fill(texts[strategy], parts)}])

    def record(i: int, answer: Answer) -> Sample:
        work.notice(answer)
        return {"strategy": drawn[i]} | _sample(work, work.rows[i], answer, seeds[i])

    shown = [images_of(row) for row in work.rows]
    samples = answer_file(work.folder / "errors.jsonl", work.source(), prompts, _sampling(config, seeds), record, "writing errors", shown)
    work.record["errors"] = _verdicts(samples)
    out, fates = [], Counter[str]()
    for row, sample, strategy in zip(work.rows, samples, drawn, strict=True):
        chosen = reference(row, work.count_tokens)
        if sample["verdict"] != "wrong" and not (sample["verdict"] == "right" and strategy == "process_error"):
            fates[sample["verdict"]] += 1
        elif words(sample["text"]) == words(chosen["text"]):
            fates["the same text"] += 1
        elif length_ratio(chosen, sample) > config.max_length_ratio:
            fates["lengths too far apart"] += 1
        else:
            fates["paired"] += 1
            out.append(make_pair(config, row, chosen, sample, strategy))
    work.record["error_prompts"] = dict(fates.most_common())
    return out


def dataset(work: Work) -> list[Pair]:
    """An existing preference set; what cannot be used goes to `quarantine.jsonl` with the reason."""
    read = list(preferences.read(work.recipe, work.count_tokens, work.folder / "images", work.control))
    sound = [p for p in read if not isinstance(p, Reject)]
    # As the trainer sees them: `read` counts text without the chat template.
    sides = (Row(p["source_id"], "train", p["prompt"], p[side], images=p["images"]) for p in sound for side in ("chosen", "rejected"))
    looked = iter(looked_at(sides, work.recipe.model, work.folder / "images"))
    verdicts = [next((side for side in both if isinstance(side, Reject)), None) for both in zip(looked, looked, strict=True)]
    work.rejects += [r for r in [*read, *verdicts] if isinstance(r, Reject)]
    work.record["quarantined"] = dict(Counter(r.reason for r in work.rejects))
    found = [p for p, reject in zip(sound, verdicts, strict=True) if reject is None]
    if margins := sorted(p["margin"] for p in found if p["margin"] is not None):
        work.record["margin"] = {"min": margins[0], "median": margins[len(margins) // 2], "max": margins[-1]}
    return found


METHODS = {"on_policy": on_policy, "injected_error": injected_error, "dataset": dataset}


def summary(record: dict[str, Any]) -> Table:
    """Pairs by strategy, the pass-rate histogram, what was put aside and the two shortcut checks of a record, as a table."""
    table = Table("what", "value", title="pairs")
    table.add_row("pairs (train / val)", f"{record['rows']['train']} / {record['rows']['val']}")
    for strategy, n in record["strategies"].items():
        table.add_row(f"strategy {strategy}", str(n))
    for right, prompts in record.get("pass_counts", {}).items():
        table.add_row(f"prompts with {right} right samples", str(prompts))
    for what, key in (
        ("prompts", "prompts"),
        ("samples", "samples"),
        ("prompts asked for errors", "error_prompts"),
        ("answers asked to be wrong", "errors"),
        ("quarantined", "quarantined"),
    ):
        if record.get(key):
            table.add_row(what, ", ".join(f"{n} {name}" for name, n in record[key].items()))
    if margin := record.get("margin"):
        table.add_row("score margin: min / median / max", f"{margin['min']:.2f} / {margin['median']:.2f} / {margin['max']:.2f}")
    table.add_row("mean tokens (chosen / rejected)", f"{record['tokens']['chosen']:.0f} / {record['tokens']['rejected']:.0f}")
    trait, told = next(iter(record["format_only_accuracy"].items()))
    for by, rate, mend in (
        ("length", record["length_only_accuracy"], "lower pairs.max_length_ratio"),
        (f"format ({trait})", told, "look at the pairs: one side is written differently"),
    ):
        table.add_row(f"told apart by {by} alone", f"{rate:.0%} ({f'above 70%: {mend}' if rate > 0.7 else 'near 50% is healthy'})")
    return table


def show(stage: Stage) -> None:
    """Print the summary of a finished stage and three of its pairs, with what rejected changes marked."""
    console = Console()
    console.print(summary(stage.result))
    for pair in read_parquet(stage.dir / "train.parquet").select(range(min(3, stage.result["rows"]["train"]))):
        gold = "" if pair["gold"] is None else f" (answer: {pair['gold']})"
        table = Table("chosen", "rejected", title=pair["prompt"][-1]["content"] + gold, title_justify="left")
        table.add_row(Text(pair["chosen"][0]["content"]), Text.assemble(*((part, "bold red" if new else "") for part, new in marked(pair))))
        console.print(table)


def _uses_model(recipe: Recipe) -> bool:
    return recipe.pairs.server is None and set(recipe.pairs.methods) != {"dataset"}


def _rows(recipe: Recipe, number: int) -> list[dict[str, Any]]:
    """The training rows of a round: the next `pairs.prompts`, from the start again when they are used up."""
    rows = [row for row in training_rows(recipe, "pairs") if row["gold"] is not None]
    if not rows:
        raise UserError("no training row has an answer to check against: give rows an `answer`, or use pairs.methods=[dataset]")
    wanted = min(recipe.pairs.prompts or len(rows), len(rows))
    return [rows[i % len(rows)] for i in range((number - 1) * wanted, number * wanted)]


def _opener(recipe: Recipe, number: int) -> Callable[[], AbstractContextManager[Local | ServerConfig]]:
    """Opens what answers: the server, or the round's model, which is loaded once and only when something is left to ask."""
    loaded: list[Any] = []

    @contextlib.contextmanager
    def open_model() -> Iterator[Local]:
        if not loaded:
            model, tok = models.load(recipe)
            loaded.extend((models.load_adapters(model, {"policy": recipe.run_dir / policy_name(number) / "adapter"}), tok))
        with local(loaded[0], loaded[1], "policy") as source:
            yield source

    server = recipe.pairs.server
    return open_model if server is None else lambda: contextlib.nullcontext(server)


def _fill(template: str, parts: dict[str, str]) -> str:
    """All at once, so that a question which holds `{solution}` stays as it is."""
    return re.sub("|".join(map(re.escape, parts)), lambda m: parts[m[0]], template).strip()


def _sampling(config: PairsConfig, seeds: list[int]) -> Sampling:
    return Sampling(config.max_new_tokens, config.batch_size, config.temperature, seeds)


def _sample(work: Work, row: dict[str, Any], answer: Answer, seed: int) -> Sample:
    verdict: str = check_sample(answer.text, row["gold"], answer.truncated, row["completion"][0]["content"])
    if verdict != "broken" and not work.fits(row, answer.text):
        verdict = "too long"
    return {"text": answer.text, "tokens": answer.tokens, "truncated": answer.truncated, "verdict": verdict, "seed": seed}


def _verdicts(samples: list[Sample]) -> dict[str, int]:
    return dict(Counter(s["verdict"] for s in samples).most_common())


def _seed(work: Work, source_id: str, what: str) -> int:
    return int(hashlib.sha256(f"{work.recipe.seed}/{work.number}/{source_id}/{what}".encode()).hexdigest()[:8], 16)
