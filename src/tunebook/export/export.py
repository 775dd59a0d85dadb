"""`tunebook export`: adapter, merged weights, GGUF, an Ollama Modelfile; each proved equal to the adapter.

uv run tunebook export --to adapter,merged,gguf,ollama --install-tools
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunebook.checkers.check import Check
from tunebook.data.prompts import Prompts, trained_system
from tunebook.evaluation.items import questions
from tunebook.evaluation.tables import parity_reasons
from tunebook.export import llama_cpp, parity
from tunebook.export.comparing import in_4_bit, rounding_loss, too_large, with_rounding
from tunebook.export.measure import measure
from tunebook.export.modelcard import card
from tunebook.export.modelfile import modelfile, unsaid
from tunebook.generation.local import local
from tunebook.models import adapters, backend, builtin, chat_template
from tunebook.models.whole import load_whole
from tunebook.recipe.errors import UserError, first_line
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json, write_json
from tunebook.runs.stage import Stage, finished_key
from tunebook.runs.stages import trained_models

BYTES_A_WEIGHT = {
    "adapter": 0.1,
    "merged": 2.0,
    "gguf-f32": 4.0,
    "gguf-f16": 2.0,
    "gguf-bf16": 2.0,
    "gguf-q8_0": 1.07,
    "ollama": 0.0,
}
"""What an export takes on the disk."""

BYTES_A_WEIGHT_QUANTISED = 2.9
"""Of the smaller types: 2 for the f16 file that they are made from, and 0.9.

A 4-bit type of a small model, whose rows do not fit its blocks, comes to that.
"""

TRAINED_IN_4_BIT = "trained in 4 bit"
"""A row of the parity table that is no export: what QLoRA saw."""

MARK = "UNVERIFIED.txt"
"""In the folder of an export that was not shown to be the model that was trained; says why.

In Ollama's folder too, when that holds of the GGUF file that it runs.
"""


class Unverified(UserError):
    """Exports that are kept and were not shown to be equal. `rows` is the whole parity table."""

    def __init__(self, text: str, rows: dict[str, Any]) -> None:
        super().__init__(text)
        self.rows = rows


def export(
    recipe: Recipe, force: bool = False, install_tools: bool = False, check: bool = False
) -> dict[str, Any]:
    """Write what the recipe's `export.to` names into `export/` of the run folder.

    All are written first. Then the model is freed, and each result is loaded from disk in a fresh process
    and compared with it; the comparisons are kept in `export/parity.json`. What is not equal is kept and
    marked. What is there, up to date and verified is left alone.

    Args:
        force: Replace exports of another model or of other settings.
        install_tools: Install llama.cpp's converter where it is missing.
        check: Write nothing, compare once more what is there.

    Returns a row of the parity table by the name of each export.

    Raises UserError for a missing stage or tool, for a disk that is too small, for an older export that
    `force` would have to replace, and for a GGUF file of a model that sees images; Unverified, at the end,
    when one is not equal or could not be compared.
    """
    stage = exported_stage(recipe)
    names = targets(recipe)
    sees_images = chat_template.has_processor(recipe.run_dir / stage / "adapter")
    # llama.cpp keeps a model's eyes in a file of their own, which is not written here.
    if sees_images and not {"adapter", "merged"}.issuperset(names):
        raise UserError(
            "this model sees images, and a GGUF file would hold its text part alone: use --to adapter,merged"
        )
    tools = None
    if any(name.startswith("gguf-") for name in names):
        tools = llama_cpp.converter(install_tools)
        llama_cpp.check_quantiser(recipe.export.quantizations)

    # Everything is looked at before the first is written, so that nothing is found out after an hour.
    missing = {}
    unchecked = {}
    for name in names:
        entry = export_stage(recipe, name, stage)
        if check and not entry.dir.exists():
            raise UserError(f"nothing to check: {name} has not been exported")
        if not check and not entry.skip(force):
            missing[name] = entry
        # Its weights are the GGUF file's, and its template was compared when it was made.
        if name != "ollama" and (check or name in missing or not entry.result.get("verified", True)):
            unchecked[name] = entry
    for name, entry in missing.items():
        if entry.dir.exists() and not force:
            raise UserError(
                f"{entry.dir} holds an export of another model or other settings: "
                f"--force replaces it ({name})"
            )
    if missing or unchecked:
        _export(recipe, stage, missing, unchecked, tools)
    table = read_json(recipe.run_dir / "export" / "parity.json")
    rows = {name: table[name] for name in (*names, TRAINED_IN_4_BIT) if name in table}
    _refuse_unverified(recipe, rows)
    if recipe.export.hub_id and not check:
        push(recipe, recipe.export.hub_id, names)
    return rows


def _refuse_unverified(recipe: Recipe, rows: dict[str, Any]) -> None:
    """Raises Unverified when a row of the parity table says that something differs."""
    if reasons := parity_reasons(rows):
        folder = recipe.run_dir / "export"
        raise Unverified(
            f"{' | '.join(reasons)}. What was written is kept in {folder}, marked {MARK}; nothing is pushed",
            rows,
        )


def exported_stage(recipe: Recipe) -> str:
    """The stage to export: the recipe's, or the last that is trained. Raises UserError when there is none."""
    stage = recipe.export.stage
    if stage is None:
        stage = trained_models(recipe)[-1]
        if stage == "base":
            stage = "sft"
    finished_key(recipe, stage)
    return stage


