"""DPO starts from its own reference, warns, and leaves no `ref` behind."""

from __future__ import annotations

import functools
import re

import pytest
from dpo_run import paired_run

from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


@pytest.fixture
def paired(tiny_recipe):
    """A function that makes such a run under a name."""
    return functools.partial(paired_run, tiny_recipe)


@pytest.mark.usefixtures("forked_kernels")
def test_the_pipeline_skips_what_is_done_and_stops_at_the_first_failure(paired, tiny_recipe, capsys):
    """Data, SFT and pairs are there: two notebooks run, then none, then one fails."""
    from tunebook import pipeline
    from tunebook.runs.files import read_json

    recipe = paired("chain")
    plan = pipeline.run(recipe, dry_run=True)
    assert plan == ["dpo", "evaluate"]
    assert not (recipe.run_dir / "notebooks").exists()
    assert pipeline.run(recipe) == plan
    assert sorted(p.stem for p in (recipe.run_dir / "notebooks").iterdir()) == ["04_dpo", "05_evaluate"]
    assert list(read_json(recipe.run_dir / "eval" / "summary.json")["stages"]) == ["base", "sft", "dpo"]
    assert re.search(
        r"^Minutes: dpo \d+\.\d \(\d+%\), evaluate \d+\.\d \(\d+%\), in all \d+\.\d$",
        capsys.readouterr().out,
        re.MULTILINE,
    )
    assert pipeline.run(recipe) == []
    assert capsys.readouterr().out.count("up to date") == 5
    changed = load_recipe(
        tiny_recipe,
        run="chain",
        overrides={k: v for k, (_, v) in recipe.overrides.items()}
        | {"dpo.loss_type": ["sigmoid", "sft"], "dpo.loss_weights": [1.0, 1.0], "dpo.use_weighting": True},
    )
    with pytest.raises(UserError, match=r"04_dpo\.ipynb, cell \d+: .*dpo\.use_weighting"):
        pipeline.run(changed)
    assert (recipe.run_dir / "dpo" / "adapter").exists()
    with pytest.raises(UserError, match="no step 'dop'"):
        pipeline.run(recipe, first="dop")
