"""Preference sets as they are published, and the recipes made of published sets."""

from __future__ import annotations

import json
import math

import datasets
import pytest
import tiny_text
import whole_recipe
import yaml

from tunebook.data.prepare import prepare
from tunebook.data.records import all_records
from tunebook.data.rows import Reject
from tunebook.pairs import existing
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reasons(rows) -> list[tuple[str, str]]:
    return [(r.reason, r.detail) for r in rows if isinstance(r, Reject)]


def said(prompt: str, answer: str) -> list[dict]:
    return [{"content": prompt, "role": "user"}, {"content": answer, "role": "assistant"}]


def pairs_of(path, **config):
    keys = {"pairs.methods": ["dataset"], "pairs.dataset": str(path)} | {
        f"pairs.{k}": v for k, v in config.items()
    }
    recipe = load_recipe("smollm2-alpaca", overrides={"pairs.min_margin": None} | keys)
    prepare(recipe)
    return list(existing.read(recipe, lambda text: len(text.split()), recipe.run_dir / "pairs" / "images"))


def test_preference_sets_as_they_are_published(tmp_path, embedded):
    ultrafeedback = {
        "prompt": "Why is grass green?",
        "prompt_id": "ab12",
        "chosen": said("Why is grass green?", "Because of chlorophyll."),
        "rejected": said("Why is grass green?", "It is painted."),
        "messages": said("Why is grass green?", "Because of chlorophyll."),
        "score_chosen": 8.5,
        "score_rejected": 6.0,
    }
    rows = [ultrafeedback]
    rows.append(ultrafeedback | {"score_rejected": 8.5})
    rows += [ultrafeedback | {side: said("Why is grass green?", "")} for side in ("chosen", "rejected")]
    rows.append(ultrafeedback | {"rejected": said("Another question?", "No.")})
    rows.append(ultrafeedback | {"score_chosen": "high"})
    question = json.loads((ROOT / "resources" / "sample" / "questions.jsonl").read_text().splitlines()[-1])[
        "question"
    ]
    rows.append(
        ultrafeedback | {"chosen": said(question, "14 euros"), "rejected": said(question, "13 euros")}
    )
    found = pairs_of(lines(tmp_path / "uf.jsonl", rows))
    assert found[0]["prompt"] == [{"role": "user", "content": "Why is grass green?"}]
    assert (found[0]["chosen"][0]["content"], found[0]["rejected"][0]["content"]) == (
        "Because of chlorophyll.",
        "It is painted.",
    )
    assert (found[0]["margin"], found[0]["chosen_correct"], found[0]["source_id"]) == (
        2.5,
        None,
        "uf.jsonl:1",
    )
    assert reasons(found) == [
        ("scored no better", "chosen 8.5, rejected 8.5"),
        ("empty completion", "chosen"),
        ("empty completion", "rejected"),
        ("different prompts", "chosen and rejected answer different prompts"),
        ("wrong type", "score_chosen: 'high' is not a number"),
        ("in the test or val split", found[-1].detail),
    ]
    # argilla/ultrafeedback-binarized-preferences-cleaned
    argilla = {k: ultrafeedback[k] for k in ("prompt", "chosen", "rejected")} | {
        "source": "x",
        "chosen-rating": 5.0,
        "rejected-rating": 4.5,
    }
    columns = {"score_chosen": "chosen-rating", "score_rejected": "rejected-rating"}
    assert pairs_of(lines(tmp_path / "ar.jsonl", [argilla]), columns=columns)[0]["margin"] == 0.5
    # Intel/orca_dpo_pairs, as .csv here: every value is text
    (tmp_path / "orca.csv").write_text(
        "system,question,chosen,rejected\nBe exact.,Is it so?,Yes.,No.\n,Is it now?,Yes.,No.\n"
    )
    found = pairs_of(tmp_path / "orca.csv", columns={"prompt": "question"})
    assert found[0]["prompt"] == [
        {"role": "system", "content": "Be exact."},
        {"role": "user", "content": "Is it so?"},
    ]
    assert found[1]["prompt"] == [{"role": "user", "content": "Is it now?"}]
    assert [p["margin"] for p in found] == [None, None]


