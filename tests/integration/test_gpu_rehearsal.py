"""Unsloth's GPU path without a GPU: SFT and DPO through its GPU classes and generated trainers, in RAM.

A rehearsal on tiny models: it shows that the calls fit and what they come to, nothing of kernels, 4 bit,
precision or speed. The fakes are in `gpu_fakes.py`, what runs in `gpu_rehearsal.py`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import whole_recipe
import yaml

from tunebook.models import builtin
from tunebook.recipe.files import ROOT

STEPS = 4


def recipe_of(name: str, path: Path, **changes: dict) -> Path:
    content = whole_recipe.content(name)
    content["name"] = path.stem
    content["model"]["dtype"] = "float32"  # asked for, Unsloth trains in it too where bfloat16 is missing
    for section in ("sft", "dpo"):
        content[section] |= {
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "eval_strategy": "no",
        }
        content[section] |= {"learning_rate": 5e-3, "warmup_steps": 0}
    for section, values in changes.items():
        content[section] |= values
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory, embedded) -> dict:
    """Both models in one process; importing the GPU classes takes longest."""
    tmp = tmp_path_factory.mktemp("rehearsal")
    builtin.tiny_vision_model()
    chat = {"base": str(tmp / "qwen3"), "chat_template": "prompt/chatml.jinja", "eos_token": "<|im_end|>"}
    figures = {"format": "mm_math", "path": "sample", "rows": 12, "val": 0.1, "test": 0.1}
    recipes = [
        recipe_of(
            "smollm2-alpaca",
            tmp / "text.yaml",
            model=chat,
            sft={"eval_strategy": "steps", "eval_steps": 2},
            evaluate={"max_new_tokens": 8},
            export={"to": ["adapter", "merged"], "items": 4},
        ),
        recipe_of("smollm2-alpaca", tmp / "packed.yaml", model=chat, sft={"packing": True, "max_steps": 2}),
        # The worker that opens images is a process of its own, as for Gemma 3n.
        recipe_of(
            "mm-math-sample",
            tmp / "images.yaml",
            data={"sources": [figures]},
            sft={"dataloader_num_workers": 1},
        ),
    ]
    environment = os.environ | {
        "UNSLOTH_COMPILE_LOCATION": str(tmp / "compiled"),
        "TUNEBOOK_RUNS": str(tmp / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    environment["UNSLOTH_DATASET_NUM_PROC"] = "0"  # a handful of rows
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "helpers")])
    command = [
        sys.executable,
        str(ROOT / "tests" / "helpers" / "gpu_rehearsal.py"),
        str(tmp / "qwen3"),
        str(embedded),
        *map(str, recipes),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert line, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(line.removeprefix("RESULT "))


def test_the_classes_are_those_of_a_gpu(rehearsed):
    assert rehearsed["device"] == "cuda" and rehearsed["trainers"] == [
        "UnslothSFTTrainer",
        "UnslothDPOTrainer",
    ]


def test_models_are_made_of_the_classes_that_unsloth_rewrote(rehearsed):
    """The preflight has touched none of them.

    A Gemma 3n made of transformers' own classes too has uninitialised scales, and its loss is NaN.
    """
    assert rehearsed["images"]["classes"] == ["unsloth_compiled_module_gemma3n"] * 3
    assert (
        rehearsed["images"]["processors"] == ["Gemma3nProcessor"] * 3
    )  # a CPU gives a tokenizer, which `models.load` mends


def test_lora_is_where_the_switches_say(rehearsed):
    text, images = (rehearsed[name]["lora"] for name in ("text", "images"))
    assert len(text) == 2 * 7 and not any("audio" in name for name in images)
    assert sum("language_model" in name for name in images) >= 24
    assert [name.split(".")[-1] for name in images if "language_model" not in name] == [
        "embedding_projection"
    ]


@pytest.mark.parametrize("name", ["text", "images"])
def test_sft_and_dpo_train_as_on_a_cpu(rehearsed, name):
    found = rehearsed[name]
    audit = found["sft"]["audit"]
    assert audit["rows"] == 8 and 0 < audit["trained_share"] < 0.9
    assert all(
        text.endswith({"text": "<|im_end|>\n", "images": "<end_of_turn>\n"}[name])
        for text in found["trained"]
    )
    assert not any(
        start in text for text in found["trained"] for start in ("<|im_start|>", "<start_of_turn>")
    )  # the completion alone
    assert all(
        len(found["losses"][stage]) == STEPS and all(map(math.isfinite, found["losses"][stage]))
        for stage in ("sft", "dpo")
    )
    assert (
        found["dpo"]["audit"]["loss"] == pytest.approx(math.log(2), abs=0.01)
        and abs(found["dpo"]["audit"]["margin"]) < 0.01
    )
    assert (
        found["loaded_weight"] == pytest.approx(found["trained_weight"][:2], rel=1e-4)
        and 0 < found["loaded_weight"][0] != found["loaded_weight"][1]
    )
    assert all(found[stage]["preflight"]["total"] > 0 for stage in ("sft", "dpo"))
    assert len(found["answers"]) == 2 and all(1 <= tokens <= 3 for tokens in found["answers"])
    assert not any("embed_tokens.weight" in name or "lm_head" in name for name in found["saved"])


def test_images_are_seen_and_text_is_not_padded(rehearsed):
    audit = rehearsed["images"]["sft"]["audit"]
    assert (audit["images"], audit["image_tokens"]) == (8, 8 * 16)
    assert rehearsed["text"]["unpadded"] and not rehearsed["images"]["unpadded"]
    losses = rehearsed["images"]["losses"]["sft"]
    assert losses[-1] < losses[0] - 1


def test_it_is_terminated_goes_on_and_evaluates_on_the_way(rehearsed):
    metrics = rehearsed["text"]["sft"]["metrics"]
    assert rehearsed["text"]["ended"] == 143 and metrics["resumed_at_step"] == 3
    assert math.isfinite(metrics["eval_loss"]) and metrics["steps"] == STEPS
    # Unsloth's loss counts no tokens on a GPU; 8 rows of some 40 each.
    assert 250 < metrics["tokens"] < 500


def test_packed_rows_are_one_behind_the_other(rehearsed):
    packed = rehearsed["packed"]
    assert len(packed["losses"]) == packed["metrics"]["steps"] == 2
    # Two steps of two sequences, each of several rows.
    assert packed["metrics"]["tokens"] > 4 * 200
    assert packed["losses"][0] == pytest.approx(rehearsed["text"]["losses"]["sft"][0], abs=0.1)
    assert 0 < packed["audit"]["trained_share"] < 0.9


def test_exports_are_the_model_that_was_trained(rehearsed):
    exports = rehearsed["text"]["exports"]
    assert sorted(exports) == ["adapter", "merged"]
    for row in exports.values():
        assert row["differs"] == [] and row["dtype"] == "float32" and row["mean_logp_difference"] < 1e-3
