"""The recipe: one YAML file in `configs/` that says everything about a run.

`model`, `data`, `evaluate` are declared here. `lora`, `sft` and `dpo` are handed on as they are to
`FastModel.get_peft_model`, `trl.SFTConfig` and `trl.DPOConfig`; their keys and types are read from the installed
source of stock TRL, transformers and PEFT without importing it, so a misspelt key fails at once and on every backend
(Unsloth's GPU config would drop it silently).
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import json
import os
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, PrivateAttr, ValidationError, create_model, field_validator, model_validator

ROOT = Path(os.environ.get("TUNEBOOK_HOME") or Path(__file__).parents[2]).resolve()
DEFAULT = "smollm2-math"
ENV_PREFIX = "TUNEBOOK__"
Stage = Literal["sft", "dpo"]

SHORT = {"lr": "learning_rate", "epochs": "num_train_epochs", "max_steps": "max_steps", "batch_size": "per_device_train_batch_size"}
"""Short names that people type with papermill, and the trainer argument each stands for."""


class UserError(Exception):
    """A mistake that the user can mend. Shown as one line, on the command line (exit code 2) and in notebooks."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook
        return [f"{type(self).__name__}: {self}"]


def first_line(error: BaseException) -> str:
    """What went wrong, in one line; the kind of error where it has no text."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def read_text(path: Path) -> str:
    """A text file. Raises UserError when it cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text: {first_line(error)}") from None


def secret(name: str) -> str | None:
    """A key from the environment or from `.env` in the working folder or the project."""
    return _environment().get(name)


def _environment() -> dict[str, str]:
    """The variables that are set, with those of the `.env` files."""
    from dotenv import dotenv_values

    places = (dotenv_values(ROOT / ".env"), dotenv_values(Path.cwd() / ".env"), os.environ)
    return {name: value for place in places for name, value in place.items() if value}


