"""Without a network: said at once, and nothing that is slow to import is asked first."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from tunebook.models import hub
from tunebook.models.tokenizer import load_tokenizer
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def test_a_model_that_cannot_be_had_is_refused_before_transformers_is_imported(monkeypatch, tmp_path):
    """Here, importing transformers fails a test; it took most of a minute to find out what was known."""
    config = load_recipe("qwen3-4b-instruct").model
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is not on this disk, and HF_HUB_OFFLINE=1 forbids fetching it"):
        load_tokenizer(config)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(UserError, match=r"is not on this disk, and https://.* cannot be reached: try again"):
        load_tokenizer(config)


def test_a_model_of_which_something_is_on_this_disk_is_not_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "models--user--model" / "snapshots").mkdir(parents=True)
    hub.refuse_absent("user/model")
    hub.refuse_absent("no hub id: others say so")
