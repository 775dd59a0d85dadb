"""`tunebook export`: adapter, merged weights, GGUF files, an Ollama Modelfile; each proved equal before it counts as exported.

uv run tunebook export --to adapter,merged,gguf,ollama --install-tools
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.data.formats import Prompts
from tunebook.data.rows import images_of
from tunebook.evaluation.items import held_out_items
from tunebook.export import llama_cpp, parity
from tunebook.export.modelcard import card
from tunebook.export.modelfile import modelfile
from tunebook.generation.local import local
from tunebook.models import adapters, backend, builtin, chat_template, loading
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json, write_json
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import trained_models

BYTES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 1.07}


SMALLER = 0.9
"""Bytes a weight; a 4-bit type of a small model, whose rows do not fit its blocks, comes to this."""


def export(
    recipe: Recipe, force: bool = False, install_tools: bool = False, check: bool = False
) -> dict[str, Any]:
    """Write what the recipe's `export.to` names into `export/` of the run folder; returns {name: row of the parity table}.

    Each result is loaded from disk in a fresh process and compared with the adapter before its folder appears; the rows
    are kept in `export/parity.json`. What is there and up to date is left alone; `check` compares it once more.

    Raises UserError for a missing stage or tool, for a disk that is too small, for an older export that `force` would have to replace,
    for a GGUF file of a model that sees images, and when an export is not equal.
    """
    stage = exported_stage(recipe)
    names = targets(recipe)
    if chat_template.has_processor(recipe.run_dir / stage / "adapter") and not {
        "adapter",
        "merged",
    }.issuperset(names):
        raise UserError(
            "this model sees images, and a GGUF file would hold its text part alone: use --to adapter,merged"
        )
    tools = llama_cpp.converter(install_tools) if any(n.startswith("gguf-") for n in names) else None
    llama_cpp.check_quantiser(recipe.export.quantizations if tools else [])
    todo = {name: export_stage(recipe, name, stage) for name in names}
    if not check:
        todo = {name: entry for name, entry in todo.items() if not entry.skip(force)}
        for name, entry in todo.items():
            if entry.dir.exists() and not force:
                raise UserError(
                    f"{entry.dir} holds an export of another model or other settings: --force replaces it ({name})"
                )
    elif missing := [name for name, entry in todo.items() if not entry.dir.exists()]:
        raise UserError(f"nothing to check: {missing[0]} has not been exported")
    if todo:
        _export(recipe, stage, todo, tools, check)
    if recipe.export.hub_id and not check:
        push(recipe, recipe.export.hub_id, names)
    rows = read_json(recipe.run_dir / "export" / "parity.json")
    return {name: rows[name] for name in names if name in rows}


def exported_stage(recipe: Recipe) -> str:
    """The stage to export: the recipe's, or the last that is trained. Raises UserError when there is none."""
    stage = recipe.export.stage or (trained_models(recipe)[1:] or ["sft"])[-1]
    finished_key(recipe, stage)
    return stage


def targets(recipe: Recipe) -> list[str]:
    """What is written, in order, with what it is made from: GGUF needs merged weights, Ollama a GGUF file."""
    to = set(recipe.export.to)
    gguf = [f"gguf-{kind}" for kind in dict.fromkeys(recipe.export.quantizations)]
    return [
        *(["adapter"] if "adapter" in to else []),
        *(["merged"] if to & {"merged", "gguf", "ollama"} else []),
        *(gguf if "gguf" in to else gguf[:1] if "ollama" in to else []),
        *(["ollama"] if "ollama" in to else []),
    ]