def test_a_folder_of_save_to_disk_is_read_like_a_file(tmp_path):
    rows = [{"prompt": f"Bird {i}?", "completion": "A tern."} for i in range(3)]
    train = datasets.Dataset.from_list(rows)
    train.save_to_disk(tmp_path / "birds")
    found = list(all_records(str(tmp_path / "birds"), "train", "key"))
    assert found == [(f"birds:{i}", row) for i, row in enumerate(rows, 1)]
    datasets.DatasetDict({"train": train, "test": train.select([2])}).save_to_disk(tmp_path / "split")
    assert list(all_records(str(tmp_path / "split"), "test", "key")) == [("split:1", rows[2])]
    with pytest.raises(UserError, match=r"key: cannot read .*split \(no split val; there are: train, test\)"):
        list(all_records(str(tmp_path / "split"), "val", "key"))


def test_pairs_of_too_small_a_margin_are_quarantined(tmp_path, embedded):
    def row(i: int, **scores: float) -> dict:
        return {"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} | scores

    scored = [row(i, score_chosen=5.0, score_rejected=5.0 - i) for i in range(1, 5)]
    path = lines(tmp_path / "m.json", [*scored, row(9)])
    assert [p["margin"] for p in pairs_of(path)] == [1.0, 2.0, 3.0, 4.0, None]
    found = pairs_of(path, min_margin=2)
    assert [p["margin"] for p in found if isinstance(p, dict)] == [2.0, 3.0, 4.0]
    assert reasons(found) == [
        ("margin too small", "chosen 5.0, rejected 4.0"),
        ("missing column", "score_chosen: missing, and pairs.min_margin is set"),
    ]
    assert len(pairs_of(path, rows=2)) == 2


def test_the_sample_is_sound(embedded):
    """What ships passes every check, and no shortcut tells its better answers from the worse."""
    from tunebook.pairs.pairs import pairs

    recipe = load_recipe("smollm2-alpaca")
    record = prepare(recipe)
    assert record["quarantined"] == {}
    assert (
        record["rows"]["train"] + record["rows"]["val"] == 120
        and record["rows"]["test"] == 60
        and record["rows"]["val"] > 8
    )
    made = pairs(recipe)
    assert made["quarantined"] == {} and sum(made["rows"].values()) == 60 and made["rows"]["val"] > 6
    assert made["margin"]["min"] >= 2 and made["length_only_accuracy"] < 0.7


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory, embedded):
    from tunebook.models import backend

    backend.backend()
    path = tmp_path_factory.mktemp("model") / "tiny-base"
    tiny_text.qwen3(path, embedded)
    return path


