"""Fixtures of every folder: runs in a temporary place, the embedded model's folder, a tiny model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import whole_recipe
import yaml
from hypothesis import settings

from tunebook.models import backend, builtin
from tunebook.recipe.errors import say_once

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes that each want every core slow each other down many times over.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
backend.set_environment()  # before any test imports transformers
settings.register_profile("few", max_examples=20)
settings.register_profile("ci", max_examples=40)
settings.register_profile("long", max_examples=2000)  # pytest tests/unit --hypothesis-profile=long
settings.load_profile("ci" if "CI" in os.environ else "few")

LONGEST_FIRST = ("integration", "stages", "gpu", "unit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long file left for the end would keep one worker waiting for the other."""
    folder = Path(__file__).parent
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(folder).parts[0]))


def pytest_configure(config):
    if config.getoption("markexpr") != "gpu":
        os.environ.setdefault("UNSLOTH_FORCE_CPU", "1")  # the same tests on a machine with a GPU
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched


@pytest.fixture(autouse=True)
def _runs(tmp_path, monkeypatch):
    say_once.cache_clear()  # what another test was told is told again
    monkeypatch.setenv("TUNEBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")  # commands are printed as `uv run` has them
    for name in [k for k in os.environ if k.startswith("TUNEBOOK__")] + ["TUNEBOOK_RECIPE", "TUNEBOOK_RUN"]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def embedded() -> Path:
    return builtin.embedded_model()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, embedded) -> Path:
    """A llama of random weights with the embedded model's tokenizer: milliseconds a step."""
    backend.backend()
    import tiny_text

    path = tmp_path_factory.mktemp("model") / "tiny"
    tiny_text.llama(path, embedded)
    return path


@pytest.fixture
def tiny_recipe(tiny, tmp_path) -> Path:
    """A recipe of the default's shape on the tiny model: 40 steps in seconds."""
    content = whole_recipe.content("smollm2-math")
    content["name"] = "tiny"
    content["model"] |= {"base": str(tiny), "dtype": "float32"}
    content["data"]["for_pairs"] = 0
    content["data"]["sources"] = [{"format": "geometry", "train": 80, "val": 9, "test": 24}]
    content["sft"] |= {
        "per_device_train_batch_size": 2,
        "learning_rate": 5e-3,
        "save_steps": 5,
        "eval_steps": 20,
        "logging_steps": 1,
    }
    content["evaluate"] |= {"max_new_tokens": 24, "batch_size": 8}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
