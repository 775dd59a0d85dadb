"""The question box of the inference notebook: ipywidgets over `chat.Chat`."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import ipywidgets

from tunebook.chat import Chat, Models, open_image, rendered
from tunebook.generate import Drawing, sees_images
from tunebook.recipe import UserError

REFRESH_S = 0.25


def question_box(models: Models, model: str, drawing: Drawing) -> Any:
    """A widget to ask in: model, sampling, image where the model sees images, and the conversation with its LaTeX rendered.

    Answers come in a thread, so that Stop and the rest of the notebook stay alive.
    """
    names = list(dict.fromkeys([*models.names, model]))
    wide, whole = ipywidgets.Layout(width="98%"), {"description_width": "initial"}
    chosen = ipywidgets.Combobox(
        value=model, options=names, ensure_option=False, description="Model", style=whole, tooltip="or a folder, or a hub id", continuous_update=False
    )
    temperature = ipywidgets.FloatSlider(value=drawing.temperature, min=0, max=2, step=0.1, description="Temperature", style=whole)
    top_p = ipywidgets.FloatSlider(value=drawing.top_p, min=0.05, max=1, step=0.05, description="Top p", style=whole)
    tokens = ipywidgets.BoundedIntText(value=drawing.max_new_tokens, min=1, max=100_000, description="New tokens", style=whole)
    question = ipywidgets.Textarea(placeholder="Ask something", rows=3, layout=wide)
    upload = ipywidgets.FileUpload(accept="image/*", description="Image")
    ask = ipywidgets.Button(description="Ask", button_style="primary", icon="paper-plane")
    stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
    reset = ipywidgets.Button(description="New conversation", icon="trash", layout=ipywidgets.Layout(width="auto"))
    status, talk = ipywidgets.HTML(), ipywidgets.VBox(layout=wide)
    chat, stopped = Chat(models, model, drawing), threading.Event()

    def show_upload() -> None:
        with models.use(chosen.value) as source:
            upload.layout.display = None if sees_images(source) else "none"

    def answer(text: str, image: Any) -> None:
        out = ipywidgets.Output(layout=wide)
        talk.children = (*talk.children, _markdown(f"**You:** {text}"), out)
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
            status.value = f'<span style="color:#b42318">{error}</span>'
        finally:
            out.outputs = _display(said)
            ask.disabled, stop.disabled = False, True

    def on_ask(_: Any) -> None:
        text = question.value.strip()
        if not text:
            status.value = "Write a question first."
            return
        stopped.clear()
        chat.model, chat.drawing = chosen.value, Drawing(tokens.value, temperature.value, top_p.value)
        ask.disabled, stop.disabled, question.value, status.value = True, False, "", f"{chosen.value} answers ..."
        try:
            image = open_image(io.BytesIO(upload.value[0]["content"])) if upload.value else None
        except UserError as error:
            status.value, ask.disabled, stop.disabled = f'<span style="color:#b42318">{error}</span>', False, True
            return
        upload.value = ()
        threading.Thread(target=answer, args=(text, image), daemon=True).start()

    def on_reset(_: Any) -> None:
        chat.messages, talk.children, status.value = [], (), ""

    def on_model(_: Any) -> None:
        status.value = f"loading {chosen.value} ..."
        try:
            show_upload()
            status.value = f"{chosen.value} is ready"
        except UserError as error:
            status.value = f'<span style="color:#b42318">{error}</span>'

    ask.on_click(on_ask)
    stop.on_click(lambda _: stopped.set())
    reset.on_click(on_reset)
    chosen.observe(on_model, "value")
    show_upload()
    settings = ipywidgets.HBox([chosen, temperature, top_p, tokens], layout=ipywidgets.Layout(flex_flow="row wrap"))
    return ipywidgets.VBox([settings, talk, question, ipywidgets.HBox([ask, stop, reset, upload, status])])


def _display(text: str) -> tuple[dict[str, Any], ...]:
    shown = rendered(text)
    return ({"output_type": "display_data", "data": {"text/markdown": shown, "text/plain": text}, "metadata": {}},)


def _markdown(text: str) -> Any:
    return ipywidgets.Output(outputs=_display(text))
