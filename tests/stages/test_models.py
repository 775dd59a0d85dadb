"""The embedded model: our tokenizer splits text as llama.cpp does, turns end at <|im_end|>."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def tokenizer(embedded):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded)


def test_a_turn_ends_at_im_end_and_pad_is_something_else(tokenizer, embedded):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for name in ("config.json", "generation_config.json"):
        config = json.loads((embedded / name).read_text())
        assert config["eos_token_id"] == tokenizer.eos_token_id
        assert config["pad_token_id"] == tokenizer.pad_token_id
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}], tokenize=False
    )
    assert rendered.endswith("<|im_start|>assistant\nyo<|im_end|>\n")


def test_only_safetensors(embedded):
    assert {p.suffix for p in embedded.iterdir()} <= {".json", ".jinja", ".safetensors"}


@pytest.mark.parametrize("loader", ["FastModel", "FastLanguageModel"])
def test_the_recipe_chooses_unsloths_class_for_loading_adapters_and_inference(
    tiny_recipe, loader, monkeypatch
):
    import unsloth

    from tunebook.models import adapters, loading
    from tunebook.recipe.loading import load_recipe

    calls = []
    other = {"FastModel": "FastLanguageModel", "FastLanguageModel": "FastModel"}[loader]
    real = getattr(unsloth, loader)

    def noting(name):
        def call(*args, **options):
            calls.append(name)
            return getattr(real, name)(*args, **options)

        return staticmethod(call)

    names = ("from_pretrained", "get_peft_model", "for_inference")
    monkeypatch.setattr(unsloth, loader, type("Noting", (), {name: noting(name) for name in names}))
    monkeypatch.setattr(unsloth, other, None)
    recipe = load_recipe(tiny_recipe, overrides={"model.loader": loader})
    model, _ = loading.load_model(recipe)
    model = adapters.add_lora(model, recipe)
    with adapters.use_adapter(model, "default"):
        assert calls == list(names)
    assert "tunebook_loader" not in model.config.to_dict()  # nothing of it in an export


def test_a_stage_leaves_no_model_behind(tiny_recipe):
    """In one process the next stage loads a second one beside it: twice Gemma 3n is more than a T4 has."""
    import gc

    from transformers import PreTrainedModel

    from tunebook.evaluation import evaluate
    from tunebook.models import adapters
    from tunebook.recipe.loading import load_recipe
    from tunebook.training.sft import sft

    def live_models() -> int:
        return sum(isinstance(thing, PreTrainedModel) for thing in gc.get_objects())

    keys = {"sft.max_steps": 2, "sft.eval_strategy": "no", "evaluate.max_new_tokens": 4}
    recipe = load_recipe(tiny_recipe, overrides=keys)
    gc.collect()
    before = live_models()
    gc.disable()  # what is freed is freed by the stage, and not by chance
    try:
        sft(recipe)
        assert live_models() == before
        # A notebook asks the model that it has, and loads no second one.
        model, tokenizer = adapters.load_stages(recipe, ["sft"])
        loaded = live_models()
        names = {"base": None, "sft": "sft"}
        assert evaluate.answers(model, tokenizer, names, evaluate.examples(recipe, 1), 4)
        assert live_models() == loaded
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("reason", "mend"),
    [
        ("404 Client Error. Repository Not Found", "look at the name"),
        ("429 Too Many Requests", "set HF_TOKEN"),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_one_line(tiny_recipe, monkeypatch, reason, mend):
    """Unsloth makes a RuntimeError of several paragraphs of it."""
    import unsloth

    from tunebook.models import loading
    from tunebook.recipe.errors import UserError
    from tunebook.recipe.loading import load_recipe

    def refused(**options):
        raise RuntimeError(
            "Unsloth: Failed to load model. Both AutoConfig and PeftConfig loading failed.\n\n"
            f"AutoConfig error: {reason}\n\nPeftConfig error: the same\n\n"
        )

    monkeypatch.setattr(unsloth.FastModel, "from_pretrained", staticmethod(refused))
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(UserError) as error:
        loading.load_model(recipe)
    line = str(error.value)
    assert line.startswith(f"model.base: {recipe.model.base} cannot be loaded ({reason}); ") and mend in line
    assert "\n" not in line

    def other(**options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(unsloth.FastModel, "from_pretrained", staticmethod(other))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        loading.load_model(recipe)
