"""DPO's control: which models there are, what is compared, and what it is trained on."""

from __future__ import annotations

from tunebook.evaluation.report import _headline
from tunebook.evaluation.statistics import compared_steps, pairs_of_models
from tunebook.recipe.loading import load_recipe
from tunebook.runs.stages import STAGES, asked_for, model_names, parse_name, trained_models, training_behind
from tunebook.training.dpo import likelihood_alone


def test_the_control_is_a_model_before_dpo_and_no_round_of_it(tmp_path):
    recipe = load_recipe()
    assert model_names(recipe) == ["base", "sft", "dpo"]
    asked = load_recipe(overrides={"dpo.control": True})
    assert model_names(asked) == ["base", "sft", "dpo-control", "dpo"]
    assert asked_for(asked, STAGES["dpo-control"]) and not asked_for(recipe, STAGES["dpo-control"])
    sft_alone = load_recipe(overrides={"dpo.control": True, "stages": ["sft"]})
    assert not asked_for(sft_alone, STAGES["dpo-control"])
    parsed = parse_name("dpo-control")
    assert (parsed.spec.name, parsed.round) == ("dpo-control", 1)
    assert parse_name("eval/dpo-control").inside == ("dpo-control",)
    assert parse_name("dpo-2").round == 2 and parse_name("dpo-x") is None
    # Trained once, it stays a model; the newest model is still DPO's.
    for name in ("sft", "dpo-control", "dpo"):
        (recipe.run_dir / name / "adapter").mkdir(parents=True)
    assert trained_models(recipe) == ["base", "sft", "dpo-control", "dpo"]
    assert training_behind("dpo-control") == ["sft", "dpo-control"]


def test_its_loss_sees_no_rejected_answer_and_all_else_is_dpos():
    recipe = load_recipe(
        overrides={"dpo.label_smoothing": 0.1, "dpo.loss_type": ["robust"], "dpo.loss_weights": None}
    )
    control = likelihood_alone(recipe)
    assert control.dpo["loss_type"] == ["sft"]
    assert not {"loss_weights", "label_smoothing"} & control.dpo.keys()
    same = recipe.dpo.keys() - {"loss_type", "loss_weights", "label_smoothing"}
    assert same and all(control.dpo[key] == recipe.dpo[key] for key in same)
    assert recipe.dpo["loss_type"] == ["robust"]


def test_what_preference_added_is_dpo_against_the_control():
    names = ["base", "sft", "dpo-control", "dpo"]
    chain = [("base", "sft"), ("sft", "dpo"), ("base", "dpo")]
    assert pairs_of_models(["base", "sft", "dpo"]) == chain
    assert pairs_of_models(names) == [*chain, ("sft", "dpo-control"), ("dpo-control", "dpo")]
    assert pairs_of_models(["base", "dpo-control", "dpo", "dpo-2"])[-2:] == [
        ("base", "dpo-control"),
        ("dpo-control", "dpo"),
    ]
    right = {"base": 0, "sft": 10, "dpo-control": 20, "dpo": 32}
    scores = {name: {i: float(i < count) for i in range(40)} for name, count in right.items()}
    (compared,) = [row for row in compared_steps(scores) if row["first"] == "dpo-control"]
    assert (compared["won"], compared["lost"], compared["difference"]) == (12, 0, 0.3)
    stages = {"dpo": {"recipe": {"model": {"base": "m"}, "name": "r", "seed": 0}}}
    said = _headline(stages, {"comparisons": [compared]})
    assert "What preference added to likelihood (dpo against dpo-control): better" in said


def test_the_step_of_dpo_is_done_when_its_control_is_too(tmp_path, monkeypatch):
    from tunebook import pipeline
    from tunebook.runs.stages import steps

    monkeypatch.setattr("tunebook.training.dpo.finished_key", lambda recipe, name: name)
    recipe = load_recipe(overrides={"dpo.control": True})
    filled = pipeline.folders(steps(recipe)["dpo"], recipe)
    assert [stage.name for stage in filled] == ["dpo", "dpo-control"]
    assert filled[0].key == pipeline.folders(steps(load_recipe())["dpo"], load_recipe())[0].key
    assert filled[0].key != filled[1].key
    rounds = load_recipe(overrides={"dpo.control": True, "pairs.rounds": 2})
    assert [stage.name for stage in pipeline.folders(steps(rounds)["dpo-2"], rounds)] == ["dpo-2"]
