"""The widgets of the notebooks: a question box over `Chat`, and evaluated items to page through."""

from __future__ import annotations

import html
import io
import threading
import time
from collections.abc import Mapping
from typing import Any

import ipywidgets
from markupsafe import Markup

from tunebook.chat.conversation import Chat, Models, open_image, rendered
from tunebook.evaluation.items import Prediction
from tunebook.evaluation.table import Table
from tunebook.generation.local import sees_images
from tunebook.generation.streaming import Drawing
from tunebook.recipe.errors import UserError

REFRESH_S = 0.25
"""How often an answer is shown anew while it comes."""

WHOLE = {"description_width": "initial"}
"""Descriptions are not cut."""


def question_box(models: Models, model: str, drawing: Drawing) -> Any:
    """A widget to ask in: model, sampling, image where the model sees images, and the conversation."""
    return QuestionBox(models, model, drawing).widget


class QuestionBox:
    """The state and the widgets of a question box.

    Answers come in a thread, so that Stop and the rest of the notebook stay alive.
    """

    def __init__(self, models: Models, model: str, drawing: Drawing) -> None:
        self.models = models
        self.chat = Chat(models, model, drawing)
        self.stopped = threading.Event()
        wide = ipywidgets.Layout(width="98%")

        # How to answer
        self.model = ipywidgets.Combobox(
            value=model,
            options=list(dict.fromkeys([*models.names, model])),
            ensure_option=False,
            description="Model",
            style=WHOLE,
            tooltip="or a folder, or a hub id",
            continuous_update=False,
        )
        self.temperature = ipywidgets.FloatSlider(
            value=drawing.temperature, min=0, max=2, step=0.1, description="Temperature", style=WHOLE
        )
        self.top_p = ipywidgets.FloatSlider(
            value=drawing.top_p, min=0.05, max=1, step=0.05, description="Top p", style=WHOLE
        )
        self.tokens = ipywidgets.BoundedIntText(
            value=drawing.max_new_tokens, min=1, max=100_000, description="New tokens", style=WHOLE
        )
        settings = [self.model, self.temperature, self.top_p, self.tokens]

        # The conversation, and what to ask
        self.talk = ipywidgets.VBox(layout=wide)
        self.question = ipywidgets.Textarea(placeholder="Ask something", rows=3, layout=wide)

        # What to do
        self.ask = ipywidgets.Button(description="Ask", button_style="primary", icon="paper-plane")
        self.stop = ipywidgets.Button(description="Stop", icon="stop", disabled=True)
        self.reset = ipywidgets.Button(
            description="New conversation", icon="trash", layout=ipywidgets.Layout(width="auto")
        )
        self.upload = ipywidgets.FileUpload(accept="image/*", description="Image")
        self.status = ipywidgets.HTML()
        buttons = [self.ask, self.stop, self.reset, self.upload, self.status]

        above = ipywidgets.HBox(settings, layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.VBox([above, self.talk, self.question, ipywidgets.HBox(buttons)])
        # What happens on a click
        self.ask.on_click(self.on_ask)
        self.stop.on_click(lambda _: self.stopped.set())
        self.reset.on_click(self.on_reset)
        self.model.observe(self.on_model, "value")
        self.show_upload()

    def on_ask(self, _: Any) -> None:
        """Read the widgets, and answer in a thread."""
        text = self.question.value.strip()
        if not text:
            self.status.value = "Write a question first."
            return
        try:
            image = self.uploaded_image()
        except UserError as error:
            self.show_error(error)
            return
        self.stopped.clear()
        self.chat.model = self.model.value
        self.chat.drawing = Drawing(self.tokens.value, self.temperature.value, self.top_p.value)
        self.set_busy(True)
        self.question.value = ""
        self.upload.value = ()  # the image belongs to this question; later answers see it in the conversation
        self.status.value = f"{self.model.value} answers ..."
        threading.Thread(target=self.answer, args=(text, image), daemon=True).start()

    def on_reset(self, _: Any) -> None:
        self.chat.reset()
        self.talk.children = ()
        self.status.value = ""

    def on_model(self, _: Any) -> None:
        """Load the model that was chosen."""
        self.status.value = f"loading {self.model.value} ..."
        try:
            self.show_upload()
            self.status.value = f"{self.model.value} is ready"
        except UserError as error:
            self.show_error(error)

    def answer(self, text: str, image: Any) -> None:
        """Show the question, and the answer as it comes."""
        out = ipywidgets.Output(layout=self.talk.layout)
        if image is not None:
            picture = ipywidgets.Image(value=image._repr_png_(), width=min(image.width, 320))
            self.talk.children = (*self.talk.children, picture)
        asked = ipywidgets.Output(outputs=_display(f"**You:** {text}"))
        self.talk.children = (*self.talk.children, asked, out)
        started = time.monotonic()
        last_shown = 0.0
        answer = ""
        try:
            pieces = self.chat.ask(text, image)
            for piece in pieces:
                answer += piece
                # Each refresh sends the whole answer: not at every token.
                if time.monotonic() - last_shown > REFRESH_S:
                    last_shown = time.monotonic()
                    out.outputs = _display(answer)
                if self.stopped.is_set():
                    pieces.close()  # which stops the model
                    break
            self.status.value = f"{self.chat.model}, {time.monotonic() - started:.1f} s"
        except UserError as error:
            self.show_error(error)
        finally:
            # What came so far is shown and the buttons work again, whatever went wrong.
            out.outputs = _display(answer)
            self.set_busy(False)

    def set_busy(self, busy: bool) -> None:
        """Lock what an answer that is under way would suffer from, and unlock it again."""
        # One model carries every adapter, and the answer goes into the conversation: neither may change
        # until it has come.
        for widget in (self.ask, self.model, self.reset):
            widget.disabled = busy
        self.stop.disabled = not busy

    def show_upload(self) -> None:
        """Show the button for images where the model sees them. Raises UserError for a model that is none."""
        with self.models.use(self.model.value) as source:
            self.upload.layout.display = None if sees_images(source) else "none"

    def uploaded_image(self) -> Any:
        """The image to go with the question, or None. Raises UserError for a file that is none."""
        if not self.upload.value:
            return None
        return open_image(io.BytesIO(self.upload.value[0]["content"]))

    def show_error(self, error: UserError) -> None:
        self.status.value = f'<span style="color:#b42318">{html.escape(str(error))}</span>'


def browse(predictions: Mapping[str, list[Prediction]]) -> Any:
    """Page through items by how the last two models did on them.

    Args:
        predictions: By model, the same items for each.
    """
    names = list(predictions)
    kinds = _by_outcome([predictions[name] for name in names[-2:]])
    options = [(f"{kind} ({len(items)})", kind) for kind, items in kinds.items()]
    kind = ipywidgets.Dropdown(options=options, description=" → ".join(names[-2:]), style=WHOLE)
    last = max(1, len(kinds["all"]))
    page = ipywidgets.BoundedIntText(value=1, min=1, max=last, description="Item", style=WHOLE)
    narrow = ipywidgets.Layout(width="40px")
    back = ipywidgets.Button(icon="arrow-left", layout=narrow)
    forth = ipywidgets.Button(icon="arrow-right", layout=narrow)
    shown = ipywidgets.HTML()

    def show(_: Any = None) -> None:
        items = kinds[kind.value]
        page.max = max(1, len(items))  # a widget with a maximum below its minimum is an error
        if items:
            item = items[page.value - 1]
            shown.value = item_table({name: predictions[name][item] for name in names})
        else:
            shown.value = "none"

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


def item_table(item: dict[str, Prediction]) -> str:
    """One item's answers by model, each with the checker's verdict, as HTML."""
    first = next(iter(item.values()))
    question = Markup("{}").format(first["prompt"])
    if first["gold"] is not None:
        question += Markup(" <b>answer: {}</b> ({})").format(first["gold"], first["slice"] or first["group"])
    signs = {True: "✓ ", False: "✗ ", None: ""}  # None: nothing to check it against
    cells = {}
    for name, prediction in item.items():
        cells[f"{signs[prediction['correct']]}{name}"] = prediction["answer"]
    table = Table()
    table.add(**cells)
    return table.html(question)


def _by_outcome(predictions: list[list[Prediction]]) -> dict[str, list[int]]:
    """The numbers of items by what became of them from the first model to the second, if there are two."""
    kinds: dict[str, list[int]] = {"all": list(range(len(predictions[-1])))}
    marks = {prediction["correct"] for item in predictions for prediction in item}
    if len(predictions) == 1 or None in marks:
        return kinds
    # The kind of an item by whether the first model was right, and the second.
    names = {
        (False, True): "won",
        (True, False): "lost",
        (False, False): "both wrong",
        (True, True): "both right",
    }
    kinds |= {name: [] for name in names.values()}
    for number, (before, after) in enumerate(zip(*predictions, strict=True)):
        kinds[names[before["correct"], after["correct"]]].append(number)
    return kinds


def _display(text: str) -> tuple[dict[str, Any], ...]:
    """What an Output widget shows: Markdown with LaTeX."""
    data = {"text/markdown": rendered(text), "text/plain": text}
    return ({"output_type": "display_data", "data": data, "metadata": {}},)
