"""The recipe: overrides, their order, and one clear line for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tunebook.recipe.files import ROOT


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--recipe", "smolm2-math"], "no recipe 'smolm2-math', did you mean smollm2-math?"),
        (
            ["--recipe", "configs/smollm2-meth.yaml"],
            "no file configs/smollm2-meth.yaml, did you mean configs/smollm2-math.yaml?",
        ),
        (["--set", "seed"], "write it as key=value"),
        (["--set", "sft.lerning_rate=1"], "did you mean learning_rate?"),
    ],
)
def test_command_line_mistakes_are_one_line_and_exit_2(run_cli, args, message):
    done = run_cli("sft", *args, cwd=ROOT)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_fields_are_read_from_the_installed_configs():
    """The sections accept just what stock TRL's dataclasses have (Unsloth's GPU config would drop the rest silently)."""
    from tunebook.recipe import trainer_keys

    code = (
        "import json, dataclasses, trl, peft\n"
        "print(json.dumps({'sft': [f.name for f in dataclasses.fields(trl.SFTConfig)], 'dpo': [f.name for f in dataclasses.fields(trl.DPOConfig)],"
        " 'lora': [f.name for f in dataclasses.fields(peft.LoraConfig)]}))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    for section, names in json.loads(out).items():
        known = set(trainer_keys.trainer_section(section).model_fields)
        ours = {*trainer_keys._EARLY_STOPPING, *trainer_keys._UNSLOTH_LORA}
        theirs = {n for n in names if not n.startswith("_")} - trainer_keys._OURS
        missing = (
            theirs
            - known
            - {
                "runtime_config",
                "peft_type",
                "auto_mapping",
                "peft_version",
                "base_model_name_or_path",
                "revision",
                "inference_mode",
            }
        )
        assert not missing, section
        assert known - ours <= theirs, section
