"""The recipe: one YAML file in `configs/` that says everything about a run.

Most sections are declared here; the text under a field is its reference. `lora`, `sft` and `dpo` are handed
on as they are to `FastModel.get_peft_model`, `trl.SFTConfig` and `trl.DPOConfig`. Their keys and types are
read from the installed source of TRL, transformers and PEFT (`trainer_keys.py`), so that a misspelt key fails
at once and on every backend. Unsloth's GPU config would drop it silently.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)

from tunebook.recipe.errors import did_you_mean
from tunebook.recipe.files import ROOT, find_file, find_path, program
from tunebook.recipe.overrides import as_options, from_environment
from tunebook.recipe.trainer_keys import DATACLASSES

DEFAULT = "smollm2-math"
"""The recipe of a command without `--recipe`."""

SHARED = ("stages", "model", "data", "check", "judge", "pairs", "generate", "seed", *DATACLASSES)
"""The keys and sections that more than one stage reads."""


class Section(BaseModel):
    """A section of the recipe. Unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        validate_by_name=True,
        serialize_by_alias=True,  # pydantic has a method `schema` of its own
    )
    _folders: list[str] = PrivateAttr(default_factory=list)

    @property
    def places(self) -> list[str]:
        """Where files that the section names are looked for first."""
        return self._folders

    def find_file(self, name: str) -> Path:
        """A file that the section names: beside the recipe, where one works, or in the project.

        Raises UserError when there is none.
        """
        return find_file(name, self._folders)

    def find_path(self, name: str) -> Path:
        """The same for a file, a folder, or what is neither: then the name as it is, from where one works."""
        try:
            return find_path(name, self._folders) or Path(name)
        except OSError:  # a name that is too long, a folder that may not be read
            return Path(name)

    def place(self, folders: list[str]) -> None:
        """Tell the section, and those in it, where the recipe lies."""
        self._folders = folders
        for value in self.__dict__.values():
            for section in value if isinstance(value, list) else [value]:
                if isinstance(section, Section):
                    section.place(folders)


class ModelConfig(Section):
    """The model to train, and how it is loaded."""

    base: str
    """A hub id, a folder, `smollm2-135m-instruct` (embedded: no download) or `tiny-gemma3n` (random weights
    that see images)."""
    max_seq_length: int = Field(2048, ge=16)
    """Tokens of prompt and completion together. Longer rows are quarantined with the data, never cut."""
    load_in_4bit: bool = False
    """QLoRA (NF4). Works on a CPU too, but a 4-bit model cannot be merged there."""
    dtype: Literal["bfloat16", "float32", "float16"] | None = None
    """None: bfloat16 where the hardware has it, else float32 (CPU) or float16 (GPU)."""
    attn_implementation: Literal["grouped", "eager", "sdpa", "flash_attention_2"] | None = None
    """None: the library's choice. `grouped` is the fastest on a CPU, where PyTorch's bfloat16 SDPA kernel is
    slow, above all its backward pass. On a GPU it is `eager`."""
    share_prompts: bool = True
    """In DPO on a CPU, compute only once what the rows of a batch begin with alike: the system message, the
    prompt of chosen and rejected. The loss is the same."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    loader: Literal["FastModel", "FastLanguageModel"] = "FastModel"
    """Unsloth's class that loads the model. `FastModel` takes every architecture. `FastLanguageModel` has
    hand-written kernels for Llama, Mistral, Gemma, Gemma 2, Qwen2 and Qwen3 on a GPU, as in Unsloth's own
    notebooks for these; which one is faster here has not been measured. On a CPU both are the same."""
    chat_template: str | None = None
    """A Jinja file such as `prompt/chatml.jinja` in place of the model's own template. It is saved with the
    adapter and every export."""
    eos_token: str | None = None
    """The token that ends an answer, for a base model, whose own ends a document. None: the model's own."""

    @property
    def local_base(self) -> str:
        """`base`; of a folder, where it lies on this machine."""
        return str(self.find_path(self.base))


class Source(Section):
    """Where rows come from."""

    use: Literal["sft", "pairs"] | None = None
    """Use the train rows of this source for SFT alone, or for preference pairs alone. None: for both."""


