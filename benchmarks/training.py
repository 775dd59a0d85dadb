"""What `sft.py` and `dpo.py` share: trainers in processes of their own that step by turns.

Every side trains on the same rows in the same order with the same LoRA, optimiser and schedule. All load
first; then each in turn makes a few steps while the others wait, so that what else the machine does strikes
all alike. The last step of all is profiled by torch: how much of it are matrix products, which no setting
spares?
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import in_turn, products, ratio, spread, write
from rich.progress import track

STOCK = {"stock TRL + PEFT": "float32", "stock, adapter in bfloat16": "bfloat16"}
"""The sides without Unsloth and tunebook, by the precision of the adapter.

The base is in bfloat16, with bfloat16 autocast.
"""


def main(section: str, sides: dict[str, dict[str, Any]], turns: int, steps: int, out: Path | None) -> None:
    """Compare the sides; the first one's tokens/s over each other one's, and its final loss over theirs."""
    with TemporaryDirectory() as folder:
        workers = {}
        for name, settings in sides.items():
            workers[name] = Worker(section, name, settings, turns, steps, folder)
        for worker in workers.values():
            worker.answer()
        # One turn more to warm up, and one for the profiler.
        for number in track(range(turns + 2), "turns"):
            for name in in_turn(workers, number):
                workers[name].turn()
        for worker in workers.values():
            worker.process.wait()

    results = {name: worker.result(sides[name], steps) for name, worker in workers.items()}
    first, *others = workers.values()
    ratios = {worker.name: ratio(first.speeds(), worker.speeds()) for worker in others}
    record = {
        "section": section,
        "steps_a_turn": steps,
        "turns": turns,
        "sides": results,
        f"{first.name}, times the tokens/s of": ratios,
    }
    write(out, record, ("unsloth", "trl", "peft", "transformers", "torch"))

    for name, result in results.items():
        speed = result["tokens_per_s"]["median"]
        print(f"{name}: {speed:.0f} tokens/s, {result['peak_gb']} GB, loss {result['last_losses']}")
        step = result["profiled_step"]
        busy = step["matrix_products_s"]
        print(f"  matrix products: {busy:.1f} of {step['s']:.1f} s, {step['gflop'] / busy:.0f} GFLOP/s")
        if name in ratios:
            times = ratios[name]
            print(
                f"  {first.name} makes {times['median']:.2f} times its tokens/s "
                f"({times['lowest']:.2f} to {times['highest']:.2f})"
            )


class Worker:
    """A side's process: for each line that it is sent it makes some steps and answers with a line of JSON."""

    def __init__(
        self, section: str, name: str, settings: dict[str, Any], turns: int, steps: int, folder: str
    ) -> None:
        self.name = name
        self.turns: list[dict[str, Any]] = []
        arguments = {
            "section": section,
            "name": name,
            "settings": settings,
            "turns": turns,
            "steps": steps,
            "folder": folder,
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TUNEBOOK_RUNS": folder, "HF_HUB_OFFLINE": "1"},
        )

    def turn(self) -> None:
        print(file=self.process.stdin, flush=True)
        self.turns.append(self.answer())

    def answer(self) -> dict[str, Any]:
        for line in self.process.stdout or ():
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        raise SystemExit(f"{self.name}: the process ended, see above")

    def measured(self) -> list[dict[str, Any]]:
        """The turns that count: neither the one that warms up nor the one with the profiler."""
        return self.turns[1:-1]

    def speeds(self) -> list[float]:
        """Tokens a second, turn by turn."""
        return [turn["tokens"] / turn["seconds"] for turn in self.measured()]

    def result(self, settings: dict[str, Any], steps: int) -> dict[str, Any]:
        """The side's part of the record."""
        peaks = [turn["peak_gb"] for turn in self.turns[:-1]]
        return {
            "settings": settings,
            "tokens_per_s": spread(self.speeds()),
            "s_per_step": spread([turn["seconds"] / steps for turn in self.measured()]),
            "peak_gb": round(max(peaks), 2),
            "first_loss": self.turns[0]["losses"][0],
            "last_losses": round(statistics.mean(self.turns[-1]["losses"]), 5),
            "profiled_step": self.turns[-1]["profiled_step"],
        }


