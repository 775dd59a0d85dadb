"""What the checkers say of answers, and what the recipe's `check` makes of it.

The processes are in tests/integration.
"""

from __future__ import annotations

import json
import time

import pytest
from fuzzing import cases, text
from hypothesis import example, given

from tunebook.checkers import check as checks
from tunebook.checkers.check import Check, Judgement, other_columns
from tunebook.checkers.instructions import COUNTS, KINDS, BadInstruction, read_instructions
from tunebook.checkers.process import CheckerFailed
from tunebook.checkers.registry import CHECKERS
from tunebook.recipe.errors import UserError
from tunebook.recipe.layers import whole_check
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import OPTIONS, CheckConfig, CheckerConfig

QUESTION = [{"role": "user", "content": "q"}]


def score(name: str, text: str, *, folder: str = "", **columns) -> float | None:
    """The score of one answer by a checker with the options `of_<name>`; the rest are the row's columns."""
    options = {key.removeprefix("of_"): columns.pop(key) for key in list(columns) if key.startswith("of_")}
    config = CheckerConfig(name=name, **options)
    config.place([folder])
    completions = [[{"role": "assistant", "content": text}]]
    lists = {key: [value] for key, value in {"gold": None, **columns}.items()}
    (result,) = CHECKERS[config.kind].function(config, [QUESTION], completions, **lists)
    return result


def test_every_checker_has_its_options():
    assert list(CHECKERS) == list(OPTIONS)


@pytest.mark.parametrize(
    ("text", "gold", "ignore_case", "expected"),
    [
        ("Paris", "Paris", False, 1),
        ("  Paris\n", "Paris ", False, 1),
        ("New\nYork", "New York", False, 1),
        ("<think>London? No.</think>\nParis", "Paris", False, 1),
        ("<think>Paris. No, wait", "Paris", False, 0),
        ("paris", "Paris", False, 0),
        ("paris", "Paris", True, 1),
        ("Paris.", "Paris", False, 0),
        ("", "Paris", False, 0),
        ("Paris", None, False, None),
    ],
)
def test_exact(text, gold, ignore_case, expected):
    assert score("exact", text, gold=gold, of_ignore_case=ignore_case) == expected


@pytest.mark.parametrize(
    ("text", "gold", "words", "expected"),
    [
        ("It is Paris, of course.", "Paris", [], 1),
        ("It is 112.", "12", [], 0),
        ("It is 12.", "12", [], 1),
        ("Write it in C++, not in C.", "C++", [], 1),
        ("Comparisons", "Paris", [], 0),
        ("it is paris", "Paris", [], 0),
        ("首都是巴黎。", "巴黎", [], 1),
        ("bread and salt", None, ["salt", "bread"], 1),
        ("bread", "bread", ["salt", "bread"], 0),
        ("bread", None, [], None),
    ],
)
def test_contains(text, gold, words, expected):
    assert score("contains", text, gold=gold, of_words=words) == expected


@pytest.mark.parametrize(
    ("text", "pattern", "ignore_case", "expected"),
    [
        ("Order A-17 is sent.", r"\b[A-Z]-\d+\b", False, 1),
        ("order a-17", r"\b[A-Z]-\d+\b", False, 0),
        ("order a-17", r"\b[A-Z]-\d+\b", True, 1),
        ("yes", r"^(yes|no)$", False, 1),
        ("yes, I think", r"^(yes|no)$", False, 0),
        ("<think>no</think> yes", r"^yes$", False, 1),
    ],
)
def test_regex(text, pattern, ignore_case, expected):
    assert score("regex", text, of_pattern=pattern, of_ignore_case=ignore_case) == expected


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "plain", "by_schema"),
    [
        ('{"name": "Ann", "age": 7}', 1, 1),
        ('```json\n{"name": "Ann"}\n```', 1, 1),
        ('```\n{"name": "Ann"}\n```', 1, 1),
        ('{"name": "Ann", "age": -1}', 1, 0),
        ('{"name": "Ann", "born": 1999}', 1, 0),
        ('[{"name": "Ann"}]', 1, 0),
        ("{}", 1, 0),
        ('Here it is: {"name": "Ann"}', 0, 0),
        ("{'name': 'Ann'}", 0, 0),
        ('{"name": "Ann",}', 0, 0),
        ('{"name": NaN}', 0, 0),
        ("", 0, 0),
        ("[" * 100_000, 0, 0),
        ("9" * 100_000, 0, 0),
    ],
)
def test_json(tmp_path, text, plain, by_schema):
    assert score("json", text) == plain
    assert score("json", text, of_schema=PERSON) == by_schema
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    assert score("json", text, of_schema="person.json", folder=str(tmp_path)) == by_schema