def targets(recipe: Recipe) -> list[str]:
    """What is written, in order, with what it is made from."""
    to = set(recipe.export.to)
    # As often as a type is named, it is written once.
    gguf = [f"gguf-{kind}" for kind in dict.fromkeys(recipe.export.quantizations)]
    names = []
    if "adapter" in to:
        names.append("adapter")
    # GGUF files are made from merged weights, and Ollama reads a GGUF file: the first one.
    if to & {"merged", "gguf", "ollama"}:
        names.append("merged")
    if "gguf" in to:
        names += gguf
    elif "ollama" in to:
        names.append(gguf[0])
    if "ollama" in to:
        names.append("ollama")
    return names


def push(recipe: Recipe, repo: str, names: list[str]) -> None:
    """Upload the export folders to the hub, each to its own subfolder but a single one to the top.

    Raises UserError when the hub refuses (no login, no right, no network).
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    folder = recipe.run_dir / "export"
    hub = HfApi()
    try:
        hub.create_repo(repo, private=recipe.export.private, exist_ok=True)
        for name in names:
            hub.upload_folder(
                repo_id=repo,
                folder_path=folder / name,
                path_in_repo=name if len(names) > 1 else None,
                ignore_patterns=["stage.json"],  # the run's record, no part of the model
            )
            print(f"pushed {name} to {repo}")
    except (HfHubHTTPError, OSError) as error:
        raise UserError(
            f"the hub did not take {repo}: {first_line(error)}. What was exported is kept in {folder}"
        ) from None


def export_stage(recipe: Recipe, name: str, stage: str) -> Stage:
    """The folder of one export."""
    settings = {
        "model": recipe.model.model_dump(mode="json", include={"base", "revision"}),
        "system_prompt": trained_system(recipe),
        # The card stands in the folder, so that other licences make another export.
        "card": [recipe.export.license, recipe.export.data_license],
    }
    if name == "ollama":
        settings["gguf"] = recipe.export.quantizations[0]
    return Stage(recipe, f"export/{name}", settings, {stage: finished_key(recipe, stage)})


def gguf_file(recipe: Recipe, name: str) -> Path:
    """The file in a `gguf-*` folder of the run."""
    file = f"{recipe.run_dir.name}-{name.removeprefix('gguf-')}.gguf"
    return recipe.run_dir / "export" / name / file


def served(recipe: Recipe, gguf: str | None, port: int) -> None:
    """Serve a GGUF file until interrupted. Raises UserError when there is none."""
    folder = recipe.run_dir / "export"
    files = [Path(gguf)] if gguf else sorted(folder.glob("gguf-*/*.gguf"))
    if not files or not files[0].exists():
        raise UserError(
            f"no GGUF file {gguf or f'in {folder}'}: "
            f"run `{recipe.command('export --to gguf --install-tools')}` first"
        )
    print(f"serving {files[0]}; Ctrl-C ends it")
    llama_cpp.serve(files[0], port)


def _export(
    recipe: Recipe,
    stage: str,
    missing: dict[str, Stage],
    unchecked: dict[str, Stage],
    tools: Path | None,
) -> None:
    """Write what is missing, then compare what is unchecked, with one model in memory at a time."""
    # 1) the model that was trained: what it does, and what is written of it
    model, tokenizer = load_whole(recipe, stage)
    weights = model.num_parameters()
    if missing:
        _check_space(recipe.run_dir, weights, list(missing))
    items = questions(recipe, recipe.export.items)
    with local(model, tokenizer, "default") as source:
        reference = measure(source, items, recipe.evaluate.max_new_tokens)
    default_system = chat_template.default_system(tokenizer)
    for name, entry in missing.items():
        with _writing(entry) as folder:
            print(f"writing {name} ...", flush=True)
            _write(recipe, name, folder, model, tokenizer, tools)
            text = card(recipe, stage, name, default_system)
            (folder / "README.md").write_text(text, encoding="utf-8")
            # Until it is compared, which may be never: memory may not be enough for that.
            entry.record = {"verified": name == "ollama"}
            if name == "merged":
                entry.record["rounding_loss"] = rounding_loss(model, folder)
    # 2) it is freed, so that each copy has its room
    del model, source
    backend.release()
    for name, entry in unchecked.items():
        print(f"comparing {name} with the adapter ...", flush=True)
        path = entry.dir
        if name.startswith("gguf-"):
            path = entry.dir / gguf_file(recipe, name).name
        row = too_large(weights, reference, name)
        if row is None:
            kind = name.removeprefix("gguf-")
            row = parity.check(
                path, kind, reference, items, recipe.evaluate.max_new_tokens, Check(recipe.check)
            )
        if name != "adapter":  # all others are made from the merged weights
            row = with_rounding(row, export_stage(recipe, "merged", stage))
        _note(recipe, entry, name, {"stage": stage, **row})
    # 3) after QLoRA the weights that were exported are not quite those that were trained on
    if recipe.model.load_in_4bit and "merged" in unchecked and recipe.model.base != builtin.EMBEDDED:
        row = in_4_bit(recipe, stage, reference, items)
        path = recipe.run_dir / "export" / "parity.json"
        write_json(path, read_json(path) | {TRAINED_IN_4_BIT: {"stage": stage, **row}})


def _note(recipe: Recipe, entry: Stage, name: str, row: dict[str, Any]) -> None:
    """Write a comparison into the parity table, the export's record and, if something differs, its folder."""
    path = recipe.run_dir / "export" / "parity.json"
    write_json(path, read_json(path) | {name: row})
    entry.add_to_record({"parity": row, "verified": not row["differs"]})
    folders = [entry.dir]
    # Ollama runs the GGUF file that its Modelfile names.
    file = recipe.run_dir / "export" / "ollama" / "Modelfile"
    if file.exists() and f"FROM ../{name}/" in file.read_text(encoding="utf-8"):
        folders.append(file.parent)
    for folder in folders:
        (folder / MARK).unlink(missing_ok=True)
    if row["differs"]:
        print(f"WARNING: {name} is kept but unverified: {'; '.join(row['differs'])}", flush=True)
        reasons = "\n".join(["Not shown to be the model that was trained:", *row["differs"]])
        for folder in folders:
            (folder / MARK).write_text(f"{reasons}\n", encoding="utf-8")


