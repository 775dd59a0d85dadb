"""A sample depends on its prompt and seed, not on its batch."""

from __future__ import annotations

from batches import all_answers

from tunebook.generation import answers, local
from tunebook.recipe.loading import load_recipe


def test_a_seeded_sample_does_not_depend_on_its_batch(tiny_recipe):
    """Nor on rows that end early and are dropped from the batch."""
    from tunebook.models import loading

    recipe = load_recipe(tiny_recipe)
    model, tokenizer = loading.load_model(recipe)
    model.generation_config.eos_token_id = list(range(0, 49152, 20))  # one token in twenty ends an answer
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 4, 9, 2, 9, 7, 7, 1)]
    with local.local(model, tokenizer, None) as source:
        seeds, other_seeds = [*range(8)], [*range(4), 9, *range(5, 8)]
        runs = [
            all_answers(source, prompts, answers.Sampling(40, 8, 1.0, seeds)),
            all_answers(source, prompts, answers.Sampling(40, 1, 1.0, seeds)),
            all_answers(source, prompts, answers.Sampling(40, 8, 1.0, other_seeds)),
        ]
    assert runs[0] == runs[1]
    assert len({a.tokens for a in runs[0].values()}) > 4 and not all(a.truncated for a in runs[0].values())
    assert {k: v for k, v in runs[0].items() if k != 4} == {k: v for k, v in runs[2].items() if k != 4}
    assert runs[0][4] != runs[2][4]
    assert runs[0][2] != runs[0][4]  # the same prompt, another seed


def test_batched_answers_equal_single_ones_in_float32(embedded):
    from school_geometry.problems import problems
    from tunebook.data.formats import Prompts
    from tunebook.models import loading

    recipe = load_recipe(overrides={"model.dtype": "float32"})
    prompts = [Prompts(recipe).ask(p.question) for p in problems("test", 9)] + [
        Prompts(recipe).ask("Hi. " * 40),
        Prompts(recipe).ask("?"),
    ]
    model, tokenizer = loading.load_model(recipe)
    with local.local(model, tokenizer, None) as source:
        together = all_answers(source, prompts, answers.Sampling(32, 11))
        alone = all_answers(source, prompts, answers.Sampling(32, 1))
    assert together == alone
    assert sorted(together) == list(range(11))
    assert any(a.truncated for a in together.values())