class GeometrySource(Source):
    """The project's own school geometry problems (`school_geometry`), drawn with the recipe's seed."""

    format: Literal["geometry"]
    train: int = Field(1000, ge=1)
    """Problems of the slice `same families`."""
    wordings: list[Annotated[int, Field(ge=0, le=2)]] = Field([0, 1, 2], min_length=1)
    """The wordings of train rows. A family has three for training: 0, 1 and 2."""
    val: int = Field(100, ge=0)
    """Problems: half of the slice `same families`, a third of `new wordings`, a sixth of `new families`."""
    test: int = Field(300, ge=0)
    """Problems: half of the slice `same families`, a third of `new wordings`, a sixth of `new families`."""


def _count_or_share(value: Any) -> Any:
    is_count = isinstance(value, int) and value >= 1
    is_share = isinstance(value, float) and 0 < value <= 1
    if value is None or is_count or is_share:
        return value
    raise ValueError("should be a count such as 5000, or a share such as 0.1")


Rows = Annotated[int | float | None, PlainValidator(_count_or_share)]
"""How many rows: a count, a share of them, or None for all."""


class InstructionsSource(Source):
    """Short texts to write under instructions (`writing_tasks`), drawn with the recipe's seed. They have no
    answers: `data.own_answers` finds some, and `check: instructions` says which are right.

    The train rows of one with `use: pairs` have other topics than those of any other, as val and test have.
    """

    format: Literal["instructions"]
    train: int = Field(500, ge=1)
    """Tasks with kinds of instruction, and combinations of them, that are for training."""
    written: bool = False
    """Add 60 tasks with texts that were written by hand: in lower case, as bullets, with given last words.
    Small models hardly ever do these by themselves."""
    val: int = Field(100, ge=0)
    """Tasks: half as in training on new topics, a third with new combinations, a sixth with new kinds."""
    test: int = Field(300, ge=0)
    """Tasks: half as in training on new topics, a third with new combinations, a sixth with new kinds."""


class SplitSource(Source):
    """A source whose rows are put into splits."""

    split: Literal["train", "val", "test"] | None = None
    """Put every row there. None: by a hash of the prompt, with the shares `val` and `test`. Rows that share
    an image stay together."""
    val: float = Field(0.05, ge=0, lt=1)
    """The share of rows that goes to val."""
    test: float = Field(0.05, ge=0, lt=1)
    """The share of rows that goes to test."""
    hub_split: str = "train"
    """The split to read of a hub id."""


class ChatSource(SplitSource):
    """Rows of files or of a hub id in one of the common formats.

    A row may have an `answer`, against which its completion is checked.
    """

    format: (
        Literal["chat", "alpaca", "sharegpt", "gsm8k", "maths", "question_answer", "text", "prompts"] | None
    ) = None
    """Which columns to read. None: recognised by them, row by row. `chat`: `messages`, or `prompt` and
    `completion`. `alpaca`: `instruction`, `input`, `output`. `sharegpt`: `conversations` of `from` and
    `value`. `gsm8k`: `question`, and `answer` with the result after `####`. `maths`: `problem`, and
    `solution` with the result in a box. `question_answer`: those two, or `query` and `response` and their
    like. `text`: question and answer in one `text`, as a chat template has written them. `prompts`: `prompt`,
    and no answer but where a row has a `completion`."""
    path: str
    """A .jsonl, .ndjson, .json, .csv, .tsv or .parquet file (also .gz or .zst), a pattern such as
    `rows-*.jsonl`, a folder of such files or of `save_to_disk`, or a hub id. `{run}/clean/rows.jsonl` is what
    `tunebook clean` has made."""
    hub_config: str | None = None
    """The configuration (subset) of a hub id, where it has several."""
    columns: dict[str, str] = {}
    """Other names of the format's columns: `{prompt: instruct, completion: reply, answer: label}`. A column
    named here is read for this alone."""
    rows: Rows = None
    """A number of rows (5000) or a share of them (0.1). They are drawn by a hash of the row and the recipe's
    seed, before any check, and do not depend on the other sources. None: all."""
    images: str | None = None
    """The folder of the files that rows name as `image` or `images`. None: the folder of `path`."""


class MMMathSource(SplitSource):
    """Questions with a figure in MM_Math's form: `*.jsonl` with `question`, `file_name`, `solution`."""

    format: Literal["mm_math"]
    path: str
    """A folder (its images in a folder of it or still in `Image.zip`), a .parquet file with an `image`
    column, or a hub id such as `THU-KEG/MM_Math`. `sample`: the project's own figures, drawn on first use."""
    rows: int = Field(600, ge=1)
    """The number of rows of `sample`."""


