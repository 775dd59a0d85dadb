"""Asking models: streaming, conversations, the terminal, the question box, the notebook."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
from pathlib import Path

import pytest

from tunebook.chat import conversation, terminal
from tunebook.data.formats import Prompts
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local, sees_images
from tunebook.generation.streaming import Drawing, stream
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
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


def test_a_revision_is_that_of_the_recipes_base_alone(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        conversation.models, "load", lambda recipe: loaded.append(recipe.model) or (None, None)
    )
    monkeypatch.setattr(
        conversation, "load_stages", lambda recipe, stages: loaded.append(recipe.model) or (None, None)
    )
    there = conversation.Models(load_recipe(overrides={"model.revision": "v1"}))
    there._load("user/other")
    there._load("")
    assert [(model.base, model.revision) for model in loaded] == [
        ("user/other", None),
        ("smollm2-135m-instruct", "v1"),
    ]


def test_model_and_conversation_cannot_be_changed_under_an_answer(monkeypatch):
    """Another adapter would write the rest of the answer, and the answer would bring the old conversation back."""
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


def whole(source: Local, prompt: Messages, max_new_tokens: int) -> str:
    """One greedy answer, not streamed."""
    return next(generate(source, [prompt], Sampling(max_new_tokens)))[0].text


@pytest.fixture
def models(tiny_recipe) -> conversation.Models:
    return conversation.Models(load_recipe(tiny_recipe))


@pytest.mark.slow
def test_a_streamed_answer_is_the_whole_answer(models):
    messages = Prompts(models.recipe).ask("How many?")
    with models.use("base") as source:
        pieces = list(stream(source, messages, Drawing(40)))
        assert len(pieces) > 3
        assert "".join(pieces) == whole(source, messages, 40)
        sampled = ["".join(stream(source, messages, Drawing(40, 1.0, 0.9, seed))) for seed in (1, 1, 2)]
        assert sampled[0] == sampled[1] != sampled[2]
        steps = []
        hook = source.model.register_forward_hook(lambda *_: steps.append(1))
        long = stream(source, messages, Drawing(1900))
        next(long)
        long.close()  # stops the model
        hook.remove()
        assert 0 < len(steps) < 1000
        assert not sees_images(source)
        with pytest.raises(UserError, match="sees no images"):
            next(stream(source, messages, Drawing(4), {0: object()}))
        with pytest.raises(UserError, match="start a new one"):
            next(stream(source, [{"role": "user", "content": "x " * 3000}], Drawing(4)))
        broken = Local(source.model, source.tokenizer)
        with pytest.raises(ValueError, match="temperature"):  # an error in the thread is an error here
            list(stream(broken, messages, Drawing(4, temperature=-1.0)))


@pytest.mark.slow
def test_a_conversation_goes_along_and_changes_its_model(models, tiny):
    talk = conversation.Chat(models, "base", Drawing(5))
    first = "".join(talk.ask("One?"))
    assert [m["content"] for m in talk.messages] == ["One?", first]
    second = talk.ask("Two?")
    next(second)
    second.close()  # what came so far is kept
    assert [m["role"] for m in talk.messages] == ["user", "assistant"] * 2
    talk.model = str(tiny)
    with models.use("base") as base, models.use(str(tiny)) as other:
        assert base.model is not other.model
    history = [*Prompts(models.recipe).with_system(talk.messages), {"role": "user", "content": "Three?"}]
    with models.use(str(tiny)) as source:
        assert "".join(talk.ask("Three?")) == whole(source, history, 5)


@pytest.mark.slow
def test_the_terminal(models, monkeypatch, capsys, tiny, tmp_path):
    lines = "One?\n/model nobody\n\n/reset\n/what\n" + f"/model {tiny}\nTwo?\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    terminal.terminal(models.recipe, None, Drawing(5))
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "Nothing is trained" in said
        and "no model 'nobody': choose from base" in said
        and "/model NAME, /reset, /quit" in said
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    terminal.terminal(models.recipe, "base", Drawing(5), question="One?")
    one = capsys.readouterr().out.strip().splitlines()[-1]
    assert one and one in said
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="sees no images"):
        terminal.terminal(models.recipe, "base", Drawing(5), question="One?", image=str(tmp_path / "x.png"))


@pytest.mark.slow
def test_the_question_box(models):
    """The widgets without a browser: what a click does, and what is shown. A browser: see the README's check."""
    from tunebook.chat import widgets

    box = widgets.question_box(models, "base", Drawing(30))
    settings, talk, question, buttons = box.children
    ask_button, stop, reset, upload, status = buttons.children
    assert upload.layout.display == "none" and settings.children[0].options == ("base",)

    def wait():
        deadline = time.monotonic() + 120
        while ask_button.disabled:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    ask_button.click()
    assert status.value == "Write a question first."
    question.value = "How many?"
    ask_button.click()
    wait()
    shown = [child.outputs[0]["data"]["text/markdown"] for child in talk.children]
    with models.use("base") as source:
        answer = whole(source, Prompts(models.recipe).ask("How many?"), 30)
    assert shown == ["**You:** How many?", conversation.rendered(answer)]
    assert question.value == "" and status.value.startswith("base, ")
    settings.children[3].value = 1500
    question.value = "More?"
    ask_button.click()
    stop.click()
    wait()
    assert len(talk.children) == 4
    reset.click()
    assert talk.children == ()
    settings.children[0].value = "nobody"
    assert "choose from base" in status.value


@pytest.mark.slow
def test_the_notebook_without_widgets(tiny_recipe, tmp_path, monkeypatch):
    import papermill

    out = tmp_path / "out.ipynb"
    given = {"recipe": str(tiny_recipe), "question": "How many?", "max_new_tokens": 8, "compare_items": 2}
    papermill.execute_notebook(
        str(ROOT / "notebooks" / "inference.ipynb"), str(out), given, cwd=str(ROOT), progress_bar=False
    )
    cells = [cell for cell in json.loads(Path(out).read_text())["cells"] if cell["cell_type"] == "code"]
    shown = [output["data"] for cell in cells for output in cell["outputs"] if "data" in output]
    assert any("".join(data.get("text/markdown", "")).startswith("**How many?**") for data in shown)
    table = "".join(
        next(data["text/html"] for data in shown if "<table" in "".join(data.get("text/html", "")))
    )
    assert table.count("<tr>") == 3 and table.count("answer: ") == 2 and ("✓" in table or "✗" in table)
    text = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    assert "nothing is trained yet, so this is the base model" in text