SECRET = re.compile(
    r"\b(?:sk-(?=[\w-]*\d)[\w-]{16}|hf_[A-Za-z0-9]{20}|gh[pousr]_[A-Za-z0-9]{20}|github_pat_\w{20}|glpat-[\w-]{16}|xox[abp]-[\w-]{10}|AKIA[0-9A-Z]{16}|AIza[\w-]{30})[\w-]*"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|Bearer\s+[\w.~+/-]{12,}=*|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
"""What a key, a token or a password in an address looks like."""


def scrubbed(text: str, *keys: str) -> str:
    """A text without these keys and without anything else that looks like a secret."""
    for key in keys:
        text = text.replace(key, "***") if len(key) > 4 else text  # `none`, for a server that asks for no key, is no secret
    return SECRET.sub("***", text)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class ModelConfig(Section):
    base: str
    """`smollm2-135m-instruct` (embedded, no download), `tiny-gemma3n` (random weights, sees images), a hub id or a folder."""
    max_seq_length: int = Field(2048, ge=16)
    """Tokens of prompt and completion together; longer rows are quarantined when data is prepared, never cut."""
    load_in_4bit: bool = False
    """QLoRA (NF4). Works on a CPU too, but a 4-bit model cannot be merged there."""
    dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """None: bfloat16 where the hardware has it, else float32 (CPU) or float16 (GPU)."""
    attn_implementation: Literal["grouped", "eager", "sdpa", "flash_attention_2"] | None = None
    """None: the library's choice. `grouped` is the fastest on a CPU (PyTorch's bfloat16 SDPA kernel is slow there, above all its backward
    pass) and is `eager` on a GPU."""
    share_prompts: bool = True
    """On a CPU compute what rows of a batch begin with alike (system message, the prompt of chosen and rejected) once: the same loss."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    chat_template: str | None = None
    """A Jinja file such as `prompt/chatml.jinja` in place of the model's own template. Saved with the adapter and every export."""
    eos_token: str | None = None
    """The token that ends an answer, for a base model that chats: its own ends a document. None: the model's own."""


class Source(Section):
    use: Literal["sft", "pairs"] | None = None
    """Train rows of this source are for SFT alone, or for preference pairs alone. None: for both."""


class GeometrySource(Source):
    """The project's own school geometry problems (`data/geometry.py`), drawn with the recipe's seed."""

    format: Literal["geometry"]
    train: int = Field(1000, ge=1)
    """Problems of the slice `same families`."""
    wordings: list[Annotated[int, Field(ge=0, le=2)]] = Field([0, 1, 2], min_length=1)
    """Of the three wordings that a family has for training, those that train rows come in."""
    val: int = Field(100, ge=0)
    """Problems: half of the slice `same families`, a third of `new wordings`, a sixth of `new families`."""
    test: int = Field(300, ge=0)
    """Problems: half of the slice `same families`, a third of `new wordings`, a sixth of `new families`."""


def _count_or_share(value: Any) -> Any:
    if value is None or (isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError("should be a count such as 5000, or a share such as 0.1")


Rows = Annotated[int | float | None, PlainValidator(_count_or_share)]


class ChatSource(Source):
    """Rows of a file or a hub id in one of the common formats; an optional `answer` is checked against the completion."""

    format: Literal["chat", "alpaca", "sharegpt", "gsm8k"]
    """The columns, as `data/sources.py` reads them. `chat`: `messages`, or `prompt` and `completion`. `alpaca`: `instruction`, `input`,
    `output`. `sharegpt`: `conversations` of `from` and `value`. `gsm8k`: `question`, and `answer` with the result after `####`."""
    path: str
    """A .jsonl, .json, .parquet or .csv file (`{run}/clean/rows.jsonl`: what `tunebook clean` has made), or a hub id."""
    hub_config: str | None = None
    """The configuration (subset) of a hub id, where it has several."""
    hub_split: str = "train"
    """The split to read of a hub id."""
    columns: dict[str, str] = {}
    """Other names of the format's columns: `{prompt: instruct, completion: reply, answer: label}`."""
    rows: Rows = None
    """So many rows (5000), or this share of them (0.1), drawn by a hash of the row and the recipe's seed before any check. What is drawn
    does not depend on the other sources. None: all."""
    split: Literal["train", "val", "test"] | None = None
    """Put every row there. None: by a hash of the prompt, with the shares below."""
    val: float = Field(0.05, ge=0, lt=1)
    """Share of rows that goes to val."""
    test: float = Field(0.05, ge=0, lt=1)
    """Share of rows that goes to test."""
    images: str | None = None
    """The folder of the files that rows name as `image` or `images`. None: the folder of `path`."""


class MMMathSource(Source):
    """Questions with a figure in MM_Math's form: a folder with `*.jsonl` (`question`, `file_name`, `solution`, ...) and its images."""

    format: Literal["mm_math"]
    path: str
    """The folder (images in a folder of it or still in `Image.zip`), a .parquet file with an `image` column, a hub id such as
    `THU-KEG/MM_Math`, or `sample`: the project's own figures, drawn on first use."""
    hub_split: str = "train"
    """The split to read of a hub id."""
    rows: int = Field(600, ge=1)
    """So many, of `sample`."""
    split: Literal["train", "val", "test"] | None = None
    """Put every row there. None: by a hash, with the shares below; rows that share an image or a question stay together."""
    val: float = Field(0.05, ge=0, lt=1)
    """Share of rows that goes to val."""
    test: float = Field(0.05, ge=0, lt=1)
    """Share of rows that goes to test."""


class DataConfig(Section):
    sources: list[Annotated[GeometrySource | ChatSource | MMMathSource, Field(discriminator="format")]] = Field(min_length=1)
    """Where rows come from; all of them are pooled."""
    system_prompt: str | None = None
    """A file in `prompt/` put before every conversation without a system message. None: the model's own default."""
    user_prompt: str | None = None
    """A file in `prompt/` with `{question}`, wrapped round every question that comes as bare text."""
    near_duplicate: float = Field(0.9, gt=0, le=1)
    """Train rows whose prompts have at least this Jaccard similarity (and the same numbers) are duplicates."""
    for_pairs: float = Field(0.0, ge=0, lt=1)
    """Share of the train rows that SFT does not see: preference pairs are made from these, where the model's mistakes are those it
    makes on new problems. 0: both use all."""
    max_image_size: int = Field(768, ge=16)
    """Pixels of an image's longer side; larger ones are scaled down, none is enlarged."""
    contamination: float = Field(0.6, gt=0, le=1)
    """A train row that holds this share of a val or test prompt's word 8-grams (and all its numbers) is quarantined."""


class ServerConfig(Section):
    """An OpenAI-compatible server (`vllm serve`, SGLang, llama.cpp, a hosted one) that answers instead of the local model."""

    url: str
    """Up to and with `/v1`, for example `http://127.0.0.1:8000/v1`."""
    model: str
    """The name under which the server offers the model."""
    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$", max_length=60)
    """The variable (in the environment or in `.env`) that holds the key. A server on this machine needs none."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at a time."""
    timeout: float = Field(120, gt=0)
    """Seconds that a request may take."""
    retries: int = Field(6, ge=0)
    """Further tries of a request that failed, with exponential back-off."""
    extra: dict[str, Any] = {}
    """Further fields of each request, for example `{"chat_template_kwargs": {"enable_thinking": false}}`."""


class CleanConfig(Section):
    """Raw solutions rewritten by a language model before they are data (`tunebook clean`)."""

    source: str
    """A .jsonl or .parquet file, or a hub id."""
    hub_split: str = "train"
    """The split to read of a hub id."""
    question: str = "question"
    """The column with the problem."""
    solution: str = "solution"
    """The column with the raw solution."""
    answer: str | None = None
    """The column with the final answer. None: the raw solution's `\\boxed{}`."""
    image: str | None = None
    """The column with an image's file name, below the source's folder; a row may have none."""
    send_images: bool = False
    """Send the image with the question."""
    prompt: str = "prompt/clean_solution.txt"
    """A file with `{question}` and `{solution}`."""
    url: str | None = None
    """Of an OpenAI-compatible server, up to and with `/v1`. None: `BASE_URL`."""
    model: str | None = None
    """The server's name for the model. None: `MODEL`."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many rows."""
    concurrency: int = Field(64, ge=1)
    """Requests under way at a time."""
    timeout: float = Field(120, gt=0)
    """Seconds that a request may take."""
    retries: int = Field(6, ge=0)
    """Further tries of a request that failed, with back-off and jitter; `Retry-After` is heeded."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Asks no faster than this; prompt and `max_new_tokens` count."""
    max_new_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0)
    extra: dict[str, Any] = {}
    """Further fields of each request, for example `{"chat_template_kwargs": {"enable_thinking": false}}`."""
    max_length_ratio: float = Field(6.0, ge=1)
    """A rewritten solution is at most so many times as long, or as short, as the raw one."""
    price_in: float = Field(0.0, ge=0)
    """Per million prompt tokens, in your currency."""
    price_out: float = Field(0.0, ge=0)
    """Per million answered tokens."""
    budget: float | None = Field(None, gt=0)
    """Stop when so much is spent; the same command goes on once it is raised."""


Method = Literal["on_policy", "injected_error", "dataset"]
Strategy = Literal["calculation_error", "logical_fallacy", "process_error"]


class PairsConfig(Section):
    methods: list[Method] = Field(["on_policy"], min_length=1)
    """Where pairs come from; several are pooled.

    `on_policy`: right and wrong samples of the model itself. `injected_error`: it is asked for a flawed solution.
    `dataset`: existing pairs.
    """
    prompts: int | None = Field(None, ge=1)
    """So many training prompts; each round takes the next ones. None: all that have an answer to check against."""
    samples: int = Field(4, ge=1)
    """Answers sampled for each prompt (`on_policy`)."""
    temperature: float = Field(1.0, gt=0)
    """Higher gives more, and more varied, mistakes."""
    max_new_tokens: int = Field(256, ge=1)
    batch_size: int = Field(64, ge=1)
    server: ServerConfig | None = None
    """Let a server answer. Pairs are on-policy only if it serves the model that DPO starts from."""
    per_prompt: int = Field(1, ge=1)
    """At most so many pairs from one prompt, each with another rejected text."""
    max_length_ratio: float = Field(2.0, ge=1)
    """The longer of chosen and rejected has at most so many times the tokens of the shorter."""
    reference_chosen: bool = False
    """Where no sample is right, let the reference solution stand in as chosen (`on_policy`)."""
    strategies: list[Strategy] = Field(["calculation_error", "logical_fallacy", "process_error"], min_length=1)
    """Flaws to ask for (`injected_error`): one is drawn for each prompt, its text lies in `prompt/`.

    A `process_error` may end in the right answer; leave it out to keep verified wrong answers alone.
    """
    dataset: str | None = None
    """A .jsonl, .json, .parquet or .csv file or a hub id with `prompt`, `chosen`, `rejected` as text or messages (`dataset`); with images as a
    `chat` source has them."""
    dataset_split: str = "train"
    """The split to read of a hub id."""
    columns: dict[str, str] = {}
    """Other names of its columns: `{prompt: question, score_chosen: chosen-rating, score_rejected: rejected-rating}`."""
    rows: Rows = None
    """So many of its rows, or this share of them, drawn as those of a source. None: all."""
    min_margin: float | None = Field(None, gt=0)
    """Only its pairs with `score_chosen` - `score_rejected` of at least this. None: any that are not scored the wrong way round."""
    val: float = Field(0.1, ge=0, lt=1)
    """Share of prompts whose pairs are kept for evaluation during DPO."""
    compare: Literal["answer", "step"] = "answer"
    """What DPO's loss sees of a pair: both answers whole, or only the line in which they part, after what they share.

    Past its first error a rejected answer often goes on correctly from the wrong value; `step` does not unteach that.
    """
    rounds: int = Field(1, ge=1)
    """Pairs and DPO so many times over, each with the newest model and the next prompts."""

    @model_validator(mode="after")
    def _dataset_is_named(self) -> PairsConfig:
        if "dataset" in self.methods and self.dataset is None:
            raise ValueError("the method `dataset` needs pairs.dataset: a .jsonl, .json, .parquet or .csv file or a hub id")
        return self


class GateRule(Section):
    """The second model may not be worse than the first by more than so much: what `tunebook evaluate --gate` holds a run to."""

    first: str
    """A stage: `base`, `sft`, ..."""
    second: str
    """The stage that is held against it."""
    at_least: float = 0.0
    """Points that the lower end of the difference's 95% interval must exceed: 0 asks for proof that the second is better,
    -2 for proof that it is not worse by more than 2."""
    slice: str | None = None
    """Only the items of this slice. None: all."""


class BenchmarksConfig(Section):
    """Tasks of lm-evaluation-harness for `tunebook bench` (`uv sync --extra eval`)."""

    tasks: list[str] = Field(["arc_challenge", "commonsense_qa", "gsm8k", "hellaswag", "winogrande"], min_length=1)
    """Any of the harness's tasks, or of `include`."""
    shots: dict[str, int] = {}
    """Examples in the prompt, by task. Default: what the task says (gsm8k: 5, the other four: 0)."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many items of each task."""
    batch_size: int = Field(16, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    """Of tasks whose answers are generated."""
    chat_template: bool = False
    """Ask through the chat template. Changes scores; the same for every stage, and recorded."""
    data: str | None = None
    """A folder: of a task whose `<task>.jsonl` lies there (few-shot examples in `<task>.train.jsonl`), that file is used in
    place of the hub's. Training rows and pairs that hold one of its items are quarantined."""
    include: str | None = None
    """A folder with task files (YAML) of your own; data files that they name are looked for there."""


class EvaluateConfig(Section):
    split: Literal["val", "test"] = "test"
    """Tune on val; look at test once."""
    limit: int | None = Field(None, ge=1)
    """Only so many items, taken evenly from all. None: all."""
    max_new_tokens: int = Field(256, ge=1)
    batch_size: int = Field(64, ge=1)
    """Recorded with the results: in bfloat16 a different batch shape can change a greedy answer."""
    samples: int = Field(0, ge=0)
    """So many sampled answers an item beside the greedy one, for pass@k and majority vote."""
    temperature: float = Field(1.0, gt=0)
    """Of the samples."""
    ablation: int = Field(200, ge=0)
    """So many items with an image are asked twice more, with a blank image and with another item's: a model that answers as
    well then does not look. 0: none."""
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    """For `tunebook bench`."""
    gate: list[GateRule] = []
    """What must hold for `tunebook evaluate --gate` to succeed."""


Target = Literal["adapter", "merged", "gguf", "ollama"]


class ExportConfig(Section):
    to: list[Target] = Field(["adapter", "merged"], min_length=1)
    """What to write. `gguf` and `ollama` are made from `merged`."""
    stage: str | None = None
    """`sft`, `dpo`, `dpo-2`, ... None: the last that is trained."""
    quantizations: list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]] = Field(["f16", "q8_0"], min_length=1)
    """GGUF types. f32, f16, bf16 and q8_0 need llama.cpp's converter alone; q4_k_m and the like its quantiser too."""
    items: int = Field(20, ge=1)
    """So many held-out questions are answered by every export and compared with the adapter's answers."""
    license: str | None = None
    """Of the weights, as a hub identifier such as `apache-2.0`; goes into the model card."""
    data_license: str | None = None
    """Of the training data; goes into the model card."""
    hub_id: str | None = None
    """`user/name`: push there what is exported. None: nothing leaves this machine."""
    private: bool = True
    """Of the hub repository, if it is made."""


