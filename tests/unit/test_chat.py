"""Asking models: streaming, conversations, the terminal, the question box, the notebook."""

from __future__ import annotations

import contextlib
import threading

import pytest

from tunebook.chat import conversation, terminal
from tunebook.generation.local import Local
from tunebook.generation.streaming import Drawing
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def test_latex_is_rendered_whatever_its_delimiters():
    assert conversation.rendered(r"so \boxed{\frac{1}{\sqrt{2}}}.") == r"so $\boxed{\frac{1}{\sqrt{2}}}$."
    assert conversation.rendered(r"\(x^2\) and \[y\]") == "$x^2$ and $$y$$"
    assert conversation.rendered(r"$a = \boxed{5}$") == r"$a = \boxed{5}$"  # not twice
    assert conversation.rendered(r"$$\boxed{5}$$ \boxed{6}") == r"$$\boxed{5}$$ $\boxed{6}$"
    assert conversation.rendered("1. a\n2. b") == "1. a  \n2. b"
    assert conversation.rendered(r"it costs $5 \boxed{") == r"it costs $5 \boxed{"  # half an answer


def test_what_is_no_image_is_one_line(tmp_path):
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UserError, match=r"x\.png: not an image"):
        conversation.open_image(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"none\.png: image missing"):
        conversation.open_image(tmp_path / "none.png")


def test_an_untrained_run_has_its_base_only(tmp_path):
    recipe = load_recipe()
    models = conversation.Models(recipe)
    assert (models.names, models.newest) == (["base"], "base")
    for name in ("sft", "dpo", "dpo-2", "export/merged"):
        (recipe.run_dir / name / ("" if "/" in name else "adapter")).mkdir(parents=True)
    assert (models.names, models.newest) == (["base", "sft", "dpo", "dpo-2", "merged"], "dpo-2")
    for wrong in ("dop", "a/b/c", ""):
        with pytest.raises(UserError, match="choose from base, sft"), models.use(wrong):
            pass
    with pytest.raises(UserError, match="run `uv run tunebook sft"), models.use("sft"):
        pass


def test_one_question_says_on_stderr_that_nothing_is_trained(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_say", lambda chat, question, image: print("an answer"))
    recipe = load_recipe()
    terminal.terminal(recipe, None, Drawing(), "Hello?")
    out, err = capsys.readouterr()
    assert out == "an answer\n"
    assert err == f"Nothing is trained in {recipe.run_dir}: the base model answers.\n"
    terminal.terminal(recipe, "base", Drawing(), "Hello?")  # asked for
    (recipe.run_dir / "sft" / "adapter").mkdir(parents=True)
    terminal.terminal(recipe, None, Drawing(), "Hello?")
    assert capsys.readouterr().err == ""


def test_a_revision_is_that_of_the_recipes_base_alone(monkeypatch):
    """And of two models one is in memory: the other is let go of before it is loaded."""
    loaded = []
    monkeypatch.setattr(conversation.backend, "release", lambda: loaded.append(None))
    monkeypatch.setattr(
        conversation.loading, "load_model", lambda recipe: loaded.append(recipe.model) or (None, None)
    )
    monkeypatch.setattr(
        conversation, "load_stages", lambda recipe, stages: loaded.append(recipe.model) or (None, None)
    )
    there = conversation.Models(load_recipe(overrides={"model.revision": "v1"}))
    there._load("user/other")
    there._load("")
    other, released, base = loaded
    assert (other.base, other.revision) == ("user/other", None)
    assert (base.base, base.revision) == ("smollm2-135m-instruct", "v1") and released is None
    there._load("")  # which is there
    assert len(loaded) == 3
    (there.recipe.run_dir / "export" / "merged").mkdir(parents=True)
    (there.recipe.run_dir / "export" / "merged" / "config.json").write_text("{}")
    there.recipe.model.load_in_4bit = True
    there._load(str(there.recipe.run_dir / "export" / "merged"))
    assert loaded[-1].load_in_4bit is False  # as it was exported


def test_model_and_conversation_cannot_be_changed_under_an_answer(monkeypatch):
    """Else another adapter writes the rest of the answer, and the answer brings the old conversation back."""
    from tunebook.chat import widgets

    class Asked:
        names = ("base", "sft")

        @contextlib.contextmanager
        def use(self, name):
            yield Local(None, None)

    under_way, go_on = threading.Event(), threading.Event()

    def ask(self, question, image=None):
        yield "so "
        under_way.set()
        assert go_on.wait(10)
        if question == "Two?":
            raise UserError("no")

    monkeypatch.setattr(conversation.Chat, "ask", ask)
    settings, _, question, buttons = widgets.question_box(Asked(), "base", Drawing(5)).children
    chosen, (ask_button, stop, reset, *_) = settings.children[0], buttons.children
    for text in ("One?", "Two?"):
        assert (chosen.disabled, reset.disabled, ask_button.disabled, stop.disabled) == (
            False,
            False,
            False,
            True,
        )
        question.value = text
        ask_button.click()
        assert under_way.wait(10)
        assert (chosen.disabled, reset.disabled, ask_button.disabled, stop.disabled) == (
            True,
            True,
            True,
            False,
        )
        go_on.set()
        for thread in threading.enumerate():
            if thread.name.endswith("(answer)"):
                thread.join(10)
        under_way.clear(), go_on.clear()
    assert (chosen.disabled, reset.disabled) == (False, False)
