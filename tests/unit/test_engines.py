"""Which engine answers, what vLLM is told, why it has ended, and several addresses of one server."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections import Counter
from functools import partial
from types import SimpleNamespace

import answering
import pytest
from batches import all_answers

from tunebook.evaluation.evaluate import eval_stage
from tunebook.generation import engines, served, vllm
from tunebook.generation.answers import Sampling
from tunebook.recipe.errors import UserError
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.sections import GenerateConfig, ServerConfig

SERVER = ServerConfig(url="http://x/v1", model="m")


def test_the_engine_is_the_stages_server_or_what_the_recipe_and_the_machine_have(monkeypatch, tmp_path):
    def choose(engine, server=None, answers=1000, local_only=""):
        recipe = load_recipe(overrides={"generate.engine": engine})
        return engines.choose(recipe, server, "pairs", answers, local_only)

    cuda = SimpleNamespace(is_available=lambda: True)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(vllm, "find", lambda config: None)
    assert choose("auto") == choose("transformers") == "transformers"
    assert choose("auto", SERVER) == choose("vllm", SERVER) == choose("server", SERVER) == "server"
    with pytest.raises(UserError, match=r"name it as pairs\.server, with url and model"):
        choose("server")
    with pytest.raises(UserError, match="there is no program `vllm`: install it in an environment of"):
        choose("vllm")
    monkeypatch.setattr(vllm, "find", lambda config: "/bin/vllm")
    assert choose("auto") == choose("vllm") == choose("vllm", answers=1) == "vllm"
    # Few answers are not worth its start, and some things it does not do.
    assert choose("auto", answers=engines.FEW) == "transformers"
    assert choose("auto", local_only="pairs.first_pit") == "transformers"
    with pytest.raises(UserError, match=r"pairs\.first_pit is done by the model in this process"):
        choose("vllm", local_only="pairs.first_pit")
    cuda.is_available = lambda: False
    assert choose("auto") == "transformers"


def test_vllm_is_found_where_it_is_said_to_be(monkeypatch, tmp_path):
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/nowhere")
    assert vllm.find(GenerateConfig()) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert vllm.find(GenerateConfig()) == str(program)
    assert vllm.find(GenerateConfig(vllm=str(program))) == str(program)
    monkeypatch.setenv(vllm.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"^TUNEBOOK_VLLM: .*none is no program$"):
        vllm.find(GenerateConfig())
    with pytest.raises(UserError, match=r"^generate\.vllm: "):
        vllm.find(GenerateConfig(vllm="none"))


def adapter(folder, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 16, "bias": "none"} | config))
    return folder


def test_vllm_is_told_of_adapters_and_what_the_user_adds_comes_last(tmp_path):
    adapters = {"sft": adapter(tmp_path / "sft"), "dpo": adapter(tmp_path / "dpo", r=48)}
    serving = vllm.Serving("some/model", "base", adapters, "v2", "float16", True, 900, tmp_path / "t", gpus=4)
    options = {"gpu-memory-utilization": 0.8, "enforce-eager": True, "dtype": None, "limit": {"image": 1}}
    words = vllm.arguments(serving, options, 8000)
    lora = ["--enable-lora", "--max-lora-rank", "64", "--lora-modules"]
    lora += [f"sft={tmp_path}/sft", f"dpo={tmp_path}/dpo"]
    assert words == [
        *["some/model", "--host", "127.0.0.1", "--port", "8000", "--served-model-name", "base"],
        *["--revision", "v2", "--quantization", "bitsandbytes", "--max-model-len", "900"],
        *["--generation-config", "vllm", "--chat-template", f"{tmp_path}/t", "--data-parallel-size", "4"],
        *lora,
        *["--gpu-memory-utilization", "0.8", "--enforce-eager", "--limit", '{"image": 1}'],
    ]
    assert vllm.arguments(vllm.Serving("m", "sft"), {}, 1)[-2:] == ["--generation-config", "vllm"]


def test_adapters_that_vllm_refuses_are_merged(tmp_path):
    assert vllm.takes_adapter(adapter(tmp_path / "plain"), "qwen3")
    assert not vllm.takes_adapter(tmp_path / "plain", "gemma3n")
    refused = {"dora": {"use_dora": True}, "bias": {"bias": "all"}, "large": {"rank_pattern": {"q": 1024}}}
    refused["head"] = {"modules_to_save": ["lm_head"]}
    for name, config in refused.items():
        assert not vllm.takes_adapter(adapter(tmp_path / name, **config), "qwen3"), name


LOGS = {
    "(APIServer pid=1) INFO started": "(APIServer pid=1) INFO started",
    "vllm serve: error: argument --dtype: invalid choice": "error: argument --dtype: invalid choice",
    "] ValueError: little\nRuntimeError: Engine core initialization failed. See": "ValueError: little",
    "torch.OutOfMemoryError: CUDA out of memory.\n\n": "OutOfMemoryError: CUDA out of memory.",
    "": "it has said nothing",
}


@pytest.mark.parametrize("text", LOGS)
def test_the_reason_of_an_end_is_found_in_the_log(text, tmp_path):
    (tmp_path / "log").write_text(text)
    assert vllm.reason(tmp_path / "log") == LOGS[text]


def test_the_line_that_lives_has_what_vllm_says_without_its_prefixes():
    said = "(EngineCore_DP0 pid=7) INFO 11-27 00:27:50 [model.py:733] Resolved architecture: LlamaForCausalLM"
    assert vllm.PREFIX.sub("", said) == "Resolved architecture: LlamaForCausalLM"
    assert vllm.PREFIX.sub("", "Loading weights: 50%") == "Loading weights: 50%"


def test_addresses_are_asked_in_turn_and_one_that_is_gone_is_left_out(capsys):
    prompts = [[{"role": "user", "content": str(i)}] for i in range(6)]
    seen = {"first": [], "second": []}
    with (
        answering.serving(lambda text: seen["first"].append(text) or "a") as first,
        answering.serving(lambda text: seen["second"].append(text) or "b") as second,
    ):
        server = ServerConfig(url=[first, second], model="m", retries=0, concurrency=1)
        assert sorted(all_answers(server, prompts, Sampling(4))) == list(range(6))
        assert seen == {"first": ["0", "2", "4"], "second": ["1", "3", "5"]}
        gone = "http://127.0.0.1:9/v1"
        server = ServerConfig(url=[gone, first], model="m", retries=0, concurrency=2)
        assert {answer.text for answer in all_answers(server, prompts, Sampling(4)).values()} == {"a"}
    assert len(seen["first"]) == 9
    assert capsys.readouterr().out.count(f"Warning: {gone} does not answer and is left out; 1 go on") == 1
    with pytest.raises(UserError, match=f"{gone} does not answer: start it"):
        all_answers(ServerConfig(url=gone, model="m", retries=0), prompts, Sampling(4))


def test_64_addresses_are_kept_busy():
    """No server answers before all of them have been asked, and none is asked more than another."""
    all_asked = threading.Barrier(64, timeout=60)
    asked = Counter()

    def reply(number, _):
        asked[number] += 1
        all_asked.wait()
        return "yes"

    prompts = [[{"role": "user", "content": str(i)}] for i in range(192)]
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(answering.serving(partial(reply, number))) for number in range(64)]
        server = ServerConfig(url=urls, model="m", retries=0, concurrency=64)
        answers = all_answers(server, prompts, Sampling(4))
    assert {answer.text for answer in answers.values()} == {"yes"} and len(answers) == 192
    assert asked == dict.fromkeys(range(64), 3)


def test_a_server_answers_for_every_model_by_its_name():
    recipe = load_recipe()
    server = ServerConfig(url="http://x/v1", model="mine")
    engine = engines.Engine(recipe, "evaluate", "server", ["base", "sft"], server)
    with pytest.raises(UserError, match=r"model names one model, and base, sft are asked: write \{model\}"):
        engine.open("sft").__enter__()
    engine.server.model = "mine-{model}"
    with engine.open("sft") as named:
        assert named.model == "mine-sft"
    # Where it lies and how fast it is makes no evaluation stale; that there is one, and which, does.
    config = {"url": "http://x/v1", "model": "m"}
    keys = []
    for server in (None, config, config | {"concurrency": 3, "same_model": False}, config | {"model": "n"}):
        keys.append(eval_stage(load_recipe(overrides={"evaluate.server": server}), "base").key)
    assert len(set(keys)) == 3 and keys[1] == keys[2]


def test_another_model_is_told_by_the_distance_and_by_what_is_nearer():
    def refusal(limit=0.05, **differences):
        try:
            served._refuse_other_model(SERVER, "sft", differences, limit)
        except UserError as error:
            return str(error)
        return ""

    assert refusal(sft=0.004, base=0.001) == refusal(sft=0.04, base=0.03) == ""
    assert "differ by 0.200 on average, 0.05 is allowed. Serve sft" in refusal(sft=0.2, base=0.3)
    assert "It is nearer to base (0.010)" in refusal(sft=0.04, base=0.01)
    assert refusal(limit=served.LIMIT_4_BIT, sft=0.2, base=0.7) == ""
    assert "It is nearer to base (0.080)" in refusal(limit=served.LIMIT_4_BIT, sft=0.2, base=0.08)
