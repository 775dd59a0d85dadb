"""Work on many rows, one by one in this process, or in blocks on the machines of a Ray cluster.

    ray start --head                          # on the first machine
    ray start --address FIRST_MACHINE:6379    # on the others
    uv run tunebook prepare --recipe my.yaml --engine ray

What is done with a row is the same function either way, and results come in the order of the rows.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

from tunebook.recipe.errors import UserError

Engine = Literal["local", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Build = Callable[[], Callable[[Item], Result]]
"""Makes the function that each row is given to, once in each process: it may load a tokenizer."""

# Rows of a block: a fifth of a second of work, so that sending it costs little beside that.
BLOCK = 500

# Blocks under way for each core: one is worked on while the next is sent.
AHEAD = 2

# What the workers must know of this process. Ray shows these to whoever may see the cluster: no keys.
PASSED_ON = ("TUNEBOOK_HOME", "TUNEBOOK_RUNS", "HF_HOME", "HF_HUB_OFFLINE")


def each(items: Iterable[Item], build: Build[Item, Result], engine: Engine) -> Iterator[tuple[Item, Result]]:
    """Every item with what the function says of it, in order.

    Raises UserError when Ray is not installed, and what the function raises.
    """
    if engine == "local":
        function = build()
        for item in items:
            yield item, function(item)
    else:
        yield from _on_ray(items, build)


def _on_ray(items: Iterable[Item], build: Build[Item, Result]) -> Iterator[tuple[Item, Result]]:
    """The same on all cores of a cluster. A block whose machine is lost is done again elsewhere.

    These are Ray's tasks and not its data sets: a data set would hold all rows in its object store before the
    first is worked on, or need readers of its own, which number and reject rows otherwise than ours.
    """
    ray = _connected()
    # Every worker hashes alike: what one says of a row is compared with what another says.
    variables = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment = {"env_vars": {"PYTHONHASHSEED": "0", **variables}}
    work = ray.remote(_work_on).options(num_cpus=1, max_retries=-1, runtime_env=environment)
    # In a list, so that it is not unpacked for each block anew.
    shared = [ray.put(build)]

    items = iter(items)
    under_way: deque[tuple[list[Item], Any]] = deque()
    most = AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        block = list(itertools.islice(items, BLOCK))
        if block:
            under_way.append((block, work.remote(block, shared)))
        if not under_way:
            return
        if len(under_way) >= most or not block:
            first, results = under_way.popleft()
            yield from zip(first, _result(ray, results), strict=True)


def _work_on(block: list[Any], shared: list[Any]) -> list[Any]:
    """What a worker does."""
    function = _built(shared[0])
    return [function(item) for item in block]


@functools.lru_cache(maxsize=1)
def _built(build: Any) -> Callable[[Any], Any]:
    import ray

    return ray.get(build)()  # type: ignore[no-any-return]


def _result(ray: Any, results: Any) -> list[Any]:
    try:
        return ray.get(results)  # type: ignore[no-any-return]
    except ray.exceptions.RayTaskError as error:
        # Its own text is the whole traceback of the other process.
        raise error.cause from None


def _connected() -> Any:
    """Ray, connected to the cluster that runs on this machine, or else to this machine alone."""
    # Ray would copy this folder to each machine and run `uv` there; all machines see it as it is.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: uv sync --extra ray") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    return ray
