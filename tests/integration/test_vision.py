"""Images from the data folder to the answer, through the README's commands.

A tiny Gemma 3n learns what stands only in the pictures.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import notebook_outputs
import pytest
import whole_recipe
import yaml
from triangles import ANGLES, QUESTION, triangle

from tunebook.evaluation.evaluate import evaluate
from tunebook.evaluation.gate import gate
from tunebook.export.export import export
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import file_hash, read_json, write_json
from tunebook.runs.stages import STAGES

DISPUTED = ((70, 50, 60), (70, 50, 55), (35, 35, 110), (35, 35, 100), (30, 60, 90), (30, 60, 95))
"""Pictures that look the same with two answers each.

On these the trained model wavers, which gives right and wrong samples.
"""


def write_rows(folder: Path, corner: int, disputed: tuple[tuple[int, int, int], ...] = ()) -> None:
    """MM_Math's form; every question is the same, so that only the picture tells the answers apart."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for i, (a, b, answer) in enumerate([*((a, b, 180 - a - b) for a, b in ANGLES), *disputed]):
        triangle(a, b, corner + i).save(folder / "images" / f"{a}-{b}-{answer}.png")
        row = {
            "file_name": f"{a}-{b}-{answer}.png",
            "question": QUESTION,
            "solution": f"$\\angle C = \\boxed{{{answer}}}$",
        }
        lines.append(
            json.dumps(row | {"difficult": "easy", "year": "seven", "knowledge": "Triangles"}) + "\n"
        )
    (folder / "MM_Math.jsonl").write_text("".join(lines))


@pytest.fixture
def canary(tmp_path) -> Path:
    """The sample recipe over six triangles; the test has them with another pixel.

    So no picture is in both splits, and each is known.
    """
    write_rows(tmp_path / "train", 200, DISPUTED)
    write_rows(tmp_path / "test", 240)
    content = whole_recipe.content("mm-math-sample")
    content["name"] = "canary"
    content["data"]["sources"] = [
        {"format": "mm_math", "path": str(tmp_path / name), "split": name} for name in ("train", "test")
    ]
    content["lora"] |= {"r": 16, "lora_alpha": 32}
    content["sft"] |= {
        "per_device_train_batch_size": 6,
        "num_train_epochs": 60,
        "eval_strategy": "no",
        "logging_steps": 10,
    }
    content["pairs"] |= {"samples": 16, "max_new_tokens": 24}
    content["dpo"] |= {"per_device_train_batch_size": 6, "num_train_epochs": 4}
    content["evaluate"] |= {"max_new_tokens": 24, "ablation": 10}
    path = tmp_path / "canary.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.usefixtures("forked_kernels")
def test_the_whole_chain_sees_its_images(canary, run_cli, tmp_path):
    import papermill

    done = run_cli("run", "--recipe", str(canary))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run = load_recipe(canary).run_dir
    stages = read_json(run / "manifest.json")["stages"]
    assert stages["data"]["rows"] == {"train": 12, "val": 0, "test": 6} and stages["data"]["images"] == {
        "train": 12,
        "val": 0,
        "test": 6,
    }
    audit = stages["sft"]["audit"]
    assert (audit["rows"], audit["images"], audit["image_tokens"]) == (8, 8, 8 * 16) and 0 < audit[
        "trained_share"
    ] < 0.5
    assert (
        abs(stages["dpo"]["audit"]["loss"] - math.log(2)) < 0.01
        and abs(stages["dpo"]["audit"]["margin"]) < 0.01
    )
    assert {k: math.isfinite(v) for k, v in stages["dpo"]["image_margins"].items()} == dict.fromkeys(
        ("true", "blank", "swapped"), True
    )
    sft = read_json(run / "eval" / "summary.json")["stages"]["sft"]["images"]
    assert (
        sft["true"] >= 5 / 6 and sft["blank"] <= 1 / 3 and sft["swapped"] <= 1 / 3
    )  # another picture, another answer
    assert sft["gain"]["interval"][0] > 0
    report = (run / "report.md").read_text()
    assert (
        "looks at the image" in report and "| sft | 6 | " in report and "rewards/margins after DPO" in report
    )
    in_the_chain = {f"{spec.notebook}.ipynb" for spec in STAGES.values() if spec.notebook}
    assert {path.name for path in (run / "notebooks").glob("*.ipynb")} == in_the_chain
    again = run_cli("run", "--recipe", str(canary))
    assert again.returncode == 0 and "up to date" in again.stdout and "Executing" not in again.stderr

    out = tmp_path / "out.ipynb"
    picture = tmp_path / "train" / "images" / "60-60-60.png"
    given = {
        "recipe": str(canary),
        "model": "sft",
        "question": QUESTION,
        "image": str(picture),
        "max_new_tokens": 24,
        "compare_items": 2,
    }
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "inference.ipynb"), str(out), given, cwd=str(ROOT), progress_bar=False
    )
    shown = [output["data"] for output in notebook_outputs.outputs(out) if "data" in output]
    assert any("\\boxed{60}" in "".join(data.get("text/markdown", "")) for data in shown)
    exported_with_its_pictures(canary)
    held_back_when_damaged(canary)


def exported_with_its_pictures(path: Path) -> None:
    """Adapter and merged weights, loaded afresh, tell the pictures apart as the trained model does."""
    with pytest.raises(UserError, match="use --to adapter,merged"):
        export(load_recipe(path, overrides={"export.to": ["adapter", "gguf"]}))
    rows = export(load_recipe(path, overrides={"export.stage": "sft"}))
    assert list(rows) == ["adapter", "merged"]
    for row in rows.values():
        assert row["differs"] == [] and row["items"] == 6 and row["answers_equal"] == 1
        assert row["accuracy"][0] == row["accuracy"][1] >= 5 / 6
    assert rows["adapter"]["max_logit_difference"] < 1e-3
    card = (load_recipe(path).run_dir / "export" / "adapter" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "AutoModelForImageTextToText" in card


def held_back_when_damaged(path: Path) -> None:
    """The gate lets DPO's model through.

    With its weights blown up it is not even read; passed off as what the stage has left, it is held back.
    """
    from safetensors.torch import load_file, save_file

    gates = [{"first": "base", "second": "dpo", "at_least": 10}]
    recipe = load_recipe(path, overrides={"evaluate.gate": gates})
    assert gate(recipe) == []
    stage, weights = (
        recipe.run_dir / "dpo" / "stage.json",
        recipe.run_dir / "dpo" / "adapter" / "adapter_model.safetensors",
    )
    save_file({name: -20 * tensor for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        evaluate(recipe, ["dpo"], force=True)
    record = read_json(stage)
    write_json(
        stage, record | {"files": record["files"] | {"adapter/adapter_model.safetensors": file_hash(weights)}}
    )
    evaluate(recipe, ["dpo"], force=True)
    (failed,) = gate(recipe)
    assert failed.text.startswith("dpo against base")
