"""Answers from an engine. vLLM itself is a stand-in here (`helpers/vllm_stand_in.py`): no GPU is at hand."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import answering
import pytest
import vllm_stand_in

from tunebook.generation import vllm
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import GenerateConfig, ServerConfig

SERVING = vllm.Serving("some/model", "base", dtype="bfloat16", context=512)


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    """The program, under the name of the true one; what it was started with is beside it, `started.json`."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {vllm_stand_in.__file__} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN_STARTED", str(program.with_name("started.json")))
    monkeypatch.setenv(vllm.VARIABLE, str(program))
    return program


def started(program: Path) -> dict:
    return json.loads(program.with_name("started.json").read_text())


def all_gone(pids: list[int]) -> bool:
    """Whether these processes end, or wait for their parent to notice, within some seconds."""

    def is_there(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    for _ in range(200):
        if not any(map(is_there, pids)):
            return True
        time.sleep(0.1)
    return False


def serve(program: Path, **config):
    return vllm.serve(str(program), SERVING, GenerateConfig(**config), program.with_name("vllm.log"))


def test_the_engine_is_started_asked_and_stopped_with_all_that_it_has_started(stand_in):
    with serve(stand_in, options={"gpu-memory-utilization": 0.5}) as url:
        server = ServerConfig(url=url, model="base")
        (answer,) = list(generate(server, [[{"role": "user", "content": "?"}]], Sampling(8)))
        assert answer[0].text.endswith("\\boxed{60}")
        told = started(stand_in)
        assert told["model_tag"] == "some/model" and told["gpu_memory_utilization"] == 0.5
        assert told["max_model_len"] == 512 and told["generation_config"] == "vllm"
    assert all_gone(told["pids"])
    with pytest.raises(ZeroDivisionError), serve(stand_in):
        assert 1 / 0
    assert all_gone(started(stand_in)["pids"])


def test_what_keeps_the_engine_from_starting_is_one_line(stand_in, monkeypatch):
    with pytest.raises(UserError, match=r"does not start: error: unrecognized arguments: --no-such-thing 1 "):
        serve(stand_in, options={"no-such-thing": 1}).__enter__()
    with monkeypatch.context() as patch:
        patch.setenv("STAND_IN_FAILS", "1")
        with pytest.raises(UserError) as failed:
            serve(stand_in).__enter__()
    assert str(failed.value).startswith(
        "vLLM does not start: ValueError: Free memory on device (3/16 GiB) is less (all of it in "
    )
    with monkeypatch.context() as patch:
        patch.setenv("STAND_IN_NEVER_READY", "1")
        with pytest.raises(UserError, match=r"does not answer after 2 s .*raise generate\.start_timeout"):
            serve(stand_in, start_timeout=2).__enter__()
    assert all_gone(started(stand_in)["pids"])
    monkeypatch.setenv("STAND_IN_ENDS_AFTER", "1")
    prompts = [[{"role": "user", "content": "?"}]] * 3
    ended = r"vLLM has ended: AcceleratorError: CUDA error: an illegal memory access \(all of it in "
    with pytest.raises(UserError, match=ended), serve(stand_in) as url:
        server = ServerConfig(url=url, model="base", retries=0, concurrency=1)
        list(generate(server, prompts, Sampling(8)))
    assert all_gone(started(stand_in)["pids"])


CODE = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script may start its commands without
from tunebook.generation import vllm
from tunebook.recipe.sections import GenerateConfig
serving = vllm.Serving("some/model", "base", dtype="bfloat16")
with vllm.serve(sys.argv[1], serving, GenerateConfig(), Path(sys.argv[2])):
    print("READY", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_command_ends_its_engine_ends_too(number, stand_in):
    command = [sys.executable, "-c", CODE, str(stand_in), str(stand_in.with_name("vllm.log"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "READY\n"
    process.send_signal(number)
    assert process.wait(60) != 0
    process.stdout.close()
    assert all_gone(started(stand_in)["pids"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny):
    """A recipe on the tiny model whose SFT is done, two steps of it, and its run folder."""
    import whole_recipe
    import yaml
    from _pytest.monkeypatch import MonkeyPatch

    from tunebook.training.sft import sft

    folder = tmp_path_factory.mktemp("engine")
    content = whole_recipe.content("smollm2-math") | {"name": "engine"}
    content["model"] |= {"base": str(tiny), "dtype": "float32"}
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "geometry", "train": 8, "val": 2, "test": 6}]
    content["sft"] |= {"max_steps": 4, "learning_rate": 2e-2, "eval_strategy": "no", "warmup_steps": 0}
    content["evaluate"] |= {"max_new_tokens": 8, "batch_size": 8}
    path = folder / "engine.yaml"
    path.write_text(yaml.safe_dump(content))
    with MonkeyPatch.context() as patch:
        patch.setenv("TUNEBOOK_RUNS", str(folder / "runs"))
        sft(load_recipe(path))
    return path


@pytest.fixture
def run_dir(trained, monkeypatch) -> Path:
    monkeypatch.setenv("TUNEBOOK_RUNS", str(trained.parent / "runs"))
    return trained.parent / "runs" / "engine"


def test_every_model_is_evaluated_by_one_engine_whose_log_probabilities_are_compared(
    trained, run_dir, stand_in, monkeypatch, capsys
):
    from tunebook.evaluation.evaluate import evaluate

    monkeypatch.setenv("STAND_IN_REFERENCE", str(run_dir / "engine" / "evaluate.json"))
    recipe = load_recipe(trained, overrides={"generate.engine": "vllm"})
    results = evaluate(recipe)
    assert list(results) == ["base", "sft"] and results["sft"]["boxed"] == 1
    for name in results:
        record = json.loads((run_dir / "eval" / name / "stage.json").read_text())
        assert record["engine"] == {"name": "vllm", "checked": True, "mean_logp_difference": 0.0}
    told = started(stand_in)
    assert told["lora_modules"] == [f"sft={run_dir / 'sft' / 'adapter'}"] and told["enable_lora"]
    assert told["max_lora_rank"] == 16 and told["served_model_name"] == "base"
    assert told["dtype"] == "float32" and told["data_parallel_size"] is None
    assert all_gone(told["pids"]) and not (run_dir / "engine" / "vllm").exists()
    assert "12 answers of at most 8 tokens to come, from vLLM" in capsys.readouterr().out

    # One that leaves the adapters out is found out, and which model it has instead.
    monkeypatch.setenv("STAND_IN_WITHOUT_ADAPTERS", "1")
    with pytest.raises(UserError, match=r"serves as sft is not sft: .*It is nearer to base \(0\.000\)"):
        evaluate(recipe, ["sft"], force=True)
    assert all_gone(started(stand_in)["pids"])


def test_own_answers_come_from_the_engine_too(trained, run_dir, stand_in, tmp_path, monkeypatch):
    from tunebook.data.own_answers import own_answers, own_answers_stage

    asked = [{"prompt": f"Name a thing of the letter {letter}."} for letter in "abc"]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    keys = {
        "generate.engine": "vllm",
        "check": {"checkers": [{"name": "contains", "words": ["so"]}]},
        "data.sources": [{"format": "prompts", "path": str(path), "split": "train"}],
        "data.own_answers": {"samples": 2, "max_new_tokens": 8},
    }
    monkeypatch.setenv("STAND_IN_REFERENCE", str(run_dir / "engine" / "own_answers.json"))
    recipe = load_recipe(trained, overrides=keys)
    texts = own_answers(recipe)
    assert list(texts.values()) == [["It is so.\n\\boxed{60}"]] * 3
    record = own_answers_stage(recipe).result
    assert record["engine"] == {"name": "vllm", "checked": True, "mean_logp_difference": 0.0}
    told = started(stand_in)
    assert told["served_model_name"] == "base" and all_gone(told["pids"])
    recipe.generate.engine, recipe.data.own_answers.samples = "server", 3
    with pytest.raises(UserError, match=r"data\.own_answers takes no server: set generate\.engine to auto"):
        own_answers(recipe)


def test_a_server_of_the_user_is_compared_before_it_is_asked(trained, run_dir, monkeypatch, capsys):
    """Two addresses of which one has the base for SFT; one with another template; one that is silent."""
    from tunebook.pairs.pairs import pairs

    monkeypatch.setattr(
        "tunebook.pairs.work.check_sample", lambda text, *_: "right" if "60" in text else "wrong"
    )
    reference = run_dir / "engine" / "pairs.json"
    asked = []

    def answer(question):
        asked.append(question)
        return f"It is so.\n\\boxed{{{60 + len(asked) % 2}}}"

    def score_of(model):
        def score(request):
            content = json.loads(reference.read_text())
            return vllm_stand_in.next_token(content, "sft", model, request["prompt"])

        return score

    def make(*urls, **server):
        config = {"url": list(urls), "model": "my-{model}", "retries": 0, **server}
        keys = {"pairs.server": config, "pairs.prompts": 4, "pairs.samples": 2, "pairs.val": 0}
        return pairs(load_recipe(trained, overrides=keys))

    with (
        answering.serving(answer, score_of("sft"), counts=0) as right,
        answering.serving(answer, score_of("base"), counts=0) as wrong,
        answering.serving(answer, score_of("sft"), counts=100) as other_template,
        answering.serving(answer, counts=0) as silent,
    ):
        with pytest.raises(UserError, match=rf"pairs\.server: what {wrong} serves as my-sft is not sft"):
            make(right, wrong)
        with pytest.raises(UserError, match=rf"{other_template} makes 100 tokens of a prompt"):
            make(other_template)
        with pytest.raises(UserError, match=r"same_model is true, and it is not checked"):
            make(silent, same_model=True)
        before = len(asked)
        record = make(right)
        assert record["engine"] == {"name": "server", "checked": True, "mean_logp_difference": 0.0}
        assert len(asked) - before == 4 + 8  # a token of each prompt that is compared, and the samples
        assert make(wrong, same_model=False)["engine"] == {"name": "server"}
        assert make(silent)["engine"]["checked"] is False
    assert "gives no log-probabilities" in capsys.readouterr().out
