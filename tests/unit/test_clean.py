"""Rewriting through an API: what counts as clean, what a result depends on, images."""

from __future__ import annotations

import base64
import io
import json

import api
import pytest
from cleaning import recipe_file
from PIL import Image

from tunebook.data import clean, raw_solutions
from tunebook.recipe.files import find_file, read_text
from tunebook.recipe.loading import load_recipe

KEY = "sk-secret-0123456789"


def test_what_rows_depend_on_is_in_the_key_and_no_address_is(tmp_path, monkeypatch):
    for name in ("API_KEY", "BASE_URL", "MODEL"):
        monkeypatch.delenv(name, raising=False)

    def stage(**given):
        return clean.clean_stage(load_recipe(recipe_file(tmp_path, 1, **given)))

    given = {
        "url": "https://host/v1",
        "model": "n",
        "send_images": True,
        "extra": {"top_k": 1},
        "hub_split": "test",
        "temperature": 1.0,
    }
    keys = [stage().key, *(stage(**{name: value}).key for name, value in given.items())]
    monkeypatch.setenv("BASE_URL", "https://me:pass1234@host/v1")
    keys.append(stage().key)
    assert len(set(keys)) == len(keys)
    assert "host" not in json.dumps([stage().settings, stage().inputs])
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setenv("BASE_URL", "https://me:pass9999@host/v1")
    assert (
        stage(timeout=7, price_in=3).key == keys[-1]
    )  # neither a key nor a password decides, nor what does not change a row


def test_a_hub_id_that_ends_in_a_number_is_no_file():
    recipe = load_recipe(overrides={"clean.source": "AI-MO/NuminaMath-1.5"})
    assert clean.clean_stage(recipe).inputs.keys() == {"source", recipe.clean.prompt}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (api.solution("60^\\circ"), None),
        ("  " + api.solution("60") + "\n", None),
        ("", "empty"),
        ("Error: API call failed", "error text"),
        (api.solution("61"), "wrong answer: it ends in '61', the original in '60'"),
        ("1. It is so.\n### Final Answer\n\\boxed{60}", "not in the asked format"),
        ("### Solution\nIt is so.\n\n### Final Answer\n\\boxed{60}", "not in the asked format"),
        (api.solution("60", "x" * 2000), "length"),
        (api.solution("60", "Сложим числа."), "another language: letters of CYRILLIC"),
        (api.solution("60", "α + β = 60, π, 𝑥, é"), None),
    ],
)
def test_what_counts_as_clean(text, reason):
    raw = raw_solutions.Raw(
        1, "How many degrees?", "It is \\boxed{60}, as the angles add up to 180 degrees.", "60", None
    )
    found = raw_solutions.check(text, raw, truncated=False, max_length_ratio=6)
    assert found is None if reason is None else found.startswith(reason)
    assert raw_solutions.check(text, raw, truncated=True, max_length_ratio=6).startswith("cut off")


def test_images_stay_in_their_folder_and_go_along_if_asked(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "images" / "a.png")
    (tmp_path / "outside.png").write_bytes(b"secret")
    names = ("a.png", "../outside.png", "/etc/passwd", "none.png", None)
    rows = [{"question": "q", "solution": "\\boxed{1}", "file_name": name} for name in names]
    (tmp_path / "images" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {
        "clean.source": str(tmp_path / "images" / "rows.jsonl"),
        "clean.image": "file_name",
        "clean.send_images": True,
    }
    config = load_recipe(overrides=given).clean
    found = list(raw_solutions.source_rows(config))
    assert isinstance(found[0], raw_solutions.Raw) and [r.reason for r in found[1:4]] == [
        "image outside the folder"
    ] * 2 + ["image missing"]
    assert (found[4].image, found[4].image_name) == (None, "")  # a row without one goes without
    template = read_text(find_file(config.prompt))
    image, text = raw_solutions.question_to(config, template, found[0])
    kind, _, data = image["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png" and Image.open(io.BytesIO(base64.b64decode(data))).getpixel((0, 0)) == (
        255,
        0,
        0,
    )
    assert "Problem:\nq" in text["text"]
    assert raw_solutions.question_to(config, template, found[4]) == text["text"]
