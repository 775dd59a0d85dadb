"""Whatever comes in, the outcome is success or one line of UserError, in bounded time.

And every row ends somewhere. 50 times as many cases as in CI:

    uv run pytest tests/unit/test_fuzz.py --hypothesis-profile=long --hypothesis-show-statistics
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import threading
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import whole_recipe
import yaml
from batches import all_answers
from fuzzing import (
    cases,
    dumped,
    file_of,
    one_line,
    rows,
    text,
    value,
)
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tunebook.data import clean, images, raw_solutions
from tunebook.data.prompts import Prompts
from tunebook.data.rows import Reject
from tunebook.generation import answers, generate
from tunebook.generation.server import MAX_CHARACTERS
from tunebook.models import image_input
from tunebook.pairs import existing
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import find_file, read_text
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.overrides import parse_set
from tunebook.recipe.sections import Recipe, ServerConfig
from tunebook.training.sft import sft_stage

DEFAULT = whole_recipe.content("smollm2-math")
DEFAULT["clean"] = {"source": "raw.jsonl"}
DEFAULT["pairs"]["server"] = {"url": "http://127.0.0.1:1/v1", "model": "m"}
DEFAULT["data"]["sources"] += [{"format": "chat", "path": "x.jsonl"}, {"format": "mm_math", "path": "sample"}]
KEYS = list(DEFAULT)
for _section, _keys in DEFAULT.items():
    if isinstance(_keys, dict):
        KEYS += [f"{_section}.{_key}" for _key in _keys]
KEYS += [
    "data.sources.0",
    "data.sources.0.train",
    "data.sources.1.val",
    "pairs.server.url",
    "pairs.server.zzz",
    "evaluate.gate.0.first",
    "clean.zzz",
]


# Recipes


def change(content, key: str, new) -> None:
    """Set a key in the text of a recipe, as far as an earlier change has left what it lies in."""
    *parents, last = key.split(".")
    node = content
    for part in parents:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            return
    if isinstance(node, dict):
        node[last] = new
    elif isinstance(node, list):
        node.append(new)


def usable(recipe: Recipe) -> None:
    """What every stage does with a recipe before its work."""
    json.dumps(recipe.model_dump(mode="json"))
    recipe.describe().encode()
    with contextlib.suppress(UserError):
        assert sft_stage(recipe).key


@cases(150)
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS), value | st.dates() | st.binary(max_size=5)), min_size=1, max_size=4
    )
)
@example([("pairs.server.zzz", 1)])  # the nearest key of a section that may be missing
@example([("sft.optim", date(2026, 1, 1))])  # accepted, and then no manifest could be written
@example([("name", "a" * 300)])
@example([("name", "a" * 30_000 + "!")])
@example([("data.system_prompt", "x" * 300)])
@example([("sft.learning_rate", "\ud800")])
def test_recipes(changes):
    content = json.loads(json.dumps(DEFAULT))
    for key, new in changes:
        change(content, key, new)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(yaml.safe_dump(content))
        with one_line():
            usable(load_recipe(path))


@cases(100)
@given(
    st.binary(max_size=200)
    | st.text(st.sampled_from("{}[]&*!?:-|>'\"%@,# \n\tab1"), max_size=60).map(str.encode)
)
@example(b"a: &a [*a]")
@example(
    b"a: &a [x,x]\n"
    + b"".join(b"%c: &%c [*%c,*%c,*%c,*%c]\n" % (98 + i, 98 + i, *[97 + i] * 4) for i in range(20))
)  # 4^20 values
@example(b"name: 2001-99-99")
@example(b"seed: " + b"9" * 5000)
@example(b"[" * 1500)
@example(b"\x00\x01\x02")
@example(b"\xff\xfename: x")
@example(b"{a: 1}: {b: 2}")
@example(b"1: 2")
def test_files_that_are_no_recipe(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_bytes(content)
        with one_line():
            usable(load_recipe(path))


@cases(100)
@given(
    st.dictionaries(st.sampled_from(KEYS) | text, value, max_size=3) | value,
    st.lists(text, max_size=2),
    value,
)
@example({}, ["seed=" + "[" * 1500], None)
@example("x", [], None)
@example({1: 2}, [], None)
@example({}, ["sft.learning_rate=2001-99-99"], 5)
def test_overrides_of_notebooks_and_the_command_line(overrides, items, parameter):
    with one_line():
        usable(load_recipe(overrides=overrides))
    with one_line():
        usable(load_recipe(overrides=parse_set(items)))
    with one_line():
        usable(load_recipe(stage="sft", lr=parameter, epochs=parameter, seed=parameter, run=parameter))


@cases(80)
@given(rows)
@example(
    [{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": "nan", "score_rejected": 1}]
)  # a margin that is none
@example([{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 10**400, "score_rejected": 1}])
@example([{"prompt": "a", "chosen": "b", "rejected": "c", "answer": [5]}])
def test_rows_of_preference_sets(found):
    with (
        file_of(b"\n".join(dumped(found)), "pairs.jsonl") as path,
        pytest.MonkeyPatch.context() as patch,
        one_line(30),
    ):
        patch.setattr(existing, "load", lambda recipe, split: [])
        recipe = load_recipe(overrides={"pairs.methods": ["dataset"], "pairs.dataset": str(path)})
        read = list(existing.read(recipe, lambda text: len(text.split()), path.parent / "images"))
        assert len(read) == len(found)
        for r in read:
            if not isinstance(r, Reject):
                json.dumps(r, ensure_ascii=False, allow_nan=False).encode()


# Images

PICTURES = {}
for _kind, _mode in (
    ("PNG", "RGBA"),
    ("PNG", "1"),
    ("JPEG", "CMYK"),
    ("GIF", "P"),
    ("TIFF", "CMYK"),
    ("BMP", "RGB"),
    ("WEBP", "RGB"),
):
    _out = io.BytesIO()
    _frames = [Image.new(_mode, (9, 7), i) for i in range(2)]
    _frames[0].save(
        _out, _kind, **({"save_all": True, "append_images": _frames[1:]} if _kind in ("GIF", "WEBP") else {})
    )
    PICTURES[_kind, _mode] = _out.getvalue()
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@cases(600)
@given(
    st.sampled_from(sorted(PICTURES)),
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=5),
    st.integers(0, 200),
)
def test_damaged_images(which, changes, cut):
    data = bytearray(PICTURES[which])
    for at, new in changes:
        data[at % len(data) : at % len(data) + len(new)] = new
    try:
        found = image_input.read(bytes(data[: len(data) - cut]), 5)
    except image_input.BadImage as error:
        assert error.reason and "\n" not in str(error)
    else:
        assert found.mode == "RGB" and max(found.size) <= 5


def test_no_program_is_started_for_an_image():
    assert [image_input.read(data).size for data in PICTURES.values()] == [(9, 7)] * len(
        PICTURES
    )  # of animated ones the first frame
    with pytest.raises(image_input.BadImage) as error:
        image_input.read(EPS)  # Pillow would start Ghostscript
    assert error.value.reason == "not an image"


@cases(200)
@given(
    text
    | st.lists(
        st.sampled_from(["..", ".", "/", "a", "in", "loop", "out", "~", "\0", "x" * 300]), max_size=5
    ).map("/".join)
)
@example("\0")
@example("x" * 300)
@example("loop")
@example("out/secret.png")
def test_names_of_images_stay_in_their_folder(name):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "in"
        folder.mkdir()
        (Path(place) / "secret.png").write_bytes(b"secret")
        (folder / "a").write_bytes(b"a")
        (folder / "loop").symlink_to("loop")
        (folder / "out").symlink_to("..")
        try:
            found = images.finder(folder)(name)
        except image_input.BadImage:
            return
        assert found.is_relative_to(folder.resolve()) and found.read_bytes() == b"a"


@pytest.mark.parametrize(
    ("answer", "so"),
    [
        ("1, 2, 3 and the answer is 5", False),
        ("yes " * 30, True),
        ("It is so.\n" * 12 + "It is", True),
        ("a" * 9, False),
        ("1. 2 + 2 = 4\n" * 3, False),
    ],
)
def test_an_answer_that_repeats_itself_to_its_end(answer, so):
    assert answers.repeats(answer) is so


# Servers


class Handler(BaseHTTPRequestHandler):
    reply: tuple[int, str, bytes] = (200, "application/json", b"{}")

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, kind, body = self.reply
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def reply(content, **changed) -> bytes:
    said = {
        "choices": [{"message": {"content": content, "role": "assistant"}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 3},
    }
    return json.dumps(said | changed).encode()


bodies = st.one_of(
    st.binary(max_size=60),
    value.map(lambda v: json.dumps(v).encode()),
    value.map(reply),
    st.builds(lambda choices, usage: reply("x", choices=choices, usage=usage), value, value),
    st.builds(lambda n: reply("x", usage={"prompt_tokens": n, "completion_tokens": n}), value),
)
replies = st.tuples(
    st.sampled_from([200, 200, 200, 200, 400, 401, 404, 422, 500]),
    st.sampled_from(["application/json", "text/html"]),
    bodies,
)


@cases(12)
@given(replies)
@example((200, "text/html", b"<html>Sign in</html>"))  # the client gives text in place of an object
@example((200, "application/json", b"null"))
@example((200, "application/json", reply({"a": 1})))
@example((200, "application/json", reply("\ud800")))
@example((200, "application/json", reply("x", choices=None)))
@example((200, "application/json", reply("x", usage={"prompt_tokens": None, "completion_tokens": "many"})))
@example((200, "application/json", reply("5 " * 2_000_000)))
@example((200, "application/json", b"[" * 100_000))
def test_answers_of_servers(url, answer):
    Handler.reply = answer
    server = ServerConfig(url=url, model="m", retries=0, timeout=20, concurrency=2)
    with one_line():
        prompts = [[{"role": "user", "content": "Q?"}]] * 2
        found = all_answers(server, prompts, answers.Sampling(8))
        assert sorted(found) == [0, 1]
        json.dumps([a.text for a in found.values()], ensure_ascii=False).encode()
        assert all(
            isinstance(a.tokens, int) and a.tokens >= 0 and len(a.text) <= MAX_CHARACTERS + 1
            for a in found.values()
        )
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, one_line():
        patch.setenv("TUNEBOOK_RUNS", folder)
        source = Path(folder) / "raw.jsonl"
        source.write_text(
            "".join(
                json.dumps({"question": f"What is {i}?", "solution": f"\\boxed{{{i}}}"}) + "\n"
                for i in range(3)
            )
            + "{broken\n"
        )
        given = {
            "source": str(source),
            "url": url,
            "model": "m",
            "retries": 0,
            "timeout": 20,
            "concurrency": 1,
        }
        record = clean.clean(load_recipe(overrides={"clean": given}))
        assert sum(record["rows"].values()) == 4


@cases(60)
@given(
    st.lists(
        st.fixed_dictionaries(
            {"question": value, "solution": value}, optional={"answer": value, "image": value}
        )
        | value,
        max_size=5,
    ),
    value,
)
def test_rows_to_be_cleaned(found, answer):
    with file_of(b"\n".join(dumped(found)), "raw.jsonl") as path, one_line():
        config = load_recipe(
            overrides={"clean": {"source": str(path), "image": "image", "send_images": True}}
        ).clean
        read = list(raw_solutions.source_rows(config))
        assert len(read) == len(found)
        (path.parent / "run").mkdir()
        template = read_text(find_file(config.prompt))
        with generate.AnswerFile(path.parent / "outcomes.jsonl", "number") as outcomes:
            for number, raw in enumerate(read, 1):
                outcome = {"number": number, "reason": "", "body": {"prompt": getattr(raw, "question", "")}}
                if isinstance(raw, raw_solutions.Raw):
                    raw_solutions.question_to(config, template, raw)
                    raw_solutions.check(str(answer)[:1000], raw, False, 6)
                else:
                    outcome = clean.quarantined(raw)
                outcomes.write([outcome])
            assert sum(clean.write_rows(outcomes, path.parent / "run").values()) == len(found)


def test_a_prompt_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"p\.txt cannot be read as text"):
        Prompts(load_recipe(overrides={"data.system_prompt": str(tmp_path / "p.txt")}))