def test_a_base_model_learns_to_end_its_turns(tiny_base, tmp_path, monkeypatch):
    """The small recipe, whole, with ChatML: from SFT to merged weights."""
    from tunebook.evaluation.evaluate import evaluate
    from tunebook.models import adapters, loading
    from tunebook.pairs.pairs import existing_pairs, pairs_stage
    from tunebook.training import audits
    from tunebook.training.dpo import dpo
    from tunebook.training.sft import sft

    content = whole_recipe.content("smollm2-alpaca")
    content["model"] = {"base": str(tiny_base), "dtype": "float32", "max_seq_length": 384}
    content["sft"]["max_steps"] = content["dpo"]["max_steps"] = 3
    content["evaluate"] |= {"max_new_tokens": 4}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(
        UserError,
        match=r"has no chat template: set model\.chat_template, for example to prompt/plain\.jinja",
    ):
        prepare(load_recipe(path))
    keys = {"model.chat_template": "prompt/chatml.jinja"}
    with pytest.raises(UserError, match=r"model\.eos_token: .*tiny-base has no token '<end_of_turn>'"):
        prepare(load_recipe(path, overrides=keys | {"model.eos_token": "<end_of_turn>"}))
    recipe = load_recipe(path, overrides=keys | {"model.eos_token": "<|im_end|>"})

    seen = []

    def looked_at(trainer, tokenizer):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        seen.extend(tokenizer.decode(row[row != -100]) for row in batch["labels"])
        return original(trainer, tokenizer)

    original = audits.audit_masks
    monkeypatch.setattr(audits, "audit_masks", looked_at)
    assert sft(recipe)["metrics"]["steps"] == 3
    assert all(
        text.endswith("<|im_end|>\n") and text.count("<|im_end|>") == 1 and "<think>" not in text
        for text in seen
    )
    saved = json.loads((recipe.run_dir / "sft" / "adapter" / "tokenizer_config.json").read_text())
    assert saved["eos_token"] == "<|im_end|>"
    existing_pairs(load_recipe())  # samples of a model are not made unasked
    assert not load_recipe().run_dir.exists()
    existing_pairs(recipe)
    made = pairs_stage(recipe).result
    assert made["strategies"] == {"dataset": 60} and made["margin"]["min"] >= 2
    trained = dpo(recipe)
    assert trained["metrics"]["steps"] == 3 and abs(trained["audit"]["loss"] - math.log(2)) < 0.01
    results = evaluate(recipe)
    assert {name: s["n"] for name, s in results.items()} == {"base": 60, "sft": 60, "dpo": 60}

    model, tokenizer = loading.load_model(recipe)
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 0)
    assert model.generation_config.eos_token_id == [2, 0] and model.config.eos_token_id == 2
    assert stops_after(model, tokenizer, "<|im_end|>") == stops_after(model, tokenizer, "<|endoftext|>") == 3
    adapters.save_merged(adapters.add_lora(model, recipe), tokenizer, tmp_path / "merged")
    from transformers import AutoTokenizer, GenerationConfig

    assert GenerationConfig.from_pretrained(tmp_path / "merged").eos_token_id == [2, 0]
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["eos_token_id"] == 2
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.eos_token == "<|im_end|>"
    assert merged.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    ) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    packed_rows_do_not_see_each_other(model)
    every_recipe_makes_the_real_configs(tmp_path)


def stops_after(model, tokenizer, end: str) -> int:
    """New tokens of an answer whose third is `end`."""
    from transformers import LogitsProcessor

    class Forced(LogitsProcessor):
        def __call__(self, input_ids, scores):
            wanted = tokenizer.convert_tokens_to_ids(end) if input_ids.shape[1] == 5 else 100
            return scores.fill_(float("-inf")).index_fill_(1, input_ids.new_tensor([wanted]), 0.0)

    given = tokenizer("a b c", return_tensors="pt")
    assert given["input_ids"].shape[1] == 3
    return (
        model.generate(**given, max_new_tokens=9, do_sample=False, logits_processor=[Forced()]).shape[1] - 3
    )


def packed_rows_do_not_see_each_other(model) -> None:
    """TRL packs without an attention mask, with positions that start anew.

    transformers keeps the rows apart by these.
    """
    import torch

    first, second = torch.arange(10, 16), torch.arange(30, 37)
    positions = torch.cat([torch.arange(6), torch.arange(7)])
    with torch.inference_mode():
        packed = model(input_ids=torch.cat([first, second])[None], position_ids=positions[None]).logits[0, 6:]
        alone = model(input_ids=second[None]).logits[0]
        together = model(input_ids=torch.cat([first, second])[None]).logits[0, 6:]
    assert torch.allclose(packed, alone, atol=1e-4) and not torch.allclose(together, alone, atol=1e-2)


def every_recipe_makes_the_real_configs(folder) -> None:
    from trl import DPOConfig, SFTConfig

    from tunebook.training import arguments

    for name in sorted(p.stem for p in (ROOT / "configs").glob("*.yaml")):
        recipe = load_recipe(name)
        for section, config in (("sft", SFTConfig), ("dpo", DPOConfig)):
            args = arguments.trainer_arguments(config, recipe, section, folder)
            given = getattr(recipe, section)
            assert (
                args.learning_rate == given["learning_rate"]
                and args.max_length == recipe.model.max_seq_length
            )
            assert args.gradient_accumulation_steps == given["gradient_accumulation_steps"]