class Recipe(Section):
    name: str
    """Also the default name of the run folder."""
    run: str | None = None
    """The run folder under `runs/`. None: the recipe's name."""
    seed: int = 0
    """Data, adapter initialisation and batch order, unless a section says otherwise."""
    model: ModelConfig
    lora: dict[str, Any] = {}
    """Arguments of `FastModel.get_peft_model`."""
    data: DataConfig
    clean: CleanConfig | None = None
    """Only for data that are rewritten first."""
    sft: dict[str, Any] = {}
    """Arguments of `trl.SFTConfig`."""
    pairs: PairsConfig = PairsConfig()
    dpo: dict[str, Any] = {}
    """Arguments of `trl.DPOConfig`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    _overrides: dict[str, tuple[Any, Any]] = PrivateAttr(default_factory=dict)
    _given: str = PrivateAttr(default=DEFAULT)
    """The name or path under which it was asked for."""

    @field_validator("name", "run")
    @classmethod
    def _folder_name(cls, value: str | None) -> str | None:
        if value is not None and not (len(value) <= 100 and re.fullmatch(r"[\w.-]*\w[\w.-]*", value)):
            raise ValueError("should be a folder name of at most 100 letters, digits, '.', '_' and '-'")
        return value

    @property
    def run_dir(self) -> Path:
        """`runs/<run>` under `$TUNEBOOK_RUNS` or the project."""
        return Path(os.environ.get("TUNEBOOK_RUNS") or ROOT / "runs") / (self.run or self.name)

    @property
    def overrides(self) -> dict[str, tuple[Any, Any]]:
        """Dotted key -> (the file's value, the value used), for everything given beside the recipe file."""
        return self._overrides

    @property
    def given(self) -> str:
        """The name or path that it was read by."""
        return self._given

    def command(self, step: str) -> str:
        """The shell command for another step of this run: with its recipe, its folder, and what was overridden for every stage or for it."""
        shared, there = ("model", "lora", "data", "sft", "pairs", "dpo", "seed", step.split()[0]), _from_variables()
        changed = {k: v for k, (_, v) in self.overrides.items() if k.split(".")[0] in shared and there.get(k) != v}
        items = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in changed.items() if step != "report"]  # which reads folders alone
        options = [] if self._given == DEFAULT else ["--recipe", self._given]
        options += ["--run", self.run] if self.run else []
        return f"uv run tunebook {shlex.join([*step.split(), *options, *(part for item in items for part in ('--set', item))])}"

    def describe(self) -> str:
        """One line: which recipe and run, and what was overridden."""
        changes = ", ".join(f"{k} {old} -> {new}" for k, (old, new) in self.overrides.items())
        return f"recipe {self.name}, run {self.run_dir.name}; overridden: {changes or 'nothing'}"


