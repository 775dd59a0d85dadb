"""What a command loads: what trains nothing pays for no PyTorch and no Unsloth.

Asked in a fresh process, of `sys.modules`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

HEAVY = (
    "unsloth",
    "torch",
    "trl",
    "peft",
    "transformers",
    "datasets",
    "pandas",
    "scipy",
    "matplotlib",
    "papermill",
    "openai",
    "pyarrow",
)


def loaded(code: str, **env: str) -> set[str]:
    """Which of HEAVY are loaded after the code has run in a process of its own."""
    ask = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if sys.modules.get(name)]))"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code) + ask],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_line_and_mistakes_load_nothing_heavy():
    code = """
        from tunebook import cli
        from tunebook.recipe.errors import UserError
        from tunebook.recipe.loading import load_recipe
        try:
            load_recipe(overrides={"sft.learning_rat": 1})
        except UserError as error:
            assert "learning_rate" in str(error)
        else:
            raise AssertionError
        load_recipe()
    """
    assert loaded(code) == set()


def test_stages_that_train_nothing_load_neither_torch_nor_unsloth(embedded, tmp_path):
    """Data, pairs of an existing set, a dry run of cleaning, the report, an evaluation that is up to date."""
    code = """
        import json
        import sys
        from tunebook.recipe.files import ROOT
        from tunebook.recipe.loading import load_recipe
        from tunebook.recipe.sections import CleanConfig
        from tunebook.data.prepare import prepare, show
        from tunebook.evaluation.evaluate import eval_stage, evaluate
        from tunebook.evaluation.items import summarise
        from tunebook.evaluation.tables import show as show_results
        from tunebook.checkers.maths import verifier
        recipe = load_recipe("smollm2-alpaca", overrides={"evaluate.benchmarks.data": None})
        show(prepare(recipe))
        show(prepare(recipe))
        stage = eval_stage(recipe, "base")
        with stage.open() as folder:
            answer = {"index": 0, "correct": True, "how": "boxed", "slice": ""}
            answer |= {"truncated": False, "tokens": 1}
            (folder / "predictions.jsonl").write_text(json.dumps(answer) + chr(10))
            stage.record = {"summary": summarise([answer]), "verifier": verifier()}
        show_results(recipe, evaluate(recipe))
        assert not {"torch", "unsloth", "transformers", "datasets"} & set(sys.modules), "before pairs"
        from tunebook.pairs.pairs import pairs
        assert pairs(recipe)["strategies"] == {"dataset": 60}
        from tunebook.data import clean
        source = str(ROOT / "resources" / "sample" / "questions.jsonl")
        recipe.clean = CleanConfig(source=source, solution="answer", answer="answer")
        assert clean.estimate(recipe)["rows"] == 60
        from tunebook.evaluation.report import write
        write(recipe.run_dir)
    """
    assert not loaded(code) & {"unsloth", "torch", "trl", "peft", "transformers"}
