"""Train the tokenizer of `tiny-gemma3n`: src/tunebook/models/tiny_gemma3n/tokenizer.json.

    uv run python scripts/train_tiny_tokenizer.py

Gemma's kind of tokenizer, byte-pair encoding with byte fallback, trained on school geometry.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import GemmaTokenizer

from school_geometry import problems

OUT = Path(__file__).parents[1] / "src" / "tunebook" / "models" / "tiny_gemma3n" / "tokenizer.json"

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


def main() -> None:
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, max_token_length=8, show_progress=False, special_tokens=SPECIAL + byte_tokens
    )
    bpe.train_from_iterator(corpus(), trainer)
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
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        content = json.loads((Path(folder) / "tokenizer.json").read_text())
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    OUT.write_text(text + "\n")


def corpus() -> Iterator[str]:
    for problem in problems.problems("train", 600, 0):
        yield problem.question
        yield problem.solution


if __name__ == "__main__":
    main()
