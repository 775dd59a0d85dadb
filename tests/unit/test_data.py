"""Sources and checks: broken rows end in the quarantine with the right reason, and the rest trains."""

from __future__ import annotations

import json
import random
import time
from collections import Counter

import pytest
from fuzzing import scaled
from hypothesis import given, settings
from hypothesis import strategies as st
from story_rows import good

from tunebook.data import checks, contamination, recognise, records, similarity, sources
from tunebook.data.rows import Reject, Row
from tunebook.recipe.loading import load_recipe


def test_the_row_number_is_the_line_in_the_file(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(good(1)).encode() + b"\n\n{broken\n")
    rows = list(records.read_json(path))
    assert [n for n, _ in rows] == [1, 3]
    assert isinstance(rows[1][1], Reject)
    assert rows[1][1].source_id == "x.jsonl:3"


def make(text: str, source_id: str = "x", completion: str = "a") -> Row:
    return Row(
        source_id,
        "train",
        [{"role": "user", "content": text}],
        [{"role": "assistant", "content": completion}],
    )


def test_other_numbers_make_another_problem_in_the_same_words():
    text = "In triangle ABC, angle A is {}° and angle B is {}°. "
    text += "Find angle C of the triangle and give it in degrees."
    seen = similarity.Duplicates(0.9)
    assert seen.check(make(text.format(50, 60), "first")) is None
    assert seen.check(make(text.format(50, 70))) is None
    assert seen.check(make(text.format(50, 60).upper())).reason == "duplicate"
    near = seen.check(make(text.format(50, 60) + " Thanks"))
    assert (near.reason, near.detail) == ("near-duplicate", "of first")
    held_out = contamination.Contamination(0.6, [make(text.format(50, 60), "test item")])
    assert held_out.check(make(text.format(50, 70))) is None
    assert (
        held_out.check(make("Solve this, please: " + text.format(50, 60))).reason
        == "in the test or val split"
    )
    assert (
        held_out.check(make("A textbook", completion="As in: " + text.format(50, 60) + " We get 70.")).reason
        == "in the test or val split"
    )


SOLUTIONS = ["60 / 40 * 60 = 90", "In 20 minutes 30 km, so in an hour 90", "The speed is 1.5 km a minute: 90"]


@pytest.mark.parametrize(
    ("compared", "kept"), [("prompt+completion", SOLUTIONS), ("prompt", SOLUTIONS[:1]), ("none", None)]
)
def test_what_makes_a_duplicate_is_a_setting(compared, kept):
    """Several solutions of one problem are rows, the same one twice is not."""
    question = "A train goes 60 km in 40 minutes. How far does it go in an hour?"
    texts = [*SOLUTIONS, SOLUTIONS[1].upper()]
    seen = similarity.Duplicates(0.9, (), compared)
    assert [text for text in texts if seen.check(make(question, text, text)) is None] == (kept or texts)


def test_near_duplicates_are_alike_in_prompt_and_completion():
    words = [chr(97 + i) * 3 for i in range(26)]
    question = " ".join(words) + " ".join(words[::-1])
    seen = similarity.Duplicates(0.9)
    assert seen.check(make(question, "first", " ".join(words))) is None
    near = seen.check(make(question + " thanks", "second", " ".join(words) + " well"))
    assert (near.reason, near.detail) == ("near-duplicate", "of first")
    # A long prompt that is shared does not make two short answers alike.
    assert seen.check(make(question, "third", "yes")) is None
    assert seen.check(make(question, "fourth", "no")) is None
    assert seen.check(make(question + " thanks", "fifth", "no")).detail == "of fourth"


def test_long_programs_are_compared_in_good_time():
    """2,000 numbers and symbols each, which all n-grams of a row have beside them."""
    programs = [f"def f{chr(97 + i)}(x): " + f"x[{i}] += y[{i + 1}] * 2; " * 300 for i in range(20)]
    started = time.process_time()
    seen = similarity.Duplicates(0.9)
    assert [seen.check(make("Write it.", text, text)) for text in programs] == [None] * 20
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Calculate 12 + 4.", "Calculate 12 - 4."),
        ("What is the absolute value of -5?", "What is the absolute value of 5?"),
        ("Solve x < 7 for whole x.", "Solve x > 7 for whole x."),
        ("What does s[1:] give?", "What does s[:1] give?"),
        ("In C: a && b", "In C: a || b"),
        ("What does 😀 mean?", "What does 😡 mean?"),
        ("What is 5!", "What is 5?"),
        ("(2+3)*4", "2+(3*4)"),
        ("Is x == y?", "Is x != y?"),
        ("Is it $5 or €5?", "Is it $5 or £5?"),
        ("甲乙两地相距三百公里，几小时可以到达？", "甲乙两地相距五百公里，几小时可以到达？"),
        ("What is the plural of किताब?", "What is the plural of किताबें?"),
    ],
)
def test_signs_and_symbols_make_another_question(one, other):
    seen = similarity.Duplicates(0.9, (), "prompt")
    story = " Give the reasons, step by step, in whole sentences, and name each rule that you use." * 3
    for text in (one, other, one + story, other + story):
        assert seen.check(make(text)) is None, text
        assert contamination.Contamination(0.6, [make(text)]).check(make(text)), text


