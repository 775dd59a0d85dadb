"""What SFT has trained, read by plain PEFT and transformers: the same probabilities, merged too."""

from __future__ import annotations

import pytest

from tunebook.models import adapters
from tunebook.models.loading import load_model
from tunebook.recipe.loading import load_recipe
from tunebook.training.sft import sft

PLAIN = {"lora.r": 4}
TIED = {"lora.modules_to_save": ["embed_tokens", "lm_head"], "lora.use_dora": True}
HEAD = {"lora.target_modules": ["q_proj", "lm_head"]}


def log_probabilities(model):
    """Of each token of a text, in float32."""
    import torch

    with torch.no_grad():
        return model.float().eval()(torch.arange(100, 160)[None]).logits.log_softmax(-1)


@pytest.mark.parametrize("lora", [PLAIN, TIED, HEAD], ids=["plain", "tied", "head of a tied model"])
def test_an_adapter_elsewhere_is_the_same_model(tiny_recipe, tmp_path, lora):
    """unsloth#1540, unsloth#1191, peft#2018, transformers#45127: embeddings that are tied and trained."""
    quick = {"sft.max_steps": 4, "sft.eval_strategy": "no", "sft.learning_rate": 2e-2, "export.items": 2}
    recipe = load_recipe(tiny_recipe, overrides=quick | lora)
    sft(recipe)
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    folder = recipe.run_dir / "sft" / "adapter"
    model, _ = adapters.load_stages(recipe, ["sft"])
    with adapters.use_adapter(model, None) as base:
        untrained = log_probabilities(base)
    with adapters.use_adapter(model, "sft") as tuned:
        ours = log_probabilities(tuned)
    assert (ours - untrained).abs().max() > 0.1

    plain = log_probabilities(AutoPeftModelForCausalLM.from_pretrained(folder))
    assert (plain - ours).abs().max() < 1e-4

    # Merged weights have 16 bits.
    model, tokenizer = load_model(recipe)
    model = adapters.restore_lora(adapters.add_lora(model, recipe), folder)
    adapters.save_merged(model, tokenizer, tmp_path / "merged")
    merged = log_probabilities(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    assert (merged - ours).abs().mean() < 0.25 * (ours - untrained).abs().mean()
