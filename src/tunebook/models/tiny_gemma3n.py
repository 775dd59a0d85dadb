"""`tiny-gemma3n`: Gemma 3n's real architecture, processor and chat format with random weights, small enough to train on a laptop.

It knows nothing: it shows that the whole chain works with images on this machine before a real model is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from school_geometry import problems

IMAGE_SIZE = 96
"""Pixels that the vision tower sees of each side (Gemma 3n: 768)."""


SOFT_TOKENS = 16
"""Tokens that an image becomes (Gemma 3n: 256); the square of the vision tower's last resolution."""


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


TEMPLATE = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = (messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text']) + '\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' + (first if loop.first else '') }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<image_soft_token>' }}{% elif p['type'] == 'text' %}{{ p['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""As Gemma's: the system message opens the first user turn."""


def build(out: Path, corpus: Iterable[str] | None = None, seed: int = 0) -> None:
    """Write model and processor (4 million parameters, 16 MB) to the folder `out`; the tokenizer is trained on `corpus`, by default
    on the project's own problems."""
    import torch
    from transformers import (
        Gemma3nAudioFeatureExtractor,
        Gemma3nForConditionalGeneration,
        Gemma3nProcessor,
        SiglipImageProcessor,
    )

    if corpus is None:
        corpus = (text for p in problems.problems("train", 600, 0) for text in (p.question, p.solution))
    tokenizer, words = _tokenizer(corpus)
    torch.manual_seed(seed)
    model = Gemma3nForConditionalGeneration(_config(tokenizer.convert_tokens_to_ids, words)).float()
    with (
        torch.no_grad()
    ):  # at the usual 0.02 the tied head keeps the logits near 1, and the loss near ln(vocabulary)
        model.get_input_embeddings().weight[1:].normal_(0, 0.3)
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model.generation_config.pad_token_id = 0
    model.save_pretrained(out)
    Gemma3nProcessor(
        feature_extractor=Gemma3nAudioFeatureExtractor(feature_size=32),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        image_processor=SiglipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_normalize=False
        ),
        image_seq_length=SOFT_TOKENS,
    ).save_pretrained(out)


def _tokenizer(corpus: Iterable[str]) -> tuple[Any, int]:
    """Gemma's kind of tokenizer and the size of its text part; image and audio tokens follow it in blocks of their own."""
    from tokenizers import Tokenizer, models, normalizers, trainers
    from transformers import GemmaTokenizer

    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106 - a token of text
    bpe.normalizer = normalizers.Replace(" ", "\u2581")
    special = SPECIAL + [f"<0x{i:02X}>" for i in range(256)]
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=900, max_token_length=8, show_progress=False, special_tokens=special),
    )
    trained = json.loads(bpe.to_str())["model"]
    vocab = trained["vocab"]
    words = len(vocab)
    for token in ["<end_of_image>", "<image_soft_token>", *(f"<v{i}>" for i in range(6))]:
        vocab[token] = len(vocab)
    for token in ["<end_of_audio>", "<audio_soft_token>", *(f"<a{i}>" for i in range(6))]:
        vocab[token] = len(vocab)
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    named |= {
        "audio_token": "<audio_soft_token>",
        "boa_token": "<start_of_audio>",
        "eoa_token": "<end_of_audio>",
    }
    tokenizer = GemmaTokenizer(
        vocab=vocab,
        merges=[tuple(m) for m in trained["merges"]],
        padding_side="left",
        model_max_length=1024,
        extra_special_tokens=named,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    return tokenizer, words


def _config(token_id: Any, words: int) -> Any:
    from transformers import Gemma3nAudioConfig, Gemma3nConfig, Gemma3nTextConfig, Gemma3nVisionConfig

    text = Gemma3nTextConfig(
        vocab_size=words + 16,
        vocab_size_per_layer_input=words,
        hidden_size=64,
        intermediate_size=128,
        head_dim=16,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_kv_shared_layers=2,
        sliding_window=256,
        layer_types=["sliding_attention", "full_attention"] * 2,
        hidden_size_per_layer_input=16,
        laurel_rank=8,
        altup_num_inputs=2,
        activation_sparsity_pattern=[0.95, 0.0, 0.0, 0.0],
        max_position_embeddings=1024,
    )
    vision = Gemma3nVisionConfig(
        architecture="mobilenetv5_300m_enc",
        hidden_size=2048,  # timm's, whatever the width
        vocab_size=8,
        vocab_offset=words,
        model_args={"channel_multiplier": 0.03, "msfa_output_resolution": int(SOFT_TOKENS**0.5)},
    )
    audio = Gemma3nAudioConfig(
        vocab_size=8,
        vocab_offset=words + 8,
        hidden_size=32,
        input_feat_size=32,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=(8, 4),
    )
    return Gemma3nConfig(
        text_config=text,
        vision_config=vision,
        audio_config=audio,
        vision_soft_tokens_per_image=SOFT_TOKENS,
        boi_token_id=token_id("<start_of_image>"),
        eoi_token_id=token_id("<end_of_image>"),
        image_token_id=token_id("<image_soft_token>"),
        boa_token_id=token_id("<start_of_audio>"),
        eoa_token_id=token_id("<end_of_audio>"),
        audio_token_id=token_id("<audio_soft_token>"),
    )