def _check_space(folder: Path, weights: int, names: list[str]) -> None:
    """Raises UserError when the disk is too small for what would be written."""
    needed = weights * sum(BYTES_A_WEIGHT.get(name, BYTES_A_WEIGHT_QUANTISED) for name in names)
    free = shutil.disk_usage(folder).free
    print(f"{', '.join(names)}: about {needed / 1e9:.1f} GB; {free / 1e9:.0f} GB are free")
    if needed * 1.05 > free:  # 5% for tokenizer, card and the file system
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB are needed: "
            "make room, or export less (--to, --quantization)"
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
    if name == "adapter":
        adapters.save_adapter(model, tokenizer, folder)
    elif name == "merged":
        adapters.save_merged(model, tokenizer, folder)
    elif name == "ollama":
        gguf = gguf_file(recipe, f"gguf-{recipe.export.quantizations[0]}")
        weights = f"../{gguf.parent.name}/{gguf.name}"
        prompts = Prompts(recipe)
        # What the model can read, however short the rows were that it was trained on.
        config = model.config.get_text_config()
        context = getattr(config, "max_position_embeddings", recipe.model.max_seq_length)
        text = modelfile(weights, tokenizer, [tokenizer.eos_token], trained_system(recipe), context)
        for sentence in unsaid(tokenizer, prompts.user):
            print(f"Warning: {sentence}")
        (folder / "Modelfile").write_text(text, encoding="utf-8")
    else:
        assert tools is not None  # noqa: S101 - `export` has looked for them
        merged = recipe.run_dir / "export" / "merged"
        llama_cpp.write_gguf(merged, folder / gguf_file(recipe, name).name, name.removeprefix("gguf-"), tools)
