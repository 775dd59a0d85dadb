"""The recipe: overrides, their order, and one clear line for every mistake."""

from __future__ import annotations

import inspect
import json

import pytest

from tunebook.generation.streaming import Drawing
from tunebook.recipe.errors import UserError
from tunebook.recipe.explain import SHORT
from tunebook.recipe.files import ROOT, find_file
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set

MISTAKES = [
    ("sft.lerning_rate=1", "unknown key sft.lerning_rate, did you mean learning_rate?"),
    ("lora.lora_alfa=3", "unknown key lora.lora_alfa, did you mean lora_alpha?"),
    ("dpo.bta=0.1", "unknown key dpo.bta, did you mean beta?"),
    ("data.sources.0.trian=3", "unknown key data.sources.0.trian, did you mean train?"),
    ("model.max_seq_len=9", "unknown key model.max_seq_len, did you mean max_seq_length?"),
    ("sft.learning_rate=fast", "sft.learning_rate: should be a valid number"),
    ("dpo.beta=high", "dpo.beta: should be a valid number"),
    ("model.dtype=int8", "model.dtype: should be 'bfloat16', 'float32' or 'float16'"),
    ("data.sources.4.train=3", "there is no item '4'; this list has 1"),
    ("model.base.x=3", "base is a value, not a section"),
    ("run=../x", "run: should be a folder name"),
    ("sft.output_dir=x", "unknown key sft.output_dir"),
]


def test_a_section_that_is_null_is_made_by_an_override(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: smollm2\nname: mine\njudge: null\ndata: {sources: [{path: my.csv}]}\nsft:\n")
    recipe = load_recipe(path, overrides=parse_set(["judge.model=some/judge", "sft.max_steps=3"]))
    assert recipe.judge.model == "some/judge" and recipe.sft["max_steps"] == 3


@pytest.mark.parametrize(("item", "message"), MISTAKES)
def test_a_mistake_names_the_nearest_key(item, message):
    with pytest.raises(UserError) as error:
        load_recipe(overrides=parse_set([item]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "smolm2-math"], "no recipe 'smolm2-math', did you mean smollm2-math?"),
        (
            ["--recipe", "configs/smollm2-meth.yaml"],
            "no file configs/smollm2-meth.yaml, did you mean configs/smollm2-math.yaml?",
        ),
        (["--set", "seed"], "write it as key=value"),
        (["--set", "sft.lerning_rate=1"], "did you mean learning_rate?"),
    ],
)
def test_command_line_mistakes_are_one_line_and_exit_2(run_cli, args, message):
    done = run_cli("sft", *args, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_that_is_no_recipe(tmp_path):
    for text, message in (
        ("a: [1", "not readable YAML"),
        ("- 1", "does not hold a recipe"),
        ("name: x", "model is missing"),
    ):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_recipe(path)


def test_numbers_as_people_write_them(tmp_path):
    for text in ("2e-4", "2.0e-4", "0.0002", "2E-4", '"2e-4"'):
        assert load_recipe(overrides=parse_set([f"sft.learning_rate={text}"])).sft["learning_rate"] == 2e-4
    assert load_recipe(stage="sft", lr="2e-4").sft["learning_rate"] == 2e-4  # papermill -y gives text
    assert load_recipe(overrides={"sft.packing": "false"}).sft["packing"] is False  # papermill -p gives text
    assert (
        load_recipe(overrides=parse_set(["sft.eval_strategy=no", "sft.packing=false"])).sft["eval_strategy"]
        == "no"
    )
    assert load_recipe(overrides={"dpo.loss_type": "ipo"}).dpo["loss_type"] == "ipo"
    assert load_recipe(overrides={"dpo.loss_type": ["sigmoid", "sft"]}).dpo["loss_type"] == ["sigmoid", "sft"]


def test_order_of_overrides(monkeypatch):
    assert load_recipe().sft["learning_rate"] == 1.5e-3
    monkeypatch.setenv("TUNEBOOK__SFT__LEARNING_RATE", "1e-4")
    assert load_recipe().sft["learning_rate"] == 1e-4
    assert load_recipe(overrides={"sft.learning_rate": 1e-5}).sft["learning_rate"] == 1e-5
    recipe = load_recipe(overrides={"sft.learning_rate": 1e-5}, stage="sft", lr=1e-6, epochs=None)
    assert recipe.sft["learning_rate"] == 1e-6
    assert recipe.overrides["sft.learning_rate"][1] == 1e-6
    assert "sft.learning_rate" in recipe.describe()
    assert "num_train_epochs" not in recipe.describe()


def test_run_folder(monkeypatch, tmp_path):
    assert load_recipe().run_dir.name == "smollm2-math"
    assert load_recipe(run="trial-2").run_dir == tmp_path / "runs" / "trial-2"
    monkeypatch.setenv("TUNEBOOK_RUN", "trial-3")
    assert load_recipe().run_dir.name == "trial-3"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_opens_with_its_command(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert (
        f"uv run tunebook sft{'' if recipe.name == 'smollm2-math' else ' --recipe ' + recipe.name}"
        in path.read_text()
    )


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebook_parameters_fit_the_recipe(path):
    import papermill  # here, because it takes seconds

    names = set(papermill.inspect_notebook(str(path)))
    stage_functions = {"force", "resume", "fresh", "round", "install_tools"}
    assert {"recipe", "run", "overrides"} <= names
    asking = (
        {"model", "question", "image", "compare_items", *Drawing.__dataclass_fields__}
        if path.stem == "inference"
        else set()
    )
    assert names - {"recipe", "run", "overrides", "seed", *SHORT, *stage_functions, *asking} == set()
    assert set(SHORT) & names <= set(SHORT)
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])
    source = "".join(
        "".join(cell["source"])
        for cell in notebook["cells"]
        if "parameters" not in cell["metadata"].get("tags", [])
    )
    for name in names:
        assert name in source, f"{name} is a parameter but never used"