def _kind_of_source(source: Any) -> Any:
    """Which section a source is, by its format; one without a format is recognised by its rows' columns."""
    name = source.get("format") if isinstance(source, dict) else getattr(source, "format", None)
    return name if name in ("geometry", "instructions", "mm_math") else "chat"


AnySource = Annotated[
    Annotated[GeometrySource, Tag("geometry")]
    | Annotated[InstructionsSource, Tag("instructions")]
    | Annotated[MMMathSource, Tag("mm_math")]
    | Annotated[ChatSource, Tag("chat")],
    Discriminator(_kind_of_source),
]


Refusals = Literal["keep", "drop"]


Compared = Literal["prompt+completion", "prompt", "none"]


class OwnAnswersConfig(Section):
    """Rejection sampling: prompts without an answer get those of the base model's samples that are right."""

    samples: int = Field(4, ge=1)
    """Answers sampled for each prompt."""
    keep: int = Field(2, ge=1)
    """The most right answers of a prompt that become rows."""
    temperature: float = Field(1.0, gt=0)
    """A higher one gives more varied answers, and fewer that are right."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens of an answer."""
    batch_size: int = Field(64, ge=1)
    """Answers at a time."""


class DataConfig(Section):
    """The rows of a run, and the checks that they pass."""

    sources: list[AnySource] = []
    """Where rows come from. All of them are pooled. None are needed for DPO on an existing preference set."""
    own_answers: OwnAnswersConfig | None = None
    """What SFT learns from prompts without an answer (Yuan et al. 2023). None: such a row is for pairs or
    evaluation alone."""
    system_prompt: str | None = None
    """A file in `prompt/` for every conversation without a system message. None: the model's own default."""
    user_prompt: str | None = None
    """A file in `prompt/` with `{question}`, wrapped round every question that comes as bare text."""
    duplicates: Compared = "prompt+completion"
    """What makes a row a duplicate: prompt and completion, so that several answers to one prompt stay, or the
    prompt alone. `none`: every row stays."""
    near_duplicate: float = Field(0.9, gt=0, le=1)
    """Rows whose texts are as alike as this (Jaccard) and have the same numbers are duplicates."""
    train_on: Literal["last", "all"] | None = None
    """Which of a conversation's assistant turns carry loss. None: all of them, but for rows with images and
    chat templates in which turns cannot be told apart, whose last one does. A message with `weight: 0`
    carries none."""
    refusals: Refusals = "keep"
    """Whether rows stay whose answer is nothing but a refusal ("I'm sorry, but I can't help with that.")."""
    max_aside: float = Field(0.5, ge=0, le=1)
    """The stage stops when a larger share of all rows is put aside. 1: it never does for that."""
    for_pairs: float = Field(0.0, ge=0, lt=1)
    """The share of the train rows that SFT does not see. Preference pairs are made from these, so that the
    model's mistakes are those that it makes on new problems. 0: both use all."""
    max_image_size: int = Field(768, ge=16)
    """Pixels of an image's longer side. Larger images are scaled down, none is enlarged."""
    contamination: float = Field(0.6, gt=0, le=1)
    """A train row with this share of a held-out prompt's word 8-grams and all its numbers is quarantined."""


OPTIONS = {
    "maths": set[str](),
    "exact": {"ignore_case"},
    "contains": {"ignore_case", "words"},
    "regex": {"ignore_case", "pattern"},
    "json": {"json_schema"},
    "instructions": {"partial"},
    "reward_model": {"model", "as_given"},
    "python": {"timeout", "memory_gb"},
}
"""The checkers, each with the options that it has beside `name` and `weight`."""