def test_what_is_no_schema_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^the schema is no JSON schema: 'objekt' is not valid"):
        score("json", "{}", of_schema={"type": "objekt"})
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(UserError, match=r"^p.json is no JSON schema: Expecting property name"):
        score("json", "{}", of_schema="p.json", folder=str(tmp_path))
    with pytest.raises(UserError, match=r"no file persn\.json"):
        score("json", "{}", of_schema="persn.json", folder=str(tmp_path))


def test_maths_is_the_verifier_on_what_follows_the_thinking():
    assert score("maths", "<think>It is 5.</think> It is 6.", gold="6") == 1
    assert score("maths", "It is 5.", gold="6") == 0
    assert score("maths", "It is 5.") is None


@pytest.mark.parametrize(
    ("instruction", "obeys", "does_not"),
    [
        ({"max_words": 3}, "One, two don't.", "One, two, three, four."),
        ({"min_words": 3}, "One two three.", "One two."),
        ({"sentences": 2}, "It rains. Why?", "It rains, 3.5 mm, all day."),
        ({"sentences": 1}, 'He said "no."', "No! Yes!"),
        ({"bullets": 2}, "- one\n- two", "- one\n- two\n- three"),
        ({"bullets": 1}, "A list:\n* one", "1. one"),
        ({"numbered": 2}, "1. one\n2) two", "- one\n- two"),
        ("no_commas", "One and two.", "One, two."),
        ({"no_commas": True}, "One and two.", "一，二"),
        ({"include": "water"}, "Water is wet.", "The waterfall is wet."),
        ({"include": ["salt", "bread"]}, "Bread and salt.", "Bread."),
        ({"exclude": "the"}, "Other things.", "All the things."),
        ({"begin": "Sure,"}, "Sure, it is.", "It is, sure,"),
        ({"end": "The end."}, "It rains. The end.", "The end. It rains."),
        ("lower", "all small, 3.", "All small."),
        ("upper", "ALL LARGE, 3.", "ALL LARGe."),
        ("lower", "a", "3"),
        ("json", '{"a": 1}', "a: 1"),
        ({"json": ["topic", "fact"]}, '{"fact": "x", "topic": "y"}', '{"fact": "x"}'),
        ("quotes", '"All of it."', '"Half" of it.'),
        ("quotes", "“All of it.”", '""'),
        ({"mention": ["wolves", "wolf"]}, "A Wolf howls.", "Wolfgang howls."),
        ("no_repetition", "so " * 12, "so " * 13),
        ("no_repetition", "one two three four five six " * 2 + "end", "one two three four " * 4),
    ],
)
def test_instructions(instruction, obeys, does_not):
    assert score("instructions", obeys, instructions=[instruction]) == 1
    assert score("instructions", does_not, instructions=[instruction]) == 0
    assert score("instructions", "", instructions=[instruction]) == 0  # also of no commas


def test_instructions_in_part_or_as_a_whole():
    row = {"instructions": ["lower", "no_commas"]}
    assert score("instructions", "One and two", **row) == 0.5
    assert score("instructions", "One and two", **row, of_partial=False) == 0
    assert score("instructions", "one and two", **row, of_partial=False) == 1
    assert score("instructions", "any", instructions=[], of_partial=False) is None


