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


def test_tokenises_as_llama_cpp_does(tokenizer):
    code = (
        "import sys, json, urllib.request, xllamacpp as x\n"
        "p = x.CommonParams(); p.model.path = sys.argv[1]; p.hostnames = ['127.0.0.1']; p.port = 0; p.n_ctx = 64; p.warmup = False\n"
        "s = x.Server(p)\n"
        "def ask(t):\n"
        "    data = json.dumps({'content': t, 'add_special': False}).encode()\n"
        "    request = urllib.request.Request(s.listening_address + '/tokenize', data, {'Content-Type': 'application/json'})\n"
        "    return json.load(urllib.request.urlopen(request, timeout=60))['tokens']\n"
        "print('\\nTOKENS' + json.dumps([ask(t) for t in json.load(sys.stdin)]))"
    )
    sample = texts()
    assert len(sample) > 100
    done = subprocess.run(
        [sys.executable, "-c", code, str(builtin.embedded_gguf())],
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


def test_two_processes_convert_once(tmp_path):
    """The conversion itself is replaced by a slow stand-in; the lock and the rename are real."""
    code = (
        "import time\nfrom tunebook.models import builtin\n"
        "def convert(out):\n    print('converting', flush=True); out.mkdir(); time.sleep(1); (out / 'config.json').write_text('{}')\n"
        "builtin._convert_gguf = convert\nprint(builtin.embedded_model())"
    )
    env = os.environ | {"TUNEBOOK_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(2)
    ]
    outs = [p.communicate()[0] for p in both]
    assert "".join(outs).count("converting\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {
        "smollm2-135m-instruct-v1",
        "smollm2-135m-instruct-v1.lock",
    }
