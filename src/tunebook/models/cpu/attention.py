"""`model.attn_implementation: grouped`: attention for a CPU that does not repeat keys and values.

In most models several heads share keys and values. transformers' eager attention copies them for every head
(three times over for SmolLM2, in each layer and for each new token); here the queries of a group are stacked
instead. PyTorch's own kernel (`sdpa`) takes longer still on a CPU, with a mask.
"""

from __future__ import annotations

from typing import Any

from tunebook.recipe.errors import UserError

NAME = "grouped"

UNKNOWN = ("softcap", "s_aux", "position_bias")
"""What some models want beside (Gemma 2, gpt-oss, Inkling) and `grouped` does not compute."""


def register() -> None:
    """Make the name known to transformers."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(NAME, grouped)
    AttentionMaskInterface.register(NAME, eager_mask)


def grouped(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Any, None]:
    """softmax(query key^T scaling + mask) value, with the softmax in float32 as in eager attention.

    Args:
        query: (rows, heads, length, size).
        key: (rows, groups, seen, size), as `value`.
        attention_mask: (rows, 1, length, seen), which is added.

    Returns (rows, length, heads, size).

    Raises UserError when a model wants more than that: its logits would be wrong and nothing would say so.
    """
    import torch

    unknown = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise UserError(
            f"this model's attention takes {', '.join(unknown)}, which {NAME} has not: "
            "set model.attn_implementation=eager"
        )
    rows, heads, length, size = query.shape
    groups = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    # The queries of a group lie one below the other, so that one product with its keys serves all its heads.
    scores = (query.reshape(rows, groups, -1, size) @ key.transpose(2, 3)) * scale
    scores = scores.view(rows, groups, heads // groups, length, -1)
    if attention_mask is not None:
        scores = scores + attention_mask.unsqueeze(1)
    weights = torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, dropout, module.training)
    out = weights.reshape(rows, groups, -1, weights.shape[-1]) @ value
    return out.view(rows, heads, length, size).transpose(1, 2).contiguous(), None
