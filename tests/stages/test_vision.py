"""A tiny Gemma 3n answers in batches, and LoRA goes where the recipe's switches say."""

from __future__ import annotations

from batches import all_answers
from triangles import ANGLES, QUESTION, triangle

from tunebook.recipe.loading import load_recipe


def test_batched_answers_with_images_are_the_answers_given_alone(tmp_path):
    """In float32, sampled: rows of different lengths and pictures, one without a picture."""
    import torch

    from tunebook.generation.answers import Sampling
    from tunebook.generation.local import Local, encode
    from tunebook.models import adapters, backend, loading
    from tunebook.models.chat_template import render

    backend.backend()
    model, processor = loading.load_model(load_recipe("mm-math-sample"))
    paths = []
    for a, b in ANGLES[:3]:
        paths.append([str(tmp_path / f"{a}.png")])
        triangle(a, b, 255).save(paths[-1][0])
    prompts = [[{"role": "user", "content": QUESTION + " Why?" * i}] for i in range(4)]
    shown = [*paths, []]
    with adapters.use_adapter(model, None) as active:
        source = Local(active, processor)

        def answers(batch: int) -> list[str]:
            sampling = Sampling(12, batch, temperature=1.0, seeds=[1, 2, 3, 4])
            by_number = all_answers(source, prompts, sampling, shown)
            return [by_number[i].text for i in range(4)]

        alone = answers(1)
        assert alone == answers(4) and len(set(alone)) == 4
        text = render(processor, prompts[0], 1)
        with torch.inference_mode():
            first, other = (active(**encode(source, [text], [path])).logits[0, -1] for path in paths[:2])
        assert (first - other).abs().max() > 1e-3  # what it says next depends on the picture


def test_lora_goes_where_the_switches_say():
    """On a CPU as on a GPU: never on the audio tower, and the vision part only if asked."""
    from tunebook.models import adapters, backend, loading

    backend.backend()
    places = {}
    for vision in (True, False):
        recipe = load_recipe("mm-math-sample", overrides={"lora.finetune_vision_layers": vision})
        model = adapters.add_lora(loading.load_model(recipe)[0], recipe)
        places[vision] = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert not any("audio" in name for name in places[True] | places[False])
    assert any("vision" in name for name in places[True]) and not any(
        "vision" in name for name in places[False]
    )
    assert sum("language_model" in name for name in places[False]) >= 24
