"""The newcomer's day: the commands of README and docs, in their order and to the letter, in a fresh clone.

What makes them small is the environment alone: `TUNEBOOK__...` variables, as the docs document them. `uv`
is a stand-in that hands `uv run tunebook ...` to forks of one process with Unsloth imported (`faults.py`),
notebook kernels too; `TO_THE_LETTER` goes through the real one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import faults
import notebook_outputs
import pytest
import tiny_text

from tunebook.models.builtin import embedded_gguf
from tunebook.recipe.files import ROOT
from tunebook.runs.files import read_json
from tunebook.runs.stages import STAGES

HERE = "tests/integration"
GPU = f"wants a GPU and the hub; tests/gpu/test_gpu.py, {HERE}/test_gpu_rehearsal.py"
HUB = "wants the hub"
NOT_RUN = {
    "pip install uv && uv sync": ".ci/run does it on a clean checkout, before the tests",
    "pip install uv && uv run pytest -n 2 --dist loadfile": "this is it",
    "uv run tunebook init my.csv": "tests/unit/test_init.py",
    "uv run tunebook run --recipe my.yaml": "scripts/own_rows.py",
    "uv run tunebook chat --recipe my.yaml": "scripts/own_rows.py; the same command is run without a recipe",
    "uv run tunebook export --recipe my.yaml --to adapter,merged,gguf,ollama --quantization q8_0 "
    "--install-tools": f"{HERE}/test_export.py",
    "uv run papermill notebooks/02_sft.ipynb out.ipynb -p lr 2e-4": (
        f"{HERE}/test_train.py::test_notebooks_run_under_papermill"
    ),
    "uv run pytest -m gpu": GPU,
    "uv run tunebook dpo --control": "tests/stages/test_start.py, on a tiny model",
    'uv run papermill notebooks/inference.ipynb out.ipynb -p question "..."': (
        f"{HERE}/test_chat.py::test_the_notebook_without_widgets"
    ),
    "uv run tunebook run --recipe mm-math-sample": (
        f"{HERE}/test_vision.py::test_the_whole_chain_sees_its_images, over fewer pictures"
    ),
    "uv run tunebook run --recipe gemma3n-mm-math": GPU,
    "uv run tunebook run --from-manifest runs/smollm2-math/manifest.json": (
        f"{HERE}/test_faults.py, on a tiny model"
    ),
    "NPROC_PER_NODE=4 bash train_sft.sh --recipe my.yaml": f"{HERE}/test_multi.py, in two processes",
    "NPROC_PER_NODE=4 bash train_dpo.sh --recipe my.yaml": f"{HERE}/test_multi.py, in two processes",
    "UNSLOTH_FSDP2=1 NPROC_PER_NODE=4 bash train_sft.sh --recipe my.yaml": "wants several GPUs; not run",
    "uv sync --extra deepspeed": "wants several GPUs; has not been run",
    "uv sync --extra eval && uv run tunebook bench": f"{HERE}/test_bench.py, over data in place of the hub's",
    "uv run tunebook clean --recipe my.yaml": f"{HERE}/test_clean.py, against a server",
    "uv run tunebook export": f"{HERE}/test_export.py",
    "uv run tunebook export --to adapter,merged,gguf,ollama --quantization f16,q8_0 --install-tools": (
        f"{HERE}/test_export.py"
    ),
    "uv run --with llama-cpp-python tunebook export ...": "compiles llama.cpp",
    "uv run python benchmarks/gpu.py": GPU,
    **{
        f"uv run python benchmarks/{name}.py": "measures for minutes"
        for name in ("clean", "dpo", "evaluate", "generation", "memory", "prepare", "sft", "startup")
    },
    "vllm serve runs/<run>/export/merged": "wants a GPU and vLLM",
    "hf auth login": HUB,
}
"""Why a command is not run here. What only the docs have and is in neither list is parsed by test_docs.py."""
RUN = {
    "uv run tunebook recipes": (0, r"smollm2-math +The default recipe"),
    "uv run tunebook doctor": (0, r"smollm2-math +│ nothing more"),
    "uv run tunebook run": (0, r"evaluate +runs: |Nothing to do\."),
    "uv run tunebook run --until sft": (0, r"sft +up to date\nNothing to do\."),
    "uv sync && uv run jupyter lab": (0, r"200"),
    "bash train_sft.sh --set sft.learning_rate=2e-4": (
        0,
        r"Mask audit[\s\S]*Next: uv run tunebook pairs --set sft\.learning_rate=0\.0002\n",
    ),
    "bash train_dpo.sh": (0, r"Step-0 audit: loss 0\.69[\s\S]*dpo/adapter\. Next: uv run tunebook evaluate"),
    "uv run tunebook sft": (0, r"sft is up to date"),
    "uv run tunebook pairs": (0, r"pairs\. Next: uv run tunebook dpo"),
    "uv run tunebook prepare": (0, r"data is up to date"),
    "uv run tunebook evaluate --gate": (3, r"gate: sft against base: .* the lower end must be above \+0\.0"),
    "uv run tunebook report": (0, r"Wrote .*report\.html"),
    "uv run tunebook report runs/a runs/b": (0, r"sft"),
    "uv run tunebook chat": (0, r"dpo answers\. /model NAME \(base, sft, dpo\)"),
    'uv run tunebook chat --question "A square has sides of 7 cm. What is its area?" --model base': (
        0,
        r"\S\s*$",
    ),
    "uv run tunebook serve": (0, r"200"),
}
"""Exit code, and what it says. A server is over when it has answered with 200."""
TO_THE_LETTER = "bash train_sft.sh --set sft.learning_rate=2e-4"
SERVERS = {
    "uv sync && uv run jupyter lab": "http://127.0.0.1:{port}/lab?token=t",
    "uv run tunebook serve": "http://127.0.0.1:8080/v1/models",
}
SMALL = {
    "model.dtype": "float32",
    "data.sources.0.train": 36,
    "data.sources.0.val": 6,
    "data.sources.0.test": 6,
    "sft.max_steps": 3,
    "sft.per_device_train_batch_size": 1,
    "sft.logging_steps": 1,
    "sft.eval_strategy": "no",
    "pairs.methods": "[dataset]",  # random weights give no pairs of their own
    "pairs.dataset": "resources/sample/preferences.jsonl",
    "pairs.rows": 8,
    "dpo.max_steps": 2,
    "dpo.per_device_train_batch_size": 1,
    "dpo.logging_steps": 1,
    "evaluate.max_new_tokens": 8,
    "evaluate.retention": False,
}


def commands(page: Path) -> list[str]:
    """What a page gives a reader to type.

    The lines of its shell blocks, and inline code that begins as a shell line does.
    """
    inline = r"`((?:[A-Z][A-Z0-9_]*=\S+ )*(?:uv|bash|pip|vllm|hf) [^`]+)`"
    lines = []
    for match in re.finditer(rf"```bash\n(.*?)```|{inline}", page.read_text(), re.DOTALL):
        lines += re.sub(r" +#.*", "", match[1]).splitlines() if match[1] else [match[2]]
    return [line.strip() for line in lines if line.strip()]


def all_commands() -> list[str]:
    """Those of the README, then of the docs in the order of the site."""
    lines = commands(ROOT / "README.md")
    for name in re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE):
        lines += commands(ROOT / "docs" / name)
    return lines


def test_every_command_of_the_readme_is_run_or_says_why_not():
    assert set(commands(ROOT / "README.md")) <= RUN.keys() | NOT_RUN.keys()
    assert RUN.keys() | NOT_RUN.keys() <= set(all_commands())
    for reason in NOT_RUN.values():
        for file, test in re.findall(r"(\w+/(?:\w+/)?\w+\.py)(?:::(\w+))?", reason):
            assert f"def {test}" in (ROOT / file).read_text(), reason


@pytest.fixture
def clone(tmp_path, embedded, fork_server):
    """A folder like a fresh clone, its environment, and a free port."""
    folder = tmp_path / "tunebook"
    folder.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("runs", ".env", ".venv", ".git"):
            (folder / path.name).symlink_to(path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"open_browser": False, "allow_root": True, "ip": "127.0.0.1", "port": port, "port_retries": 0}
    config = {"ServerApp": settings, "IdentityProvider": {"token": "t"}}
    (tmp_path / "jupyter").mkdir()
    (tmp_path / "jupyter" / "jupyter_server_config.json").write_text(json.dumps(config))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(f"""#!/bin/bash
