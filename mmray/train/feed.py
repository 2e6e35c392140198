"""A training's batches, in the order of its steps and made ahead of them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from mmray.models.joint.batch import JointBatch
from mmray.specs.train import TrainOptions
from mmray.train.batches import Batches
from mmray.train.order import epoch_order, global_batch, mixed, share_of, steps_of


class Making:
    """Makes a rank's part of the batch of a step: a function of the pinned samples and the step.

    It can be sent to another process.
    """

    def __init__(self, options: TrainOptions, batches: Batches, rank: int, world: int) -> None:
        self._options, self._batches = options, batches
        self._rank, self._world = rank, world
        count = len(batches.samples.train)
        self.batch = min(options.batch_size, count)
        """Samples of a step, of all ranks."""
        self.epoch_steps = steps_of(count, options.batch_size)
        self.steps = options.epochs * self.epoch_steps
        self._epoch: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __call__(self, step: int) -> JointBatch:
        """What this rank sees at a step."""
        rows = share_of(self.rows(step), self._rank, self._world)
        seeds = [mixed(self._options.seed, step, row) >> 1 for row in rows.tolist()]
        return replace(self._batches(rows), seeds=torch.tensor(seeds))

    def rows(self, step: int) -> np.ndarray:
        """The samples of a step, of all ranks."""
        train = self._batches.samples.train
        epoch, place = divmod(step, self.epoch_steps)
        known = self._epoch  # of the thread that makes batches, and of an error's words
        if known[0] != epoch:
            known = epoch, epoch_order(len(train), self._options.seed, epoch)
            self._epoch = known
        rows: np.ndarray = train[global_batch(known[1], self.batch, place)]
        return rows


A = TypeVar("A")
B = TypeVar("B")

Feed = Callable[[Making, range], Iterator[JointBatch]]
"""Gives the batches of some steps in a row: `one_ahead`, or Ray Data."""


def one_ahead(make: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """What `make` gives for each item, made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting: Future[B] | None = None
        for item in items:
            made, waiting = waiting, pool.submit(make, item)
            if made is not None:
                yield made.result()
        if waiting is not None:
            yield waiting.result()
