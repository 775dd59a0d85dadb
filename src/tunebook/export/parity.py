"""Is an export the same model as the adapter it was made from? Loaded from disk in a fresh process and compared.

Compared are the prompts as the export's own chat template renders them, the log-probability of each token of the adapter's own greedy
answers (teacher forcing), and the export's own greedy answers, where they stop and whether they are right. A Hugging
Face folder is loaded by plain transformers or PEFT in float32, a GGUF file by llama.cpp.

    python -m tunebook.export.parity FOLDER reference.json out.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunebook.checkers.maths import verify
from tunebook.export import llama_cpp
from tunebook.generation.answers import Images, Sampling
from tunebook.generation.generate import generate
from tunebook.generation.local import Local, encode, end_ids
from tunebook.models import chat_template
from tunebook.models.chat_template import Messages, render
from tunebook.recipe.errors import UserError
from tunebook.runs.files import read_json, write_json

POSITIONS = 12
"""Answer tokens of each question whose probabilities are compared, spread evenly."""


CANDIDATES = 50
"""Most likely tokens that llama.cpp is asked for; a token that is not among them counts as their last."""


Measured = dict[str, Any]
"""`ids` of the rendered prompts; `answers` and whether each was `truncated`; `forced` token ids; `logps` and `top` token at the
compared positions; `logits` of the first answer token (floats over the vocabulary) and the token ids that `ends` a turn
(both not of a GGUF file)."""


LIMITS = {  # top-1 agreement at least, mean difference of a log-probability at most, equal answers at least
    "adapter": (0.99, 0.01, 0.95),
    "merged": (0.98, 0.02, 0.9),
    "f32": (0.98, 0.02, 0.9),
    "f16": (0.98, 0.02, 0.9),
    "bf16": (0.98, 0.02, 0.9),
    "q8_0": (0.95, 0.05, 0.7),
}


LOSSY = (0.7, 1.0, 0.0)
"""For the smaller quantisations, which do answer differently: the table tells what they lose."""


def measure(
    source: Local,
    prompts: list[Messages],
    images: Images,
    max_new_tokens: int,
    forced: list[list[int]] | None = None,
) -> Measured:
    """What a model in this process does with the prompts and their images. `forced` are another model's answers as token ids; None:
    its own."""
    tokenizer = chat_template.text_tokenizer(source.tokenizer)
    given = [
        encode(source, [render(source.tokenizer, p, len(shown))], [shown])
        for p, shown in zip(prompts, images, strict=True)
    ]
    found = {
        i: a
        for batch in generate(source, prompts, Sampling(max_new_tokens, 16), images, label="greedy answers")
        for i, a in batch.items()
    }
    answers = [found[i] for i in range(len(prompts))]
    end = [tokenizer.eos_token_id]
    forced = forced or [
        (tokenizer(a.text, add_special_tokens=False)["input_ids"] + ([] if a.truncated else end))[
            :max_new_tokens
        ]
        for a in answers
    ]
    scored = [_score(source, prompt, answer) for prompt, answer in zip(given, forced, strict=True)]
    return {
        "ids": [inputs["input_ids"][0].tolist() for inputs in given],
        "answers": [a.text for a in answers],
        "truncated": [a.truncated for a in answers],
        "forced": forced,
        "ends": sorted(end_ids(source)),
        **{key: [s[key] for s in scored] for key in ("logps", "top", "logits")},
    }


def check(
    export: Path,
    name: str,
    reference: Measured,
    prompts: list[Messages],
    images: Images,
    golds: list[str | None],
    max_new_tokens: int,
    scratch: Path,
) -> Measured:
    """Load an export afresh and compare it with `reference`; returns a row of the parity table, its `differs` empty when all is well."""
    if export.suffix == ".gguf":
        measured = _measure_gguf(export, reference, prompts, max_new_tokens)
    else:
        given, out = scratch / "reference.json", scratch / "measured.json"
        write_json(
            given,
            {
                "prompts": prompts,
                "images": images,
                "max_new_tokens": max_new_tokens,
                "forced": reference["forced"],
            },
        )
        command = [sys.executable, "-m", "tunebook.export.parity", str(export), str(given), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"{export} does not load: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}"
            )
        measured = read_json(out)
    return compare(name, reference, measured, golds)


def compare(name: str, reference: Measured, measured: Measured, golds: list[str | None]) -> dict[str, Any]:
    """One row of the parity table. Log-probabilities are natural; differences are over all compared positions."""
    n = len(reference["answers"])
    pairs = [
        abs(a - b)
        for x, y in zip(reference["logps"], measured["logps"], strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    tops = [
        a == b
        for x, y in zip(reference["top"], measured["top"], strict=True)
        for a, b in zip(x, y, strict=True)
    ]
    logits = [
        abs(a - b)
        for x, y in zip(reference["logits"], measured["logits"], strict=True)
        if y
        for a, b in zip(x, y, strict=True)
    ]
    row = {
        "items": n,
        "positions": len(pairs),
        "top_1_agreement": sum(tops) / len(tops),
        "mean_logp_difference": sum(pairs) / len(pairs),
        "max_logp_difference": max(pairs),
        "max_logit_difference": max(logits) if logits else None,
        "prompts_equal": sum(a == b for a, b in zip(reference["ids"], measured["ids"], strict=True)) / n,
        "answers_equal": sum(a == b for a, b in zip(reference["answers"], measured["answers"], strict=True))
        / n,
        "truncated": [sum(reference["truncated"]), sum(measured["truncated"])],
        "accuracy": [_accuracy(m, golds) for m in (reference, measured)],
    }
    return {**row, "differs": _differs(name, row, reference, measured)}


def _differs(name: str, row: dict[str, Any], reference: Measured, measured: Measured) -> list[str]:
    """What is not as it should be, in words, the likeliest cause first."""
    top, mean, equal = LIMITS.get(name, LOSSY)
    n, found = row["items"], []
    if row["prompts_equal"] < 1:
        i = next(i for i in range(n) if reference["ids"][i] != measured["ids"][i])
        a, b = reference["ids"][i], measured["ids"][i]
        at = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        found.append(
            f"chat template or tokenizer: {1 - row['prompts_equal']:.0%} of the prompts are rendered differently, the first from token {at} on"
        )
    if measured["ends"] and reference["ends"] != measured["ends"]:
        found.append(
            f"stop: a turn ends at the tokens {measured['ends']}, with the adapter at {reference['ends']}"
        )
    if row["truncated"][1] - row["truncated"][0] > max(1, n // 10):
        found.append(
            f"stop: {row['truncated'][1]} of {n} answers do not end (with the adapter {row['truncated'][0]}): look at the end-of-turn token"
        )
    if row["top_1_agreement"] < top:
        found.append(
            f"weights: the likeliest token is the same at {row['top_1_agreement']:.1%} of the positions, {top:.0%} are wanted"
        )
    if row["mean_logp_difference"] > mean:
        found.append(
            f"weights: log-probabilities differ by {row['mean_logp_difference']:.3f} on average, {mean} is allowed"
        )
    if row["answers_equal"] < equal:
        found.append(f"answers: {row['answers_equal']:.0%} are equal, {equal:.0%} are wanted")
    return found


def _accuracy(measured: Measured, golds: list[str | None]) -> float | None:
    marks = [
        verify(a, g, boxed_only=t).correct
        for a, g, t in zip(measured["answers"], golds, measured["truncated"], strict=True)
        if g is not None
    ]
    return sum(marks) / len(marks) if marks else None


def _positions(length: int) -> list[int]:
    count = min(POSITIONS, length)
    return [i * length // count for i in range(count)]


def _score(source: Local, given: dict[str, Any], answer: list[int]) -> dict[str, Any]:
    import torch

    prompt = given["input_ids"]
    whole = {
        k: torch.nn.functional.pad(v, (0, len(answer)), value=k == "attention_mask")
        if v.shape == prompt.shape
        else v
        for k, v in given.items()
    }
    whole["input_ids"] = torch.cat([prompt, prompt.new_tensor([answer])], 1)
    with torch.inference_mode():
        logits = source.model(**whole).logits[0, prompt.shape[1] - 1 : -1].float()
    at = _positions(len(answer))
    logps = logits.log_softmax(-1)
    return {
        "logps": [float(logps[i, answer[i]]) for i in at],
        "top": [int(logits[i].argmax()) for i in at],
        "logits": logits[0].tolist(),
    }


def _measure_gguf(gguf: Path, reference: Measured, prompts: list[Messages], max_new_tokens: int) -> Measured:
    """The same through a llama.cpp server: its own template, tokenizer and stop; log-probabilities of the forced tokens."""
    context = max(len(p) for p in reference["ids"]) + max_new_tokens + 64
    with llama_cpp.server(gguf, context=context) as url, ThreadPoolExecutor(4) as pool:

        def post(path: str, **body: Any) -> Any:
            data, header = json.dumps(body).encode(), {"Content-Type": "application/json"}
            request = urllib.request.Request(url + path, data, header)  # noqa: S310 - loopback
            with urllib.request.urlopen(request, timeout=600) as reply:  # noqa: S310
                return json.load(reply)

        def item(i: int) -> dict[str, Any]:
            text = post("/apply-template", messages=prompts[i])["prompt"]
            choice = post(
                "/v1/chat/completions", messages=prompts[i], max_tokens=max_new_tokens, temperature=0
            )["choices"][0]
            prompt, answer = reference["ids"][i], reference["forced"][i]
            logps, top = [], []
            for at in _positions(len(answer)):
                reply = post(
                    "/completion",
                    prompt=prompt + answer[:at],
                    n_predict=1,
                    n_probs=CANDIDATES,
                    temperature=0,
                    cache_prompt=True,
                )
                likely = {c["id"]: c["logprob"] for c in reply["completion_probabilities"][0]["top_logprobs"]}
                logps.append(likely.get(answer[at], min(likely.values())))
                top.append(max(likely, key=lambda token: likely[token]))
            return {
                "ids": post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"],
                "answers": choice["message"]["content"] or "",
                "truncated": choice["finish_reason"] != "stop",
                "logps": logps,
                "top": top,
                "logits": [],
            }

        items = list(pool.map(item, range(len(prompts))))
    return {"ends": [], **{key: [i[key] for i in items] for key in items[0]}}


def _main(folder: Path, given: Path, out: Path) -> None:
    """The fresh process: load a folder as anybody would, without Unsloth, and measure it."""
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    sees, adapter = chat_template.has_processor(folder), read_json(folder / "adapter_config.json")
    if not sees:
        model = (AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM).from_pretrained(
            folder, dtype=torch.float32
        )
    else:
        base, revision = adapter.get("base_model_name_or_path", folder), adapter.get("revision") or "main"
        model = AutoModelForImageTextToText.from_pretrained(base, revision=revision, dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder) if adapter else model
    asked = read_json(given)
    source = Local(model.eval(), (AutoProcessor if sees else AutoTokenizer).from_pretrained(folder))
    write_json(
        out, measure(source, asked["prompts"], asked["images"], asked["max_new_tokens"], asked["forced"])
    )


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