class CheckerConfig(Section):
    """One checker, which gives an answer a score from 0 to 1."""

    name: str
    """`maths` (a number, a formula or words equal to the row's answer), `exact` (the row's answer to the
    letter), `contains` (the row's answer, or `words`), `regex` (`pattern`), `json` (`schema`), `instructions`
    (those in the row's column `instructions`), `reward_model` (`model`), or a function of yours:
    `my_checks.py:function`."""
    weight: float = Field(1.0, gt=0)
    """Of several checkers: the score is their weighted mean."""
    ignore_case: bool = False
    """Whether capitals make no difference (`exact`, `contains`, `regex`)."""
    words: list[str] = []
    """What must stand in an answer, each as a whole word (`contains`). None: the row's answer."""
    pattern: str | None = None
    """A regular expression of Python that is looked for in the answer (`regex`)."""
    json_schema: str | dict[str, Any] | None = Field(None, alias="schema")
    """A JSON schema that the answer must fit: a file, or the schema itself (`json`)."""
    model: str | None = None
    """A sequence classifier with one output, in safetensors: a folder or a hub id (`reward_model`)."""
    as_given: bool = False
    """Take its output as it is, where that is from 0 to 1 already. Else it goes through a sigmoid
    (`reward_model`)."""
    partial: bool = True
    """Whether an answer that obeys some of its instructions has their share as its score, or 0
    (`instructions`)."""
    timeout: float = Field(10.0, gt=0)
    """Seconds that your function may take for an answer."""
    memory_gb: float = Field(4.0, gt=0)
    """Memory that your function may take."""

    @property
    def kind(self) -> str:
        """Which of `OPTIONS` it is: `python` for a file's function."""
        return "python" if ".py:" in self.name else self.name

    @field_validator("name")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if ".py:" in value and re.fullmatch(r"[^:]+\.py:[A-Za-z_]\w*", value):
            return value
        names = [name for name in OPTIONS if name != "python"]
        if value not in names:
            hint = did_you_mean(value, names)
            raise ValueError(f"should be one of {', '.join(names)}, or my_checks.py:function{hint}")
        return value

    @model_validator(mode="after")
    def _has_its_options(self) -> CheckerConfig:
        # A recipe that was written in full names all options, each with its default.
        for option, field in CheckerConfig.model_fields.items():
            is_its_own = option in OPTIONS[self.kind] or option in ("name", "weight")
            if not is_its_own and getattr(self, option) != field.get_default():
                raise ValueError(f"{self.name} has no option {field.alias or option}")
        if self.kind == "reward_model" and self.model is None:
            raise ValueError("reward_model needs a `model`")
        if self.kind == "regex":
            if self.pattern is None:
                raise ValueError("regex needs a `pattern`")
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression of Python: {error}") from None
        return self


class CheckConfig(Section):
    """What makes an answer right, for data, pairs and evaluation. `check: json` is short for one checker, a
    list for several.
    """

    checkers: list[CheckerConfig] = Field(min_length=1)
    """What scores an answer. The scores of several are averaged by their weights."""
    threshold: float = Field(1.0, gt=0, le=1)
    """An answer with this score or a higher one is right. Of a `reward_model` alone the default is 0.5."""

    @model_validator(mode="after")
    def _rewards_are_never_whole(self) -> CheckConfig:
        alone = all(checker.kind == "reward_model" for checker in self.checkers)
        if alone and "threshold" not in self.model_fields_set:
            self.threshold = 0.5
        return self


class RequestsConfig(Section):
    """How an OpenAI-compatible server is asked, by every stage that asks one."""

    api_key_env: str = Field("OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$", max_length=60)
    """The variable (in the environment or in `.env`) with the key. A server on this machine needs none."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at a time."""
    timeout: float = Field(120, gt=0)
    """Seconds that a request may take."""
    retries: int = Field(6, ge=0)
    """Further tries of a request that failed, with exponential back-off; `Retry-After` is heeded."""
    tokens_per_minute: int | None = Field(None, ge=1)
    """Ask no faster than this. Prompt and `max_new_tokens` count. None: as fast as the server answers."""
    price_in: float = Field(0.0, ge=0)
    """The price of a million prompt tokens, in your currency."""
    price_out: float = Field(0.0, ge=0)
    """The price of a million answered tokens."""
    budget: float | None = Field(None, gt=0)
    """Stop when so much is spent. The same command goes on once it is raised. None: no limit."""
    extra: dict[str, Any] = {}
    """Further fields of each request, such as `{"chat_template_kwargs": {"enable_thinking": false}}`."""


PACE = (set(RequestsConfig.model_fields) | {"same_model"}) - {"extra"}
"""The keys of a server that no answer depends on."""


