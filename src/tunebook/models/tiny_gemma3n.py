"""`tiny-gemma3n`: Gemma 3n's real architecture, processor and chat format, with random weights.

Small enough to train on a laptop. It knows nothing: it shows that the whole chain works with images on this
machine before a real model is downloaded. Its sizes lie beside this file in `tiny_gemma3n.json`, its chat
template in `tiny_gemma3n.jinja`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from school_geometry import problems

IMAGE_SIZE = 96
"""Pixels that the vision tower sees of each side (Gemma 3n: 768)."""

WORDS = 900
"""Tokens of text. Eight tokens for images and eight for audio follow, in blocks of their own."""

SPECIAL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<start_of_audio>",
]
"""The first tokens, in the order of Gemma's."""

NAMED = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "audio_token": "<audio_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
}
"""Under which attribute the processor looks for each token."""


def build(folder: Path) -> None:
    """Write model and processor (4 million parameters, 16 MB) to a folder."""
    import torch
    from transformers import (
        Gemma3nAudioFeatureExtractor,
        Gemma3nConfig,
        Gemma3nForConditionalGeneration,
        Gemma3nProcessor,
        SiglipImageProcessor,
    )

    config = Gemma3nConfig(**json.loads(_beside("json")))
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    model = Gemma3nForConditionalGeneration(config).float()
    with torch.no_grad():
        # At the usual 0.02 the tied head keeps the logits near 1, and the loss near ln(vocabulary).
        model.get_input_embeddings().weight[1:].normal_(0, 0.3)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor = Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(feature_size=32),
        tokenizer=tokenizer,
        chat_template=_beside("jinja"),
        image_processor=SiglipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_normalize=False
        ),
        image_seq_length=config.vision_soft_tokens_per_image,
    )
    processor.save_pretrained(folder)


def _tokenizer() -> Any:
    """Gemma's kind of tokenizer: byte-pair encoding with byte fallback, trained on school geometry."""
    from tokenizers import Tokenizer, models, normalizers, trainers
    from transformers import GemmaTokenizer

    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106 - no secret
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, max_token_length=8, show_progress=False, special_tokens=SPECIAL + byte_tokens
    )
    bpe.train_from_iterator(_corpus(), trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocab = trained["vocab"]
    # As in Gemma 3n each kind of input has a block of its own; most of a block stands for nothing here.
    blocks = {"v": ["<end_of_image>", "<image_soft_token>"], "a": ["<end_of_audio>", "<audio_soft_token>"]}
    for letter, named in blocks.items():
        for token in [*named, *(f"<{letter}{i}>" for i in range(6))]:
            vocab[token] = len(vocab)
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in trained["merges"]],
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens=NAMED,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer


def _corpus() -> Iterator[str]:
    for problem in problems.problems("train", 600, 0):
        yield problem.question
        yield problem.solution


def _beside(suffix: str) -> str:
    return Path(__file__).with_suffix(f".{suffix}").read_text(encoding="utf-8")
