"""`vllm serve` in a process of its own: found, started, waited for, stopped.

vLLM itself stays in an environment of its own, as it wants another PyTorch than this project has. The options
are those of vLLM 0.33 (`vllm/engine/arg_utils.py`, `vllm/entrypoints/common/cli_args.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tunebook.recipe.errors import UserError, shorten
from tunebook.recipe.sections import GenerateConfig
from tunebook.runs.files import read_json

VARIABLE = "TUNEBOOK_VLLM"

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be (`vllm/config/lora.py`)."""

NO_ADAPTERS = ("gemma3n",)
"""Kinds of models of which vLLM takes no LoRA adapters: their classes in `vllm/model_executor/models/` have
no `SupportsLoRA`."""

REASON = re.compile(r"(?:\b\w*(?:Error|Exception)|\berror): .+")
"""Why a program has ended, behind vLLM's prefixes of process and time; `error: ` is argparse's."""

PREFIX = re.compile(r"^(?:\([^)]*\) )?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^\]]*\] )?")
"""What vLLM puts before a line of its log: process, level, time and place."""

OTHERS_REASON = ("Engine core initialization failed", "SystemExit")
"""What only says that another process of vLLM has failed, whose reason stands further up."""


@dataclass(frozen=True)
class Serving:
    """What is to be served, and how."""

    model: str
    """A folder or a hub id."""
    name: str
    """What the model without an adapter is called."""
    adapters: dict[str, Path] = field(default_factory=dict)
    revision: str | None = None
    dtype: str = "auto"
    in_4_bit: bool = False
    context: int = 2048
    """Tokens of prompt and answer."""
    chat_template: Path | None = None
    gpus: int = 1
    """Each has a copy of the model."""


def find(config: GenerateConfig) -> str | None:
    """The program `vllm`; None where there is none.

    Raises UserError for one that the recipe or the environment names and that is not there.
    """
    named = config.vllm or os.environ.get(VARIABLE)
    if named:
        program = shutil.which(str(Path(named).expanduser()))
        if program is None:
            key = "generate.vllm" if config.vllm else VARIABLE
            raise UserError(f"{key}: {named} is no program")
        return program
    # One environment may hold both, though it seldom can.
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if beside.is_file() else shutil.which("vllm")


def takes_adapter(folder: Path, kind: str) -> bool:
    """Whether vLLM serves this adapter beside its base.

    Args:
        folder: With the adapter's `adapter_config.json`.
        kind: The `model_type` of the base.
    """
    config = read_json(folder / "adapter_config.json")
    # As `PEFTHelper` in vllm/lora/peft_helper.py refuses them.
    is_plain = not config.get("use_dora") and config.get("bias", "none") == "none"
    has_layers = bool(config.get("modules_to_save") or config.get("trainable_token_indices"))
    return kind not in NO_ADAPTERS and is_plain and not has_layers and _rank(folder) <= RANKS[-1]


def _rank(folder: Path) -> int:
    config = read_json(folder / "adapter_config.json")
    return int(max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()]))


def arguments(serving: Serving, options: dict[str, Any], port: int) -> list[str]:
    """What follows `vllm serve`; `options` of the user come over ours."""
    # This machine alone may ask it: there is no key.
    ours: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "served-model-name": serving.name,
        "revision": serving.revision,
        "dtype": serving.dtype,
        "quantization": "bitsandbytes" if serving.in_4_bit else None,
        "max-model-len": serving.context,
        # What is sampled follows from the request alone, as with the model in this process.
        "generation-config": "vllm",
        "chat-template": serving.chat_template,
        "data-parallel-size": serving.gpus if serving.gpus > 1 else None,
    }
    if serving.adapters:
        rank = max(map(_rank, serving.adapters.values()))
        ours["enable-lora"] = True
        ours["max-lora-rank"] = next(allowed for allowed in RANKS if allowed >= rank)
        ours["lora-modules"] = [f"{name}={path}" for name, path in serving.adapters.items()]
    words = [serving.model]
    for name, value in {**ours, **options}.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if isinstance(value, list):
            words += map(str, value)
        elif isinstance(value, dict):
            words.append(json.dumps(value))
        elif value is not True:
            words.append(str(value))
    return words


@contextlib.contextmanager
def serve(program: str, serving: Serving, config: GenerateConfig, log: Path) -> Iterator[str]:
    """Start vLLM and wait for it; yields its address with `/v1`, and stops it in any case.

    Args:
        program: From `find`.
        serving: What it serves.
        config: Further options and the time that it may take.
        log: The file that gets all that it prints.

    Raises UserError with the reason out of its log when it does not start, and when it ends while it is used.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [program, "serve", *arguments(serving, config.options, port)]
    # All that it prints goes into the file: a full pipe would stop it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunebook.generation.keeper", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for this process, which then stops the other
        )
    try:
        _wait(process, port, config.start_timeout, log)
        try:
            yield f"http://127.0.0.1:{port}/v1"
        except UserError:
            if _answers(port):  # it is another mistake
                raise
            raise UserError(f"vLLM has ended: {reason(log)} (all of it in {log})") from None
    finally:
        assert process.stdin is not None  # noqa: S101 - for the type checker
        process.stdin.close()  # which the keeper waits for
        process.wait()


def _environment() -> dict[str, str]:
    """This process's, without what Unsloth has set for the PyTorch of this process."""
    environment = {}
    for name, value in os.environ.items():
        if not name.startswith(("UNSLOTH_", "PYTORCH_", "TORCHINDUCTOR_")):
            environment[name] = value
    return environment | {"VLLM_NO_USAGE_STATS": "1"}


def _wait(process: subprocess.Popen[bytes], port: int, seconds: float, log: Path) -> None:
    """Until it answers, with a line that lives."""
    end = time.monotonic() + seconds
    last_shown = ""
    with tqdm(desc="vLLM starts", bar_format="{desc} [{elapsed}]") as line:
        while not _answers(port):
            if process.poll() is not None:
                raise UserError(f"vLLM does not start: {reason(log)} (all of it in {log})")
            if time.monotonic() > end:
                raise UserError(
                    f"vLLM does not answer after {seconds:.0f} s (its log: {log}): "
                    "raise generate.start_timeout, or set generate.engine=transformers"
                )
            doing = PREFIX.sub("", _last_line(log))
            line.set_description_str(f"vLLM starts: {shorten(doing, 60)}" if doing else "vLLM starts", False)
            # In a terminal the time goes on; a file gets a line when there is something new.
            if doing != last_shown or sys.stderr.isatty():
                line.refresh()
            last_shown = doing
            time.sleep(0.5)


def _answers(port: int) -> bool:
    # Not urllib, which would ask a proxy of the environment.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def reason(log: Path) -> str:
    """Why vLLM has ended, in one line out of its log."""
    # The last one counts: what came before may have been got over.
    message = ""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = REASON.search(line)
        if match and not any(text in line for text in OTHERS_REASON):
            message = match[0]
    return shorten(message or _last_line(log) or "it has said nothing", 300)