[ "$1" = sync ] && exit 0       # what it leaves is what runs these tests
shift; [ "$1" = --project ] && shift 2
[ "$1 $2" = "tunebook serve" ] && exec {sys.executable} -m tunebook serve
[ "$1" = tunebook ] && shift && exec {sys.executable} {faults.__file__} ask {fork_server} "$@"
command="$1"; shift; exec {Path(sys.executable).parent}/"$command" "$@"
""")
    (tmp_path / "bin" / "uv").chmod(0o755)
    small = {
        f"TUNEBOOK__{key.upper().replace('.', '__')}": str(value)
        for key, value in (SMALL | {"model.base": tmp_path / "tiny"}).items()
    }
    environment = (
        os.environ
        | small
        | {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "TUNEBOOK_RUNS": str(folder / "runs"),
            "COLUMNS": "200",
        }
    )
    environment |= {"JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter"), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {
        "UV_NO_SYNC": "1",
        "UV_PROJECT_ENVIRONMENT": sys.prefix,
    }  # the real one: what is installed, as it is
    environment |= faults.kernelspec(tmp_path, fork_server)
    tiny = [tiny_text.__file__, "llama", str(tmp_path / "tiny"), str(embedded)]
    assert faults.Command(fork_server, "python", *tiny, log=tmp_path / "tiny.log").wait() == 0
    return folder, environment, port


def test_the_newcomers_day(clone):
    folder, environment, port = clone
    real = environment | {"PATH": os.environ["PATH"]}
    run = folder / "runs" / "smollm2-math"
    done: set[str] = set()
    for line in all_commands():
        if line not in RUN or line in done:
            continue
        start = time.monotonic()
        if "runs/a" in line:
            for name in "ab":
                (folder / "runs" / name).symlink_to(run)
        if line == "uv run tunebook serve":  # as if exported: the embedded model's own file
            (run / "export" / "gguf-q4").mkdir(parents=True)
            (run / "export" / "gguf-q4" / "model.gguf").symlink_to(embedded_gguf())
        if line in SERVERS:
            code, said = served(line, SERVERS[line].format(port=port), folder, environment)
        else:
            ended = subprocess.run(
                ["bash", "-c", line],
                cwd=folder,
                env=real if line == TO_THE_LETTER else environment,
                input="Hi?\n/quit\n",
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=240,
            )
            code, said = ended.returncode, ended.stdout
        wanted, pattern = RUN[line]
        assert code == wanted and re.search(pattern, said), (
            f"{line}\nended with {code} and said\n{said[-3000:]}"
        )
        assert "Traceback" not in said, said[-3000:]
        done.add(line)
        print(f"{time.monotonic() - start:6.1f} s  {line}", flush=True)
    assert done == RUN.keys()
    stages = read_json(run / "manifest.json")["stages"]
    assert {"data", "sft", "pairs", "dpo", "eval/base", "eval/sft", "eval/dpo"} <= stages.keys()
    assert stages["sft"]["recipe"]["sft"]["learning_rate"] == 2e-4  # the script's `--set`
    executed = sorted((run / "notebooks").glob("*.ipynb"))
    in_the_chain = [f"{spec.notebook}.ipynb" for spec in STAGES.values() if spec.notebook]
    assert [path.name for path in executed] == in_the_chain
    for path in executed:
        outputs = notebook_outputs.outputs(path)
        assert outputs and not [o for o in outputs if o.output_type == "error"], path


def served(line: str, url: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Start a server, wait for its address to answer, and stop it as Ctrl-C does."""
    process = subprocess.Popen(
        ["bash", "-c", line],
        cwd=folder,
        env=environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    deadline, status = time.monotonic() + 90, ""
    try:
        while not status:
            assert process.poll() is None and time.monotonic() < deadline, f"{line}: no answer from {url}"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - on loopback
                status = str(answer.status)
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return 0, status
