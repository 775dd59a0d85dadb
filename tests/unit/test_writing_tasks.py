"""The writing tasks: what no two splits share, what is kept out of training, what a right text is."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tunebook.checkers.check import Check
from tunebook.data import sources
from tunebook.recipe.loading import load_recipe
from writing_tasks.__main__ import main
from writing_tasks.kinds import KINDS, WORDS
from writing_tasks.tasks import SLICES, Task, is_held_out, row, tasks, written_tasks
from writing_tasks.topics import SPLITS, TOPICS, topics_of

RECIPE = "smollm2-instructions"


def drawn(split: str, number: int = 500, seed: int = 0) -> list[Task]:
    return list(tasks(split, number, seed))


def verdict(task: Task, text: str, truncated: bool = False) -> bool | None:
    """Whether the recipe calls a text right."""
    raw = row(task)
    columns = json.dumps({"instructions": raw["instructions"]})
    asked = {"prompt": [{"role": "user", "content": raw["prompt"]}], "gold": None, "columns": columns}
    return Check(load_recipe(RECIPE).check).judge(asked, text, truncated).correct


def test_no_two_splits_share_a_topic():
    topics = {split: {task.topic for task in drawn(split)} for split in SPLITS}
    assert sum(map(len, topics.values())) == len(set().union(*topics.values())) == len(TOPICS)
    assert {split: len(names) for split, names in topics.items()} == {
        "sft": 66,
        "pairs": 48,
        "val": 16,
        "test": 32,
    }


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_different_and_drawn_by_seed(split):
    first = drawn(split)
    assert len({task.prompt for task in first}) == len({task.id for task in first}) == 500
    assert drawn(split) == first
    shared = {task.id for task in first} & {task.id for task in drawn(split, seed=1)}
    assert len(shared) < 250


def test_training_shows_neither_new_kinds_nor_new_combinations():
    for split in ("sft", "pairs"):
        seen = {task.kinds for task in drawn(split, 800)}
        assert {kind for kinds in seen for kind in kinds} == {
            name for name in KINDS if not KINDS[name].held_out
        }
        assert not any(map(is_held_out, seen)) and max(map(len, seen)) == 3
    test = drawn("test", 1500)
    assert Counter(task.slice for task in test) == dict(zip(SLICES, (750, 500, 250), strict=True))
    for task in test:
        has_new_kind = not {"question", "quotes", "upper"}.isdisjoint(task.kinds)
        assert has_new_kind == (task.slice == "new kinds")
        assert is_held_out(task.kinds) or task.slice != "new combinations"


CONTRADICTIONS = ({"max_words", "min_words"}, {"lower", "upper"}, {"json", "bullets"}, {"end", "question"})


def test_instructions_of_a_task_do_not_contradict_each_other():
    for task in drawn("test", 1500):
        kinds = set(task.kinds)
        for pair in CONTRADICTIONS:
            assert not pair <= kinds
        assert "json" not in kinds or kinds.isdisjoint({"no_commas", "quotes", "begin", "end", "upper"})


def test_a_task_as_it_is_asked_and_checked():
    task = Task("wolves", 0, ("sentences", "include", "no_commas"), (1, "time", True))
    assert task.prompt == (
        'Write a short text about wolves. Answer in exactly one sentence. Use the word "time". '
        "Do not use any commas."
    )
    assert task.instructions == [
        {"mention": ["wolves", "wolf"]},
        "no_repetition",
        {"min_words": 5},
        {"sentences": 1},
        {"include": "time"},
        "no_commas",
    ]
    assert verdict(task, "A wolf spends most of its time with others.") is True
    assert verdict(task, "A wolf spends most of its time with others.", truncated=True) is False
    assert verdict(task, "A wolf, at any time, is with others.") is False


TRICKS = ["", "Wolves.", "Wolves are here.", "It is a quiet animal of the woods.", "wolves wolf " * 10]


@pytest.mark.parametrize("text", TRICKS)
def test_an_empty_trick_is_no_text(text):
    assert verdict(Task("wolves", 0, ("max_words",), (25,)), text) is False


RIGHT = {
    "max_words": "Wolves hunt in packs at night.",
    "min_words": "Wolves hunt in packs at night, " + "and each of them knows its place among the others, "
    "so that even large animals which run much faster than one alone are caught in the end.",
    "sentences": "Wolves hunt in packs at night.",
    "bullets": "- Wolves hunt in packs.\n- They howl at night.",
    "numbered": "1. Wolves hunt in packs.\n2. They howl at night.",
    "json": '{"topic": "wolves", "fact": "They hunt in packs at night."}',
    "no_commas": "Wolves hunt in packs at night.",
    "include": "Wolves drink water in the woods.",
    "exclude": "Wolves hunt in packs at night.",
    "begin": "In short, wolves hunt in packs.",
    "end": "Wolves hunt in packs. That is all.",
    "exclamation": "Wolves hunt in packs at night!",
    "lower": "wolves hunt in packs at night.",
    "question": "Do wolves hunt in packs at night?",
    "quotes": '"Wolves hunt in packs at night."',
    "upper": "WOLVES HUNT IN PACKS AT NIGHT.",
}


WORDY = (
    "The wolf, which is wild and howls and hunts, is a strong animal of the north. It is big, and it eats, "
    "and then it sleeps under a tree."
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_can_be_obeyed_and_disobeyed(kind):
    values = KINDS[kind].values
    value = 2 if kind in ("bullets", "numbered") else values[0]
    task = Task("wolves", 0, (kind,), (value,))
    assert verdict(task, RIGHT[kind]) is True
    wrong = WORDY
    if kind == "min_words":
        wrong = "Wolves hunt in packs."
    assert verdict(task, wrong) is False


def test_written_texts_are_right_and_about_topics_for_sft():
    written = list(written_tasks())
    assert Counter(task.kinds for task in written) == {("lower",): 20, ("bullets",): 20, ("end",): 20}
    assert len({task.id for task in written}) == 60
    for task in written:
        assert task.topic in topics_of("sft") and task.slice == "trained kinds"
        assert verdict(task, task.written) is True, task


def test_words_to_use_are_no_topics():
    assert set(WORDS).isdisjoint(word for words in TOPICS.values() for word in words)


def test_a_file_of_tasks_is_read_as_the_source_draws_them(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "tasks"
    splits = {"sft": ("train", 40), "val": ("val", 12), "test": ("test", 30)}
    files = []
    for name, (split, number) in splits.items():
        main([str(folder), "--split", name, "--number", str(number), "--seed", "7"])
        path = str(folder / f"{name}.jsonl")
        files.append({"format": "prompts", "path": path, "split": split, "use": "sft"})
    source = {"format": "instructions", "train": 40, "val": 12, "test": 30, "use": "sft"}
    rows = []
    for chosen in ([source], files):
        recipe = load_recipe(RECIPE, overrides={"data.sources": chosen, "seed": 7})
        rows.append(list(sources.read(recipe, tmp_path / "images")))
    of_source, of_files = rows
    assert len(of_source) == len(of_files) == 82
    for ours, theirs in zip(of_source, of_files, strict=True):
        assert (ours.prompt, ours.split, ours.slice, ours.use) == (
            theirs.prompt,
            theirs.split,
            theirs.slice,
            theirs.use,
        )
        assert ours.completion == theirs.completion == []
        asked = json.loads(ours.columns)["instructions"]
        assert json.loads(theirs.columns)["instructions"] == asked
    with pytest.raises(SystemExit):
        main([str(folder), "--number", "5"])
    assert "sft.jsonl is there already" in capsys.readouterr().err
    monkeypatch.setattr("writing_tasks.tasks.topics_of", lambda split: ["tea"])
    monkeypatch.setattr("writing_tasks.tasks.COUNTS", {"trained kinds": (1,)})
    with pytest.raises(SystemExit):
        main([str(folder / "more"), "--number", "900"])
    # One topic and one instruction: 41 of them in each of six ways to ask.
    assert "the sft split has 246 tasks of trained kinds, 900 were asked for" in capsys.readouterr().err
    main([str(folder), "--split", "written"])
    lines = (folder / "written.jsonl").read_text().splitlines()
    assert len(lines) == 60 and all(json.loads(line)["completion"] for line in lines)
