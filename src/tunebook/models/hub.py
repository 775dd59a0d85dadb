"""Whether the Hugging Face hub can be reached, asked once and before anything waits for it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from tunebook.recipe.errors import UserError

WAIT_S = 8.0
"""Its own client would try again for half a minute."""


@functools.cache
def use_if_reachable() -> None:
    """Where the hub does not answer, use only what is on this disk, and say so.

    Call it before something may be fetched. Proxies of the environment are used, as by the hub's client.
    """
    import httpx
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return
    # Any answer will do, also a refusal: it is there.
    try:
        httpx.head(constants.ENDPOINT, timeout=WAIT_S)
    except httpx.HTTPError as error:
        print(f"{constants.ENDPOINT} cannot be reached ({error}): only what is on this disk is used")
        constants.HF_HUB_OFFLINE = True


def refuse_absent(base: str) -> None:
    """Raises UserError for a hub id of which nothing is on this disk while the hub cannot be asked."""
    if Path(base).is_dir():
        return
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(base)
    except ValueError:  # as the loader will say
        return
    use_if_reachable()
    # Which of its files are needed is not known here: weights in 4 bits lie in a repository of their own.
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=base, repo_type="model")
    if is_offline() and not folder.is_dir():
        reason = f"{constants.ENDPOINT} cannot be reached: try again with a network"
        if os.environ.get("HF_HUB_OFFLINE") == "1":
            reason = "HF_HUB_OFFLINE=1 forbids fetching it: unset that"
        raise UserError(f"model.base: {base} is not on this disk, and {reason}, or give a folder")


def is_offline() -> bool:
    """Whether only what is on this disk is used."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
