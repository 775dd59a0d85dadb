"""Progress bars, which leave nothing behind in a saved notebook.

What is saved of a widget is a number that no reader's page can draw.
"""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm

IN_NOTEBOOK = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
"""Whether a bar is a widget here: what `tqdm.auto` has found out. To import that module takes long."""


class Bar(tqdm):  # type: ignore[misc]
    """tqdm with what all bars of the project have in common; in a notebook it is gone once it has ended."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.handle = None
        options.setdefault("mininterval", 1)
        if IN_NOTEBOOK:
            options["display"] = False
        super().__init__(*args, **options)
        if IN_NOTEBOOK and not self.disable:
            from IPython.display import display

            self.handle = display(self.container, display_id=True)

    def close(self) -> None:
        super().close()
        if self.handle is not None:
            from IPython.display import HTML

            self.handle.update(HTML(""))


def hide_bars_of_libraries() -> None:
    """In a notebook, hide the bars of datasets and transformers: nine of them for one training.

    Those of a model's download stay: that may take an hour.
    """
    if not IN_NOTEBOOK:
        return
    import datasets
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()  # the hub's too
    enable_progress_bars()
