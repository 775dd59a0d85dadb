"""The mistakes that a newcomer makes most likely: what the command line says to each, word for word.

In one line, without a traceback, naming the thing and what to do. None of them waits for Unsloth's import.
"""

from __future__ import annotations

import json

import pytest
from filelock import FileLock

from tunebook import cli
from tunebook.evaluation.evaluate import eval_stage
from tunebook.evaluation.items import summarise
from tunebook.models import backend
from tunebook.recipe.files import ROOT
from tunebook.recipe.loading import load_recipe
from tunebook.runs.files import write_json

RECIPE = (
    "name: own\nmodel: {{base: smollm2-135m-instruct}}\ndata:\n  sources: [{{format: chat, path: {path}}}]\n"
)

SAID = {
    "a recipe misspelt": (
        "run --recipe smolm2-math",
        "no recipe 'smolm2-math', did you mean smollm2-math?; there are: gemma3n-mm-math, mm-math-sample, "
        "qwen3-4b-16gb, qwen3-4b-80gb, qwen3-4b-base, qwen3-4b-instruct, smollm2-alpaca, "
        "smollm2-instructions, smollm2-math (or give a path to a .yaml file)",
    ),
    "a recipe's file not there": (
        "run --recipe {tmp}/onw.yaml",
        "no file {tmp}/onw.yaml, did you mean {tmp}/own.yaml?",
    ),
    "a key misspelt": (
        "sft --set sft.lerning_rate=1e-4",
        "recipe smollm2-math: unknown key sft.lerning_rate, did you mean learning_rate?",
    ),
    "a key without its section": (
        "sft --set learning_rate=1e-4",
        "recipe smollm2-math: unknown key learning_rate, did you mean sft.learning_rate or "
        "dpo.learning_rate?",
    ),
    "a notebook's short name": (
        "sft --set lr=1e-4",
        "recipe smollm2-math: unknown key lr, did you mean sft.learning_rate or dpo.learning_rate?",
    ),
    "a key of another section": (
        "sft --set r=32",
        "recipe smollm2-math: unknown key r, did you mean lora.r?",
    ),
    "a wrong type": (
        "sft --set sft.learning_rate=fast",
        "recipe smollm2-math: sft.learning_rate: should be a valid number, unable to parse string as a "
        "number (it is fast)",
    ),
    "no value": (
        "sft --set sft.learning_rate",
        "--set sft.learning_rate: write it as key=value, for example --set sft.learning_rate=2e-4",
    ),
    "pairs before SFT": (
        "pairs",
        "{runs}/smollm2-math/sft holds no finished result: run `uv run tunebook sft` first",
    ),
    "DPO before SFT": (
        "dpo",
        "{runs}/smollm2-math/pairs holds no finished result: run `uv run tunebook pairs` first",
    ),
    "DPO before its pairs, of a file": (
        "dpo --recipe {tmp}/own.yaml --run mine --set lora.r=8",
        "{runs}/mine/pairs holds no finished result: run `uv run tunebook pairs --recipe {tmp}/own.yaml "
        "--run mine --set lora.r=8` first",
    ),
    "evaluation of what is not trained": (
        "evaluate sft",
        "{runs}/smollm2-math/sft holds no finished result: run `uv run tunebook sft` first",
    ),
    "export before training": (
        "export",
        "{runs}/smollm2-math/sft holds no finished result: run `uv run tunebook sft` first",
    ),
    "serve before export": (
        "serve",
        "no GGUF file in {runs}/smollm2-math/export: run `uv run tunebook export --to gguf "
        "--install-tools` first",
    ),
    "report before anything": (
        "report",
        "{runs}/smollm2-math holds no finished stage: run `uv run tunebook run` first",
    ),
    "own data not there": (
        "prepare --recipe {tmp}/lost.yaml",
        "no file my_rows.jsonl, did you mean rows.jsonl?",
    ),
    "own data with other columns": (
        "prepare --recipe {tmp}/own.yaml",
        "no training row is left: 3 missing column (the first: prompt: missing; the row has instruct, reply: "
        "name it in `columns`, as in {{prompt: instruct}}); "
        "`columns` of the source names the column that has it. "
        "All of them are in {runs}/own/.data.partial/quarantine.jsonl",
    ),
    "rows too long": (
        "prepare --recipe {tmp}/short.yaml --set model.max_seq_length=16",
        "no training row is left: 3 too long (the first: 38 tokens, max_seq_length is 16); "
        "a higher `model.max_seq_length` keeps them. "
        "All of them are in {runs}/own/.data.partial/quarantine.jsonl",
    ),
    "no server": (
        "clean --recipe {tmp}/clean.yaml",
        "BASE_URL is not set: put it into the environment or into .env, as in BASE_URL=https://host/v1",
    ),
    "no key": (
        "clean --recipe {tmp}/clean.yaml --set clean.url=https://host/v1 --set clean.model=m",
        "API_KEY is not set: put it into the environment or into .env, as in API_KEY=...",
    ),
    "no clean section": (
        "clean",
        "the recipe has no `clean` section: give it one with at least `source` (see the README)",
    ),
    "clean rows not made yet": (
        "prepare --recipe {tmp}/clean.yaml",
        "no {runs}/own/clean/rows.jsonl: run `uv run tunebook clean --recipe {tmp}/clean.yaml` first",
    ),
    "a model that is not on the disk": (
        "prepare --set model.base=unsloth/Qwen3-4B-Base",
        "model.base: unsloth/Qwen3-4B-Base is not on this disk, and HF_HUB_OFFLINE=1 forbids fetching it: "
        "unset that, or give a folder",
    ),
    "a model's folder that is not there": (
        "prepare --set model.base={tmp}/model",
        "model.base: there is no folder {tmp}/model, and it is no hub id such as user/name",
    ),
    "a model of the run that there is not": (
        "chat --question Hi --model dop",
        "no model 'dop': choose from base, or give a folder or a hub id such as user/name",
    ),
    "a model of the run that is not trained": (
        "chat --question Hi --model sft",
        "{runs}/smollm2-math/sft holds no finished result: run `uv run tunebook sft` first",
    ),
    "a step that there is not": (
        "run --until dop",
        "no step 'dop': choose from prepare, sft, pairs, dpo, evaluate",
    ),
}


