"""Tiny text models of random weights with the embedded model's tokenizer.

python tests/helpers/tiny_text.py llama|qwen3 FOLDER TOKENIZER [SCALE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def llama(path: Path, tokenizer: Path) -> None:
    """Write one to `path`, with the tokenizer of another folder."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokens = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    _save(
        LlamaForCausalLM,
        LlamaConfig(**SIZES, **tokens, tie_word_embeddings=True, initializer_range=0.1),
        path,
    )
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(path)


def qwen3(path: Path, tokenizer: Path, scale: float = 1.0, untrained: bool = False) -> None:
    """Write one that is as bare as a base model: no chat template, `<|endoftext|>` ends.

    With embeddings (and so logits) of a larger `scale` it can become sure of something. `untrained`: the
    control tokens but the end have rows that are small and nearly the same, as in a real base model.
    """
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    _save(
        Qwen3ForCausalLM,
        Qwen3Config(**SIZES, **tokens, head_dim=16, tie_word_embeddings=True),
        path,
        scale,
        unused=range(1, 17) if untrained else range(0),
    )
    bare = AutoTokenizer.from_pretrained(tokenizer)
    bare.eos_token, bare.chat_template = "<|endoftext|>", None
    bare.save_pretrained(path)


def _save(kind: Any, config: Any, path: Path, scale: float = 1.0, unused: range = range(0)) -> None:
    import torch

    torch.manual_seed(0)
    model = kind(config)
    rows = model.get_input_embeddings().weight.data
    rows.mul_(scale)
    if unused:
        same = rows[unused[0]] / 4
        noise = 0.01 * same.std() * torch.randn(len(unused), len(same))
        rows[unused.start : unused.stop] = same + noise
        # Made as padding, the end's row is 0, and no answer could come to it.
        rows[0] = scale * config.initializer_range * torch.randn(len(same))
    model.save_pretrained(path)


if __name__ == "__main__":
    {"llama": llama, "qwen3": qwen3}[sys.argv[1]](
        Path(sys.argv[2]), Path(sys.argv[3]), *map(float, sys.argv[4:])
    )