def test_what_another_operator_asks_is_not_contaminated():
    held_out = contamination.Contamination(
        0.6, [make("Calculate 12 - 4."), make("Is the sum of a and b < 3?")]
    )
    for text in ("Calculate 12 + 4.", "Is the sum of a and b > 3?", "Calculate 12 4"):
        assert held_out.check(make(text)) is None
    assert held_out.check(make("Please: **Calculate** 12 - 4, then stop."))


def test_layout_is_no_difference():
    plain = similarity.words("The highest well known mountain is it")
    for text in (
        "- The **highest** well-known mountain: is it?!",
        "> the *highest* (well known) mountain is it",
    ):
        assert similarity.words(text) == plain
    assert similarity.words("cafe\u0301 \u2212 3") == similarity.words("café - 3")
    assert similarity.words("?!") != similarity.words("...")


@pytest.mark.parametrize(
    ("question", "before", "after"),
    [
        ("请解释一下什么是光合作用以及它对地球的意义。", "老师问：", "请用两句话回答。"),
        ("甲乙两地相距三百公里，一辆汽车几小时可以到达？", "阅读下面的题目并作答：", "写出过程。"),
        ("โปรดอธิบายว่าการสังเคราะห์ด้วยแสงคืออะไรและสำคัญต่อโลกอย่างไร", "", " ตอบสองประโยค"),
        ("日本で一番高い山は何ですか。標高も教えてください。", "質問：", "短く答えて。"),
        ("ទីក្រុងធំជាងគេនៅកម្ពុជាគឺជាអ្វី", "សំណួរ ", " ឆ្លើយខ្លី"),
        ("Wie heißt der höchste Berg in Japan?", "Beantworte die Aufgabe: ", " Kurz, bitte."),
    ],
)
def test_a_question_without_spaces_is_found_inside_a_longer_text(question, before, after):
    held_out = contamination.Contamination(0.6, [make(question, "item")])
    row = make(before + question + after)
    assert held_out.check(row).detail.endswith("of item")
    assert held_out.check(make(before + after)) is None
    # Half of it is another question.
    assert held_out.check(make(before + question[: len(question) // 2] + after)) is None


FIXED = (
    "Read the message below, find the name and the city in it and answer with JSON of exactly two keys: {}"
)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (
            FIXED,
            [
                "Ann moved to Bonn",
                "Ben works in Kiel",
                "Eva lives in Cologne",
                "Tom left Berlin",
                "Ida is in Graz",
            ],
        ),
        (
            "Answer with JSON that has the keys name and letters: the word {}.",
            ["apple", "river", "cloud", "tree", "sun"],
        ),
    ],
)
def test_an_instruction_that_stands_before_many_questions_makes_none_of_them_known(form, words):
    questions = [form.format(word) for word in words]
    held_out = contamination.Contamination(0.6, [make(questions[0], "item")], others=map(make, questions))
    assert [held_out.check(make(question)) for question in questions[1:]] == [None] * 4
    assert held_out.check(make(questions[0])).detail.endswith("of item")
    # The same question asked again and again is known all the same.
    again = contamination.Contamination(0.6, [make(questions[0], "item")], others=[make(questions[0])] * 30)
    assert again.check(make(questions[0])).detail.endswith("of item")
    # Where only two share it, it is a part of the question.
    few = contamination.Contamination(0.6, [make(questions[0], "item")], others=[make(questions[1])])
    assert few.check(make(questions[1])) is not None


def test_short_and_wordless_questions_are_compared_whole():
    held_out = contamination.Contamination(0.6, [make("What is 2 + 3?")])
    assert held_out.check(make("What is 2 + 3?")) is not None
    assert held_out.check(make("What is 2 + 4?")) is None
    counts = [len(similarity.ngrams(text, 8)) for text in ("", "One two!", "1 2 3 4 5 6 7 8 9", "one, two")]
    assert counts == [1, 1, 2, 1]
    first, longer, other_layout = (similarity.ngrams(text, 3) for text in ("a b c d", "x a b c", "A B, c D"))
    assert first == other_layout and len(first & longer) == 1
    assert not first & similarity.ngrams("a b c d", 3, "7")
    assert held_out.check(make("")) is None and contamination.Contamination(0.6, []).check(make("")) is None


def test_a_short_question_is_found_inside_a_longer_text():
    questions = [
        "What is 12 times 13?",
        "Why do we have leap years?",
        "Name the four seasons.",
        "Why?",
        "What is 7?",
        "Add 2 and 3 then divide by 5.",
    ]
    held_out = contamination.Contamination(0.6, [make(text, text) for text in questions])
    assert held_out.lengths == {4, 5, 6, 8}
    cases = [
        (make("Please tell me: what is 12 times 13?"), questions[0]),
        (make("A textbook", completion="It asks: What is 12 times 13? We get 156."), questions[0]),
        (make("Please tell me: what is 12 times 14, not 13?"), None),
        (make("Please tell me: what is 13 times 12?"), None),
        (make("What is 12 times"), None),
        (make("In one sentence, please: why do we have leap years at all?"), questions[1]),
        (make("Why do we have years and not a leap?"), None),
        (make("name the four seasons, and say when each begins"), questions[2]),
        (
            make("Why? Give three reasons, the best one first, and say what follows."),
            None,
        ),  # too common a phrase: only the same text counts
        (make("why"), questions[3]),
        (make("What is 7 plus 8?"), None),
        (make("What is 7?!"), questions[4]),
        (make("First: add 2 and 3, then divide by 5, please."), questions[5]),
    ]
    rows = [row for row, _ in cases]
    found = [held_out.check(row) for row in rows]
    assert [reject and reject.detail.partition(" n-grams of ")[2] for reject in found] == [
        question for _, question in cases
    ]


def shingle_set(text: str) -> set[str]:
    """By the definition, on strings: the reference for the hashes."""
    words = similarity.words(text)
    return {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_near_duplicates_are_those_of_the_definition():
    """Of 300 texts with more and more words changed, those above the threshold.

    The one named is the first by name of those that are alike.
    """
    rng = random.Random(0)
    vocabulary = [f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(400)]
    originals = [rng.choices(vocabulary, k=60) for _ in range(10)]
    texts = [" ".join(words) for words in originals]
    for words in originals:
        for k in range(29):
            texts.append(
                " ".join(rng.choice(vocabulary) if rng.random() < k / 200 else word for word in words)
            )
    rows = [make(text, str(i)) for i, text in enumerate(texts)]
    shingles = [shingle_set(text) for text in texts]
    for sample in ([], rows[::7]):
        seen, kept = similarity.Duplicates(0.9, sample), []
        for i, row in enumerate(rows):
            similar = [
                str(j) for j in kept if len(shingles[i] & shingles[j]) >= 0.9 * len(shingles[i] | shingles[j])
            ]
            reject = seen.check(row)
            assert (reject is None) == (not similar), (i, similar)
            if reject is None:
                kept.append(i)
            elif reject.reason == "near-duplicate":
                assert reject.detail == f"of {min(similar)}"
        assert 100 < len(kept) < 290


def test_contaminated_rows_are_those_of_the_definition():
    """Questions planted with words changed or cut: each row against each question, by the definition."""
    rng = random.Random(0)
    vocabulary = [f"w{chr(97 + i)}" for i in range(20)] + ["3", "14"]
    questions = [" ".join(rng.choices(vocabulary, k=rng.randint(1, 25))) for _ in range(60)]
    held_out = contamination.Contamination(0.6, [make(text, str(i)) for i, text in enumerate(questions)])

    def grams(text: str, length: int) -> set[str]:
        words = text.split()
        return {" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}

    contaminated = 0
    for _ in range(400):
        planted = [word if rng.random() < 0.97 else "other" for word in rng.choice(questions).split()]
        text = " ".join([*rng.choices(vocabulary, k=rng.randint(0, 4)), *planted[: rng.randint(1, 25)]])
        details = []
        for i, question in enumerate(questions):
            size = len(question.split())
            length = size if 4 <= size < 8 else 8
            theirs, ours = grams(question, length), grams(text, length)
            numbers = Counter(w for w in question.split() if w.isdigit())
            enough = len(theirs & ours) >= 0.6 * len(theirs)
            if enough and numbers <= Counter(w for w in text.split() if w.isdigit()):
                details.append(f"holds {len(theirs & ours)} of {len(theirs)} n-grams of {i}")
        reject = held_out.check(make("nothing", completion=text))
        assert (reject.detail if reject else None) == (details[0] if details else None), text
        contaminated += bool(details)
    assert 100 < contaminated < 390


def test_a_prompt_that_all_rows_share_does_not_make_each_row_a_candidate_for_all():
    """25 words of instructions round each question, as `data.user_prompt` may put them."""
    rng = random.Random(0)
    prompt = " ".join(f"w{chr(97 + i)}" for i in range(25))
    vocabulary = [f"v{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(600)]
    rows = [make(f"{prompt} {' '.join(rng.choices(vocabulary, k=15))}", str(i)) for i in range(4_000)]
    started = time.process_time()
    seen = similarity.Duplicates(0.9, rows[::10])
    assert [seen.check(row) for row in rows] == [None] * len(rows)
    held_out = contamination.Contamination(0.9, rows[:1_000])
    assert [bool(held_out.check(row)) for row in rows] == [True] * 1_000 + [False] * 3_000
    assert time.process_time() - started < 6  # each with all: 30 s


@pytest.mark.parametrize(
    "text",
    [
        "Error: API call failed",
        "API call failed after 3 retries",
        "GENERATION_ERROR",
        'Traceback (most recent call last):\n  File "a.py", line 1\nKeyError',
        "None",
        " null\n",
        "nan",
        "NaN",
    ],
)
def test_error_text_is_never_training_text(text):
    assert checks.check_content(make("question", completion=text)).reason == "error text"


def test_none_is_an_answer_where_the_row_says_so():
    row = make("What does print(None) print?", completion="None")
    row.gold = "None"
    assert checks.check_content(row) is None


KEPT = [
    "The error is 3.",
    "Error 404 means that a page was not found.",
    "None of the angles is right. \\boxed{0}",
    "None of the rooms is free.",
    "Null is the German word for zero.",
    "Sorry states of matter",
    "I can see that x = 3.",
    "I'm sorry, but the parcel is lost. We will send another one.",
    "I cannot answer that for you, but my colleague can: call her.",
    "As an AI, I have no taste, but people like it.",
    "Traceback (most recent call last) is the first line of an error of Python.",
    "Nan is a grandmother.",
]
REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, I can’t assist with this request.",
    "I cannot answer this.",
    "As an AI language model, I am unable to provide that.",
    "Sorry, but I won't help with picking locks.",
]


@pytest.mark.parametrize("text", KEPT + REFUSALS)
def test_answers_that_only_look_like_errors_stay(text):
    assert checks.check_content(make("question", completion=text)) is None
    assert checks.is_refusal(text) == (text in REFUSALS)


def test_refusals_are_dropped_where_the_recipe_says_so(tmp_path, embedded):
    model = load_recipe().model
    row = make("How do I pick a lock?", completion=REFUSALS[0])
    assert checks.RowChecker(model, tmp_path).check(row) is None
    dropping = checks.RowChecker(model, tmp_path, "drop")
    assert dropping.check(row).reason == "refusal"
    assert [dropping.check(make("Write.", completion=text)) for text in KEPT] == [None] * len(KEPT)


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\ufeff \u200d\u2060", "\u3164", "\u00ad\u200e"])
def test_a_text_of_which_nothing_is_seen_is_empty(text):
    assert checks.check_content(make(text)).reason == "empty prompt"
    assert checks.check_content(make("question", completion=text)).reason == "empty completion"
    visible = f"{text}a{text}"
    assert checks.check_content(make(visible, completion=visible)) is None
    assert checks.check_content(make("nan")).reason == "empty prompt"


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
)
fields = st.sampled_from(
    [
        "prompt",
        "completion",
        "messages",
        "answer",
        "slice",
        "system",
        "instruction",
        "input",
        "output",
        "conversations",
        "from",
        "value",
        "role",
        "content",
        "question",
    ]
)


@settings(max_examples=scaled(300), deadline=None)
@given(
    st.lists(
        st.dictionaries(
            fields, json_values | st.lists(st.dictionaries(fields, json_values, max_size=3)), max_size=5
        )
        | json_values,
        max_size=5,
    ),
    st.sampled_from([None, *sorted(recognise.FORMATS)]),
)
def test_any_json_is_a_row_or_a_reject(tmp_path_factory, values, form):
    path = tmp_path_factory.mktemp("fuzz") / "rows.jsonl"
    # One object alone, or one array, may wrap rows; after another line each is a row of its own.
    values = [{}, *values]
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    recipe = load_recipe(overrides={"data.sources": [{"format": form, "path": str(path), "split": "train"}]})
    out = list(sources.read(recipe, recipe.run_dir / "images"))
    assert len(out) == len(values)
    for item in out:
        if isinstance(item, Reject) or checks.check_content(item):
            continue
        assert item.completion[0]["content"].strip() and item.question.strip()
