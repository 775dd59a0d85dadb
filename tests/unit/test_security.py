"""No secret is written or shown, nothing calls out unasked, nothing is unpickled."""

from __future__ import annotations

import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import whole_recipe
import yaml
from fake_keys import FAKE, clean_of_keys

from tunebook.data import clean
from tunebook.generation.answers import Sampling
from tunebook.generation.generate import generate
from tunebook.recipe.errors import UserError
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.recipe.secrets import SECRET, scrubbed
from tunebook.recipe.sections import ServerConfig


@pytest.fixture
def keys(monkeypatch):
    for name, value in FAKE.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def echo():
    """A server that refuses with the status in its path and says the key back."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            header = self.headers["Authorization"]
            message = f"wrong key {header}, see {header.removeprefix('Bearer ')}"
            body = json.dumps({"error": {"message": message}}).encode()
            self.send_response(int(self.path.split("/")[1]))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_server_that_says_the_key_back(keys, echo, tmp_path, capsys, status):
    with pytest.raises(UserError) as first:
        list(
            generate(
                ServerConfig(url=f"{echo}/{status}/v1", model="m", retries=0),
                [[{"role": "user", "content": "?"}]],
                Sampling(4),
            )
        )
    (tmp_path / "raw.jsonl").write_text(
        json.dumps({"question": "What is 1?", "solution": "\\boxed{1}"}) + "\n"
    )
    given = {
        "source": str(tmp_path / "raw.jsonl"),
        "url": f"{echo}/{status}/v1",
        "model": "m",
        "retries": 0,
        "concurrency": 1,
    }
    with pytest.raises(UserError) as second:
        clean.clean(load_recipe(overrides={"clean": given}))
    out = capsys.readouterr()
    clean_of_keys(str(first.value), str(second.value), out.out, out.err, tmp_path / "runs")
    assert len(str(first.value).splitlines()) == len(str(second.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pairs.server", {"url": "http://127.0.0.1/v1", "model": "m", "api_key_env": FAKE["OPENAI_API_KEY"]}),
        (
            "pairs.server",
            {
                "url": "http://127.0.0.1/v1",
                "model": "m",
                "api_key_env": "aNotherKeyThatIsNotInTheEnvironment",
            },
        ),
        ("pairs.server", {"url": "http://me:pass1234@127.0.0.1/v1", "model": "m"}),
        (
            "pairs.server",
            {"url": "http://127.0.0.1/v1", "model": "m", "extra": {"headers": ["Bearer abcdefghijklmnop"]}},
        ),
        (
            "pairs.server",
            {"url": "http://127.0.0.1/v1", "model": "m", "api_key": "aNotherKeyThatIsNotInTheEnvironment"},
        ),
        ("sft.hub_token", "hf_" + "a" * 34),
        ("sft.run_name", f"trial {FAKE['HF_TOKEN']}"),
        ("data.system_prompt", "sk-" + "proj-1" + "b" * 30),
        ("name", FAKE["API_KEY"]),
        (FAKE["API_KEY"], 1),
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(keys, tmp_path, key, value):
    content = whole_recipe.content("smollm2-math")
    section, _, last = key.rpartition(".")
    (content[section] if section else content)[last] = value
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(content))
    for given in ({"recipe": tmp_path / "r.yaml"}, {"overrides": {key: value}}):
        with pytest.raises(UserError) as error:
            load_recipe(**given)
        clean_of_keys(str(error.value))
        assert not any(
            part in str(error.value) for part in ("aNother", "pass1234", "abcdefghij", "aaaaa", "bbbbb")
        ), error.value


def test_a_key_of_the_env_file_is_known_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("API_KEY=only-in-the-file-1\n")
    monkeypatch.delenv("API_KEY", raising=False)
    with pytest.raises(UserError, match=r"sft\.run_name holds a secret"):
        load_recipe(overrides={"sft.run_name": "only-in-the-file-1"})


def test_a_recipe_that_cannot_be_read_is_not_repeated(keys, tmp_path):
    (tmp_path / "r.yaml").write_text(f"api_key: {FAKE['API_KEY']} : {{\n")
    with pytest.raises(UserError, match=r"not readable YAML: .*line 1") as error:
        load_recipe(tmp_path / "r.yaml")
    clean_of_keys(str(error.value))


def test_what_is_scrubbed():
    assert (
        scrubbed("key none, sk-" + "a1" * 10 + " and https://u:p@host", "none")
        == "key none, *** and https://***@host"
    )
    assert scrubbed("Bearer " + "x" * 20 + ", mine-is-here.", "mine-is-here") == "***, ***."
    assert (
        scrubbed("tasks sk-learn-and-other-kits, hf_hub, http://127.0.0.1:80/v1")
        == "tasks sk-learn-and-other-kits, hf_hub, http://127.0.0.1:80/v1"
    )


def test_no_secret_in_the_repository():
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    found = []
    for name in filter(None, files):
        if (ROOT / name).is_file() and not name.startswith("tests/"):  # which make up their own
            text = (ROOT / name).read_text(encoding="utf-8", errors="replace")
            found += [(name, match[0]) for match in SECRET.finditer(text)]
    assert found == []
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    assert not [name for name in files if Path(name).name.startswith(".env")]