def load_recipe(
    recipe: str | Path | None = None,
    run: str | None = None,
    overrides: dict[str, Any] | None = None,
    stage: Stage | None = None,
    seed: int | None = None,
    **short: Any,
) -> Recipe:
    """Read a recipe by name (`configs/<name>.yaml`) or path and apply overrides.

    Later wins: the file, `$TUNEBOOK__SECTION__KEY` variables, `overrides` with dotted keys, then `run`, `seed` and
    `short` names (`lr`, `epochs`, `max_steps`, `batch_size`) for the section `stage`; None means "as the recipe says".

    Raises UserError in one line that names the nearest valid key or choice.
    """
    name = str(recipe or os.environ.get("TUNEBOOK_RECIPE") or DEFAULT)
    path = _recipe_path(name)
    content = _read_yaml(path)
    if not isinstance(overrides or {}, dict) or not all(isinstance(key, str) for key in overrides or {}):
        raise UserError(f"overrides: should be {{'section.key': value}} (it is {_shown(overrides)})")
    given = _from_variables() | (overrides or {})
    if unknown := sorted(short.keys() - SHORT.keys()):
        raise UserError(f"{unknown[0]!r} is not a short name{_nearest(unknown[0], [*SHORT, 'seed', 'run', 'recipe'])}")
    given |= {f"{stage}.{SHORT[k]}": v for k, v in short.items() if v is not None}
    given |= {k: v for k, v in {"run": run or os.environ.get("TUNEBOOK_RUN"), "seed": seed}.items() if v is not None}
    changes = {key: (_set(content, key, value), value) for key, value in given.items()}
    _check_values(content)
    try:
        parsed = Recipe.model_validate(content)
        for section in _DATACLASSES:  # also makes types right: "2e-4" becomes a number
            values = _section(section).model_validate(getattr(parsed, section)).model_dump(exclude_unset=True)
            setattr(parsed, section, values)
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_explain(error)}") from None
    parsed._overrides, parsed._given = changes, name
    return parsed


