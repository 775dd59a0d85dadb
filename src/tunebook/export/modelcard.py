"""The README of an exported model, from what the run recorded: metadata, data, recipe, results with intervals, limits."""

from __future__ import annotations

from typing import Any

import yaml

from tunebook.evaluation.tables import accuracy_table
from tunebook.models import builtin, chat_template
from tunebook.recipe.sections import Recipe
from tunebook.runs.files import read_json
from tunebook.runs.manifest import recorded_recipe
from tunebook.runs.stages import training_behind

HUB_NAMES = {builtin.EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}


USE = {
    "adapter": """A LoRA adapter:

```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model, tokenizer = AutoPeftModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
# model.generate(..., eos_token_id=tokenizer.eos_token_id): the base model alone may end only with the text
```""",
    "adapter, images": """A LoRA adapter:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("{base}"), ".")
processor = AutoProcessor.from_pretrained(".")
```""",
    "merged": """Whole weights, 16 bit:

```bash
transformers serve .        # or: vllm serve .
```""",
    "gguf": """A GGUF file for llama.cpp:

```bash
llama-server -m {file}        # or: tunebook serve {file}
```""",
    "ollama": """For Ollama, beside the GGUF folder that the Modelfile names:

```bash
ollama create {run} -f Modelfile && ollama run {run}
```""",
}


def card(recipe: Recipe, stage: str, name: str) -> str:
    """Markdown with a metadata block, for the export `name` of the model that `stage` trained."""
    from huggingface_hub import ModelCard, ModelCardData

    stages = read_json(recipe.run_dir / "manifest.json").get("stages", {})
    sees = chat_template.has_processor(recipe.run_dir / stage / "adapter")
    base = HUB_NAMES.get(recipe.model.base, recipe.model.base)
    done = training_behind(stage)
    data = ModelCardData(
        base_model=base,
        license=recipe.export.license or "unknown",
        library_name="peft" if name == "adapter" else "transformers" if name == "merged" else "gguf",
        pipeline_tag="image-text-to-text" if sees else "text-generation",
        tags=["tunebook", "unsloth", "trl", *done],
        base_model_relation="adapter"
        if name == "adapter"
        else "quantized"
        if name.startswith("gguf")
        else "finetune",
    )
    file = f"{recipe.run_dir.name}-{name.removeprefix('gguf-')}.gguf"
    use = USE["adapter, images" if sees and name == "adapter" else name.partition("-")[0]]
    use = use.replace("{file}", file).replace("{run}", recipe.run_dir.name).replace("{base}", base)
    parts = [
        f"# {recipe.run_dir.name}",
        f"{base}, fine-tuned with {' and then '.join(s.upper() for s in done)} (LoRA) by tunebook's recipe `{recipe.name}`.",
        f"## How to run it\n\n{use}\n\n{_prompted(recipe)}",
        f"## Data\n\n{_data(recipe, stages, done)}",
        f"## Results\n\n{_results(recipe, stage)}",
        f"## Training\n\n```yaml\n{yaml.safe_dump(_settings(stages, done), sort_keys=False).strip()}\n```",
        "## Limits\n\nIt was evaluated on nothing but the tasks above. It can be wrong while it sounds sure; check what matters. "
        "Nothing was done to make it safer than its base model.",
        f"Licences: weights {recipe.export.license or 'not stated: those of the base model hold'}; "
        f"training data {recipe.export.data_license or 'not stated'}.",
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"))


def _prompted(recipe: Recipe) -> str:
    from tunebook.data.formats import Prompts

    system = Prompts(recipe).system
    return "It was trained with its chat template" + (
        f" and this system prompt:\n\n```text\n{system}\n```" if system else ", without a system prompt."
    )


def _data(recipe: Recipe, stages: dict[str, Any], done: list[str]) -> str:
    rows = stages.get("data", {}).get("rows", {})
    sources = ", ".join(
        str(getattr(s, "path", f"`{s.format}` (tunebook's own)")) for s in recipe.data.sources
    )
    trained = (
        stages.get("sft", {}).get("rows", rows).get("train", 0)
    )  # some train rows may be for pairs alone
    lines = [
        f"- Sources: {sources}.",
        f"- SFT: {trained} rows; held out: {rows.get('val', 0)} val, {rows.get('test', 0)} test.",
    ]
    if "dpo" in done:
        pairs = stages.get("pairs", {}).get("rows", {})
        lines.append(f"- DPO: {pairs.get('train', 0)} preference pairs ({', '.join(recipe.pairs.methods)}).")
    return "\n".join(lines)


def _results(recipe: Recipe, stage: str) -> str:
    summary = read_json(recipe.run_dir / "eval" / "summary.json")
    shown = {name: s for name, s in summary.get("stages", {}).items() if name in ("base", stage)}
    if stage not in shown:
        return "This model has not been evaluated."
    return f"Held-out `{summary['split']}` split, greedy answers, n = {shown[stage]['n']}, intervals: Wilson 95%.\n\n{accuracy_table(shown).markdown()}"


def _settings(stages: dict[str, Any], done: list[str]) -> dict[str, Any]:
    """What the stages were trained with, which the recipe may no longer say."""
    recipe = recorded_recipe(stages)
    settings = {"max_seq_length": recipe["model"]["max_seq_length"]}
    for section in ("seed", "lora", *done):
        settings[section] = recipe[section]
    return settings
