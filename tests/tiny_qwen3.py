"""A random qwen3 that is as bare as a base model, for the tests of two processes and of faults."""

from __future__ import annotations

import sys
from pathlib import Path


def build(path: Path, tokenizer: Path, scale: float = 1.0) -> None:
    """Write it with this folder's tokenizer, which loses its chat template, and in which `<|endoftext|>` ends. With embeddings (and so
    logits) of a larger `scale` it can become sure of something."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(vocab_size=49152, **sizes, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model = Qwen3ForCausalLM(config)
    model.get_input_embeddings().weight.data.mul_(scale)
    model.save_pretrained(path)
    bare = AutoTokenizer.from_pretrained(tokenizer)
    bare.eos_token, bare.chat_template = "<|endoftext|>", None
    bare.save_pretrained(path)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