VALUES = dict.fromkeys(KINDS, True) | dict.fromkeys(COUNTS, 3) | dict.fromkeys(("begin", "end"), "a")
VALUES |= {"include": ["a", "的"], "exclude": "b", "mention": ["a", "c"]}
EVERYTHING = [{name: value} for name, value in VALUES.items()]


@cases(60)
@given(text)
@example("```" + "\n" * 100_000)
@example("```json\n" + " " * 100_000 + "x")
@example("a-" * 50_000)
@example("." * 100_000)
@example(" " * 50_000 + "- " * 50_000)
@example("1" * 100_000)
@example('"' * 100_000)
@example("[" * 100_000)
def test_every_text_has_a_score_soon(answer):
    started = time.thread_time()
    assert 0 <= score("instructions", answer, instructions=EVERYTHING) <= 1
    for name in ("exact", "contains", "json"):
        assert score(name, answer, gold=answer[:50] or "x") in (0, 1)
    assert time.thread_time() - started < 2


def test_the_score_is_the_share_of_obeyed_instructions():
    column = [{"max_words": 4}, "no_commas", {"end": "Bye."}]
    assert score("instructions", "One, two. Bye.", instructions=column) == pytest.approx(2 / 3)
    assert score("instructions", "One two.", instructions=json.dumps(column)) == pytest.approx(2 / 3)
    # Rows of Parquet have every key, empty where another row fills it.
    whole = {"max_words": 4, "no_commas": None, "end": "Bye."}
    assert score("instructions", "One, two.", instructions=whole) == 0.5
    assert score("instructions", "lower", instructions="lower") == 1
    assert score("instructions", "x", instructions=None) is None
    assert score("instructions", "x", instructions=[]) is None


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["max_word"], "no instruction max_word, did you mean max_words?"),
        ([{"max_words": "40"}], "instruction max_words: 40; write it as {max_words: 3}"),
        ([{"max_words": True}], "instruction max_words: True; write it as"),
        (["sentences"], "instruction sentences: True; write it as {sentences: 3}"),
        ([{"include": []}], "instruction include"),
        ([{"lower": "yes"}], "instruction lower: yes; write it as lower"),
        ([{"json": "topic"}], "write it as {json: [topic, fact]}"),
        ("[{", "instructions: no JSON"),
    ],
)
def test_an_instruction_that_is_not_known(column, message):
    with pytest.raises(BadInstruction) as error:
        read_instructions(column)
    assert message in str(error.value)


# A user's function ---------------------------------------------------------------------------------------

