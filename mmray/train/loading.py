"""Ray Data makes a worker's batches: in the order of its steps, ahead of them, in other processes.

That is for data in object storage, which has to be fetched. Where samples are files here they are
mapped, and another process would only cost time.
"""

import pickle
import warnings
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mmray.errors import JobFailed
from mmray.flow.drive import MAX_BLOCKS, data_context
from mmray.models.joint.batch import JointBatch
from mmray.storage import is_s3
from mmray.train.feed import Making
from mmray.train.lost import RESTARTS, own_fault
from mmray.train.task import Task

AHEAD = 2
"""Batches that a worker holds beside the one in use."""


def loads(task: Task) -> bool:
    """Whether Ray Data is to make the batches of a training."""
    return is_s3(task.spec.output) and any(piece.inputs for piece in task.pinned.pieces)


def loaded(making: Making, steps: range, loaders: int, world: int = 1) -> Iterator[JointBatch]:
    """The batches of some steps, made by `loaders` processes for one of `world` workers.

    A loader that was lost is replaced, and makes the same again.

    Raises:
        JobFailed: a loader was lost too often.
        What making a batch raised.
    """
    import ray

    if not steps:
        return
    spans = [
        {"start": int(span[0]), "stop": int(span[-1]) + 1}
        for span in np.array_split(np.array(steps), min(len(steps), MAX_BLOCKS))
    ]
    # Each worker's Ray Data takes itself for the only one.
    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    room = there.get("object_store_memory", 0.0) / 4 / world
    with data_context(in_order=True, memory=room or None):
        blocks = _dataset(making, spans, loaders).iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=AHEAD
        )
        try:
            for block in blocks:
                for packed in block["batch"]:
                    batch = pickle.loads(packed.as_buffer())  # noqa: S301 (of our own process)
                    if isinstance(batch, Exception):
                        raise batch
                    yield batch
        except ray.exceptions.RayError as error:
            raise JobFailed(f"what makes batches was lost again and again: {error}") from error


def _dataset(making: Making, spans: list[dict[str, int]], loaders: int) -> Any:
    import ray.data

    dataset: Any = ray.data.from_items(spans, override_num_blocks=len(spans))
    with warnings.catch_warnings():
        # Ray says that retries are to be set otherwise from 2.64 on, but not yet how.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            _Loader,
            fn_constructor_args=(making,),
            batch_size=None,
            # They wait for storage most of the time, and mustn't wait for a CPU: workers may have
            # taken all that the cluster has.
            num_cpus=0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            compute=ray.data.ActorPoolStrategy(size=loaders),
        )


class _Loader:
    """Opens the samples once; a batch is one row, which Ray Data can't divide."""

    def __init__(self, making: Making) -> None:
        torch.set_num_threads(1)
        self._making = making

    def __call__(self, spans: dict[str, np.ndarray]) -> Iterator[pa.Table]:
        for start, stop in zip(spans["start"], spans["stop"], strict=True):
            for step in range(start, stop):
                yield pa.table({"batch": pa.array([self._made(step)], pa.large_binary())})

    def _made(self, step: int) -> bytes:
        try:
            return _packed(self._making(step))
        except Exception as error:  # noqa: BLE001 (Ray would make a text of it)
            return _packed(own_fault(error, f"making the batch of step {step}"))


class _Pickler(pickle.Pickler):
    """Tensors as numpy's arrays, which take one copy."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


def _packed(value: Any) -> bytes:
    out = BytesIO()
    _Pickler(out, 5).dump(value)
    return out.getvalue()
