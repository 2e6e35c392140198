"""Two workers under Ray Train learn what one process learns, and end as one would."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mmray.errors import Interrupted, JobFailed, RefusedError
from mmray.jobs import train
from mmray.specs.train import TrainResources, TrainSpec
from mmray.storage import Storage
from mmray.train import lost
from mmray.train import run as workers
from mmray.train.begin import begin, here
from mmray.train.checkpoints import Checkpoints
from mmray.train.pinned import Pinned
from mmray.train.task import Task
from tests import training

TOLERANCE = 1e-4
"""Of losses and weights: sums of float32 in another order, over some steps of AdamW."""


def test_two_workers_learn_what_one_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    uri = training.write_tars(tmp_path / "tars", 2, 20)
    monkeypatch.chdir(tmp_path)
    courses, models = [], []
    for count in (1, 2):
        spec = training.spec(
            uri,
            f"out/{count}",  # as a person writes it; a worker's folder is another
            resources__workers=count,
            train__modality_dropout=0.3,
            train__augment={"crop": 0.2, "color": 0.2, "words": 0.2},
            model__heads={"contrastive": {}, "classify": {"label": "category"}},
        )
        report = train.run(spec, quiet=True)
        assert report.status == "done"
        assert report.rows_written == 40
        courses.append(training.course(spec.output, tmp_path / "at"))
        models.append(training.weights(spec.output, tmp_path / "at"))
    one, two = courses
    assert one.losses == pytest.approx(two.losses, rel=TOLERANCE)
    for mine, other in zip(one.epochs, two.epochs, strict=True):
        assert mine == pytest.approx(other, rel=1e-3)
    for name, weight in models[0].items():
        assert torch.allclose(weight, models[1][name], atol=TOLERANCE), name


class Watching:
    """What a run shows, and a signal by which it's told to stop."""

    def __init__(self) -> None:
        self.signum = 0
        self.said: list[str] = []

    def begun(self, step: int, steps: int, batch: int) -> None:
        """Nothing to show."""

    def stepped(self, step: int, loss: float, told: dict[str, float]) -> None:
        """Nothing to show."""

    def measured(self, metrics: dict[str, float]) -> None:
        """Nothing to show."""

    def signal(self) -> int:
        return self.signum


@dataclass(frozen=True)
class Broken:
    """A task whose second worker can't take what is pinned: it writes down that it tried, and dies
    or raises."""

    spec: TrainSpec
    whole: Pinned
    tried: str
    kill: bool

    @property
    def pinned(self) -> Pinned:
        if dist.get_rank() == 0:
            return self.whole
        with open(self.tried, "a") as out:
            out.write("x")
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("no such thing")


def attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, kill: bool
) -> tuple[int, str, list[str]]:
    """How often workers were started, the words that it ended with, and what was said."""
    spec = training.spec(training.write_tars(tmp_path / "tars", 1, 20), tmp_path / "out")
    monkeypatch.setattr(lost, "IDLE", 2)
    storage, watching = Storage(), Watching()
    start = begin(spec, storage, watching.said.append, here)
    spec = spec.model_copy(update={"resources": TrainResources(workers=2)})
    tried = tmp_path / "tried"
    task: Any = Broken(spec, start.pinned, str(tried), kill)
    with pytest.raises(JobFailed) as caught:
        workers.train(task, watching, watching.said.append)
    return len(tried.read_text()), str(caught.value), watching.said


def test_an_error_of_a_workers_own_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, words, said = attempts(tmp_path, monkeypatch, kill=False)
    assert tries == 1
    assert words.endswith("worker 1: ValueError: no such thing")
    assert "Traceback" in said[-1]


@pytest.mark.soak
def test_workers_that_die_without_headway_end_it_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, words, said = attempts(tmp_path, monkeypatch, kill=True)
    assert tries == 2
    assert "lost 2 times without headway; the last: worker 1: " in words
    assert said[-1].startswith("beginning again at the last checkpoint: worker 1: ")


@pytest.mark.soak
def test_a_signal_while_no_worker_trains_ends_it_at_once(tmp_path: Path) -> None:
    uri = training.write_tars(tmp_path / "tars", 1, 20)
    spec = training.spec(uri, tmp_path / "out", resources__workers=2)
    watching = Watching()
    start = begin(spec, Storage(), watching.said.append, here)
    watching.signum = signal.SIGTERM
    with pytest.raises(Interrupted) as caught:
        workers.train(Task(spec, start.pinned), watching, watching.said.append)
    assert caught.value.signum == signal.SIGTERM
    [fit] = [each for each in threading.enumerate() if each.name == "fit"]
    fit.join(400)  # its workers, which were on their way, do nothing
    assert not fit.is_alive()
    pointer = Checkpoints(Storage(), spec.output).pointer()
    assert pointer is not None
    assert pointer["last"].endswith("step-00000000")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
def test_a_gpu_that_torch_cannot_use_ends_it(tmp_path: Path) -> None:
    asked = TrainResources(workers=2, gpus_per_worker=0.5)
    spec = training.spec("x.tar", tmp_path).model_copy(update={"resources": asked})
    pinned: Any = None
    with pytest.raises(RefusedError, match="Ray gave one, and torch sees none"):
        workers.train(Task(spec, pinned), Watching(), lambda _: None)


def test_workers_ask_for_what_the_spec_says(tmp_path: Path) -> None:
    asked = TrainResources(workers=(2, 5), cpus_per_worker=3, gpus_per_worker=0.5)
    spec = training.spec("x.tar", tmp_path).model_copy(update={"resources": asked})
    pinned: Any = None
    scaling = workers._trainer(Task(spec, pinned), None, str(tmp_path)).scaling_config
    assert scaling.num_workers == (2, 5)
    assert scaling.use_gpu
    assert scaling.resources_per_worker == {"CPU": 3, "GPU": 0.5}


def test_too_few_resources_are_told() -> None:
    lacking = workers._lacking(TrainResources(workers=(8, 9)))
    assert lacking == "resources: 8 workers need 8 CPUs, Ray has 2"
    assert not workers._lacking(TrainResources(workers=(2, 9)))
