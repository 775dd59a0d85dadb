"""What answers a stage's questions: a model in this process, vLLM that is started for it, or a server.

The stage asks for a model of the run by its name and is given something that `generate` can ask.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunebook.generation import served, vllm
from tunebook.generation.local import Local, local
from tunebook.models import backend
from tunebook.models.adapters import adapter_of, load_stages, save_merged
from tunebook.models.builtin import resolve
from tunebook.models.chat_template import Messages
from tunebook.models.whole import load_whole
from tunebook.recipe.errors import UserError
from tunebook.recipe.sections import Recipe, ServerConfig
from tunebook.runs.stage import Stage
from tunebook.runs.stages import trained_models

FEW = 200
"""Answers that `auto` leaves to transformers: vLLM takes a minute or two to start. An estimate: 200 answers
of 300 tokens, 32 at a time at 65 ms a token, are two minutes."""

CONCURRENCY = 256
"""Requests under way for each GPU: vLLM's own `--max-num-seqs`."""

COMPARED = 4
"""Prompts on which a server is compared with the model here."""

TRANSFORMERS, VLLM, SERVER = "transformers", "vllm", "server"


def choose(
    recipe: Recipe, server: ServerConfig | None, section: str, answers: int, local_only: str = ""
) -> str:
    """Which engine answers: `transformers`, `vllm` or `server`.

    Args:
        recipe: With `generate.engine`.
        server: That of the stage's section.
        section: What asks, for messages.
        answers: How many are to be asked for.
        local_only: What the stage needs that only a model in this process does; empty: nothing.

    Raises UserError for a server that is not named and a vLLM that is not there.
    """
    engine = recipe.generate.engine
    if server is not None:
        return SERVER
    if engine == "server":
        raise UserError(f"generate.engine is server: name it as {section}.server, with url and model")
    if engine == "vllm":
        if local_only:
            raise UserError(f"{local_only} is done by the model in this process: leave generate.engine out")
        if vllm.find(recipe.generate) is None:
            raise UserError(
                "generate.engine is vllm, and there is no program `vllm`: install it in an environment of "
                f"its own (docs/engines.md) and name it as generate.vllm or in {vllm.VARIABLE}"
            )
        return VLLM
    # What is cheap to ask comes first: PyTorch takes seconds to import.
    if engine == "auto" and not local_only and answers > FEW and vllm.find(recipe.generate) and _has_cuda():
        return VLLM
    return TRANSFORMERS


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