class ServerConfig(RequestsConfig):
    """An OpenAI-compatible server that answers instead of the local model.

    `vllm serve`, SGLang, llama.cpp or a hosted one.
    """

    url: str | Annotated[list[str], Field(min_length=1)]
    """The address up to and with `/v1`, for example `http://127.0.0.1:8000/v1`. Of a list each takes every
    second (third, ...) request; one that does not answer is left out from then on."""
    model: str
    """The name under which the server offers the model. `{model}` in it stands for the run's own name of it:
    `base`, `sft`, `dpo`, ..."""
    same_model: bool | None = None
    """Whether the server must have the model of this run that the stage asks (pairs on-policy, evaluation).
    It is then first asked for the log-probabilities of a few short answers, which are compared with those of
    the model here. None: compared where they can be, and said where they cannot. true: refused where they
    cannot. false: another model may answer, and none is loaded here."""
    _section: str = PrivateAttr(default="pairs.server")

    @property
    def urls(self) -> list[str]:
        """The addresses, however many there are."""
        return [self.url] if isinstance(self.url, str) else list(self.url)

    @property
    def section(self) -> str:
        """Where it stands in the recipe, for messages."""
        return self._section


class GenerateConfig(Section):
    """What answers where a stage asks many questions: samples for pairs, items of the evaluation."""

    engine: Literal["auto", "transformers", "vllm", "server"] = "auto"
    """A `server` that the stage names comes first. Else `transformers`: the model in this process. `vllm`:
    `vllm serve` is started with the run's adapters, on all GPUs, and stopped again. `auto`: vLLM where it is
    found, a CUDA GPU is there and the answers are many; else transformers. `server`: nothing but
    `pairs.server` and `evaluate.server`."""
    vllm: str | None = None
    """The program `vllm`, which is best kept in an environment of its own. None: `TUNEBOOK_VLLM` in the
    environment, else the one beside this Python, else the one on the PATH."""
    options: dict[str, Any] = {}
    """Further options of `vllm serve`, over ours: `{gpu-memory-utilization: 0.8, enforce-eager: true}`."""
    start_timeout: float = Field(1800, gt=0)
    """Seconds that vLLM may take until it answers; fetching the model is among them."""


class JudgeConfig(Section):
    """A language model that compares two answers to one question. A server, or a model on this machine."""

    server: ServerConfig | None = None
    """The server that judges."""
    model: str | None = None
    """A folder or a hub id, where no server judges. It is loaded in 16 bit, in this process."""
    prompt: str = "prompt/judge.txt"
    """A file with `{question}`, `{answer_a}` and `{answer_b}`. The verdict is the last `[[A]]`, `[[B]]` or
    `[[C]]` (a tie) in what the judge says, or its last line where that is one of the letters alone."""
    max_new_tokens: int = Field(16, ge=1)
    """The most tokens of a verdict. A judge that gives reasons first needs more."""
    human: str | None = None
    """Files or a hub id with choices of people, in a form of preference sets (`prompt`, `chosen`,
    `rejected`): the evaluation shows how often the judge agrees with them."""

    @model_validator(mode="after")
    def _is_one(self) -> JudgeConfig:
        if (self.server is None) == (self.model is None):
            raise ValueError("should name a `server` or a `model`, one of the two")
        if self.server is not None:
            self.server._section = "judge.server"
        return self


class CleanConfig(RequestsConfig):
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
    """The column with an image's file name, below the source's folder. A row may have none."""
    send_images: bool = False
    """Send the image with the question."""
    prompt: str = "prompt/clean_solution.txt"
    """A file with `{question}` and `{solution}`."""
    url: str | None = None
    """The server's address up to and with `/v1`. None: `BASE_URL` in the environment or in `.env`."""
    model: str | None = None
    """The server's name for the model. None: `MODEL` in the environment or in `.env`."""
    api_key_env: str = Field("API_KEY", pattern=r"^[A-Z_][A-Z0-9_]*$", max_length=60)
    """The variable (in the environment or in `.env`) with the key. A server on this machine needs none."""
    concurrency: int = Field(64, ge=1)
    """Requests under way at a time."""
    limit: int | None = Field(None, ge=1)
    """Only the first rows, so many. None: all."""
    max_new_tokens: int = Field(1024, ge=1)
    """The most tokens of an answer."""
    temperature: float = Field(0.0, ge=0)
    """0: the most likely answer."""
    max_length_ratio: float = Field(6.0, ge=1)
    """How many times as long, or as short, a rewritten solution may be as the raw one."""


Method = Literal["on_policy", "injected_error", "dataset"]


Strategy = Literal["calculation_error", "logical_fallacy", "process_error"]


