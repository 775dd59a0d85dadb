"""The recipe's sections against the classes that train with them."""

from __future__ import annotations

import dataclasses

from tunebook.models import backend


def test_fields_are_read_from_the_installed_configs():
    """The sections accept just what stock TRL's dataclasses have.

    Unsloth's GPU config would drop the rest without a word.
    """
    from tunebook.recipe import trainer_keys

    backend.backend()
    import peft
    import trl

    for section, config in (("sft", trl.SFTConfig), ("dpo", trl.DPOConfig), ("lora", peft.LoraConfig)):
        names = [field.name for field in dataclasses.fields(config)]
        known = set(trainer_keys.trainer_section(section).model_fields)
        ours = {*trainer_keys._EARLY_STOPPING, *trainer_keys._UNSLOTH_LORA}
        if section == "dpo":
            own = {"start", "control"}
            assert own <= known and not own & set(names)
            ours |= own
        theirs = {n for n in names if not n.startswith("_")} - trainer_keys._OURS
        missing = (
            theirs
            - known
            - {
                "runtime_config",
                "peft_type",
                "auto_mapping",
                "peft_version",
                "base_model_name_or_path",
                "revision",
                "inference_mode",
            }
        )
        assert not missing, section
        assert known - ours <= theirs, section