def push(recipe: Recipe, repo: str, names: list[str]) -> None:
    """Upload the export folders to the hub, each to its own subfolder but a single one to the top.

    Raises UserError when the hub refuses (no login, no right, no network).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub = HfApi()
    try:
        hub.create_repo(repo, private=recipe.export.private, exist_ok=True)
        for name in names:
            inside = name if len(names) > 1 else None
            hub.upload_folder(
                repo_id=repo,
                folder_path=recipe.run_dir / "export" / name,
                path_in_repo=inside,
                ignore_patterns=["stage.json"],
            )
            print(f"pushed {name} to {repo}")
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the hub did not take {repo}: {first_line(error)}. What was exported is kept in {recipe.run_dir / 'export'}"
        ) from None


def export_stage(recipe: Recipe, name: str, stage: str) -> Stage:
    """The folder of one export."""
    model = recipe.model.model_dump(mode="json", include={"base", "revision"})
    settings = {
        "model": model,
        "system_prompt": Prompts(recipe).system,
        "card": [recipe.export.license, recipe.export.data_license],
    }
    settings |= {"gguf": recipe.export.quantizations[0]} if name == "ollama" else {}
    return Stage(recipe, f"export/{name}", settings, {stage: finished_key(recipe, stage)})


def gguf_file(recipe: Recipe, name: str) -> Path:
    """The file in a `gguf-*` folder of the run."""
    return recipe.run_dir / "export" / name / f"{recipe.run_dir.name}-{name.removeprefix('gguf-')}.gguf"


def _export(recipe: Recipe, stage: str, todo: dict[str, Stage], tools: Path | None, check: bool) -> None:
    model, tokenizer = _load(recipe, stage)
    if not check:
        _check_space(recipe.run_dir, model.num_parameters(), list(todo))
    items = held_out_items(recipe, recipe.export.items, checkable=False)
    prompts, shown, golds = (
        [i["prompt"] for i in items],
        [images_of(i) for i in items],
        [i["gold"] for i in items],
    )
    with local(model, tokenizer, "default") as source:
        reference = parity.measure(source, prompts, shown, recipe.evaluate.max_new_tokens)
    for name, entry in todo.items():
        with (
            tempfile.TemporaryDirectory() as scratch,
            contextlib.nullcontext(entry.dir) if check else _writing(entry) as folder,
        ):
            if not check:
                print(f"writing {name} ...", flush=True)
                _write(recipe, name, folder, model, tokenizer, tools)
                (folder / "README.md").write_text(card(recipe, stage, name), encoding="utf-8")
            if name == "ollama":
                continue  # its weights are those of the GGUF file; its template was compared when it was made
            print(f"comparing {name} with the adapter ...", flush=True)
            target = folder / gguf_file(recipe, name).name if name.startswith("gguf-") else folder
            row = parity.check(
                target,
                name.removeprefix("gguf-"),
                reference,
                prompts,
                shown,
                golds,
                recipe.evaluate.max_new_tokens,
                Path(scratch),
            )
            entry.record = {"parity": row}
            path = recipe.run_dir / "export" / "parity.json"
            write_json(path, read_json(path) | {name: {"stage": stage, **row}})
            if row["differs"]:
                raise UserError(f"{name} is not the model that was trained: {'; '.join(row['differs'])}")


def _load(recipe: Recipe, stage: str) -> tuple[Any, Any]:
    """The 16-bit base (on a CPU computed in float32) with the adapter on it, as Unsloth's save functions want it.

    After QLoRA too: an adapter belongs on the original weights, not on 4-bit ones turned back.
    """
    if recipe.model.load_in_4bit and recipe.model.base != builtin.EMBEDDED:
        print(
            f"Merging needs the 16-bit weights of {recipe.model.base}; they are fetched where they are not in the cache."
        )
    change = {"load_in_4bit": False, "dtype": "float32" if backend.backend() == "cpu" else None}
    whole = recipe.model_copy(update={"model": recipe.model.model_copy(update=change)})
    model, tokenizer = loading.load(whole)
    return adapters.restore_lora(
        adapters.add_lora(model, whole), recipe.run_dir / stage / "adapter"
    ), tokenizer


def _check_space(folder: Path, weights: int, names: list[str]) -> None:
    """Raises UserError when the disk is too small for what would be written."""
    each = [
        2.0
        if n == "merged"
        else 0.1
        if n == "adapter"
        else 0.0
        if n == "ollama"
        else BYTES.get(n[5:], SMALLER + 2)
        for n in names
    ]
    needed, free = weights * sum(each), shutil.disk_usage(folder).free
    print(f"{', '.join(names)}: about {needed / 1e9:.1f} GB; {free / 1e9:.0f} GB are free")
    if needed * 1.05 > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed: make room, or export less (--to, --quantization)"
        )


@contextlib.contextmanager
def _writing(entry: Stage) -> Iterator[Path]:
    """The stage's folder to write into; nothing of it is left when the export fails or is interrupted."""
    try:
        with entry.open(resume=False) as folder:
            yield folder
    except BaseException:
        shutil.rmtree(entry.partial, ignore_errors=True)
        raise


def _write(recipe: Recipe, name: str, folder: Path, model: Any, tokenizer: Any, tools: Path | None) -> None:
    merged = recipe.run_dir / "export" / "merged"
    if name == "adapter":
        adapters.save_adapter(model, tokenizer, folder)
    elif name == "merged":
        adapters.save_merged(model, tokenizer, folder)
    elif name == "ollama":
        gguf = gguf_file(recipe, f"gguf-{recipe.export.quantizations[0]}")
        ends = [tokenizer.eos_token]
        text = modelfile(
            f"../{gguf.parent.name}/{gguf.name}",
            tokenizer,
            ends,
            Prompts(recipe).system,
            recipe.model.max_seq_length,
        )
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    else:
        assert tools is not None  # noqa: S101 - `export` has looked for them
        kind, out = name.removeprefix("gguf-"), folder / gguf_file(recipe, name).name
        if kind in llama_cpp.DIRECT:
            llama_cpp.convert(merged, out, kind, tools)
        else:
            first = folder / "f16.gguf"
            llama_cpp.convert(merged, first, "f16", tools)
            llama_cpp.quantise(first, out, kind)
            first.unlink()


def served(recipe: Recipe, gguf: str | None, port: int) -> None:
    """Serve a GGUF file until interrupted. Raises UserError when there is none."""
    files = [Path(gguf)] if gguf else sorted((recipe.run_dir / "export").glob("gguf-*/*.gguf"))
    if not files or not files[0].exists():
        raise UserError(
            f"no GGUF file {gguf or 'in ' + str(recipe.run_dir / 'export')}: run `{recipe.command('export --to gguf --install-tools')}` first"
        )
    print(f"serving {files[0]}; Ctrl-C ends it")
    llama_cpp.serve(files[0], port)
