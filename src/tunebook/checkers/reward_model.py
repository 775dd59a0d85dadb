"""A reward model as a checker: a sequence classifier with one output, by hub id or folder."""

from __future__ import annotations

import functools
from typing import Any

from tunebook.checkers.judge import conversation_text
from tunebook.checkers.python import scores_of
from tunebook.checkers.texts import Scores, text_of
from tunebook.models import hub
from tunebook.recipe.errors import UserError, first_line, shorten
from tunebook.recipe.sections import CheckerConfig

BATCH = 16


def reward_model(config: CheckerConfig, prompts: list[Any], completions: list[Any], **_: Any) -> Scores:
    """The classifier's output for each answer: through a sigmoid, or as it is (`as_given`).

    Raises UserError when it cannot be loaded, and for an output outside 0 to 1 that is to be taken as given.
    """
    import torch

    path = str(config.find_path(str(config.model)))
    model, tokenizer = _load(path)
    rewards: list[float] = []
    for start in range(0, len(completions), BATCH):
        stop = start + BATCH
        inputs = _encode(tokenizer, prompts[start:stop], completions[start:stop])
        with torch.inference_mode():
            outputs = model(**inputs.to(model.device)).logits[:, 0].float()
        if not config.as_given:
            outputs = outputs.sigmoid()
        rewards += outputs.tolist()
    try:
        return scores_of(rewards, len(completions))
    except UserError as error:
        raise UserError(f"check: {config.model} {error}; leave out `as_given` for a sigmoid") from None


def _encode(tokenizer: Any, prompts: list[Any], completions: list[Any]) -> Any:
    """Conversations by the classifier's chat template; without one, question and answer as two texts."""
    options = {"padding": True, "truncation": True, "return_tensors": "pt"}
    if tokenizer.chat_template:
        texts = []
        for prompt, completion in zip(prompts, completions, strict=True):
            answer = {"role": "assistant", "content": text_of(completion)}
            texts.append(tokenizer.apply_chat_template([*prompt, answer], tokenize=False))
        return tokenizer(texts, add_special_tokens=False, **options)
    questions = [conversation_text(prompt) for prompt in prompts]
    return tokenizer(questions, list(map(text_of, completions)), **options)


@functools.cache
def _load(path: str) -> tuple[Any, Any]:
    """The classifier and its tokenizer, loaded once. Raises UserError."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    hub.use_if_reachable()
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = shorten(first_line(error), 200)
        raise UserError(f"check: the reward model {path} cannot be loaded: {reason}") from None
    # A language model would get a head of random numbers.
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"check: {path} is no sequence classifier: its weights have no {missing}")
    if model.config.num_labels != 1:
        raise UserError(f"check: {path} has {model.config.num_labels} outputs, a reward model has one")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
