"""What is computed once for several rows: the same numbers as without, for fewer tokens.

On a small Llama of random weights.
"""

from __future__ import annotations

import pytest

from tunebook.models.cpu import shared_prefixes


def small_llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape, attn_implementation="eager"))


def loss_and_gradients(model, rows):
    import torch

    model.zero_grad()
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    out = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100), use_cache=False)
    out.loss.backward()
    return (
        out.loss.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters()},
        out.logits[mask.bool()].detach(),
    )


@pytest.mark.parametrize("start", [0, 5], ids=["nothing in common", "a system message"])
def test_loss_logits_and_gradients_are_those_of_the_plain_forward(start):
    import copy

    import torch

    model, system = small_llama(), [7] * start
    tails = (
        [*range(10, 20), 1, 2, 3],
        [*range(20, 34), 4],
        [*range(10, 20), 5, 6],
        [*range(20, 34), 8, 9, 9, 9],
    )
    rows = [system + tail for tail in tails]
    assert shared_prefixes.plan(rows).ends != [start]
    plain = loss_and_gradients(model, rows)
    shared_prefixes.share_prefixes(model)
    calls = []
    own = type(model.model).forward
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args: calls.append(args[0].shape[0] * args[0].shape[1])
    )
    shared = loss_and_gradients(model, rows)
    assert sum(calls) == shared_prefixes.plan(rows).cost([len(r) for r in rows]) < 4 * max(map(len, rows))
    torch.testing.assert_close(shared[0], plain[0])
    torch.testing.assert_close(shared[2], plain[2])
    for name, gradient in plain[1].items():
        torch.testing.assert_close(shared[1][name], gradient, msg=name)
    twin = copy.deepcopy(model)  # as merging does: it must compute with its own weights
    with torch.no_grad():
        twin.model.embed_tokens.weight.zero_()
    assert loss_and_gradients(twin, rows)[0] != shared[0]
    assert own is type(model.model).forward


def test_generation_and_gradient_checkpointing_keep_the_plain_forward():
    import torch

    model = small_llama()
    shared_prefixes.share_prefixes(model)
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]])
    assert (
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values is not None
    )
    assert model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
    ).shape == (2, 6)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    loss_and_gradients(model, [[1] * 20 + [2], [1] * 20 + [3]])
    model.config.model_type = "gemma3"
    other = small_llama()
    other.config.model_type = "gemma3"
    shared_prefixes.share_prefixes(other)
    assert "forward" not in vars(other.model)


@pytest.mark.parametrize("masked", [True, False])
def test_grouped_attention_is_eager_attention(masked):
    import torch
    from transformers.models.llama.modeling_llama import eager_attention_forward

    from tunebook.models.cpu.attention import grouped

    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    query, key, value = torch.randn(2, 6, 4, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8)
    mask = torch.zeros(2, 1, 4, 7).masked_fill(torch.rand(2, 1, 4, 7) < 0.3, -1e9) if masked else None
    torch.testing.assert_close(
        grouped(module, query, key, value, mask, 0.3)[0],
        eager_attention_forward(module, query, key, value, mask, 0.3)[0],
    )


def test_grouped_attention_refuses_what_it_does_not_compute():
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from tunebook.models.cpu.attention import register
    from tunebook.recipe.errors import UserError

    register()
    shape = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    ids = torch.tensor([[1, 2, 3]])
    capped, plain = (
        Gemma2ForCausalLM(
            Gemma2Config(vocab_size=9, **shape, attn_logit_softcapping=cap, attn_implementation="grouped")
        )
        for cap in (50.0, None)
    )
    with pytest.raises(
        UserError,
        match=r"attention takes softcap, which grouped has not: set model\.attn_implementation=eager",
    ):
        capped(ids)
    assert plain(ids).logits.shape == (1, 3, 9)
