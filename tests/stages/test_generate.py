"""A sample depends on its prompt and seed, not on its batch."""

from __future__ import annotations

import pytest
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
    from tunebook.data.prompts import Prompts
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


def test_rows_shared_out_to_threads_are_answered_as_by_one(tiny_recipe, monkeypatch):
    import torch

    from tunebook.models import loading
    from tunebook.models.cpu import decoding

    model, tokenizer = loading.load_model(load_recipe(tiny_recipe))
    model.generation_config.eos_token_id = list(range(0, 49152, 20))
    prompts = [[{"role": "user", "content": "word " * n}] for n in (1, 4, 9, 2, 9, 7, 7)]
    sampling = answers.Sampling(30, 7, 1.0, list(range(7)))
    sizes = []
    read_once = local.read_prompts_once

    def read(model, inputs):
        sizes.append((len(inputs["input_ids"]), torch.get_num_threads()))
        return read_once(model, inputs)

    before = torch.get_num_threads()
    monkeypatch.setattr(local, "read_prompts_once", read)
    try:
        torch.set_num_threads(2)
        with local.local(model, tokenizer, None) as source:
            one = all_answers(source, prompts, sampling)
            assert sizes == [(7, 2)]  # too few rows to be worth it
            monkeypatch.setattr(decoding, "LEAST_ROWS", 3)
            shared = all_answers(source, prompts, sampling)
        assert sorted(sizes[1:]) == [(3, 1), (4, 1)]
        assert shared == one
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_part_that_fails_ends_the_others(monkeypatch):
    import torch

    from tunebook.models.cpu import decoding

    ended = []

    def decode(inputs, generators, stopped):
        if generators[0] == 0:
            raise torch.OutOfMemoryError("full")
        ended.append(stopped.wait(60))  # a minute would be waited for in vain
        return [[1]] * len(generators)

    monkeypatch.setattr(decoding, "LEAST_ROWS", 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            decoding.decode_in_parts(decode, {"input_ids": torch.zeros(4, 1)}, [0, 1, 2, 3])
    finally:
        torch.set_num_threads(before)
    assert ended == [True]
    with pytest.raises(decoding.CancelledError):
        stopped = decoding.threading.Event()
        stopped.set()
        decoding.stop_at_half({1}, stopped)(torch.zeros(1, 1), None)


def test_top_p_and_top_k_leave_the_likeliest_tokens():
    import torch

    scores = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    drawn = {}
    cases = {
        "all": answers.Sampling(1, temperature=1.0),
        "top_p": answers.Sampling(1, temperature=1.0, top_p=0.7),
        "cold": answers.Sampling(1, temperature=0.2, top_p=0.7),
        "top_k": answers.Sampling(1, temperature=1.0, top_k=3),
    }
    for name, sampling in cases.items():
        tokens = set()
        for seed in range(300):
            left = scores
            for sampler in local._samplers(sampling, [torch.Generator().manual_seed(seed)]):
                left = sampler(None, left)
            tokens.add(int(left.argmax()))
        drawn[name] = tokens
    # At temperature 0.2 the first token alone has more than 0.7.
    assert drawn == {"all": {0, 1, 2, 3}, "top_p": {0, 1}, "cold": {0}, "top_k": {0, 1, 2}}


def test_an_answer_goes_on_from_its_beginning_and_memory_that_is_short_halves_a_batch(
    tiny_recipe, monkeypatch, capsys
):
    from tunebook.models.chat_template import render
    from tunebook.models.loading import load_model
    from tunebook.recipe.errors import UserError

    model, tokenizer = load_model(load_recipe(tiny_recipe))
    prompt = [{"role": "user", "content": "Count."}]
    beginning = [*prompt, {"role": "assistant", "content": "1, 2,"}]
    decode = local._decode

    def with_room_for(rows: int):
        def short_of_memory(source, inputs, *rest):
            if len(inputs["input_ids"]) > rows:
                # What cuBLAS says for want of memory is no OutOfMemoryError.
                raise RuntimeError(
                    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
                )
            return decode(source, inputs, *rest)

        return short_of_memory

    with local.local(model, tokenizer, None) as source:
        (answer,) = all_answers(source, [beginning], answers.Sampling(8)).values()
        ids = tokenizer(render(tokenizer, prompt, 0) + "1, 2,", add_special_tokens=False, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(out, skip_special_tokens=True)
        # Five prompts in one batch, with room for two: the same samples, in smaller batches.
        prompts = [[{"role": "user", "content": "word " * n}] for n in range(1, 6)]
        sampling = answers.Sampling(8, 5, 1.0, [1, 2, 3, 4, 5])
        whole = all_answers(source, prompts, sampling)
        monkeypatch.setattr(local, "_decode", with_room_for(2))
        assert all_answers(source, prompts, sampling) == whole
        assert "goes on with 2\n" in capsys.readouterr().out
        monkeypatch.setattr(local, "_decode", with_room_for(0))
        with pytest.raises(UserError, match="out of memory with one answer at a time"):
            all_answers(source, prompts, sampling)
