"""What `sft.py` and `dpo.py` share: trainers in processes of their own that step by turns.

Every side trains on the same rows in the same order with the same LoRA, optimiser and schedule. All load first; then each in turn makes a few
steps while the others wait, so that what else the machine does strikes all alike. The last step of all is looked at by torch's profiler: how
much of it are matrix products, which no setting spares?
"""

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import products, ratio, spread, write
from rich.progress import track

STOCK = {"stock TRL + PEFT": "float32", "stock, adapter in bfloat16": "bfloat16"}
"""The sides without Unsloth and tunebook, by the precision of the adapter. The base is in bfloat16, with bfloat16 autocast."""


def main(section: str, sides: dict[str, dict[str, Any]], turns: int, steps: int, out: Path | None) -> None:
    """Compare the sides; the first one's tokens/s over each other one's, and its final loss over theirs."""
    with TemporaryDirectory() as folder:
        workers = {
            name: Worker(section, name, settings, turns, steps, folder) for name, settings in sides.items()
        }
        for worker in workers.values():
            worker.answer()
        for i in track(range(turns + 2), "turns"):
            for name in list(workers)[:: 1 if i % 2 == 0 else -1]:
                workers[name].turn()
        for worker in workers.values():
            worker.process.wait()
    first, *others = workers.values()
    speeds = {
        name: [t["tokens"] / t["seconds"] for t in worker.turns[1:-1]] for name, worker in workers.items()
    }  # the first warms up
    found = {
        name: {
            "settings": sides[name],
            "tokens_per_s": spread(speeds[name]),
            "s_per_step": spread([t["seconds"] / steps for t in worker.turns[1:-1]]),
            "peak_gb": round(max(t["peak_gb"] for t in worker.turns[:-1]), 2),
            "first_loss": worker.turns[0]["losses"][0],
            "last_losses": round(statistics.mean(worker.turns[-1]["losses"]), 5),
            "profiled_step": worker.turns[-1]["profiled_step"],
        }
        for name, worker in workers.items()
    }
    ratios = {worker.name: ratio(speeds[first.name], speeds[worker.name]) for worker in others}
    write(
        out,
        {
            "section": section,
            "steps_a_turn": steps,
            "turns": turns,
            "sides": found,
            f"{first.name}, times the tokens/s of": ratios,
        },
        ("unsloth", "trl", "peft", "transformers", "torch"),
    )
    for name, side in found.items():
        print(
            f"{name}: {side['tokens_per_s']['median']:.0f} tokens/s, {side['peak_gb']} GB, loss {side['last_losses']}"
        )
        step = side["profiled_step"]
        print(
            f"  matrix products: {step['matrix_products_s']:.1f} of {step['s']:.1f} s, {step['gflop'] / step['matrix_products_s']:.0f} GFLOP/s"
        )
        if times := ratios.get(name):
            print(
                f"  {first.name} makes {times['median']:.2f} times its tokens/s ({times['lowest']:.2f} to {times['highest']:.2f})"
            )


class Worker:
    """A side's process: it makes some steps for each line that it is sent, and answers with a line of JSON."""

    def __init__(
        self, section: str, name: str, settings: dict[str, Any], turns: int, steps: int, folder: str
    ) -> None:
        self.name, self.turns = name, list[dict[str, Any]]()
        given = json.dumps(
            {
                "section": section,
                "name": name,
                "settings": settings,
                "turns": turns,
                "steps": steps,
                "folder": folder,
            }
        )
        environment = os.environ | {"TUNEBOOK_RUNS": folder, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, given]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def turn(self) -> None:
        print(file=self.process.stdin, flush=True)
        self.turns.append(self.answer())

    def answer(self) -> dict[str, Any]:
        for line in self.process.stdout or ():
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
        raise SystemExit(f"{self.name}: the process ended, see above")


