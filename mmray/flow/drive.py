"""Ray Data runs the stages: the one module of the flow that knows Ray.

On CPUs each actor reads, decodes, encodes and writes whole fragments (nothing crosses the object
store). An encoder that owns a GPU gets its fragments from CPU tasks that read and decode, except in
careful passes. Ray's own retries are off: they would start a shard from its beginning, while the
next pass of the flow starts at the first byte that no commit covers.
"""

import logging
import os
import pickle
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np

from mmray.errors import JobFailed
from mmray.flow.batch import FAULT, Batch, Failed, Finished, Work
from mmray.flow.pool import fitting
from mmray.flow.retry import Retried, Retry
from mmray.flow.retrying import retried
from mmray.flow.stages import Stages
from mmray.specs.common import Resources

MAX_BLOCKS = 10_000
WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Keeps a worker's memory flat. glibc gives each thread a heap of its own, which keeps what a
thread that ended has freed, and each shard is read by a thread of its own: over 20,000 pictures a
worker grew by 100 MiB. It only counts where a process finds it at its start."""

Item = Finished | Failed | Retried


@contextmanager
def cluster(resources: Resources) -> Iterator[None]:
    """Connect to Ray: the session that is there, the named address, or a new one on this machine.

    A connection made here is closed at the end; one that was there stays.

    Raises:
        JobFailed: this machine has no GPU, and the spec wants one.
    """
    # Ray's core writes to standard error past any logger; what it says there is never our user's.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
    if ray.is_initialized():
        yield
        return
    # "local" by name: left to itself, Ray joins whatever was last started on this machine, such as
    # another run's session, and dies with it.
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":  # what Ray starts here inherits the environment
        for name, value in WORKER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    ray.init(
        address=address,
        include_dashboard=False if address == "local" else None,
        runtime_env=None if address == "local" else {"env_vars": WORKER_ENVIRONMENT},
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=False,
    )
    try:
        seen = ray.cluster_resources().get("GPU", 0.0)  # type: ignore[no-untyped-call]
        if address == "local" and seen < resources.gpus:
            raise JobFailed(f"resources.gpus is {resources.gpus:g}; Ray sees {seen:g} GPUs here")
        yield
    finally:
        ray.shutdown()


class Drive:
    """One pass over the work on a thread of its own; items arrive in `items`, `None` at the end."""

    def __init__(self, work: Sequence[Work | Retry], stages: Stages) -> None:
        self.items: SimpleQueue[Item | BaseException | None] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(work, stages), name="drive", daemon=True
        )
        self._thread.start()

    def stop(self) -> list[Finished]:
        """Ask the pass to end; returns the parts that are finished and were not taken yet."""
        self._stop.set()
        waiting = [self.items.get_nowait() for _ in range(self.items.qsize())]
        return [item for item in waiting if isinstance(item, Finished)]

    def _run(self, work: Sequence[Work | Retry], stages: Stages) -> None:
        try:
            for item in _items(work, stages):
                self.items.put(item)
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 (it is raised again where items are taken)
            self.items.put(error)
        finally:
            self.items.put(None)


def _items(work: Sequence[Work | Retry], stages: Stages) -> Iterator[Item]:
    with data_context(errored_blocks=-1):  # a lost worker ends no pass
        dataset = _dataset(work, stages)
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for item in batch["item"]:
                yield _unpacked(item)


def _dataset(work: Sequence[Work | Retry], stages: Stages) -> Any:
    """Work in, pickled items out; lazy."""
    import ray.data

    resources = stages.spec.resources
    # A careful worker does all of a range: it must know what was in hand.
    split = bool(resources.gpus) and not stages.careful
    with warnings.catch_warnings():
        # Ray says that retries are to be set otherwise from 2.64 on, but not yet how.
        warnings.simplefilter("ignore", DeprecationWarning)
        dataset: Any = ray.data.from_items(
            [{"work": pickle.dumps(each)} for each in work],
            override_num_blocks=min(len(work), MAX_BLOCKS),
        )
        if split:
            dataset = dataset.map_batches(
                _decode,
                fn_args=(stages,),
                batch_size=None,
                num_cpus=resources.decode_cpus,
                max_retries=0,
            )
        return dataset.map_batches(
            _EncodeActor if split else _FusedActor,
            fn_constructor_args=(stages,),
            batch_size=1,  # a block is one row, but Ray wants a number where GPUs are asked for
            compute=_pool(resources, 1 if stages.limit is not None else len(work)),
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            max_task_retries=0,
        )


@contextmanager
def data_context(
    *, errored_blocks: int = 0, in_order: bool = False, memory: float | None = None
) -> Iterator[None]:
    """Ray Data set up without its own words, so that each block goes out as it is made.

    `errored_blocks` may be lost without ending it, -1 for any number; `memory` is how many bytes
    of blocks there may be, half of the object store unless told.
    """
    from ray.data import DataContext, ExecutionResources

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fields that Ray itself copies
        context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.max_errored_blocks = errored_blocks
    context.execution_options.preserve_order = in_order
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=memory)
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logger = logging.getLogger("ray.data")
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context):
            yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate


def _pool(resources: Resources, shards: int) -> Any:
    """As many actors as the cluster holds, but no more than shards; or what the spec says."""
    import ray
    from ray.data import ActorPoolStrategy

    least, most = resources.pool_range
    if shards == 1:
        least = most = 1
    if most is None:
        total = ray.cluster_resources()  # type: ignore[no-untyped-call]
        room = fitting(resources, total.get("CPU", 1.0), total.get("GPU", 0.0))
        least = most = min(room, shards)
    # A worker that has its next shard already loses no time between two: a tenth, with a light
    # encoder. With few shards one would wait behind a busy worker while another has none.
    in_flight = 2 if resources.gpus or shards >= 4 * least else 1
    return ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=in_flight)


def _packed(items: Iterator[Any], uri: str) -> Iterator[dict[str, np.ndarray]]:
    try:
        for item in items:
            yield _row(item)
    except Exception:  # noqa: BLE001 (a fault of ours: it must not pass for a worker that died)
        yield _row(Failed(uri, f"{FAULT}\n{traceback.format_exc()}", fatal=True))


def _row(item: Any) -> dict[str, np.ndarray]:
    column = np.empty(1, dtype=object)
    column[0] = pickle.dumps(item, protocol=5)
    return {"item": column}


def _unpacked(data: bytes) -> Any:
    return pickle.loads(data)  # noqa: S301 (only what this module packed, in our own cluster)


class _FusedActor:
    """All stages in one process."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for packed in batch["work"]:
            work: Work | Retry = _unpacked(packed)
            if isinstance(work, Retry):
                yield from _packed(retried(self._stages, work), work.runs[0].uri)
            else:
                yield from _packed(self._stages.fused(work), work.shard.uri)


def _decode(batch: dict[str, np.ndarray], stages: Stages) -> Iterator[dict[str, np.ndarray]]:
    """Reads and decodes; one fragment is one block."""
    for packed in batch["work"]:
        work: Work = _unpacked(packed)
        yield from _packed(stages.decoded(work), work.shard.uri)


class _EncodeActor:
    """Owns the model; encodes and writes what the decode tasks hand over."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        for packed in batch["item"]:
            item: Batch | Failed = _unpacked(packed)
            uri = item.uri if isinstance(item, Failed) else item.shard_uri
            yield from _packed(self._stages.encoded(item), uri)
