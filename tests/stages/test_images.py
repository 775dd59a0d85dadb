"""Images of rows that are prepared: what is broken is put aside with its reason, the rest is counted."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import whole_recipe
import yaml
from pictures import drawing, png
from PIL import Image

from tunebook.data import sources
from tunebook.data.prepare import prepare
from tunebook.data.rows import Row
from tunebook.data.storage import load
from tunebook.models import builtin, image_input
from tunebook.pairs import work
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def row(i: int, **changed) -> dict:
    given = {
        "file_name": f"{i}.png",
        "question": f"As shown in the figure, side {i} is 5 cm. Find x.",
        "solution": f"So $x = \\boxed{{{i}}}$.",
    }
    return given | {"difficult": "easy", "year": "eight", "knowledge": "Triangles"} | changed


@pytest.fixture
def mm_math(tmp_path):
    """A recipe over a folder in MM_Math's form; call it with rows and {file name: bytes}."""

    def make(rows: list[dict | bytes], files: dict[str, bytes], **source) -> Path:
        folder = tmp_path / "MM_Math"
        (folder / "images").mkdir(parents=True)
        for name, data in files.items():
            (folder / "images" / name).write_bytes(data)
        (folder / "MM_Math.jsonl").write_bytes(
            b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows) + b"\n"
        )
        content = whole_recipe.content("mm-math-sample")
        content["data"]["sources"] = [{"format": "mm_math", "path": str(folder)} | source]
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest turns it on again
def test_every_kind_of_broken_image_and_row_is_put_aside_and_nothing_is_lost(mm_math, tmp_path):
    whole = png(drawing(1))
    bomb = png(Image.new("1", (12_000, 12_000)))  # small as a file, 144 million pixels
    (tmp_path / "secret.png").write_bytes(whole)
    files = {f"{i}.png": png(drawing(i)) for i in range(40)}
    files |= {
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "text.png": b"<html>404</html>",
        "bomb.png": bomb,
    }
    broken: list[tuple[str, dict | bytes]] = [
        ("image missing", row(41, file_name="nowhere.png")),
        ("image missing", row(42, file_name="")),
        ("image empty", row(43, file_name="empty.png")),
        ("image damaged", row(44, file_name="cut.png")),
        ("not an image", row(45, file_name="text.png")),
        ("image too large", row(46, file_name="bomb.png")),
        ("image outside the folder", row(47, file_name="../../secret.png")),
        ("image outside the folder", row(48, file_name=str(tmp_path / "secret.png"))),
        ("schema", {k: v for k, v in row(1).items() if k != "solution"}),
        ("schema", row(49, file_name=7)),
        ("no answer", row(2, solution="It is obvious.")),
        ("empty prompt", row(3, question=" ")),
        ("error text", row(4, solution="Error: API call failed \\boxed{4}")),
        ("bad JSON", b'{"file_name": "5.png", '),
        ("not UTF-8", b'{"question": "caf\xe9"}'),
    ]
    path = mm_math([row(i) for i in range(40)] + [given for _, given in broken], files, split="train")
    record = prepare(load_recipe(path))
    assert record["quarantined"] == dict(Counter(reason for reason, _ in broken))
    assert record["rows"] == {"train": 40, "val": 0, "test": 0} and record["images"]["train"] == 40
    assert sum(record["rows"].values()) + sum(record["quarantined"].values()) == 40 + len(broken)


def test_rows_that_share_an_image_or_a_question_share_a_split(mm_math):
    rows = [row(i) for i in range(60)]
    rows += [
        row(i, file_name=f"{i + 1}.png", question=f"In the figure, {i} cm is given. And then?")
        for i in range(0, 60, 3)
    ]  # ties i to i + 1
    rows += [
        row(i, file_name=f"{i + 100}.png", question=row(i)["question"]) for i in range(0, 60, 6)
    ]  # the same question, another picture
    rows += [
        row(i + 200, file_name=f"{i + 200}.png", question="What is the angle at C?") for i in range(30)
    ]  # known by their pictures alone
    files = {
        r["file_name"]: png(drawing(int(r["file_name"][:-4]), (100 + int(r["file_name"][:-4]), 90)))
        for r in rows
    }
    path = mm_math(rows, files, val=0.2, test=0.2)
    record = prepare(load_recipe(path))
    assert (
        not record["quarantined"]
        and sum(record["rows"].values()) == len(rows)
        and min(record["rows"].values()) > 5
    )
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for r in load(load_recipe(path), split):
            question = r["prompt"][-1]["content"]
            for key in [*r["images"], *([question] if any(c.isdigit() for c in question) else [])]:
                seen.setdefault(key, set()).add(split)
    assert all(len(splits) == 1 for splits in seen.values())
    alone = [
        split
        for split in ("train", "val", "test")
        for r in load(load_recipe(path), split)
        if "angle at C" in r["prompt"][-1]["content"]
    ]
    assert len(alone) == 30 and len(set(alone)) == 3