def _from_variables() -> dict[str, Any]:
    """Overrides from `$TUNEBOOK__SECTION__KEY` variables, by dotted key."""
    return {k[len(ENV_PREFIX) :].lower().replace("__", "."): _parse(v) for k, v in os.environ.items() if k.startswith(ENV_PREFIX)}


def parse_set(items: list[str]) -> dict[str, Any]:
    """`["dpo.beta=0.2"]` -> `{"dpo.beta": 0.2}`; values are read as YAML.

    Raises UserError for an item without `=`.
    """
    for item in items:
        if "=" not in item:
            raise UserError(f"--set {_shown(item)}: write it as key=value, for example --set sft.learning_rate=2e-4")
    return {key.strip(): _parse(value) for key, value in (item.split("=", 1) for item in items)}


def find_file(path: str | Path) -> Path:
    """A file named in a recipe: as given (from the working folder), or from the project's root.

    Raises UserError when there is none.
    """
    try:
        for candidate in (Path(path), ROOT / path):
            if candidate.is_file():
                return candidate.resolve()
        folder = (ROOT / path).parent
        names = [str(Path(path).parent / p.name) for p in folder.iterdir()] if folder.is_dir() else []
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise UserError(f"no file {_shown(str(path))}: {error.strerror}") from None
    where = "" if Path(path).is_absolute() else f" in {Path.cwd()}" + (f" or {ROOT}" if Path.cwd() != ROOT else "")
    raise UserError(f"no file {_shown(str(path), 200)}{_nearest(str(path), names) or where}")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 2e-4 is a number (YAML 1.1 wants 2.0e-4), `no` is text (`eval_strategy: no`)."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {k: [r for r in v if r[0] != _BOOL] for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


