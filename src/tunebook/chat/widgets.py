"""The question box of the inference notebook: ipywidgets over `chat.Chat`."""

from __future__ import annotations

import html
import io
import threading
import time
from typing import Any

import ipywidgets
from markupsafe import Markup

from tunebook.chat.conversation import Chat, Models, open_image, rendered
from tunebook.evaluation.tables import Table
from tunebook.generation.local import sees_images
from tunebook.generation.streaming import Drawing
from tunebook.recipe.errors import UserError

REFRESH_S = 0.25


_WHOLE = {"description_width": "initial"}
"""Descriptions are not cut."""


def question_box(models: Models, model: str, drawing: Drawing) -> Any:
    """A widget to ask in: model, sampling, image where the model sees images, and the conversation with its LaTeX rendered.

    Answers come in a thread, so that Stop and the rest of the notebook stay alive.
    """
    names = list(dict.fromkeys([*models.names, model]))
    wide = ipywidgets.Layout(width="98%")
    chosen = ipywidgets.Combobox(
        value=model,
        options=names,
        ensure_option=False,
        description="Model",
        style=_WHOLE,
        tooltip="or a folder, or a hub id",
        continuous_update=False,
    )
    temperature = ipywidgets.FloatSlider(
        value=drawing.temperature, min=0, max=2, step=0.1, description="Temperature", style=_WHOLE
    )
    top_p = ipywidgets.FloatSlider(
        value=drawing.top_p, min=0.05, max=1, step=0.05, description="Top p", style=_WHOLE
    )
    tokens = ipywidgets.BoundedIntText(
        value=drawing.max_new_tokens, min=1, max=100_000, description="New tokens", style=_WHOLE
    )
    question = ipywidgets.Textarea(placeholder="Ask something", rows=3, layout=wide)
    upload = ipywidgets.FileUpload(accept="image/*", description="Image")
    ask = ipywidgets.Button(description="Ask", button_style="primary", icon="paper-plane")
    stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
    reset = ipywidgets.Button(
        description="New conversation", icon="trash", layout=ipywidgets.Layout(width="auto")
    )
    status, talk = ipywidgets.HTML(), ipywidgets.VBox(layout=wide)
    chat, stopped = Chat(models, model, drawing), threading.Event()

    def show_upload() -> None:
        with models.use(chosen.value) as source:
            upload.layout.display = None if sees_images(source) else "none"

    def answering(under_way: bool) -> None:
        """One model carries every adapter, and the answer goes into the conversation: neither may change until it has come."""
        ask.disabled = chosen.disabled = reset.disabled = under_way
        stop.disabled = not under_way

    def answer(text: str, image: Any) -> None:
        out = ipywidgets.Output(layout=wide)
        picture = (
            ()
            if image is None
            else (ipywidgets.Image(value=image._repr_png_(), width=min(image.width, 320)),)
        )
        talk.children = (*talk.children, *picture, _markdown(f"**You:** {text}"), out)
        started, shown, said = time.monotonic(), 0.0, ""
        try:
            pieces = chat.ask(text, image)
            for piece in pieces:
                said += piece
                if time.monotonic() - shown > REFRESH_S:
                    shown = time.monotonic()
                    out.outputs = _display(said)
                if stopped.is_set():
                    pieces.close()
                    break
            status.value = f"{chat.model}, {time.monotonic() - started:.1f} s"
        except UserError as error:
            status.value = f'<span style="color:#b42318">{html.escape(str(error))}</span>'
        finally:
            out.outputs = _display(said)
            answering(False)

    def on_ask(_: Any) -> None:
        text = question.value.strip()
        if not text:
            status.value = "Write a question first."
            return
        stopped.clear()
        chat.model, chat.drawing = chosen.value, Drawing(tokens.value, temperature.value, top_p.value)
        answering(True)
        question.value, status.value = "", f"{chosen.value} answers ..."
        try:
            image = open_image(io.BytesIO(upload.value[0]["content"])) if upload.value else None
        except UserError as error:
            status.value = f'<span style="color:#b42318">{html.escape(str(error))}</span>'
            answering(False)
            return
        upload.value = ()
        threading.Thread(target=answer, args=(text, image), daemon=True).start()

    def on_reset(_: Any) -> None:
        chat.messages, chat.shown, talk.children, status.value = [], {}, (), ""

    def on_model(_: Any) -> None:
        status.value = f"loading {chosen.value} ..."
        try:
            show_upload()
            status.value = f"{chosen.value} is ready"
        except UserError as error:
            status.value = f'<span style="color:#b42318">{html.escape(str(error))}</span>'

    ask.on_click(on_ask)
    stop.on_click(lambda _: stopped.set())
    reset.on_click(on_reset)
    chosen.observe(on_model, "value")
    show_upload()
    settings = ipywidgets.HBox(
        [chosen, temperature, top_p, tokens], layout=ipywidgets.Layout(flex_flow="row wrap")
    )
    return ipywidgets.VBox([settings, talk, question, ipywidgets.HBox([ask, stop, reset, upload, status])])


def browse(found: dict[str, list[dict[str, Any]]]) -> Any:
    """Page through items by how the last two models did on them. `found`: {stage: its predictions}, the same items for each."""
    names = list(found)
    kinds: dict[str, list[int]] = {"all": list(range(len(found[names[-1]])))}
    if len(names) > 1:
        marks = list(zip(*([p["correct"] for p in found[name]] for name in names[-2:]), strict=True))
        for kind, wanted in (
            ("won", (False, True)),
            ("lost", (True, False)),
            ("both wrong", (False, False)),
            ("both right", (True, True)),
        ):
            kinds[kind] = [i for i, mark in enumerate(marks) if mark == wanted]
    kind = ipywidgets.Dropdown(
        options=[(f"{k} ({len(v)})", k) for k, v in kinds.items()],
        description=" → ".join(names[-2:]),
        style=_WHOLE,
    )
    page = ipywidgets.BoundedIntText(
        value=1, min=1, max=max(1, len(kinds["all"])), description="Item", style=_WHOLE
    )
    back, forth = (
        ipywidgets.Button(icon=f"arrow-{way}", layout=ipywidgets.Layout(width="40px"))
        for way in ("left", "right")
    )
    shown = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        of = kinds[kind.value]
        page.max = max(1, len(of))
        shown.value = item_table({name: found[name][of[page.value - 1]] for name in names}) if of else "none"

    def turn(by: int) -> None:
        page.value = min(max(1, page.value + by), page.max)

    def on_kind(_: Any) -> None:
        page.value = 1
        show()

    back.on_click(lambda _: turn(-1))
    forth.on_click(lambda _: turn(1))
    page.observe(show, "value")
    kind.observe(on_kind, "value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([kind, back, page, forth]), shown])


def item_table(item: dict[str, dict[str, Any]]) -> str:
    """One item's answers by stage, each with the checker's verdict, as HTML."""
    first = next(iter(item.values()))
    question = Markup("{} <b>answer: {}</b> ({})").format(
        first["prompt"], first["gold"], first["slice"] or first["group"]
    )
    table = Table()
    table.add(**{f"{'✓' if p['correct'] else '✗'} {name}": p["answer"] for name, p in item.items()})
    return table.html(question)


def _display(text: str) -> tuple[dict[str, Any], ...]:
    shown = rendered(text)
    return (
        {"output_type": "display_data", "data": {"text/markdown": shown, "text/plain": text}, "metadata": {}},
    )


def _markdown(text: str) -> Any:
    return ipywidgets.Output(outputs=_display(text))
