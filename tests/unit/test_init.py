"""`tunebook init` looks at a file and writes a recipe for it; `new`, `recipes`, words of other tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tunebook import init
from tunebook.data import recognise
from tunebook.recipe import files
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe

QUESTIONS = [{"question": f"What is number {i}?", "answer": f"It is [b]{i}[/b]."} for i in range(30)]
PAIRS = [{"prompt": f"Number {i}?", "chosen": f"It is {i}.", "rejected": "Cheese."} for i in range(30)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(init, "gpu_memory_gb", lambda: 0.0)
    return tmp_path


def write(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_questions_and_answers_become_a_recipe_of_a_few_lines(here, embedded, capsys):
    path = init.init(write("my.jsonl", QUESTIONS))
    lines = path.read_text().splitlines()
    assert path == Path("my.yaml") and len(lines) <= 10
    assert lines[0].startswith("# yaml-language-server: $schema=")
    assert (here / lines[0].partition("=")[2]).is_file()
    recipe = load_recipe(path)
    assert recipe.stages == ["sft"] and recipe.model.base == "smollm2-135m-instruct"
    (source,) = recipe.data.sources
    assert (source.path, source.val, source.test) == ("my.jsonl", 0.1, 0.1)
    said = capsys.readouterr().out
    assert "my.jsonl: 30 rows of the form question_answer (question, answer)" in said
    # The prompt as the model sees it, the trained part marked, a row's markup as it is.
    assert "<|im_start|>user\nWhat is number 0?<|im_end|>" in said
    assert "<|im_start|>assistant\n>>>It is [b]0[/b].<|im_end|><<<" in said
    assert "uv run tunebook run --recipe my.yaml" in said


def test_a_preference_set_becomes_dpo_alone(here, embedded, capsys):
    recipe = load_recipe(init.init(write("p.jsonl", PAIRS)))
    assert recipe.stages == ["pairs", "dpo"] and not recipe.data.sources
    said = capsys.readouterr().out
    assert ">>>It is 0.<|im_end|><<<" in said and ">>>Cheese.<|im_end|><<<" in said
    with pytest.raises(UserError, match="a preference set, with which DPO alone can be done"):
        init.init("p.jsonl", goal="sft", out=Path("other.yaml"))
    assert not Path("other.yaml").exists()


def test_labels_in_a_csv_are_those_of_a_preference_set(here, embedded, capsys):
    rows = "".join(f"Q{i},good {i},True\nQ{i},bad {i},FALSE\n" for i in range(30))
    Path("kto.csv").write_text("prompt,completion,label\n" + rows)
    assert load_recipe(init.init("kto.csv")).stages == ["pairs", "dpo"]
    assert "60 preference pairs of the form answers with a label" in capsys.readouterr().out


def test_nothing_is_overwritten_and_nothing_unreadable_is_written(here, embedded, capsys):
    write("my.jsonl", QUESTIONS)
    Path("my.yaml").write_text("mine: true\n")
    with pytest.raises(UserError, match=r"my\.yaml is there already: give another --out, or --force"):
        init.init("my.jsonl")
    assert Path("my.yaml").read_text() == "mine: true\n"
    init.init("my.jsonl", force=True)
    assert yaml.safe_load(Path("my.yaml").read_text())["extends"] == "smollm2"
    with pytest.raises(UserError, match=r"no known form has the columns left, right, top.*; of a preference"):
        init.init(write("odd.jsonl", [{"left": "1", "right": "2", "top": "3"}]))
    with pytest.raises(UserError, match=r"no file nothing\.csv"):
        init.init("nothing.csv")
    assert not Path("odd.yaml").exists() and not Path("nothing.yaml").exists()
    init.init(write("some.jsonl", [*QUESTIONS, {"left": "1"}]))
    assert "not readable: 1 unknown columns (the first: no known form" in capsys.readouterr().out
    init.init(write("listed.jsonl", [{"question": "Q", "answer": ["A"]}]))
    assert "no row can be used as it is (the first: wrong type, answer is a list" in capsys.readouterr().out


def test_two_unknown_columns_are_taken_in_their_order_and_others_are_named(here, embedded, capsys):
    rows = [{"Frage": f"Wo ist Nummer {i}?", "Antwort": f"Dort, bei {i}."} for i in range(30)]
    path = init.init(write("de.jsonl", rows))
    said = capsys.readouterr().out
    assert "'Frage' is taken for the prompt and 'Antwort' for the answer" in said
    assert ">>>Dort, bei 0.<|im_end|><<<" in said
    assert load_recipe(path).data.sources[0].columns == {"prompt": "Frage", "completion": "Antwort"}
    # The other way round, as it is printed there.
    assert "--columns prompt=Antwort,completion=Frage" in said
    init.init("de.jsonl", columns="prompt=Antwort,completion=Frage", force=True)
    assert ">>>Wo ist Nummer 0?<|im_end|><<<" in capsys.readouterr().out
    # Three columns, or one that is no text, are no guess.
    for row in ({"a": "x", "b": "y", "c": "z"}, {"a": "x", "b": 3}):
        with pytest.raises(UserError, match="no known form"):
            init.init(write("odd.jsonl", [row] * 3))
    init.init("odd.jsonl", columns="prompt=a,completion=b")
    with pytest.raises(UserError, match="'prompt' is no pair of names"):
        init.init("odd.jsonl", columns="prompt", force=True)
    # One odd row among others changes nothing.
    mixed = init.init(write("mixed.jsonl", [*QUESTIONS, {"left": "l", "right": "r"}]))
    assert not load_recipe(mixed).data.sources[0].columns
    pairs = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in PAIRS]
    path = init.init(write("pairs.jsonl", pairs), columns="prompt=q,chosen=good,rejected=bad")
    assert load_recipe(path).pairs.columns == {"prompt": "q", "chosen": "good", "rejected": "bad"}


def test_columns_are_taken_by_parts_of_their_names_or_the_longest_are_proposed(here, embedded, capsys):
    row = {
        "Datum": "1.3.2024",
        "Kundenfrage": "Wo ist es?",
        "Antwort Team": "Dort.",
        "Bearbeiter": "Ann Meyer",
    }
    path = init.init(write("de.jsonl", [row] * 30))
    columns = {"prompt": "Kundenfrage", "completion": "Antwort Team"}
    assert load_recipe(path).data.sources[0].columns == columns
    said = capsys.readouterr().out
    assert "'Kundenfrage' is taken for the prompt and 'Antwort Team' for the answer" in said
    unknown = {"id": 7, "a b": "A long text.", "c": "x", "d": "Another long text."}
    with pytest.raises(UserError, match=r"here: --columns 'prompt=a b,completion=d'"):
        init.init(write("unknown.jsonl", [unknown]))
    # Of three texts as long as each other nobody can tell which is the answer.
    third = unknown | {"e": "A third long text."}
    with pytest.raises(
        UserError, match=r"of a preference set three: --columns prompt=\.\.\.,chosen="
    ) as error:
        init.init(write("third.jsonl", [third]))
    assert "completion: d" not in str(error.value) and "completion=d" not in str(error.value)
    # A column that no row has is a mistake, and nothing is written.
    wrong = r"no column 'kundenfrage', did you mean Kundenfrage\?; there are: Datum, Kundenfrage, "
    with pytest.raises(UserError, match=wrong):
        init.init("de.jsonl", columns="prompt=kundenfrage,completion=Antwort Team", out=Path("other.yaml"))
    with pytest.raises(UserError, match=r"no file my_chekcs\.py"):
        init.init("de.jsonl", check="my_chekcs.py:score", out=Path("other.yaml"))
    assert not Path("other.yaml").exists()
    # What is counted can be read.
    init.init(write("mixed.jsonl", [*QUESTIONS, {"left": 1}]))
    said = capsys.readouterr().out
    assert "mixed.jsonl: 30 rows of" in said and "not readable: 1 unknown columns" in said


def test_a_file_without_a_header_is_told_so(here, embedded):
    Path("bare.csv").write_text('"How far is it?","A mile."\n"And back?","The same."\n')
    with pytest.raises(UserError, match=r"'How far is it\?' looks like a text .* wants a first line such as"):
        init.init("bare.csv")
    Path("faq.json").write_text(json.dumps({f"How far is it to {i}?": "A mile." for i in range(9)}))
    with pytest.raises(UserError, match=r"How far is it to 0\?' looks like a text .* JSON rows such as"):
        init.init("faq.json")
    assert not list(here.glob("*.yaml"))


@pytest.mark.parametrize(
    ("model", "memory", "family", "named"),
    [
        (None, 0, "smollm2", None),
        (None, 2, "smollm2", None),
        (None, 4, "llama3", "unsloth/Llama-3.2-1B-Instruct"),
        (None, 7.6, "llama3", None),
        (None, 12, "llama3", None),
        (None, 24, "qwen3", None),
        ("Qwen/Qwen3-0.6B", 0, "qwen3", "Qwen/Qwen3-0.6B"),
        ("unsloth/Llama-3.2-1B-Instruct", 0, "llama3", "unsloth/Llama-3.2-1B-Instruct"),
        ("mistralai/Mistral-7B-v0.3", 0, "base", "mistralai/Mistral-7B-v0.3"),
    ],
)
def test_the_family_is_that_of_the_model_or_of_the_gpu(model, memory, family, named, monkeypatch):
    monkeypatch.setattr(init, "gpu_memory_gb", lambda: memory)
    assert init._model(model) == (family, named)


def test_a_recipe_elsewhere_names_its_rows_from_its_own_folder(here, embedded):
    write("my.jsonl", QUESTIONS)
    recipe = load_recipe(init.init("my.jsonl", out=Path("recipes") / "mine.yaml"))
    assert recipe.data.sources[0].path == "../my.jsonl"


def test_a_project_is_laid_out_once(here, run_cli):
    assert run_cli("new", "mine").returncode == 0
    for name in ("configs/recipe.schema.json", "notebooks/02_sft.ipynb", "prompt/system.txt"):
        assert (here / "mine" / name).is_file()
    assert (here / "mine" / "resources" / "sample" / "alpaca.jsonl").is_file()
    again = run_cli("new", "mine")
    assert again.returncode == 2 and "mine is there already and not empty" in again.stderr


def test_an_installed_package_works_where_one_is(here, monkeypatch):
    """A project's root: the folder that `tunebook new` has laid out, or the one where one works."""
    monkeypatch.setattr(files, "PACKAGED", here / "lib" / "tunebook" / "project")
    monkeypatch.delenv("TUNEBOOK_HOME", raising=False)
    assert files._root() == here
    deeper = here / "notebooks" / "deep"
    deeper.mkdir(parents=True)
    (here / "configs").mkdir()
    (here / "configs" / "recipe.schema.json").write_text("{}")
    monkeypatch.chdir(deeper)
    assert files._root() == here


