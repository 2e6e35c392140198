"""Work spread over a Ray cluster where one is named, and done here with all cores where none is.

On one machine faiss's own threads leave Ray nothing to gain, and starting it would cost more than
many a build.
"""

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from mmray.errors import JobFailed, MmrayError
from mmray.specs.index import IndexResources

ATTEMPTS = 4
"""Of an item whose worker dies, the first one counted in."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_cluster(resources: IndexResources) -> bool:
    """Whether a Ray cluster is named: by the spec, the environment, or this process's session."""
    if resources.address or os.environ.get("RAY_ADDRESS"):
        return True
    import sys

    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def spread(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    resources: IndexResources,
    heavy: int = 0,
) -> Iterator[tuple[int, Result]]:
    """Call `function` for each item; its place and what it gave, as they come.

    Args:
        function: can be pickled; on a cluster it runs in other processes.
        items: read a few ahead at the most.
        resources: the cluster, and the CPUs of each call.
        heavy: memory of one call in bytes, by which a cluster places it.

    Raises:
        MmrayError: what `function` raised.
        JobFailed: workers died at the same item again and again, or `function` raised what is no
            error of ours.
    """
    if not on_cluster(resources):
        for place, item in enumerate(items):
            yield place, function(item)
        return
    yield from _on_ray(function, items, resources, heavy)


def _on_ray(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    resources: IndexResources,
    heavy: int,
) -> Iterator[tuple[int, Result]]:
    import ray

    from mmray.flow.drive import cluster
    from mmray.specs.common import Resources

    with cluster(Resources(address=resources.address)):
        options: dict[str, Any] = {"num_cpus": resources.cpus, "max_retries": ATTEMPTS - 1}
        if heavy:
            options["memory"] = _placeable(heavy)
        task = ray.remote(**options)(_call)
        total = ray.cluster_resources().get("CPU", 1.0)  # type: ignore[no-untyped-call]
        ahead = max(2, 2 * int(total / resources.cpus))
        waiting: dict[Any, int] = {}
        numbered = enumerate(items)
        more = True
        while more or waiting:
            while more and len(waiting) < ahead:
                following = next(numbered, None)
                more = following is not None
                if following is not None:
                    place, item = following
                    packed = pickle.dumps((function, item))
                    waiting[task.remote(packed, max(1, int(resources.cpus)))] = place
            if not waiting:
                return
            # A pause, so that a signal that was noted is looked at.
            ready, _ = ray.wait([*waiting], num_returns=1, timeout=1.0)
            for reference in ready:
                place = waiting.pop(reference)
                yield place, _result(reference)


def _placeable(heavy: int) -> int:
    """No more than the largest node has, or the call would wait for ever."""
    import ray

    nodes = [each["Resources"].get("memory", 0) for each in ray.nodes() if each["Alive"]]  # type: ignore[no-untyped-call]
    return int(min(heavy, max(nodes, default=heavy)))


def _result(reference: Any) -> Any:
    import ray

    try:
        given = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())[:300]}"
        raise JobFailed(f"a worker failed: {cause}") from error
    except ray.exceptions.RayError as error:
        words = " ".join(str(error).split())[:300]
        raise JobFailed(f"a worker ended {ATTEMPTS} times: {words}") from error
    result = pickle.loads(given)  # noqa: S301 (only what this module packed, in our own cluster)
    if isinstance(result, MmrayError):
        raise result
    return result


def _call(packed: bytes, threads: int) -> bytes:
    """Runs in a worker. Our own errors come back as values: Ray would wrap them in its own."""
    import faiss

    faiss.omp_set_num_threads(threads)
    function, item = pickle.loads(packed)  # noqa: S301 (as above)
    try:
        return pickle.dumps(function(item))
    except MmrayError as error:
        return pickle.dumps(error)