_NO_YAML = (yaml.YAMLError, ValueError, RecursionError, OverflowError)
"""What PyYAML raises: also for a date or a number that there is not, and for a thousand brackets."""


def _parse(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except _NO_YAML:
        return text


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except (*_NO_YAML, OSError) as error:
        mark = getattr(error, "problem_mark", None)  # not the line itself: it may hold a secret
        why = f"{getattr(error, 'problem', None)}, line {mark.line + 1}" if mark else type(error).__name__
        raise UserError(f"{path} is not readable YAML: {why}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a recipe: expected keys such as `model:` and `data:`")
    return content


def _recipe_path(recipe: str) -> Path:
    if recipe.endswith((".yaml", ".yml")):
        return find_file(recipe)
    names = sorted(p.stem for p in (ROOT / "configs").glob("*.yaml"))
    if recipe not in names:
        raise UserError(f"no recipe {_shown(repr(recipe))}{_nearest(recipe, names)}; there are: {', '.join(names)} (or give a path to a .yaml file)")
    return ROOT / "configs" / f"{recipe}.yaml"


def _set(content: dict[str, Any], key: str, value: Any) -> Any:
    """Put `value` at a dotted key and return what was there. List items go by number: `data.sources.0.train`."""
    *parents, last = key.split(".")
    node: Any = content
    for part in parents:
        try:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        except (ValueError, IndexError):
            raise UserError(f"{_shown(key)}: there is no item {_shown(repr(part))}; this list has {len(node)}") from None
        if not isinstance(node, dict | list):
            raise UserError(f"{_shown(key)}: {_shown(part)} is a value, not a section")
    if isinstance(node, list):
        raise UserError(f"{_shown(key)}: set a key of one item, for example {'.'.join(parents)}.0.key")
    old = node.get(last)
    node[last] = value
    return old


LARGE = 20_000
"""Values of a recipe: more come from aliases of aliases."""


def _values(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of a recipe, each with its dotted key. Raises UserError for one that never ends."""
    waiting: list[tuple[str, Any]] = [("", content)]
    for _ in range(LARGE):
        if not waiting:
            return
        at, value = waiting.pop()
        yield at, value
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        waiting += [(f"{at}.{key}".lstrip("."), part) for key, part in inside]
    raise UserError(f"the recipe has more than {LARGE} values: look for aliases (*name) that hold each other")


def _check_values(content: Any) -> None:
    """Raises UserError for a secret in a recipe, for what is no value of YAML's own, and for text that is no UTF-8."""
    names = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD)$")
    known = {v for k, v in _environment().items() if names.search(k) and len(v) >= 8}
    for at, value in _values(content):
        for text in (value, *value) if isinstance(value, dict) else (value,):
            if not isinstance(text, str | int | float | list | tuple | dict | None):
                raise UserError(f"{_shown(at)}: should be text, a number, a list or a section (it is {_shown(text)})")
            if isinstance(text, str) and (SECRET.search(text) or any(key in text for key in known)):
                raise UserError(f"{scrubbed(at, *known)} holds a secret: keys come from the environment or from .env, never from a recipe")
            if isinstance(text, str) and not text.isascii() and text.encode("utf-8", "replace").decode() != text:
                raise UserError(f"{_shown(at)}: is not UTF-8 text")


def _shown(value: Any, most: int = 80) -> str:
    """A value in a message: in one line, and not all of a long one."""
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _explain(error: ValidationError) -> str:
    """The first validation error in one line, with the nearest known key for an unknown one."""
    first = error.errors()[0]
    loc = [str(p) for p in first["loc"] if p not in ("geometry", "mm_math", "chat", "alpaca", "sharegpt", "gsm8k")]
    loc = [error.title, *loc] if error.title in _DATACLASSES else loc
    key = ".".join(loc)
    if first["type"] == "extra_forbidden":
        return f"unknown key {_shown(key)}{_in_a_section(key) or _nearest(loc[-1], _known_keys(loc))}"
    if first["type"] == "missing":
        return f"{_shown(key)} is missing"
    message = " ".join(first["msg"].removeprefix("Value error, ").replace("Input should be", "should be").split())
    if key.endswith("api_key_env"):  # most likely the key itself
        return f"{key}: should be the name of a variable such as OPENAI_API_KEY"
    return f"{_shown(key)}: {message} (it is {_shown(first['input'])})" if loc else message


def _in_a_section(key: str) -> str:
    """Where a key belongs that was given without its section: `learning_rate`, or by its short name `lr`."""
    name = SHORT.get(key, key)
    found = [f"{s}.{name}" for s, field in Recipe.model_fields.items() if name in _fields(s, field.annotation)]
    return f", did you mean {' or '.join(found)}?" if found else ""


def _fields(section: str, kind: Any) -> typing.Iterable[str]:
    if section in _DATACLASSES:
        return _section(section).model_fields
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()


def _known_keys(loc: list[str]) -> list[str]:
    """The keys of the section that `loc` points into."""
    if loc[0] in _DATACLASSES:
        return list(_section(loc[0]).model_fields)
    models: list[type[BaseModel]] = [Recipe]
    for part in loc[:-1]:
        models = [m for model in models if part in model.model_fields for m in _models(model.model_fields[part].annotation)] or models
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type such as `ServerConfig | None` or `list[GateRule]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models(part)]


def _nearest(word: str, choices: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(choices), 1, 0.5)
    return f", did you mean {close[0]}?" if close else ""


# The sections that are handed on: (package, file, class) of every dataclass whose fields they may use.
_ARGS = ("transformers", "training_args.py", "TrainingArguments")
_DATACLASSES = {
    "lora": [("peft", "tuners/lora/config.py", "LoraConfig")],
    "sft": [_ARGS, ("trl", "trainer/base_config.py", "_BaseConfig"), ("trl", "trainer/sft_config.py", "SFTConfig")],
    "dpo": [_ARGS, ("trl", "trainer/base_config.py", "_BaseConfig"), ("trl", "trainer/dpo_config.py", "DPOConfig")],
}
_UNSLOTH_LORA: dict[str, Any] = {
    "use_gradient_checkpointing": bool | Literal["unsloth"],
    "random_state": int,
    "finetune_vision_layers": bool,
    "finetune_language_layers": bool,
    "finetune_attention_modules": bool,
    "finetune_mlp_modules": bool,
}
_EARLY_STOPPING: dict[str, Any] = {"early_stopping_patience": int, "early_stopping_threshold": float}
"""Arguments of transformers' EarlyStoppingCallback, taken out before the config is made."""
_OURS = {"output_dir", "resume_from_checkpoint", "task_type", "local_rank", "hub_token"}
"""Set by the stages themselves, or a secret."""


@functools.cache
def _section(section: str) -> type[BaseModel]:
    """A pydantic model with the fields of the classes a section is handed on to, read from their source.

    Importing them would take seconds and must not happen before Unsloth is imported. A type that is more than built-in
    ones is not checked here but by the class itself.
    """
    fields: dict[str, Any] = dict(_UNSLOTH_LORA if section == "lora" else _EARLY_STOPPING)
    for package, file, name in _DATACLASSES[section]:
        fields |= _dataclass_fields(package, file, name)
    known = {k: (t, None) for k, t in fields.items() if k not in _OURS}
    config = ConfigDict(extra="forbid", protected_namespaces=(), title=section)
    return create_model(section, __config__=config, **known)  # type: ignore[call-overload, no-any-return]


def _dataclass_fields(package: str, file: str, name: str) -> dict[str, Any]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} is not installed: run `uv sync`")
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    body = next(n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    return {n.target.id: _type(ast.unparse(n.annotation)) for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def _type(annotation: str) -> Any:
    try:
        kind = eval(annotation, {"__builtins__": {}}, vars(typing) | {t.__name__: t for t in (int, float, bool, str, list, dict)})  # noqa: S307 - of installed source, without builtins
    except (NameError, TypeError):
        return Any  # a type of the library's own
    return kind | str if "list[" in annotation else kind  # the configs wrap a single value themselves