class PairsConfig(Section):
    """Preference pairs for DPO."""

    methods: list[Method] = Field(["on_policy"], min_length=1)
    """Where pairs come from. The pairs of several methods are pooled. Where only `dataset` is named it is
    the method.

    `on_policy`: right and wrong samples of the model itself. `injected_error`: the model is asked for a
    flawed solution. `dataset`: existing pairs.
    """
    prompts: int | None = Field(None, ge=1)
    """The number of training prompts; each round takes the next ones. None: all whose answers can be
    checked."""
    samples: int = Field(4, ge=1)
    """Answers sampled for each prompt (`on_policy`)."""
    temperature: float = Field(1.0, gt=0)
    """A higher one gives more, and more varied, mistakes."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together have this probability. 1: from all."""
    top_k: int = Field(0, ge=0)
    """Sample from so many of the likeliest tokens. 0: from all."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens of an answer."""
    batch_size: int = Field(64, ge=1)
    """Answers at a time."""
    server: ServerConfig | None = None
    """Let a server answer. Pairs are on-policy only if it serves the model that DPO starts from, which is
    looked at first (`same_model`)."""
    per_prompt: int = Field(1, ge=1)
    """The most pairs from one prompt. Each has another rejected text."""
    max_length_ratio: float = Field(2.0, ge=1)
    """How many times as many tokens the longer of chosen and rejected may have."""
    rejected: Literal["nearest", "most_frequent"] = "nearest"
    """Which wrong sample is rejected (`on_policy`): the one that begins most like the right one, or the wrong
    answer that the model gives most often among its samples."""
    first_pit: int = Field(0, ge=0)
    """For answers in steps, a line each (`on_policy`): after which line of a wrong sample do so many
    continuations all fail? Chosen is then a right answer that begins like it up to that line. 4 is usual;
    it takes as many further answers for each halving of the lines. 0: not looked for."""
    reference_chosen: bool = False
    """Where no sample is right, let the reference solution stand in as chosen (`on_policy`)."""
    strategies: list[Strategy] = Field(
        ["calculation_error", "logical_fallacy", "process_error"], min_length=1
    )
    """Flaws to ask for (`injected_error`). One is drawn for each prompt; its text lies in `prompt/`.

    A `process_error` may end in the right answer. Leave it out to keep verified wrong answers alone.
    """
    dataset: str | None = None
    """Files or a hub id, as `path` of a source (`dataset`). Rows have `prompt`, `chosen` and `rejected`, as
    text or messages, and images as a `chat` source has them; other common forms are recognised by their
    columns."""
    dataset_split: str = "train"
    """The split to read of a hub id."""
    columns: dict[str, str] = {}
    """Other names of the dataset's columns: `{prompt: question, score_chosen: chosen-rating}`."""
    rows: Rows = None
    """A number of the dataset's rows or a share of them, drawn as the rows of a source are. None: all."""
    min_margin: float | None = Field(None, gt=0)
    """The least `score_chosen` - `score_rejected` of its pairs. None: any not scored the wrong way round.
    With a `check` also for `on_policy`: the best sample of a prompt against the worst, where their scores
    differ by as much. None: one that is right against one that is wrong. With a `judge` a sample's score is
    the share of comparisons with the prompt's other samples that it wins. None: 0.5."""
    val: float = Field(0.1, ge=0, lt=1)
    """The share of prompts whose pairs are kept for evaluation during DPO."""
    compare: Literal["answer", "step"] = "answer"
    """What DPO's loss sees of a pair: both answers whole, or only the line in which they part.

    After its first error a rejected answer often goes on correctly from the wrong value, which `step` does
    not unteach.
    """
    rounds: int = Field(1, ge=1)
    """How often pairs are made and DPO is run, each time with the newest model and the next prompts."""

    @model_validator(mode="before")
    @classmethod
    def _dataset_is_a_method(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("dataset") is not None:
            return {"methods": ["dataset"], **values}
        return values

    @model_validator(mode="after")
    def _pits_are_local(self) -> PairsConfig:
        if self.first_pit and self.server is not None:
            raise ValueError("first_pit continues answers with the local model: leave out pairs.server")
        return self

    @model_validator(mode="after")
    def _dataset_is_named(self) -> PairsConfig:
        if "dataset" in self.methods and self.dataset is None:
            raise ValueError(
                "the method `dataset` needs pairs.dataset: "
                "a .jsonl, .json, .csv or .parquet file, a folder or a hub id"
            )
        return self


class GateRule(Section):
    """What must be shown of two models for `tunebook evaluate --gate` to succeed."""

    suite: Literal["task", "retention"] = "task"
    """What was asked: the held-out items of the task, or those of `evaluate.retention`."""
    first: str = "base"
    """A model: `base`, `sft`, ..."""
    second: str | None = None
    """The model that is compared with it. None: the last that was evaluated."""
    at_least: float = 0.0
    """Points that the lower end of the difference's 95% interval must exceed. 0 asks for proof that the
    second is better, -2 for proof that it is not worse by more than 2."""
    slice: str | None = None
    """Only the items of this slice, or of this skill. None: all."""


class BenchmarksConfig(Section):
    """Tasks of lm-evaluation-harness for `tunebook bench` (`uv sync --extra eval`)."""

    tasks: list[str] = Field(
        ["arc_challenge", "commonsense_qa", "gsm8k", "hellaswag", "winogrande"], min_length=1
    )
    """Any of the harness's tasks, or of `include`."""
    shots: dict[str, int] = {}
    """Examples in the prompt, by task. By default what the task says (gsm8k: 5, the other four: 0)."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many items of each task."""
    batch_size: int = Field(16, ge=1)
    """Items at a time."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens of an answer, of tasks whose answers are generated."""
    chat_template: bool = False
    """Ask through the chat template. It changes scores; it is the same for every model, and recorded."""
    data: str | None = None
    """A folder. Of a task whose `<task>.jsonl` lies there (few-shot examples in `<task>.train.jsonl`), that
    file is used in place of the hub's. Training rows and pairs that hold one of its items are quarantined."""
    include: str | None = None
    """A folder with task files (YAML) of your own. The data files that they name are looked for there."""


class EvaluateConfig(Section):
    """Held-out items that every model answers."""

    split: Literal["val", "test"] = "test"
    """Tune on val; look at test once."""
    limit: int | None = Field(None, ge=1)
    """The number of items, taken evenly from all. None: all."""
    max_new_tokens: int = Field(256, ge=1)
    """The most tokens of an answer."""
    batch_size: int = Field(64, ge=1)
    """Answers at a time. In bfloat16 another batch shape can change a greedy answer, so it is recorded."""
    server: ServerConfig | None = None
    """Let a server answer, for every model that is evaluated: `model: "my-{model}"` names each of them. What
    is measured by log-probabilities (losses, `retention`) is still done by the model here."""
    samples: int = Field(0, ge=0)
    """Sampled answers to each item beside the greedy one, for pass@k and majority vote."""
    temperature: float = Field(1.0, gt=0)
    """The temperature of the samples."""
    ablation: int = Field(200, ge=0)
    """The number of items with an image that are asked twice more, with a blank image and with another
    item's. A model that answers as well then does not look. 0: none."""
    retention: bool = False
    """Whether every model also answers the retention suite: some 350 short items of other skills, which show
    what training has cost."""
    margin: float = Field(3.0, gt=0, le=50)
    """Points by which a skill of the retention suite may change and count as equal."""
    benchmarks: BenchmarksConfig = BenchmarksConfig()
    """What `tunebook bench` asks."""
    gate: list[GateRule] = []
    """What must hold for `tunebook evaluate --gate` to succeed."""

    @model_validator(mode="after")
    def _server_knows_its_section(self) -> EvaluateConfig:
        if self.server is not None:
            self.server._section = "evaluate.server"
        return self


Target = Literal["adapter", "merged", "gguf", "ollama"]


class ExportConfig(Section):
    """The forms in which a trained model is written."""

    to: list[Target] = Field(["adapter", "merged"], min_length=1)
    """What to write. `gguf` and `ollama` are made from `merged`."""
    stage: str | None = None
    """`sft`, `dpo`, `dpo-2`, ... None: the last that is trained."""
    quantizations: list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]] = Field(["f16", "q8_0"], min_length=1)
    """GGUF types. q4_k_m and the like need llama.cpp's quantiser; f32, f16, bf16 and q8_0 do not."""
    items: int = Field(20, ge=1)
    """Held-out questions that every export answers, to be compared with the adapter's answers."""
    license: str | None = None
    """The licence of the weights for the model card, as a hub identifier such as `apache-2.0`."""
    data_license: str | None = None
    """The licence of the training data for the model card."""
    hub_id: str | None = None
    """`user/name`: push there what is exported. None: nothing leaves this machine."""
    private: bool = True
    """Whether the hub repository is private, if it is made."""


