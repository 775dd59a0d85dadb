"""The README of an export says what the run recorded, and nothing else."""

from __future__ import annotations

import json
import shutil

import jinja2
import pytest
from templates import CHATML

from tunebook.data.prompts import trained_system
from tunebook.data.storage import write_parquet
from tunebook.export.modelcard import card
from tunebook.models.chat_template import default_system
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe

# As SmolLM2's: a conversation without a system message gets one.
WITH_DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are SmolLM<|im_end|>\n{% endif %}" + CHATML
)
WITHOUT_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception() }}{% endif %}" + CHATML
# As Gemma 3's: the system message opens the question.
IN_THE_QUESTION = "<user>{% for m in messages %}{{ m.content }}\n\n{% endfor %}</user>"


class Tokenizer:
    """Renders a chat template and does nothing else."""

    def __init__(self, template: str) -> None:
        self.template = jinja2.Template(template)

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return self.template.render(messages=messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize(
    ("template", "text"),
    [(WITH_DEFAULT, "You are SmolLM"), (CHATML, None), (WITHOUT_SYSTEM, None), (IN_THE_QUESTION, None)],
)
def test_the_system_message_that_a_template_adds_is_found(template, text):
    assert default_system(Tokenizer(template)) == text


@pytest.fixture
def recipe():
    """A recipe without a system prompt whose run has the recorded stages."""
    recipe = load_recipe(overrides={"data.system_prompt": None})
    (recipe.run_dir / "eval").mkdir(parents=True)
    shutil.copy(ROOT / "resources" / "smollm2-math" / "manifest.json", recipe.run_dir)
    return recipe


def test_the_card_names_the_system_message_of_the_template(recipe):
    text = card(recipe, "sft", "merged", "You are SmolLM")
    assert "no system prompt of its own. The chat template adds its default one:" in text
    assert "```text\nYou are SmolLM\n```" in text and "without a system prompt" not in text
    assert "with its chat template, without a system prompt." in card(recipe, "sft", "merged")


def test_the_system_message_of_the_rows_is_that_of_the_model(recipe):
    """As in OpenAI's files, where it stands in each row. Chat and Ollama ask with it too."""
    (recipe.run_dir / "data").mkdir()
    path = recipe.run_dir / "data" / "train.parquet"
    question = {"role": "user", "content": "Where is Lima?"}
    guide = [{"role": "system", "content": "You are a guide."}, question]
    clerk = [{"role": "system", "content": "You are a clerk."}, question]
    write_parquet([{"prompt": guide}] * 3, path, prompt="messages")
    assert trained_system(recipe) == "You are a guide."
    assert "this system prompt:\n\n```text\nYou are a guide.\n```" in card(recipe, "sft", "merged", "SmolLM")
    for rows in ([guide, clerk], [guide, [question]]):
        write_parquet([{"prompt": prompt} for prompt in rows], path, prompt="messages")
        assert trained_system(recipe) is None
        assert "with the several system prompts of its rows" in card(recipe, "sft", "merged", "SmolLM")
    write_parquet([{"prompt": [question]}], path, prompt="messages")
    assert trained_system(recipe) is None and "of its own" in card(recipe, "sft", "merged", "SmolLM")
    # What the recipe says comes first: `prepare` puts it before each question.
    assert trained_system(load_recipe()) == (ROOT / "prompt" / "system.txt").read_text().strip()


def test_the_card_of_dpo_alone_names_its_preference_set(recipe):
    path = recipe.run_dir / "manifest.json"
    stages = json.loads(path.read_text())["stages"]
    alone = {name: stages[name] for name in ("pairs", "dpo")}
    path.write_text(json.dumps({"run": "alone", "stages": alone}))
    recipe.data.sources = []
    recipe.pairs.dataset = "prefs.csv"
    text = card(recipe, "dpo", "adapter")
    assert "- Sources: prefs.csv.\n- DPO: 218 preference pairs" in text and "SFT: " not in text


def test_a_card_shows_the_loss_where_the_evaluation_was_by_loss(recipe):
    text = card(recipe, "sft", "merged")
    assert "This model has not been evaluated." in text and "nothing but the tasks above" not in text
    stages = {}
    for name, loss in (("base", 2.0), ("sft", 1.5)):
        interval = [loss - 0.1, loss + 0.1]
        stages[name] = {"n": 30, "loss": loss, "loss_interval": interval, "perplexity": 4.5, "answers": None}
    compared = {"first": "base", "second": "sft", "n": 30, "difference": -0.5, "interval": [-0.6, -0.4]}
    losses = [{**compared, "lower": 28, "higher": 2, "p": 1e-5}]
    summary = {"split": "test", "stages": stages, "comparisons": [], "losses": losses}
    (recipe.run_dir / "eval" / "summary.json").write_text(json.dumps(summary))
    text = card(recipe, "sft", "merged")
    assert "sft finds the 30 held-out answers likelier than base does" in text
    assert "| sft | 30 | 1.500 (1.400 to 1.600) |" in text and "a lower loss is better" in text
    assert "has not been evaluated" not in text and "greedy answers" not in text
    assert "nothing but the tasks above" in text
