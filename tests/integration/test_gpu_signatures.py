"""What the recipes hand on is what Unsloth's GPU classes take: held against their real signatures and generated configs.

In a process of its own, with Unsloth's GPU code imported on a machine without a GPU; nothing is loaded or trained there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

from tunebook.recipe.files import ROOT

RECIPES = ("smollm2-math", "gemma3n-mm-math", "qwen3-4b-instruct")
SCRIPT = textwrap.dedent(
    """
    import inspect, json, sys
    import unsloth
    from unsloth import FastModel
    from unsloth.models import rl, vision
    rl.patch_trl_disable_gradient_checkpointing()
    for name in ("sft_trainer", "dpo_trainer"):
        rl._patch_trl_rl_trainers(name)
    configs = {"sft": sys.modules["UnslothSFTTrainer"].UnslothSFTConfig, "dpo": sys.modules["UnslothDPOTrainer"].UnslothDPOConfig}
    from tunebook import models, train
    from tunebook.recipe import load_recipe

    def names(function):
        return set(inspect.signature(function).parameters)

    out = {"device": unsloth.DEVICE_TYPE, "generated": ["unsloth_num_chunks" in names(c.__init__) for c in configs.values()], "recipes": {}}
    asked = {}
    def loaded(**given):
        asked["load"] = given
        class Model:
            class config: pass
        does = {"get_vocab": lambda self: {"<|im_end|>": 1}, "apply_chat_template": lambda self, *args, **kwargs: ""}
        return Model(), type("Processor", (), {"image_processor": 1, "chat_template": "x"} | does)()
    real_load, real_peft = unsloth.models.loader.FastModel.from_pretrained, vision.FastBaseModel.get_peft_model
    for recipe in sys.argv[1:]:
        r = load_recipe(recipe)
        # These are no parameters of the loader: they go on to transformers.
        known_load, known_peft = names(real_load) | {"attn_implementation", "use_safetensors"}, names(real_peft)  # handed on
        FastModel.from_pretrained = staticmethod(loaded)
        try:
            models.load(r)
        except AttributeError:
            pass  # what comes after loading needs a real model
        lora = {"random_state": r.seed, "use_gradient_checkpointing": False, **r.lora}
        given = {"load": sorted(set(asked["load"]) - known_load), "lora": sorted(set(lora) - known_peft)}
        for section, config in configs.items():
            values = getattr(r, section)
            stock = config.__mro__[1]  # what the generated config does not name goes on to it, and is dropped where it has no such field
            given[section] = sorted(set(values) - names(config.__init__) - names(stock.__init__))
        out["recipes"][recipe] = given
    print("RESULT " + json.dumps(out))
    """
)


def test_every_argument_is_known_to_the_gpu_classes(tmp_path):
    environment = os.environ | {
        "UNSLOTH_ALLOW_CPU": "1",
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "compiled"),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("UNSLOTH_FORCE_CPU", None)
    (tmp_path / "check.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "check.py"), *RECIPES]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": str(ROOT / "src")},
        cwd=tmp_path,
        check=False,
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert line, done.stdout[-1000:] + done.stderr[-3000:]
    found = json.loads(line.removeprefix("RESULT "))
    assert found["device"] == "cuda" and found["generated"] == [True, True]
    assert found["recipes"] == {recipe: {"load": [], "lora": [], "sft": [], "dpo": []} for recipe in RECIPES}
