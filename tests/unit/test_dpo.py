"""DPO starts from its own reference, warns, and leaves no `ref` behind."""

from __future__ import annotations

import pytest
from dpo_run import log

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import write_json
from tunebook.training.callbacks import WINDOW, unhealthy
from tunebook.training.dpo import dpo_rows, dpo_stage


def test_pairs_that_are_missing_are_called_missing():
    """By the notebook, which reads the rows first, as by the command, which asks for the stage."""
    recipe = load_recipe()
    for name in ("sft", "pairs"):
        (recipe.run_dir / name).mkdir(parents=True)
    write_json(recipe.run_dir / "sft" / "stage.json", {"key": "k"})
    for look in (dpo_rows, dpo_stage):
        with pytest.raises(UserError, match="pairs holds no finished result: run `uv run tunebook pairs"):
            look(recipe)
    write_json(recipe.run_dir / "pairs" / "stage.json", {"key": "another"})
    with pytest.raises(UserError, match="are of other settings"):
        dpo_rows(recipe)


def test_what_goes_wrong_is_named_with_its_mend():
    healthy = [log(i) for i in range(4 * WINDOW)]
    assert unhealthy(healthy, 0.1) == []
    assert (
        unhealthy([log(i, rewards__chosen=-9.0) for i in range(WINDOW - 1)], 0.1) == []
    )  # too early to tell
    (falls,) = unhealthy([*healthy, *(log(i, rewards__chosen=-0.3) for i in range(WINDOW))], 0.1)
    assert (
        falls.startswith("logps/chosen falls")
        and "dpo.learning_rate" in falls
        and "dpo.loss_weights" in falls
    )
    assert (
        unhealthy([*healthy, *(log(i, rewards__chosen=-0.3) for i in range(WINDOW))], 1.0) == []
    )  # a third of a nat
    (rises,) = unhealthy([*healthy, *(log(i, loss=0.9) for i in range(WINDOW))], 0.1)
    assert rises.startswith("the loss rises")
    (idle,) = unhealthy([log(i, rewards__accuracies=0.4) for i in range(4 * WINDOW)], 0.1)
    assert idle.startswith("rewards/accuracies stay")