def test_recipes_are_listed_and_copied(here, run_cli):
    listed = run_cli("recipes").stdout
    assert "smollm2-math " in listed and "The default recipe" in listed
    assert run_cli("recipes", "--copy", "smollm2-math").returncode == 0
    assert load_recipe("smollm2-math.yaml").name == "smollm2-math"
    assert "no recipe 'none'" in run_cli("recipes", "--copy", "none").stderr


@pytest.mark.parametrize(
    ("word", "command"), [("train", "tunebook sft"), ("infer", "chat"), ("gguf", "export")]
)
def test_words_of_other_tools_are_answered(word, command, run_cli):
    done = run_cli(word)
    assert done.returncode == 2 and command in done.stderr and done.stderr.strip().count("\n") == 0


def test_the_worse_answer_of_a_preference_set_is_never_taken_for_the_answer(here, embedded, capsys):
    row = {"question": "Where is Lima?", "worse": "It is somewhere south.", "better": "Lima is in Peru."}
    path = init.init(write("prefs.jsonl", [row | {"question": f"{n}: Where is Lima?"} for n in range(30)]))
    assert load_recipe(path).pairs.columns == {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert load_recipe(path).stages == ["pairs", "dpo"]
    said = capsys.readouterr().out
    assert "'better' for the chosen answer and 'worse' for the rejected one" in said
    assert "the other way round: --columns prompt=question,chosen=worse,rejected=better" in said


@pytest.mark.parametrize(
    ("better", "worse"),
    [("good_answer", "badAnswer"), ("winner", "LOSER"), ("preferred", "less preferred"), ("chosen", "other")],
)
def test_two_answers_are_told_apart_by_words_in_their_names(better, worse):
    columns = {"prompt": "Frage", "chosen": better, "rejected": worse}
    for names in (("Frage", better, worse), (worse, better, "Frage")):
        assert recognise.named_alike(dict.fromkeys(names, 10)) == columns


def test_of_two_columns_of_answers_none_is_taken_unasked(here, embedded, capsys):
    row = {"question": "Where is Lima?", "response_a": "Lima is in Peru, by the sea.", "response_b": "South."}
    both = (
        r"--columns prompt=question,chosen=\.\.\.,rejected=\.\.\.; of one answer: --columns prompt=question,"
    )
    with pytest.raises(UserError, match=both):
        init.init(write("two.jsonl", [row] * 3))
    # Two worse ones, and no question: a proposal says what the names say, and no worse answer is learnt.
    assert recognise.named_alike({"question": 9, "bad1": 9, "bad2": 9, "good": 9}) == {}
    with pytest.raises(UserError, match=r"columns prompt=\.\.\.,chosen=better,rejected=worse; ") as error:
        init.init(write("no.jsonl", [{"id": "1", "better": "Lima is in Peru.", "worse": "Lima is south."}]))
    assert "completion=worse" not in str(error.value) and "completion: worse" not in str(error.value)
    # Ids beside the answers are none; `window` is no `win`, and `closed` none that loses.
    assert recognise.named_alike({"Frage": 90, "Antwort": 300, "Antwort-ID": 9})["completion"] == "Antwort"
    assert recognise.named_alike({"question": 9, "window": 9, "closed": 9}) == {}


def test_an_empty_cell_in_the_last_row_changes_no_guess(here, embedded, capsys):
    row = {"question": "Where is Lima?", "better": "Lima is in Peru.", "worse": "It is south."}
    path = init.init(write("p.jsonl", [row, row, row | {"worse": None}]))
    assert load_recipe(path).pairs.columns == {"prompt": "question", "chosen": "better", "rejected": "worse"}
    assert "not readable: 1 empty cell (the first: rejected: empty)" in capsys.readouterr().out


def test_half_a_pair_is_named_as_such_and_rejected_is_never_the_answer(here, embedded, capsys):
    half = {"prompt": "Number 99?", "chosen": "It is 99."}
    init.init(write("p.jsonl", [half, *PAIRS, half]))
    half_said = "not readable: 2 missing column (the first: rejected: missing; the row has prompt, chosen)"
    assert half_said in capsys.readouterr().out
    # Of chosen alone it can be learnt.
    path = init.init(write("chosen.jsonl", [half] * 3))
    assert load_recipe(path).data.sources[0].columns == {"prompt": "prompt", "completion": "chosen"}
    with pytest.raises(UserError, match=r"worse\.jsonl: chosen: missing; the row has prompt, rejected$"):
        init.init(write("worse.jsonl", [{"prompt": "Number 99?", "rejected": "Cheese."}] * 3))