def test_a_test_image_never_trains(mm_math):
    rows = [row(i) for i in range(6)]
    path = mm_math(rows, {f"{i}.png": png(drawing(i)) for i in range(6)}, split="train")
    content = yaml.safe_load(path.read_text())
    held = path.parent / "exam"
    held.mkdir()
    (held / "exam.jsonl").write_text(
        json.dumps({"prompt": "Name the figure.", "completion": "\\boxed{2}", "image": "2.bmp"}) + "\n"
    )
    (held / "2.bmp").write_bytes(png(drawing(2), "BMP"))
    content["data"]["sources"].append({"format": "chat", "path": str(held / "exam.jsonl"), "split": "test"})
    path.write_text(yaml.safe_dump(content))
    assert prepare(load_recipe(path))["quarantined"] == {"in the test or val split": 1}


def test_packed_images_and_parquet_give_the_same_rows_as_files(mm_math, tmp_path):
    import datasets

    rows, files = [row(i) for i in range(8)], {f"{i}.png": png(drawing(i)) for i in range(8)}
    path = mm_math(rows, files)
    folder = tmp_path / "MM_Math"
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "MM_Math.jsonl").write_bytes((folder / "MM_Math.jsonl").read_bytes())
    with zipfile.ZipFile(packed / "Image.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"images/{name}", data)
    table = datasets.Dataset.from_list(
        [
            {k: v for k, v in r.items() if k != "file_name"}
            | {"image": str(folder / "images" / r["file_name"])}
            for r in rows
        ]
    )
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "rows.parquet")

    def read(source: Path) -> list[tuple]:
        recipe = load_recipe(path, overrides={"data.sources": [{"format": "mm_math", "path": str(source)}]})
        found = list(sources.read(recipe, tmp_path / "out"))
        assert all(isinstance(r, Row) for r in found)
        return [(r.question, r.gold, r.images, r.split) for r in found]

    assert read(folder) == read(packed) == read(tmp_path / "rows.parquet")


def test_a_model_without_eyes_is_refused_before_training(mm_math, embedded):
    path = mm_math([row(i) for i in range(4)], {f"{i}.png": png(drawing(i)) for i in range(4)}, split="train")
    with pytest.raises(UserError, match=r"the data have images, but .* sees none"):
        prepare(load_recipe(path, overrides={"model.base": "smollm2-135m-instruct"}))


def test_tokens_of_images_are_counted_as_the_collator_makes_them(tmp_path):
    """Prepare's count is the length of the trained row.

    Of the tiny Gemma 3n, whose processor is the real one.
    """
    from transformers import AutoProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    recipe = load_recipe(
        "mm-math-sample", overrides={"data.sources.0.rows": 12, "data.sources.0.split": "train"}
    )
    prepare(recipe)
    rows = load(recipe, "train")
    processor = AutoProcessor.from_pretrained(builtin.resolve("tiny-gemma3n"))
    batch = DataCollatorForVisionLanguageModeling(processor)(
        [dict(r) for r in rows.select_columns(["prompt", "completion", "images"])]
    )
    assert batch["attention_mask"].sum(1).tolist() == rows["tokens"]
    assert image_input.TokenCounter(processor).soft(rows[0]["images"]) == 16
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [16] * 12


def test_a_changed_picture_or_table_is_noticed(mm_math, tmp_path, capsys):
    path = mm_math([row(i) for i in range(4)], {f"{i}.png": png(drawing(i)) for i in range(4)}, split="train")
    first = prepare(load_recipe(path))
    prepare(load_recipe(path))
    assert "data is up to date" in capsys.readouterr().out
    (tmp_path / "MM_Math" / "images" / "2.png").write_bytes(png(drawing(2, (60, 60))))
    second = prepare(load_recipe(path))
    assert second["fingerprints"]["train"] != first["fingerprints"]["train"]
    table = tmp_path / "MM_Math" / "MM_Math.jsonl"
    table.write_text(table.read_text().replace("easy", "hard"))
    assert prepare(load_recipe(path))["slices"]["train"] == {"hard": 4}


