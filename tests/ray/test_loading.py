"""Ray Data makes the batches of a training whose samples lie in object storage."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mmray.errors import JobFailed, RefusedError
from mmray.models.joint.batch import JointBatch, changed
from mmray.storage import Storage
from mmray.train import loading
from mmray.train.feed import Making
from mmray.train.loading import loaded, loads
from mmray.train.pinned import Pinned
from mmray.train.task import Task
from tests import training
from tests.training import batches_of


class Noting:
    """Makes batches, and writes down which process made each; none is made before so many are
    there."""

    def __init__(self, making: Making, folder: Path) -> None:
        self._making, self._folder = making, folder
        self.together = 1

    def __call__(self, step: int) -> JointBatch:
        (self._folder / f"{step}-{os.getpid()}").touch()
        deadline = time.monotonic() + 60
        while len(self.pids()) < self.together:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return self._making(step)

    def pids(self) -> set[int]:
        return {int(each.name.partition("-")[2]) for each in self._folder.iterdir()}


@pytest.fixture
def noting(tmp_path: Path) -> Noting:
    uri = training.write_tars(tmp_path / "tars", 2, 24)
    spec = training.spec(uri, tmp_path / "out", train__epochs=40)
    (tmp_path / "made").mkdir()
    return Noting(Making(spec.train, batches_of(spec), 0, 2), tmp_path / "made")


def same(one: JointBatch, other: JointBatch) -> bool:
    mine: list[torch.Tensor] = []
    theirs: list[torch.Tensor] = []
    for batch, into in ((one, mine), (other, theirs)):
        changed(batch, lambda tensor, into=into: (into.append(tensor), tensor)[1])  # type: ignore[misc]
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


def test_in_the_order_of_steps_from_any_of_them(noting: Noting) -> None:
    making: Any = noting
    noting.together = loaders = 2
    steps = range(7, 19)
    found = list(loaded(making, steps, loaders, world=2))
    assert len(found) == len(steps)
    for step, batch in zip(steps, found, strict=True):
        assert same(batch, noting._making(step)), step
    assert os.getpid() not in noting.pids()
    assert len(noting.pids()) == loaders


def test_a_loader_that_is_killed_is_replaced(noting: Noting) -> None:
    making: Any = noting
    found: Iterator[JointBatch] = loaded(making, range(60), 1)
    assert same(next(found), noting._making(0))
    [pid] = noting.pids()
    os.kill(pid, signal.SIGKILL)
    for step, batch in enumerate(found, 1):
        assert same(batch, noting._making(step)), step
    assert step == 59
    assert len(noting.pids()) == 2


class Deadly:
    """Ends the process that makes the third batch."""

    def __call__(self, step: int) -> JointBatch:
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return JointBatch({}, {"image": torch.ones(1, dtype=torch.bool)})


def test_a_loader_that_always_dies_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "RESTARTS", 1)
    making: Any = Deadly()
    with pytest.raises(JobFailed, match="lost again and again"):
        list(loaded(making, range(4), 1))


class Failing:
    """Can't make the third batch."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, step: int) -> JointBatch:
        if step == 2:
            raise self._error
        return JointBatch({}, {"image": torch.ones(1, dtype=torch.bool)})


def test_an_error_comes_as_it_is() -> None:
    making: Any = Failing(RefusedError("a.bin was changed"))
    found = loaded(making, range(4), 1)
    assert [next(found).rows, next(found).rows] == [1, 1]
    with pytest.raises(RefusedError, match=r"a\.bin was changed"):
        next(found)


def test_only_what_is_not_mapped_is_loaded(tmp_path: Path, s3_uri: str) -> None:
    """Files of this machine are mapped, and so are the vectors of frozen towers."""
    from mmray.train.begin import begin, here

    uri = training.write_tars(tmp_path / "tars", 1, 12)
    pinned: dict[str, Pinned] = {}
    for output in (str(tmp_path / "out"), f"{s3_uri}/out"):
        spec = training.spec(uri, output)
        pinned[output] = begin(spec, Storage(), lambda _: None, here).pinned
        assert loads(Task(spec, pinned[output])) == output.startswith("s3://")
    pieces = tuple(
        piece.model_copy(update={"inputs": None}) for piece in pinned[f"{s3_uri}/out"].pieces
    )
    assert not loads(Task(spec, Pinned(pieces=pieces)))
