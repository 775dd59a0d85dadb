"""Sources and checks: broken rows end in the quarantine with the right reason, and the rest trains."""

from __future__ import annotations

import os
import subprocess
import sys


def test_same_recipe_same_fingerprint_in_every_process(embedded, tmp_path):
    code = (
        "from tunebook.recipe.loading import load_recipe; from tunebook.data.prepare import prepare\n"
        "source = {'format': 'geometry', 'train': 60, 'val': 9, 'test': 30}\n"
        "r = load_recipe(overrides={'data.sources': [source]})\n"
        "print(prepare(r, force=True)['fingerprints'])"
    )
    outs = set()
    for hash_seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "TUNEBOOK_RUNS": str(tmp_path / hash_seed)}
        outs.add(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
            ).stdout.splitlines()[-1]
        )
    assert len(outs) == 1
