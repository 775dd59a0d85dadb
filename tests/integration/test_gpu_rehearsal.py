"""Unsloth's GPU path without a GPU: our SFT and DPO through its GPU classes and the trainers it generates, on tiny models in RAM.

A rehearsal: it shows that the calls fit and what they come to, nothing of kernels, 4 bit, precision or speed. The fakes are in `gpu_fakes.py`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import whole_recipe
import yaml

from tunebook.models import builtin
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe

STEPS = 4
SCRIPT = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import gpu_fakes
    gpu_fakes.install()
    import trl, unsloth
    import tiny_text
    from safetensors import safe_open
    from tunebook.data.rows import images_of
    from tunebook.data.storage import read_rows
    from tunebook.generation.answers import Sampling
    from tunebook.generation.generate import generate
    from tunebook.generation.local import Local
    from tunebook.models import adapters, loading
    from tunebook.pairs import pair, pairs
    from tunebook.recipe.loading import load_recipe
    from tunebook.runs.files import log_history
    from tunebook.training import audits
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    def given(work):  # instead of samples: the solution, and it with a wrong box
        for row in work.rows:
            right = pair.reference(row, work.count_tokens)
            wrong = right | {"text": right["text"].replace(f"boxed{{{row['gold']}}}", "boxed{1234}")}
            yield pair.make_pair(work.recipe.pairs, row, right, wrong, "given")

    def loaded(**keys):
        model, processor = from_pretrained(**keys)
        seen["processors"].append(type(processor).__name__)
        seen["classes"].append(type(model).__module__)
        return model, processor

    def adapted(model, recipe):
        model = add_lora(model, recipe)
        seen["lora"] = sorted({n.split(".lora_")[0] for n, p in model.named_parameters() if p.requires_grad})
        return model

    def audited(trainer, tokenizer):
        rows = [trainer.train_dataset[i] for i in range(4)]
        batch = trainer.data_collator(rows)
        seen["unpadded"] = "attention_mask" not in batch
        starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()[1:] if seen["unpadded"] else []
        parts = batch["labels"][0].tensor_split(starts) if seen["unpadded"] else batch["labels"]
        seen["trained"] = [tokenizer.decode(row[row != -100]) for row in parts]
        return audit_masks(trainer, tokenizer)

    def weight(model, name):
        return sum(float(p.detach().abs().sum()) for n, p in model.named_parameters() if f"lora_B.{name}." in n)

    def kept(model, tokenizer, folder):
        seen["trained_weight"].append(weight(model, "default"))
        save_adapter(model, tokenizer, folder)

    save_adapter, adapters.save_adapter = adapters.save_adapter, kept
    from_pretrained, unsloth.FastModel.from_pretrained = unsloth.FastModel.from_pretrained, staticmethod(loaded)
    add_lora, adapters.add_lora = adapters.add_lora, adapted
    audit_masks, audits.audit_masks = audits.audit_masks, audited
    pairs.METHODS["on_policy"] = given
    tiny_text.qwen3(Path(sys.argv[1]), Path(sys.argv[2]))
    out = {"device": unsloth.DEVICE_TYPE}
    out["trainers"] = [trl.SFTTrainer.__module__, trl.DPOTrainer.__module__]
    for path in sys.argv[3:]:
        recipe, seen = load_recipe(path), {"processors": [], "classes": [], "trained_weight": []}
        seen["sft"] = sft(recipe)
        pairs.pairs(recipe)
        seen["dpo"] = dpo(recipe)
        seen["losses"] = {stage: [float(e["loss"]) for e in log_history(recipe.run_dir / stage) if "loss" in e] for stage in ("sft", "dpo")}
        model, processor = loading.load(recipe)
        model = adapters.load_adapters(model, {"sft": recipe.run_dir / "sft" / "adapter", "dpo": recipe.run_dir / "dpo" / "adapter"})
        seen["loaded_weight"] = [weight(model, name) for name in ("sft", "dpo")]
        with safe_open(recipe.run_dir / "dpo" / "adapter" / "adapter_model.safetensors", "pt") as file:
            seen["saved"] = list(file.keys())
        rows = read_rows(recipe, recipe.run_dir / "pairs" / "train.parquet")
        shown = [images_of(row) for row in rows.select(range(2))]
        with adapters.use_adapter(model, "dpo") as active:
            answers = generate(Local(active, processor), rows["prompt"][:2], Sampling(3, 2), shown)
            seen["answers"] = [a.tokens for part in answers for a in part.values()]
        out[recipe.name] = seen
    print("RESULT " + json.dumps(out))
    """
)


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
    big = load_recipe("qwen3-4b-instruct").model
    chat = {"base": str(tmp / "qwen3"), "chat_template": big.chat_template, "eos_token": big.eos_token}
    recipes = [
        recipe_of("smollm2-alpaca", tmp / "text.yaml", model=chat),
        recipe_of(
            "mm-math-sample",
            tmp / "images.yaml",
            data={"sources": [{"format": "mm_math", "path": "sample", "rows": 12, "val": 0.1, "test": 0.1}]},
        ),
    ]
    environment = os.environ | {
        "UNSLOTH_COMPILE_LOCATION": str(tmp / "compiled"),
        "TUNEBOOK_RUNS": str(tmp / "runs"),
        "OMP_NUM_THREADS": "1",
    }
    environment["UNSLOTH_DATASET_NUM_PROC"] = "0"  # a handful of rows
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests" / "helpers")])
    command = [sys.executable, "-c", SCRIPT, str(tmp / "qwen3"), str(embedded), *map(str, recipes)]
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
    """The preflight has touched none of them: a Gemma 3n made of transformers' own too has uninitialised scales, and its loss is NaN."""
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
        found["loaded_weight"] == pytest.approx(found["trained_weight"], rel=1e-4)
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