StageName = Literal["sft", "pairs", "dpo"]


Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "swanlab"]


class Recipe(Section):
    """The whole recipe, and how it was read."""

    extends: str | None = None
    """A family default of `configs/defaults/` (`smollm2`, `qwen3`, `gemma3n`, `llama3`), another recipe or a
    path to one, over which this file is laid: mappings are merged, lists and values replace. Without the key
    it is `base`. `null`: what is not said here is left to TRL, PEFT and Unsloth."""
    name: str
    """The recipe's name, and the run folder's where `run` names no other. By default its file's."""
    run: str | None = None
    """The run folder under `runs/`. None: the recipe's name."""
    seed: int = 0
    """Decides data, adapter initialisation and batch order, unless a section says otherwise."""
    stages: list[StageName] = []
    """What `tunebook run` trains: `[sft]`, `[dpo]` or `[sft, dpo]`; pairs belong to DPO. By default what the
    sections ask for (`asked.py`)."""
    folders: list[str] = []
    """Where files that the recipe names are looked for first. Filled in when it is read: its own folder."""
    model: ModelConfig
    lora: dict[str, Any] = {}
    """Arguments of `FastModel.get_peft_model`."""
    data: DataConfig = DataConfig()
    clean: CleanConfig | None = None
    """Only for data that are rewritten first."""
    check: CheckConfig | None = None
    """What makes an answer right: a checker's name, several of them, or a section. None: `maths`, of rows
    with an `answer`."""
    judge: JudgeConfig | None = None
    """What compares two answers where no checker can say which is right: for pairs, where there is no
    `check`, and for the win rates of the evaluation."""
    sft: dict[str, Any] = {}
    """Arguments of `trl.SFTConfig`."""
    pairs: PairsConfig = PairsConfig()
    generate: GenerateConfig = GenerateConfig()
    """What answers where a stage asks many questions."""
    dpo: dict[str, Any] = {}
    """Arguments of `trl.DPOConfig`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    track: list[Tracker] = []
    """Trackers that get the losses while training runs and what is evaluated; each is a package to install.
    The losses lie in `metrics.jsonl` of each stage in any case."""
    price_per_hour: float | None = Field(None, ge=0)
    """What an hour of this machine costs, in your currency. `tunebook run` then says what the steps to come
    will cost, and at the end what they have cost."""
    _overrides: dict[str, tuple[Any, Any]] = PrivateAttr(default_factory=dict)
    _source: str = PrivateAttr(default=DEFAULT)
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("track", mode="before")
    @classmethod
    def _one_tracker(cls, value: Any) -> Any:
        """`track: wandb` is short for `track: [wandb]`."""
        if isinstance(value, str):
            return [name.strip() for name in value.split(",") if name.strip() not in ("", "none")]
        return [] if value is None else value

    @field_validator("name", "run")
    @classmethod
    def _folder_name(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if len(value) > 100 or not re.fullmatch(r"[\w.-]*\w[\w.-]*", value):
            raise ValueError("should be a folder name of at most 100 letters, digits, '.', '_' and '-'")
        return value

    @property
    def run_dir(self) -> Path:
        """`runs/<run>` under `$TUNEBOOK_RUNS` or the project."""
        return Path(os.environ.get("TUNEBOOK_RUNS") or ROOT / "runs") / (self.run or self.name)

    @property
    def overrides(self) -> dict[str, tuple[Any, Any]]:
        """The value in the file and the value used, by dotted key, of everything that was overridden."""
        return self._overrides

    @property
    def source(self) -> str:
        """The name or path that it was read by."""
        return self._source

    @property
    def origins(self) -> dict[str, str]:
        """Where each value comes from that is no default: a file and line, a variable, an override."""
        return self._origins

    def command(self, step: str) -> str:
        """The shell command for another step of this run, such as `dpo --round 2`.

        It names the recipe, the run and the overrides that the step reads: those of the sections in `SHARED`
        and of its own.
        """
        words = step.split()
        options = []
        if self.source != DEFAULT:
            options += ["--recipe", self.source]
        if self.run:
            options += ["--run", self.run]
        if words[0] != "report":  # which reads folders alone
            environment = from_environment()
            for key, (_, value) in self.overrides.items():
                is_read = key.split(".")[0] in (*SHARED, words[0])
                # A variable of the environment is there for the next command too.
                if is_read and environment.get(key) != value:
                    options += as_options({key: value})
        return f"{program()} {shlex.join([*words, *options])}"

    def describe(self) -> str:
        """One line: which recipe and run, and what was overridden."""
        changes = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in self.overrides.items())
        return f"recipe {self.name}, run {self.run_dir.name}; overridden: {changes or 'nothing'}"
