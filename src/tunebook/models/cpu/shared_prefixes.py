"""`model.share_prompts`: on a CPU, where a step's time is its tokens, what rows of a batch begin with alike is computed once.

Rows of SFT share the system message; chosen and rejected share their prompt, and often the beginning of the answer. Attention looks back
only, so a shared beginning has the same hidden states in every row, and one cache of its keys and values, through which gradients flow,
serves all of them: same loss, same gradients, fewer tokens. Inference servers share prefixes like this (RadixAttention, Zheng et al. 2023).
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """The length of the beginning that two texts (or lists of tokens) have in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


@dataclass(frozen=True)
class Plan:
    """How a batch is computed: its first `start` tokens once, then those that the rows of a group share, then the rest of each row."""

    start: int
    groups: list[list[int]]
    """Rows by number."""
    ends: list[int]
    """How many first tokens the rows of each group share, `start` at least."""

    def cost(self, lengths: list[int]) -> int:
        """Tokens to compute, padding included."""
        middle = (max(self.ends) - self.start) * len(self.groups)
        rest = max(lengths[i] - end for rows, end in zip(self.groups, self.ends, strict=True) for i in rows)
        return self.start + middle + rest * len(lengths)


def plan(rows: list[list[int]]) -> Plan | None:
    """The cheapest way to compute rows of token ids; None where sharing saves less than a tenth. Every row keeps its last token."""
    start, found = min(shared(min(rows), max(rows)), min(map(len, rows)) - 1), list[tuple[int, list[int]]]()
    for i in sorted(range(len(rows)), key=rows.__getitem__):
        end, members = found[-1] if found else (0, [])
        common = min(end, shared(rows[members[0]], rows[i]), len(rows[i]) - 1) if members else 0
        if (common - start) * len(members) > (end - start) * (
            len(members) - 1
        ):  # the larger group saves more tokens
            found[-1] = (common, [*members, i])
        else:
            found.append((len(rows[i]) - 1, [i]))
    lengths = [len(row) for row in rows]
    groups, ends = (
        [members for _, members in found],
        [end if len(members) > 1 else start for end, members in found],
    )
    plans = [Plan(start, [list(range(len(rows)))], [start])]
    # One long beginning pads all others: how far the groups go at most is tried out.
    plans += [Plan(start, groups, [min(end, most) for end in ends]) for most in sorted(set(ends))]
    best = min(plans, key=lambda p: p.cost(lengths))
    return best if best.cost(lengths) <= 0.9 * max(lengths) * len(rows) else None


DECODERS = ("llama", "qwen2", "qwen3")
"""Model types whose decoder does nothing but look back, in every layer, at all that came before."""


def share(model: Any) -> None:
    """Let a model's decoder compute shared beginnings once, in training and evaluation; not in generation, not with gradient checkpointing.

    A model of another type than `DECODERS` stays as it is.
    """
    if model.config.model_type in DECODERS and not getattr(model.config, "use_sliding_window", False):
        decoder = model.get_decoder()
        decoder.forward = types.MethodType(
            _forward, decoder
        )  # bound, so that a deep copy of the model computes with its own weights


def _forward(
    self: Any, input_ids: Any = None, attention_mask: Any = None, use_cache: Any = None, **kwargs: Any
) -> Any:
    """The decoder's forward; of a plain padded batch, what rows share is computed once."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    own = types.MethodType(type(self).forward, self)
    others = any(value is not None and value is not False for value in kwargs.values())
    if (
        input_ids is not None
        and attention_mask is not None
        and not (use_cache or others or self.gradient_checkpointing)
    ):
        rows = [ids[seen].tolist() for ids, seen in zip(input_ids, attention_mask.bool(), strict=True)]
        if how := plan(rows) if len(rows) > 1 and min(map(len, rows)) else None:
            return BaseModelOutputWithPast(last_hidden_state=_computed(own, rows, how, attention_mask))
    return own(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **kwargs)


class Pass:
    """A batch that is computed part by part on one cache: `ids` and `seen` (rows, tokens) are what it holds, and which of them count."""

    def __init__(self, forward: Any) -> None:
        import torch

        self.forward, self.count = forward, 0
        self.cache: Any = None
        self.hidden: list[Any] = []
        self.ids = self.seen = torch.ones(1, 0, dtype=torch.long)

    def compute(self, parts: list[list[int]], left: bool) -> list[list[int]]:
        """The next tokens of each row of the cache, padded on the left or the right; returns where their hidden states lie."""
        import torch

        width = max(map(len, parts))
        gaps = [width - len(part) for part in parts]

        def padded(rows: list[list[int]]) -> Any:
            return torch.tensor(
                [[0] * gap * left + row + [0] * gap * (not left) for row, gap in zip(rows, gaps, strict=True)]
            )

        ids = padded(parts)
        self.ids, self.seen = (
            torch.cat([self.ids, ids], 1),
            torch.cat([self.seen, padded([[1] * len(part) for part in parts])], 1),
        )
        positions = (self.seen.cumsum(1) - 1).clamp(min=0)[:, -width:]
        given = {
            "attention_mask": self.seen,
            "position_ids": positions,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        out = self.forward(input_ids=ids, **given)
        self.cache = out.past_key_values
        self.hidden.append(out.last_hidden_state.flatten(0, 1))
        first = [self.count + i * width + gap * left for i, gap in enumerate(gaps)]
        self.count += len(parts) * width
        return [list(range(a, a + len(part))) for a, part in zip(first, parts, strict=True)]

    def take(self, parents: list[int]) -> None:
        """Go on from these rows of the cache, each as often as it is named."""
        import torch

        index = torch.tensor(parents)
        self.ids, self.seen = self.ids[index], self.seen[index]
        if self.cache and not torch.is_grad_enabled():
            self.cache.batch_select_indices(index)  # layers of every kind
            return
        for layer in (
            self.cache.layers if self.cache else ()
        ):  # index_select, whose gradient is the faster one
            layer.keys, layer.values = layer.keys.index_select(0, index), layer.values.index_select(0, index)


def _computed(forward: Any, rows: list[list[int]], how: Plan, attention_mask: Any) -> Any:
    """Hidden states (rows, length, size) as the decoder gives them without sharing; those of padding are another token's."""
    import torch

    work, at = Pass(forward), [list[int]() for _ in rows]
    if how.start:
        common = work.compute([rows[0][: how.start]], left=False)[0]
        at = [list(common) for _ in rows]
    work.take([0] * len(how.groups))
    if max(how.ends) > how.start:
        parts = [rows[members[0]][how.start : end] for members, end in zip(how.groups, how.ends, strict=True)]
        for members, where in zip(how.groups, work.compute(parts, left=True), strict=True):
            for i in members:
                at[i] += where
    group = {i: g for g, members in enumerate(how.groups) for i in members}
    work.take([group[i] for i in range(len(rows))])
    for i, where in enumerate(work.compute([row[len(at[i]) :] for i, row in enumerate(rows)], left=False)):
        at[i] += where
    index = torch.zeros(attention_mask.shape, dtype=torch.long)
    for i, real in enumerate(attention_mask.bool()):
        index[i, real] = torch.tensor(at[i])
    return torch.cat(work.hidden)[index]