def work(section: str, name: str, settings: dict[str, Any], turns: int, steps: int, folder: str) -> None:
    """In the worker's process: build the trainer, and step when told to."""
    from tunebook.models import backend
    from tunebook.recipe.loading import load_recipe

    ours = name not in STOCK
    given = {
        f"{section}.max_steps": (turns + 2) * steps,
        f"{section}.logging_steps": 1,
        f"{section}.save_strategy": "no",
        f"{section}.eval_strategy": "no",
    }
    given |= {
        f"{section}.disable_tqdm": True,
        "data.sources": [{"format": "geometry", "train": 400, "val": 0, "test": 0}],
    }
    given |= {} if ours else {f"{section}.use_cpu": True}  # which Unsloth sets
    recipe = load_recipe("smollm2-math", f"{section}-{os.getpid()}", given | settings)
    if ours:
        backend.backend()
    else:
        backend.set_environment()
    from tunebook.data.prepare import prepare
    from tunebook.training import arguments

    prepare(recipe)
    import trl

    config, trainer_class = (
        (trl.SFTConfig, trl.SFTTrainer) if section == "sft" else (trl.DPOConfig, trl.DPOTrainer)
    )
    args, _ = arguments.arguments(config, recipe, section, Path(folder) / name)
    model, tokenizer = our_model(recipe) if ours else stock_model(recipe, STOCK[name])
    callback = by_turns(steps)
    extra = {} if section == "sft" else {"ref_model": None}
    trainer = trainer_class(
        model=model,
        args=args,
        processing_class=tokenizer,
        train_dataset=rows(recipe, section),
        callbacks=[callback],
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


def our_model(recipe: Any) -> Any:
    from tunebook.models import adapters, loading

    model, tokenizer = loading.load(recipe)
    return adapters.add_lora(model, recipe), tokenizer


def stock_model(recipe: Any, adapter: str) -> Any:
    """transformers and PEFT; TRL's fused LM head, which has no kernel for a CPU, computed by torch."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer import utils

    from tunebook.models import builtin

    class Head:
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
            logits = (hidden.to(weight.dtype) @ weight.t()).float()
            logps = logits.log_softmax(-1)
            with torch.no_grad():
                extra = {
                    "entropy": lambda: -(logps.exp() * logps).sum(-1),
                    "mean_logits": lambda: logits.mean(-1),
                    "is_top1": lambda: logits.argmax(-1) == targets,
                    "log_sum_sq_probs": lambda: (2 * logps).logsumexp(-1),
                }
                found = [
                    extra[k]() if k in outputs else None
                    for k in ("entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
                ]
            return (logps.gather(-1, targets.unsqueeze(-1)).squeeze(-1), *found)

    utils._ChunkedLogProbFunction = Head
    path = builtin.resolve(recipe.model.base)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")
    lora = {k: v for k, v in recipe.lora.items() if k in LoraConfig.__dataclass_fields__}
    torch.manual_seed(recipe.seed)
    peft = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", **lora), autocast_adapter_dtype=adapter == "float32"
    )
    return peft, AutoTokenizer.from_pretrained(path)


def by_turns(steps: int) -> Any:
    """A callback that waits for a line before every so many steps, and says afterwards how long they took."""
    import time

    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    class ByTurns(TrainerCallback):  # type: ignore[misc]
        def say(self, found: dict[str, Any]) -> None:
            print("@" + json.dumps(found), flush=True)

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.tokens, self.step = 0.0, dict[str, Any]()
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
                self.step = {"profiled_step": products(self.profiler, seconds)}

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen = [entry for entry in state.log_history if "loss" in entry]
            if len(seen) % steps == 0 and "loss" in state.log_history[-1]:
                seconds, total = time.perf_counter() - self.started, seen[-1]["num_tokens"]
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
                found = {
                    "seconds": seconds,
                    "tokens": total - self.tokens,
                    "losses": [e["loss"] for e in seen[-steps:]],
                    "peak_gb": peak,
                }
                self.say(found | self.step)
                self.tokens = total

    return ByTurns()


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
