"""What stands in for a GPU in `tests/integration/test_gpu_rehearsal.py`: its driver, and RAM.

This is all of it. Unsloth's own switch `UNSLOTH_ALLOW_CPU=1` lets its GPU classes be imported without a GPU,
and everything else that they do is theirs.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

GPU = SimpleNamespace(
    name="no GPU",
    total_memory=24 * 2**30,
    major=8,
    minor=6,
    multi_processor_count=1,
    gcnArchName="",
    shared_memory_per_block_optin=101_376,
)


def install() -> None:
    """Import Unsloth with its GPU classes and GPU trainers.

    Call before anything imports unsloth, trl, transformers or peft.
    """
    os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "UNSLOTH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    os.environ.pop("UNSLOTH_FORCE_CPU", None)
    _driver()
    import unsloth  # noqa: F401, I001 - before trl
    import trl
    from unsloth.models import rl
    from unsloth.trainer import _patch_trl_trainer
    from unsloth_zoo.cpu.ops import patch_trl_fused_lm_head

    patch_trl_fused_lm_head()  # TRL's loss is a Triton kernel
    rl.patch_trl_disable_gradient_checkpointing()
    for name in (
        "sft_trainer",
        "dpo_trainer",
    ):  # with UNSLOTH_ALLOW_CPU the import leaves them as TRL has them
        rl._patch_trl_rl_trainers(name)
    vars(trl).pop("__UNSLOTH_BACKWARDS_COMPATIBLE__", None)
    _patch_trl_trainer()  # after the import, as on a GPU: it sets text batches without padding
    _in_ram()


def _driver() -> None:
    """What Unsloth asks the driver when it loads a model and prints its banner."""
    import torch

    answers: dict[str, Any] = {
        "get_device_properties": GPU,
        "get_device_capability": (GPU.major, GPU.minor),
        "mem_get_info": (GPU.total_memory, GPU.total_memory),
    }
    answers |= dict.fromkeys(
        ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), 0
    )
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)


def _in_ram() -> None:
    """Load to RAM; compute in float32, as half precision is not made for every layer on a CPU."""
    from unsloth import FastModel

    load, adapt = FastModel.from_pretrained, FastModel.get_peft_model

    def loaded(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        model, processor = load(*args, **kwargs, device_map="cpu")
        return model.float(), processor

    FastModel.from_pretrained = staticmethod(loaded)
    FastModel.get_peft_model = staticmethod(lambda *args, **kwargs: adapt(*args, **kwargs).float())