@pytest.fixture
def spoken(tmp_path, monkeypatch, capsys):
    """Run a command line in this process as a user would.

    Returns the exit code and what it says on stderr, but for progress bars.
    """
    for name in ("API_KEY", "BASE_URL", "MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backend, "backend", lambda: pytest.fail("waits for Unsloth before it says so"))
    (tmp_path / "rows.jsonl").write_text('{"instruct": "Hi?", "reply": "Ho."}\n' * 3)
    (tmp_path / "good.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{n} + 1?", "completion": f"{n + 1}"}) + "\n" for n in (1, 22, 333))
    )
    (tmp_path / "raw.jsonl").write_text('{"question": "1 + 1?", "solution": "\\\\boxed{2}"}\n')
    for name, path in {
        "own": "rows.jsonl",
        "lost": "my_rows.jsonl",
        "short": "good.jsonl",
        "clean": "'{run}/clean/rows.jsonl'",
    }.items():
        text = RECIPE.format(path=path) + ("clean: {source: raw.jsonl}\n" if name == "clean" else "")
        (tmp_path / f"{name}.yaml").write_text(text)

    def speak(line: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["tunebook", *line.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = [text.split("\r")[-1] for text in capsys.readouterr().err.splitlines()]
        return end.value.code, "\n".join(text for text in said if text and not text.startswith("checking: "))

    return speak


@pytest.mark.parametrize("mistake", SAID)
def test_what_is_said(spoken, mistake, tmp_path):
    line, text = (part.format(tmp=tmp_path, runs=tmp_path / "runs", root=ROOT) for part in SAID[mistake])
    assert spoken(line) == (2, f"tunebook: {text}")


def test_two_commands_in_one_run_folder(spoken, tmp_path):
    folder = tmp_path / "runs" / "smollm2-math"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        write_json(folder / ".owner.json", {"pid": 4711, "command": "tunebook sft"})
        said = spoken("prepare")
    assert said == (
        2,
        f"tunebook: {folder} is in use by process 4711 (tunebook sft): wait for it, or choose another --run",
    )


def test_a_gate_that_does_not_hold(spoken, tmp_path):
    """Ten items, of which SFT wins three and loses four.

    Nothing is asked again, the rule and the figures are named.
    """
    recipe = load_recipe(overrides={"evaluate.retention": False})  # no other skills were asked for
    (recipe.run_dir / "sft" / "adapter").mkdir(parents=True)
    write_json(recipe.run_dir / "sft" / "stage.json", {"key": "k"})
    for name, right in (("base", "1111100000"), ("sft", "1000011100")):
        lines = [
            {
                "index": i,
                "prompt": "",
                "gold": "1",
                "slice": "",
                "group": "",
                "answer": "",
                "parsed": None,
                "how": "none",
            }
            | {"correct": r == "1", "truncated": False, "tokens": 3}
            for i, r in enumerate(right)
        ]
        stage = eval_stage(recipe, name)
        stage.dir.mkdir(parents=True)
        (stage.dir / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        write_json(stage.dir / "stage.json", {"key": stage.key, "summary": summarise(lines)})
    code, said = spoken("evaluate --gate --set evaluate.retention=false")
    assert (
        code == 2
        and said.startswith("tunebook: gate: sft against base: -10.0 points (95% interval ")
        and said.count("\n") == 0
    )
    assert (
        "n = 10), the lower end must be above +0.0; dpo against sft: not both have been evaluated on the "
        "same items" in said
    )