def test_documented_fields():
    """Every field of a section of ours explains itself, in the class and so in the reference of the docs."""
    from tunebook.recipe import loading, sections

    for section in (
        sections.ModelConfig,
        sections.DataConfig,
        sections.EvaluateConfig,
        sections.ExportConfig,
        sections.OwnAnswersConfig,
        sections.GeometrySource,
        sections.InstructionsSource,
        sections.ChatSource,
    ):
        for name, field in section.model_fields.items():
            assert field.description or name in ("format", "max_new_tokens", "load_in_4bit", "val", "test"), (
                section,
                name,
            )
    assert inspect.getdoc(loading.load_recipe)


SAID_OURSELVES = [
    (
        "sft.max_seq_length=45",
        "unknown key sft.max_seq_length: the length is set once, in model.max_seq_length",
    ),
    ("dpo.max_prompt_length=45", "the length is set once, in model.max_seq_length"),
    ("sft.warmup_ratio=0.1", "it is warmup_steps now; a value below 1 is a share of all steps"),
    ("dpo.rpo_alpha=1", "it is loss_type: [sigmoid, sft] with loss_weights: [1.0, alpha] now"),
    ("sft.evaluation_strategy=no", "it is eval_strategy now"),
    ("sft.group_by_length=true", "it is train_sampling_strategy: group_by_length now"),
    ("sft.tokenizer=x", "the tokenizer is the one of model.base"),
    ("sft.output_dir=x", "choose its name with --run"),
    ("sft.resume_from_checkpoint=true", "and --continue trains a finished one on"),
    ("lora.rank=8", "unknown key lora.rank, did you mean lora.r?"),
    ("lora.alpha=8", "unknown key lora.alpha, did you mean lora.lora_alpha?"),
    ("lora.dropout=0", "unknown key lora.dropout, did you mean lora.lora_dropout?"),
    ("sft.lr=1e-4", "unknown key sft.lr, did you mean sft.learning_rate?"),
    ("dpo.epochs=2", "unknown key dpo.epochs, did you mean dpo.num_train_epochs?"),
    ("sft.optimizer=x", "unknown key sft.optimizer, did you mean sft.optim?"),
    ("model.name=x", "unknown key model.name, did you mean model.base?"),
    ("lr=1e-4", "unknown key lr, did you mean sft.learning_rate or dpo.learning_rate?"),
    ("dop.beta=1", "unknown key dop, did you mean dpo?"),
    ("training.x=1", "unknown key training: the trainers' sections are sft and dpo"),
    ("data.sources=my.csv", "data.sources: should be a list; a source is a mapping such as {path: my.csv}"),
    ("data.sources={path: my.csv}", "data.sources: should be a list; a source is a mapping"),
    ("data.sources=[my.csv]", "data.sources.0: a source is a mapping such as {path: my.csv} (it is my.csv)"),
    (
        "data.sources=[{format: csv, path: my.csv}]",
        "data.sources.0.format: csv is a kind of file, which is read off `path`; the format says which",
    ),
    ("data.sources=[{format: alpca, path: my.csv}]", "(it is alpca), did you mean alpaca?"),
    ("data.sources=[{format: 3, path: my.csv}]", "data.sources.0.format: should be one of"),
    ("sft=fast", "sft: should be a section of keys and values (it is fast)"),
    ("model=x", "model: should be a section of keys and values (it is x)"),
]


@pytest.mark.parametrize(("item", "message"), SAID_OURSELVES)
def test_errors_in_our_own_words(item, message):
    with pytest.raises(UserError) as error:
        load_recipe(overrides=parse_set([item]))
    assert message in str(error.value)
    # None of pydantic's words for what it does inside.
    for word in ("discriminator", "Input tag", "validation", "dictionary", "instance", "\n"):
        assert word not in str(error.value)


def test_a_missing_file_names_one_that_could_be_meant(tmp_path):
    """A CSV that is not there was answered with `Dockerfile`."""
    for name in ("docfiles", "docs.csv", "others.csv"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"^no file docfile\.csv, did you mean docs\.csv\?$"):
        find_file("docfile.csv", [tmp_path])
    with pytest.raises(UserError, match=r"^no file zzzzzz\.yml in "):
        find_file("zzzzzz.yml", [tmp_path])
