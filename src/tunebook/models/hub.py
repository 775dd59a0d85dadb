"""Whether the Hugging Face hub can be reached, asked once and before anything waits for it."""

from __future__ import annotations

import functools

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


def is_offline() -> bool:
    """Whether only what is on this disk is used."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
