"""A reward model as a checker."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_text import SIZES

from tunebook.checkers.check import Check
from tunebook.recipe.errors import UserError
from tunebook.recipe.layers import whole_check
from tunebook.recipe.sections import CheckConfig

ROW = {"source_id": "my.csv:3", "prompt": [{"role": "user", "content": "Where is the tower?"}], "gold": None}


def opened(value, folder: Path) -> Check:
    config = CheckConfig.model_validate(whole_check(value))
    config.place([str(folder)])
    return Check(config)


def test_a_reward_model_scores_answers_as_it_does_by_itself(tmp_path, embedded):
    """A tiny classifier of random weights: by value, alone and in batches, through a sigmoid or as given."""
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
    )

    from tunebook.checkers import reward_model

    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, num_labels=1, pad_token_id=2, initializer_range=0.5)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "rewards")
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokenizer.save_pretrained(tmp_path / "rewards")
    texts = ["Yes.", "It is Paris, as everybody knows.", "no"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rewards")
    expected = []
    for text in texts:  # alone and without padding
        messages = [*ROW["prompt"], {"role": "assistant", "content": text}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt")
        with torch.inference_mode():
            expected.append(float(model(**ids).logits[0, 0]))
    wanted = [1 / (1 + math.exp(-value)) for value in expected]
    assert len({round(value, 2) for value in wanted}) == 3

    check = opened({"name": "reward_model", "model": "rewards"}, tmp_path)
    assert check.threshold == 0.5 and check.is_graded and check.can_judge(ROW)
    for text, score in zip(texts, wanted, strict=True):
        judgement = check.judge(ROW, text)
        assert judgement.score == pytest.approx(score, abs=1e-4)
        assert judgement.correct is (score >= 0.5)
    # Answers that come together are scored together, and not again one by one.
    check = opened({"name": "reward_model", "model": "rewards"}, tmp_path)
    check.score_together([(ROW, text) for text in texts])
    assert check.calls == 0
    for text, score in zip(texts, wanted, strict=True):
        assert check.judge(ROW, text).score == pytest.approx(score, abs=1e-4)
    # As given, an output outside 0 to 1 is refused.
    check = opened({"name": "reward_model", "model": "rewards", "as_given": True}, tmp_path)
    outside = next(text for text, value in zip(texts, expected, strict=True) if not 0 <= value <= 1)
    with pytest.raises(UserError, match=r"check: rewards returned .*, scores are from 0 to 1"):
        check.judge(ROW, outside)

    # What is no reward model is one line: a language model, pickled weights, several outputs.
    LlamaForCausalLM(config).save_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(
        UserError, match=r"words is no sequence classifier: its weights have no score\.weight"
    ):
        opened({"name": "reward_model", "model": "words"}, tmp_path).judge(ROW, "x")
    (tmp_path / "pickled").mkdir()
    config.save_pretrained(tmp_path / "pickled")
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"the reward model .*pickled cannot be loaded"):
        opened({"name": "reward_model", "model": "pickled"}, tmp_path).judge(ROW, "x")
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "three")
    tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="has 3 outputs, a reward model has one"):
        opened({"name": "reward_model", "model": "three"}, tmp_path).judge(ROW, "x")
    reward_model._load.cache_clear()