def test_planted_errors_are_asked_for_with_the_picture_by_a_server_that_is_made_up(monkeypatch):
    from tunebook.data.storage import read_rows
    from tunebook.generation.answers import Answer
    from tunebook.generation.server import with_urls
    from tunebook.pairs import pairs

    given = {
        "pairs.methods": ["injected_error"],
        "pairs.strategies": ["calculation_error"],
        "pairs.server": {"url": "http://x/v1", "model": "m"},
    }
    recipe = load_recipe(
        "mm-math-sample", overrides={"data.sources.0.rows": 12, "data.sources.0.split": "train", **given}
    )
    prepare(recipe)
    rows = {r["prompt"][-1]["content"] + r["images"][0]: r for r in load(recipe, "train")}
    asked: list[dict] = []

    def answer_file(path, source, prompts, sampling, record, label, shown, usage, before):
        asked.extend(
            with_urls(prompt, files)[-1]["content"][0] for prompt, files in zip(prompts, shown, strict=True)
        )
        texts = [
            row["completion"][0]["content"].replace(f"boxed{{{row['gold']}}}", "boxed{1234}")
            for row in rows.values()
        ]
        return [{"index": i} | record(i, Answer(text, len(text) // 3, False)) for i, text in enumerate(texts)]

    monkeypatch.setattr(work, "answer_file", answer_file)
    assert pairs.pairs(recipe)["strategies"] == {"calculation_error": 12}
    assert len(asked) == 12 and all(
        part["image_url"]["url"].startswith("data:image/png;base64,") for part in asked
    )
    made = [
        pair
        for name in ("train", "val")
        for pair in read_rows(recipe, pairs.pairs_stage(recipe).dir / f"{name}.parquet")
    ]
    assert len(made) == 12
    for pair in made:
        row = rows[pair["prompt"][-1]["content"] + pair["images"][0]]
        assert (
            pair["images"] == row["images"]
            and pair["chosen_correct"]
            and not pair["rejected_correct"]
            and pair["gold"] == row["gold"]
        )


def test_an_existing_set_of_pairs_comes_with_its_pictures_and_their_tokens_are_counted(tmp_path):
    from transformers import AutoProcessor
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    from tunebook.data.storage import read_rows
    from tunebook.pairs import pairs
    from tunebook.training import memory

    few = {"data.sources.0.rows": 12, "data.sources.0.test": 0.2, "data.sources.0.val": 0}
    few["data.max_aside"] = 0.7
    recipe = load_recipe(
        "mm-math-sample",
        overrides=few | {"pairs.methods": ["dataset"], "pairs.dataset": str(tmp_path / "set.jsonl")},
    )
    prepare(recipe)
    files = {"1": png(drawing(1, (900, 300))), "2": png(drawing(2)), "cut": png(drawing(3))[:60]}
    for name, data in (files | {"test": Path(load(recipe, "test")[0]["images"][0]).read_bytes()}).items():
        (tmp_path / f"{name}.png").write_bytes(data)
    rows = [
        {
            "prompt": f"Which side is longer{' ' * i}?" * (i + 1),
            "chosen": f"Side number {i} is.",
            "rejected": "Both.",
            "image": f"{name}.png",
        }
        for i, name in enumerate(("1", "2", "gone", "cut", "test", "../1"))
    ]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    record = pairs.pairs(recipe)
    reasons = {
        "image missing": 1,
        "image damaged": 1,
        "in the test or val split": 1,
        "image outside the folder": 1,
    }
    assert record["rows"] == {"train": 2, "val": 0} and record["quarantined"] == reasons
    made = read_rows(recipe, pairs.pairs_stage(recipe).dir / "train.parquet")
    sizes = [Image.open(path).size for (path,) in made["images"]]
    assert sizes == [(448, 149), (120, 90)]
    batch = DataCollatorForVisionPreference(AutoProcessor.from_pretrained(builtin.resolve("tiny-gemma3n")))(
        list(made)
    )
    assert (
        memory.pair_lengths(recipe, made) == batch["attention_mask"].sum(1)[:2].tolist()
    )  # chosen is the longer side
