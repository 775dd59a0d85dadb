"""Asking models: streaming, conversations, the terminal, the question box, the notebook."""

from __future__ import annotations

import io
import time

import pytest

from tunebook.chat import conversation, terminal
from tunebook.data.prompts import Prompts
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local, sees_images
from tunebook.generation.streaming import Drawing, stream
from tunebook.models.chat_template import Messages
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe


def whole(source: Local, prompt: Messages, max_new_tokens: int) -> str:
    """One greedy answer, not streamed."""
    return next(generate(source, [prompt], Sampling(max_new_tokens)))[0].text


@pytest.fixture
def models(tiny_recipe) -> conversation.Models:
    return conversation.Models(load_recipe(tiny_recipe))


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


def test_the_terminal(models, monkeypatch, capsys, tiny, tmp_path):
    lines = "One?\n/model nobody\n\n/reset\n/what\n" + f"/model {tiny}\nTwo?\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    terminal.terminal(models.recipe, None, Drawing(5))
    out, err = capsys.readouterr()
    said = " ".join(out.split())
    assert (
        "Nothing is trained" in err
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


def test_the_question_box(models):
    """The widgets without a browser: what a click does, and what is shown.

    A browser: see the README's check.
    """
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