def work(section: str, name: str, settings: dict[str, Any], turns: int, steps: int, folder: str) -> None:
    """In the worker's process: build the trainer, and step when told to."""
    from tunebook.models import backend
    from tunebook.recipe.loading import load_recipe

    ours = name not in STOCK
    changes = {
        f"{section}.max_steps": (turns + 2) * steps,
        f"{section}.logging_steps": 1,
        f"{section}.save_strategy": "no",
        f"{section}.eval_strategy": "no",
        f"{section}.disable_tqdm": True,
        "data.sources": [{"format": "geometry", "train": 400, "val": 0, "test": 0}],
    }
    if not ours:
        changes[f"{section}.use_cpu"] = True  # which Unsloth sets
    recipe = load_recipe("smollm2-math", f"{section}-{os.getpid()}", changes | settings)
    if ours:
        backend.backend()  # imports Unsloth, which changes TRL
    else:
        backend.set_environment()
    import trl

    from tunebook.data.prepare import prepare
    from tunebook.training import arguments

    prepare(recipe)
    config, trainer_class, extra = trl.SFTConfig, trl.SFTTrainer, {}
    if section == "dpo":
        config, trainer_class, extra = trl.DPOConfig, trl.DPOTrainer, {"ref_model": None}
    args = arguments.trainer_arguments(config, recipe, section, Path(folder) / name)
    model, tokenizer = our_model(recipe, section) if ours else stock_model(recipe, STOCK[name])
    trainer = trainer_class(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=rows(recipe, section),
        callbacks=[stepping(steps)],
        **extra,
    )
    trainer.train()


def rows(recipe: Any, section: str) -> Any:
    """Prompt and completion; as pairs, each solution against the same with another result."""
    from tunebook.data.storage import load

    train = load(recipe, "train").select_columns(["prompt", "completion"])
    if section == "sft":
        return train

    def flawed(row: dict[str, Any]) -> dict[str, Any]:
        before, _, after = row["completion"][0]["content"].rpartition("=")
        return {
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": [{"role": "assistant", "content": f"{before}= 7{after[1:]}"}],
        }

    return train.map(flawed, remove_columns=["completion"])


def our_model(recipe: Any, section: str) -> Any:
    from tunebook.models import adapters, loading
    from tunebook.models.cpu.shared_prefixes import share_prefixes

    model, tokenizer = loading.load_model(recipe)
    if section == "dpo" and recipe.model.share_prompts:
        share_prefixes(model)
    return adapters.add_lora(model, recipe), tokenizer


def stock_model(recipe: Any, adapter: str) -> Any:
    """transformers and PEFT; TRL's fused LM head, which has no kernel for a CPU, computed by torch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer import utils

    from tunebook.models import builtin

    utils._ChunkedLogProbFunction = Head
    path = builtin.resolve(recipe.model.base)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")
    lora = {key: value for key, value in recipe.lora.items() if key in LoraConfig.__dataclass_fields__}
    torch.manual_seed(recipe.seed)
    config = LoraConfig(task_type="CAUSAL_LM", **lora)
    model = get_peft_model(model, config, autocast_adapter_dtype=adapter == "float32")
    return model, AutoTokenizer.from_pretrained(path)


class Head:
    """What TRL's `_ChunkedLogProbFunction` computes, in plain torch."""

    @staticmethod
    def apply(
        hidden: Any,
        weight: Any,
        bias: Any,
        targets: Any,
        temperature: float,
        size: int,
        cap: Any,
        scale: float,
        outputs: Any,
    ) -> Any:
        import torch

        logits = (hidden.to(weight.dtype) @ weight.t()).float()
        logps = logits.log_softmax(-1)
        entropy = squares = means = is_top1 = None
        with torch.no_grad():
            if "entropy" in outputs:
                entropy = -(logps.exp() * logps).sum(-1)
            if "log_sum_sq_probs" in outputs:
                squares = (2 * logps).logsumexp(-1)
            if "mean_logits" in outputs:
                means = logits.mean(-1)
            if "is_top1" in outputs:
                is_top1 = logits.argmax(-1) == targets
        chosen = logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return chosen, entropy, squares, means, is_top1


def stepping(steps: int) -> Any:
    """A callback that waits for a line before every so many steps, and says afterwards how long they took."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    class Stepping(TrainerCallback):  # type: ignore[misc]
        def say(self, result: dict[str, Any]) -> None:
            print("@" + json.dumps(result), flush=True)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tokens = 0.0
            self.profiled: dict[str, Any] = {}
            self.say({})

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps == 0:
                sys.stdin.readline()
                self.started = time.perf_counter()
            if state.global_step == args.max_steps - 1:
                self.profiler = profile(activities=[ProfilerActivity.CPU], with_flops=True)
                self.profiler.start()
                self.step_started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == args.max_steps:
                seconds = time.perf_counter() - self.step_started
                self.profiler.stop()
                self.profiled = {"profiled_step": products(self.profiler, seconds)}

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            entries = [entry for entry in state.log_history if "loss" in entry]
            if "loss" not in state.log_history[-1] or len(entries) % steps:
                return
            seconds = time.perf_counter() - self.started
            tokens = entries[-1]["num_tokens"]
            self.say(
                {
                    "seconds": seconds,
                    "tokens": tokens - self.tokens,
                    "losses": [entry["loss"] for entry in entries[-steps:]],
                    "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                    **self.profiled,
                }
            )
            self.tokens = tokens

    return Stepping()


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