@dataclass
class Engine:
    """The models of a run as something to ask. Use it in a `with` block, at whose end all is stopped.

    Of models in this process and of vLLM only one is in memory at a time.
    """

    recipe: Recipe
    section: str
    """What asks: `pairs`, `evaluate`, `own_answers` or `bench`."""
    kind: str
    """From `choose`."""
    names: list[str]
    """The models that will be asked: `base`, `sft`, ..."""
    server: ServerConfig | None = None
    """The server, where the engine is one."""
    prompts: list[Messages] = field(default_factory=list)
    """A few of the prompts, on which a server is compared with the model here. Empty: it is not."""
    answers: int = 0
    """How many will be asked for; 0: nobody knows yet."""
    max_new_tokens: int = 256
    prompt_tokens: int = 0
    """The longest prompt, where prompts may be longer than the recipe's rows."""

    def __post_init__(self) -> None:
        # With the base, which is what a server most likely has in place of an adapter.
        self._known = list(dict.fromkeys(["base", *self.names]))
        self._model: tuple[Any, Any] | None = None
        self._checks: dict[str, dict[str, Any]] = {}
        self._folder = self.recipe.run_dir / "engine"
        # vLLM while it runs: the models that it has, its address, and what stops it.
        self._served: list[str] = []
        self._url = ""
        self._running = ExitStack()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: Any) -> None:
        self._model = None
        self._running.__exit__(*error)

    def record(self, name: str) -> dict[str, Any]:
        """What a stage records of how a model's answers came; empty of the model in this process."""
        if self.kind == TRANSFORMERS:
            return {}
        return {"engine": {"name": self.kind, **self._checks.get(name, {})}}

    @property
    def depends_on(self) -> list[str]:
        """What answers depend on beside model and server: a file holds those of one engine."""
        return [VLLM] if self.kind == VLLM else []

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Local | ServerConfig]:
        """A model, ready to be asked.

        Raises UserError when vLLM does not start or ends, and for a server that has another model.
        """
        if self.kind == TRANSFORMERS:
            with self.open_local(name) as source:
                yield source
            return
        server = self._vllm(name) if self.kind == VLLM else self._named(name)
        self._check(server, name)
        yield server

    @contextlib.contextmanager
    def open_local(self, name: str) -> Iterator[Local]:
        """The model in this process, whatever the engine is; vLLM is stopped for it."""
        self._stop()
        with local(*self._loaded(), adapter_of(name)) as source:
            yield source

    def _loaded(self) -> tuple[Any, Any]:
        """The base with the adapters on it, loaded once; and the tokenizer."""
        if self._model is None:
            self._model = load_stages(self.recipe, self._known)
        return self._model

    def _named(self, name: str) -> ServerConfig:
        """The user's server, asked for this model."""
        assert self.server is not None  # noqa: S101 - `choose` has seen it
        if len(self.names) > 1 and "{model}" not in self.server.model:
            raise UserError(
                f"{self.server.section}.model names one model, and {', '.join(self.names)} are asked: write "
                "{model} where the name stands (vllm serve --lora-modules my-sft=... my-dpo=...)"
            )
        return self.server.model_copy(update={"model": self.server.model.replace("{model}", name)})

    def _check(self, server: ServerConfig, name: str) -> None:
        """Compare a server with the model here, once."""
        # Once for each model: a later method of the stage asks the same server.
        if name in self._checks or server.same_model is False or not self.prompts:
            return
        if name in trained_models(self.recipe):
            in_4_bit = self.recipe.model.load_in_4bit
            check = served.compare(server, self._reference(), name, self.prompts, in_4_bit)
        else:
            check = {"checked": False, "why": f"{name} is not trained here"}
        if not check["checked"]:
            line = f"not checked whether it has {name}: {check['why']}"
            if server.same_model:
                raise UserError(f"{server.section}.same_model is true, and it is {line}")
            print(f"{server.section}: {line}", flush=True)
        self._checks[name] = check

    def _reference(self) -> served.Reference:
        """What the models here do with the prompts: from the run folder, or measured and kept there."""
        # A command that goes on finds it, and need not load the model beside a server on the same GPU.
        path = self._folder / f"{self.section}.json"
        key = served.reference_key(self.recipe, self._known, self.prompts)
        known = served.read_reference(path, key)
        if known is not None:
            return known
        measured = served.reference(self.recipe, *self._loaded(), self._known, self.prompts)
        served.write_reference(path, measured)
        return measured

    def _vllm(self, name: str) -> ServerConfig:
        """vLLM with this model; it is started where it does not run or has others."""
        reference = self._reference()
        if self._model is not None:
            self._model = None
            backend.release()  # the GPU is vLLM's now
        if name not in self._served:
            self._stop()
            self._start(name, reference)
        # It keeps as many waiting as it likes; a slow answer is no failure.
        settings: dict[str, Any] = {"concurrency": CONCURRENCY * _gpus(), "timeout": 3600, "retries": 1}
        server = ServerConfig(
            url=self._url,
            model=name,
            api_key_env="TUNEBOOK_NO_KEY",  # not the user's, whatever it is for
            extra={"stop_token_ids": reference.ends},
            same_model=True,
            **settings,
        )
        server._section = "generate.engine=vllm"
        return server

    def _start(self, name: str, reference: served.Reference) -> None:
        """Start vLLM on the base with all adapters; where it takes none, on one model that is merged."""
        config = self.recipe.model
        adapters = {}
        for other in self._known:
            if other != "base":
                adapters[other] = self.recipe.run_dir / other / "adapter"
        # vLLM leaves out what an adapter changes of a tower for images.
        as_adapters = not reference.sees_images and all(
            vllm.takes_adapter(path, reference.kind) for path in adapters.values()
        )
        folder = self._folder / "vllm"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._running.callback(shutil.rmtree, folder, ignore_errors=True)
        template = folder / "chat_template.jinja"
        template.write_text(reference.chat_template, encoding="utf-8")
        length = max(config.max_seq_length, self.prompt_tokens) + self.max_new_tokens
        serving = vllm.Serving(
            model=resolve(config.local_base),
            name=name,
            revision=config.revision,
            dtype=reference.dtype,
            context=min(length, reference.context or length),
            chat_template=template,
            gpus=_gpus(),
        )
        if as_adapters:
            serving = replace(serving, name="base", adapters=adapters)
            # Weights in 4 bits may lie in a repository of their own, which has other revisions.
            if config.load_in_4bit:
                serving = replace(serving, model=reference.base, revision=None, in_4_bit=True)
        elif name != "base":  # the base in 16 bits like the others, so that like is compared with like
            serving = replace(serving, model=str(self._merged(name, folder / "merged")), revision=None)
        # What is to come is said before it begins: it may take hours.
        program = vllm.find(self.recipe.generate)
        assert program is not None  # noqa: S101 - `choose` has found it
        count = f"{self.answers:,} answers" if self.answers else "answers"
        print(
            f"{count} of at most {self.max_new_tokens} tokens to come, from vLLM on {_gpus()} GPU(s)",
            flush=True,
        )
        starting = vllm.serve(program, serving, self.recipe.generate, self._folder / "vllm.log")
        self._url = self._running.enter_context(starting)
        self._served = self._known if as_adapters else [name]

    def _merged(self, name: str, folder: Path) -> Path:
        """A folder with an adapter merged into its base."""
        print(f"vLLM takes no adapters of this kind: {name} is merged first", flush=True)
        model, tokenizer = load_whole(self.recipe, name)
        save_merged(model, tokenizer, folder)
        del model
        backend.release()
        return folder

    def _stop(self) -> None:
        """Stop vLLM, if it runs."""
        self._running.close()
        self._served = []


def warn_of_engines(stages: dict[str, Stage]) -> None:
    """Say it when models were answered for by different engines: in 16 bits that alone changes answers."""
    engines = {}
    for name, stage in stages.items():
        engines[name] = stage.result.get("engine", {}).get("name", TRANSFORMERS)
    if len(set(engines.values())) > 1:
        by_model = ", ".join(f"{name} by {engine}" for name, engine in engines.items())
        print(f"Warning: the answers come from different engines ({by_model}): --force asks all again")


def _gpus() -> int:
    import torch

    return max(1, int(torch.cuda.device_count()))
