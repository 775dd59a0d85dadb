"""The embedded model: our tokenizer splits text as llama.cpp does, turns end at <|im_end|>."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from school_geometry.problems import problems
from tunebook.models import builtin


def texts() -> list[str]:
    """A hundred and more texts with digits, newlines and LaTeX."""
    rng = random.Random(0)
    pieces = [
        "\n\n",
        "\n",
        "  ",
        " ",
        "1.",
        "12",
        "3.14",
        "2024",
        "\\boxed{",
        "}",
        "$",
        "\\frac{1}{2}",
        "\\sqrt{3}",
        "é",
        "π",
        "°",
    ]
    pieces += ["def f(x):", "\t", "can't", "中", "🙂", "A", "-7", "^2"]
    noise = ["".join(rng.choices(pieces, k=rng.randint(1, 12))) for _ in range(60)]
    fixed = [
        "\n\n1. a",
        "  12",
        "x\n\n\n2",
        "1 2  3",
        "### Solution\n1. 2 + 3 = 5\n\n### Final Answer\n\\boxed{5}",
        "100,000.50",
        "a" * 50,
    ]
    return (
        fixed
        + noise
        + [p.solution for p in problems("train", 40)]
        + [p.question for p in problems("test", 20)]
    )


@pytest.fixture(scope="module")
def tokenizer(embedded):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded)


LLAMA_CPP = """
import json, sys, urllib.request
import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.hostnames, parameters.port = ["127.0.0.1"], 0
parameters.n_ctx, parameters.warmup = 64, False
server = xllamacpp.Server(parameters)

def tokens(text):
    data = json.dumps({"content": text, "add_special": False}).encode()
    header = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + "/tokenize", data, header)
    return json.load(urllib.request.urlopen(request, timeout=60))["tokens"]

print("\\nTOKENS" + json.dumps([tokens(text) for text in json.load(sys.stdin)]))
"""


def test_tokenises_as_llama_cpp_does(tokenizer):
    sample = texts()
    assert len(sample) > 100
    done = subprocess.run(
        [sys.executable, "-c", LLAMA_CPP, str(builtin.embedded_gguf())],
        input=json.dumps(sample),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TOKENS" in done.stdout, done.stderr[-2000:]
    theirs = json.loads(done.stdout.split("TOKENS")[1])
    for text, tokens in zip(sample, theirs, strict=True):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == tokens, repr(text)
        assert tokenizer.decode(tokens) == text


CONVERT = """
import time
from tunebook.models import builtin

def convert(folder):
    print("converting", flush=True)
    folder.mkdir()
    time.sleep(1)
    (folder / "config.json").write_text("{}")

builtin._convert_gguf = convert
print(builtin.embedded_model())
"""


def test_two_processes_convert_once(tmp_path):
    """The conversion itself is replaced by a slow stand-in; the lock and the rename are real."""
    env = os.environ | {"TUNEBOOK_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", CONVERT], stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(2)
    ]
    outs = [p.communicate()[0] for p in both]
    assert "".join(outs).count("converting\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {
        "smollm2-135m-instruct-v1",
        "smollm2-135m-instruct-v1.lock",
    }