MINE = """
from dataclasses import dataclass

def likes(prompts, completions, **columns):
    text = completions[0][-1]["content"]
    if text == "raise":
        return [1 / 0]
    special = {"none": [None], "two": [1, 1], "big": [3], "word": ["good"], "no list": 1.0, "bool": [True]}
    if text in special:
        return special[text]
    assert prompts[0][0]["content"] == "q"
    return [float(columns["wanted"][0] in text)]

def narrow(prompts, completions):
    return [1]
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "my_checks.py").write_text(MINE)
    return str(tmp_path)


@pytest.mark.parametrize(("text", "expected"), [("a b", 1), ("a", 0), ("none", None), ("bool", 1)])
def test_a_function_is_called_as_trl_calls_it(mine, text, expected):
    assert score("my_checks.py:likes", text, folder=mine, wanted="b") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise", r"^raised ZeroDivisionError: division by zero \(line 7\)$"),
        ("two", "^returned 2 scores for 1 answers$"),
        ("big", "^returned 3, scores are from 0 to 1$"),
        ("word", "^returned good, a score is a number or None$"),
        ("no list", "^returned 1.0, not a list with a score for each answer$"),
    ],
)
def test_what_a_function_does_wrong_is_one_line(mine, text, message):
    with pytest.raises(UserError, match=message):
        score("my_checks.py:likes", text, folder=mine, wanted="b")


def test_a_file_that_cannot_be_loaded(mine, tmp_path):
    with pytest.raises(UserError, match=r"^my_checks\.py has no function like$"):
        score("my_checks.py:like", "x", folder=mine)
    with pytest.raises(UserError, match=r"^write it as `def narrow\(prompts, completions, \*\*columns\)`$"):
        score("my_checks.py:narrow", "x", folder=mine)
    with pytest.raises(UserError, match=r"no file my_check.py, did you mean my_checks.py\?"):
        score("my_check.py:likes", "x", folder=mine)
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(UserError, match=r"^raised SyntaxError: .* \(line 2\)$"):
        score("broken.py:f", "x", folder=mine)


# The recipe's section ------------------------------------------------------------------------------------


def opened(value, folder: str = "") -> Check:
    config = CheckConfig.model_validate(whole_check(value))
    config.place([folder])
    return Check(config)


def row(gold=None, **columns) -> dict:
    return {"source_id": "my.csv:3", "prompt": QUESTION, "gold": gold, "columns": json.dumps(columns)}


@pytest.mark.parametrize(
    ("value", "names", "threshold"),
    [
        ("json", ["json"], 1.0),
        ({"name": "contains", "words": ["x"], "threshold": 0.5}, ["contains"], 0.5),
        (["maths", {"name": "instructions", "weight": 2}], ["maths", "instructions"], 1.0),
        ({"checkers": ["json", "my_checks.py:f"], "threshold": 0.8}, ["json", "my_checks.py:f"], 0.8),
    ],
)
def test_the_forms_of_the_section(tmp_path, value, names, threshold):
    recipe = load_recipe(overrides={"check": value})
    assert [checker.name for checker in recipe.check.checkers] == names
    assert recipe.check.threshold == threshold
    # Written in full, as a manifest has it, it reads back to the same.
    again = load_recipe(overrides={"check": recipe.model_dump(mode="json")["check"]})
    assert again.check.model_dump() == recipe.check.model_dump()
    path = tmp_path / "my.yaml"
    path.write_text(json.dumps({"extends": "smollm2", "data": {"sources": [{"path": "x"}]}, "check": value}))
    assert load_recipe(path).check.model_dump() == recipe.check.model_dump()
    assert load_recipe(path, overrides={"check.threshold": 0.3}).check.threshold == 0.3


def test_maths_alone_is_what_holds_without_the_section(tmp_path):
    assert load_recipe().check is None and load_recipe(overrides={"check": "maths"}).check is None
    assert Check().settings == {} and Check().files == {}
    # A recipe may take the check of the one that it extends away.
    (tmp_path / "a.yaml").write_text("extends: smollm2\ndata: {sources: [{path: x}]}\ncheck: json\n")
    (tmp_path / "b.yaml").write_text(f"extends: {tmp_path / 'a.yaml'}\ncheck: maths\n")
    assert load_recipe(tmp_path / "a.yaml").check and load_recipe(tmp_path / "b.yaml").check is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("jsn", "instructions, reward_model, or my_checks.py:function, did you mean json? (it is jsn)"),
        ("python", "check.checkers.0.name: should be one of maths, exact"),
        ("my_checks.py:", "check.checkers.0.name: should be one of maths, exact"),
        ({"name": "json", "pattern": "x"}, "check.checkers.0: json has no option pattern"),
        ({"name": "regex", "schema": {}}, "regex has no option schema"),
        ({"name": "json", "shema": "x"}, "unknown key check.checkers.0.shema, did you mean schema?"),
        ("regex", "regex needs a `pattern`"),
        ({"name": "regex", "pattern": "("}, "pattern is no regular expression of Python: missing )"),
        ({"name": "json", "weight": 0}, "check.checkers.0.weight: should be greater than 0"),
        ({"name": "json", "threshold": 2}, "check.threshold: should be less than or equal to 1"),
        ({"checker": "json"}, "check.checkers is missing"),
        ([], "check.checkers"),
        (3, "check: should be a section of keys and values (it is 3)"),
    ],
)
def test_errors_of_the_section(value, message):
    with pytest.raises(UserError) as error:
        load_recipe(overrides={"check": value})
    assert message in str(error.value)


def test_without_a_check_rows_with_an_answer_are_verified():
    assert Check().judge(row("6"), "It is 6.") == Judgement(True, None, "6", "last number")
    assert Check().judge(row("6"), "It is 6.", truncated=True) == Judgement(False, None, None, "none")
    assert Check().judge(row(), "It is 6.") == Judgement(None)
    assert not Check().can_judge(row()) and Check().can_judge(row("6"))


def test_several_checkers_are_averaged_by_weight():
    weights = ["exact", {"name": "instructions", "weight": 3}]
    check = opened({"checkers": weights, "threshold": 0.7})
    both = row("yes", instructions=["lower", {"max_words": 1}])
    assert check.judge(both, "yes") == Judgement(True, 1.0, None, "text")
    assert check.judge(both, "no") == Judgement(True, 0.75, None, "text")
    assert check.judge(both, "No") == Judgement(False, 0.375, None, "text")
    # What says nothing does not count: this row has no answer, that one no instructions.
    assert check.judge(row(instructions=["lower"]), "no").score == 1.0
    assert check.judge(row("yes"), "no").score == 0.0
    assert check.judge(row(), "no") == Judgement(None) and not check.can_judge(row())
    assert check.judge(both, "yes", truncated=True) == Judgement(False, 0.0)
    # In floats the mean of ones with weights 0.1, 0.2 and 0.3 is a little less than 1.
    ones = [{"name": "contains", "words": ["yes"], "weight": w} for w in (0.1, 0.2, 0.3)]
    assert opened(ones).judge(row(), "yes").correct


@pytest.mark.parametrize(
    ("value", "without", "graded"),
    [
        ("exact", False, False),
        ("contains", False, False),
        ({"name": "contains", "words": ["x"]}, True, False),
        ("json", True, False),
        ({"name": "regex", "pattern": "x"}, True, False),
        ("instructions", False, True),
        ("my_checks.py:f", True, True),
        (["exact", "json"], True, True),
    ],
)
def test_which_rows_can_be_judged(value, without, graded):
    check = opened(value)
    assert check.can_judge(row()) is without and check.is_graded is graded
    assert check.can_judge(row("x", instructions=["lower"]))


def test_the_key_rests_on_options_versions_and_files(mine):
    plain = opened("json").settings
    assert plain == {"check": {"checkers": [{"name": "json"}], "versions": {"json": "1"}}}
    assert opened({"name": "json", "threshold": 0.5}).settings != plain
    check = opened(["my_checks.py:likes", {"name": "json", "schema": "my_checks.py"}], mine)
    assert [path.parent.name for path in check.files.values()] == [mine.rpartition("/")[2]]
    with pytest.raises(UserError, match=r"no file other\.py"):
        _ = opened("other.py:f", mine).files


class Failing:
    """A checker that fails at every answer but those that say `good`."""

    def __call__(self, prompts, completions, **columns):
        if completions[0][0]["content"] != "good":
            raise CheckerFailed("took longer than 10 seconds")
        return [1.0]


def test_failures_are_said_with_their_row_and_many_end_the_run(monkeypatch, capsys):
    monkeypatch.setattr(checks, "_opened", lambda checker: Failing())
    check = opened("my_checks.py:f")
    for _ in range(9):
        assert check.judge(row(), "bad") == Judgement(None, None, None, "failed")
    said = capsys.readouterr().out.splitlines()
    assert said == ["my_checks.py:f, row my.csv:3: took longer than 10 seconds; the answer has no score"] * 3
    with pytest.raises(
        UserError, match=r"^check: 10 of 10 answers could not be checked, the last: my_checks"
    ):
        check.judge(row(), "bad")
    # A few failures among many answers end nothing.
    check = opened("my_checks.py:f")
    for i in range(60):
        check.judge(row(), "bad" if i % 3 == 0 else "good")


def test_other_columns_of_a_row():
    raw = {
        "prompt": "q",
        "completion": "a",
        "n": 3,
        "x": None,
        "y": float("nan"),
        "image": "a.png",
        "b": b"1",
    }
    assert json.loads(other_columns(raw)) == {"n": 3}
