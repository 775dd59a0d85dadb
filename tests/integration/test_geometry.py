"""The generated problems: right arithmetic, right answers, splits that share nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys

from school_geometry.problems import problems


def test_the_same_in_every_process():
    text = "''.join(p.question + p.solution for p in problems('train', 200, 7)).encode()"
    imports = "from school_geometry.problems import problems; import hashlib"
    code = f"{imports}; print(hashlib.sha256({text}).hexdigest())"
    here = hashlib.sha256(
        "".join(p.question + p.solution for p in problems("train", 200, 7)).encode()
    ).hexdigest()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": hash_seed},
        )
        assert done.stdout.strip() == here
    assert (
        here
        != hashlib.sha256(
            "".join(p.question + p.solution for p in problems("train", 200, 8)).encode()
        ).hexdigest()
    )
