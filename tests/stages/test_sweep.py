"""Six settings on a tiny model: the data is made once; a sweep that was killed goes on where it was."""

from __future__ import annotations

import pytest

from tunebook.runs.files import read_json
from tunebook.sweep import sweep
from tunebook.training import arguments, end_token

GRID = ["sft.learning_rate=1e-3,5e-3,1e-2", "lora.r=4,8"]


def test_six_settings_make_the_data_once_and_go_on_after_a_kill(tiny_recipe, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    class Cut(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(end_token, "ANSWERED", 1)
    keys = {
        "stages": ["sft"],
        "sft.max_steps": 4,
        "sft.save_steps": 2,
        "sft.eval_strategy": "no",
        "evaluate.max_new_tokens": 4,
        "data.sources": [{"format": "geometry", "train": 16, "val": 9, "test": 9}],
    }

    def runs():
        return sorted(path for path in (tmp_path / "runs").iterdir() if (path / "data").exists())

    # 1) killed in the third of six trainings
    trained = iter([1, 2])
    whole = arguments.metrics_file
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(arguments, "metrics_file", lambda path: whole(path) if next(trained, 0) else Cut())
        sweep(str(tiny_recipe), GRID, "s", keys)
    assert len(runs()) == 3 and not (tmp_path / "runs" / "s").exists()
    first = {run.name: read_json(run / "sft" / "stage.json") for run in runs()[:2]}
    assert all(first.values())

    # 2) the same command: what is finished stays, the third goes on from its checkpoint
    text = sweep(str(tiny_recipe), GRID, "s", keys)
    records = {run.name: read_json(run / "sft" / "stage.json") for run in runs()}
    assert len(records) == 6
    for name, record in first.items():
        assert records[name]["ended"] == record["ended"]
    resumed = [record["metrics"]["resumed_at_step"] for record in records.values()]
    assert sorted(resumed, key=str) == [2, None, None, None, None, None]

    # 3) made once: the rows, and what the base model answers
    for stage, file in (("data", "train.parquet"), ("eval/base", "predictions.jsonl")):
        assert len({(run / stage / file).stat().st_ino for run in runs()}) == 1
    settings = {
        (record["settings"]["sft"]["learning_rate"], record["settings"]["lora"]["r"])
        for record in records.values()
    }
    assert settings == {(rate, r) for rate in (1e-3, 5e-3, 1e-2) for r in (4, 8)}

    # 4) random answers of a tiny model: nothing is shown, on val and not on test
    result = read_json(tmp_path / "runs" / "s" / "sweep.json")
    assert result["n"] == 9 and len(result["rivals"]) == 5 and result["failed"] == {}
    assert text.startswith("No setting is shown to be the best.") and text.count("may be as good |") == 5
    assert (tmp_path / "runs" / "s" / "sweep.png").stat().st_size > 5000
    assert read_json(runs()[0] / "eval" / "summary.json")["split"] == "val"
