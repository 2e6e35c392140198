"""A training that is killed goes on: its loss curve is as if undisturbed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mmray.train.course import Course
from tests import runs, training

pytestmark = pytest.mark.e2e

EPOCHS, STEPS = 30, 90
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # as in this process: sums in one order


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Course]:
    """Tars, and the history of a training on them in this process."""
    from mmray.jobs import train

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("train")
    uri = training.write_tars(folder / "tars", 2, 18)
    spec = training.spec(uri, folder / "whole", **options())
    train.run(spec, quiet=True)
    course = training.course(spec.output, folder / "at")
    assert course.step == STEPS
    return uri, course


def options(workers: int | list[int] = 1) -> dict[str, Any]:
    return {
        "train__epochs": EPOCHS,
        "train__checkpoint_steps": 2,
        "model__dropout": 0.0,
        "resources__workers": workers,
    }


def last_step(output: Path) -> int:
    """The step of the newest checkpoint, -1 where there's none."""
    try:
        pointer = json.loads((output / "checkpoint.json").read_text())
    except (FileNotFoundError, ValueError):
        return -1
    return int(pointer["last"].rpartition("-")[2])


def wait_for_step(run: runs.Run, output: Path, step: int) -> None:
    deadline = time.monotonic() + runs.TIMEOUT
    while run.running and last_step(output) < step:
        assert time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.02)
    assert run.running, run.log.read_text()


def wait_for_words(run: runs.Run, words: str) -> None:
    deadline = time.monotonic() + runs.TIMEOUT
    while run.running and words not in run.log.read_text():
        assert time.monotonic() < deadline, run.log.read_text()
        time.sleep(0.02)
    assert run.running, run.log.read_text()


def test_driver_killed_again_and_again(undisturbed: tuple[str, Course], tmp_path: Path) -> None:
    uri, course = undisturbed
    output = tmp_path / "out"
    spec = training.fields(uri, output, **options())
    for _ in range(3):
        run = runs.Run(spec, tmp_path, env=ONE_THREAD)
        wait_for_step(run, output, max(last_step(output), 0) + 7)
        run.kill()
    report = runs.run(spec, tmp_path, env=ONE_THREAD)
    assert report["status"] == "done"
    assert training.course(output, tmp_path / "at") == course


def test_sigterm_saves_and_exits_143(undisturbed: tuple[str, Course], tmp_path: Path) -> None:
    uri, course = undisturbed
    output = tmp_path / "out"
    spec = training.fields(uri, output, **options())
    spec["train"]["checkpoint_steps"] = 1000
    run = runs.Run(spec, tmp_path, env=ONE_THREAD)
    wait_for_step(run, output, 4)
    run.signal(signal.SIGTERM)
    report = run.finish(code=143)
    assert report["status"] == "interrupted"
    assert 4 < last_step(output) < STEPS
    assert report["metrics"]["steps"] == last_step(output)
    runs.run(spec, tmp_path, env=ONE_THREAD)
    assert training.course(output, tmp_path / "at").losses == course.losses


def test_worker_killed(undisturbed: tuple[str, Course], tmp_path: Path) -> None:
    uri, course = undisturbed
    output = tmp_path / "out"
    run = runs.Run(training.fields(uri, output, **options(workers=2)), tmp_path)
    wait_for_step(run, output, 10)
    workers = run.workers("RayTrainWorker")
    os.kill(workers[-1], signal.SIGKILL)
    report = run.finish()
    assert report["metrics"]["steps"] == STEPS
    assert len(workers) == 2
    assert "going on from step" in run.log.read_text()
    losses = training.course(output, tmp_path / "at").losses
    assert losses == pytest.approx(course.losses, rel=1e-2)


@pytest.mark.soak
def test_sigterm_with_two_workers(undisturbed: tuple[str, Course], tmp_path: Path) -> None:
    """While they train, and while they come back."""
    uri, course = undisturbed
    output = tmp_path / "out"
    fields = training.fields(uri, output, **options(workers=2))
    fields["train"]["checkpoint_steps"] = 1000
    run = runs.Run(fields, tmp_path)
    wait_for_step(run, output, 9)
    run.signal(signal.SIGTERM)
    report = run.finish(code=143)
    assert 9 < report["metrics"]["steps"] == last_step(output)

    run = runs.Run(fields, tmp_path)
    wait_for_step(run, output, last_step(output) + 3)
    os.kill(run.workers("RayTrainWorker")[0], signal.SIGKILL)
    wait_for_words(run, "beginning again at the last checkpoint: worker 0:")
    begun = time.monotonic()
    run.signal(signal.SIGTERM)
    assert run.finish(code=143)["status"] == "interrupted"
    assert time.monotonic() - begun < 20
    assert 9 < last_step(output) < STEPS
    fields["resources"]["workers"] = 1
    runs.run(fields, tmp_path)
    losses = training.course(output, tmp_path / "at").losses
    assert losses == pytest.approx(course.losses, rel=1e-2)


@pytest.mark.soak
def test_node_lost(undisturbed: tuple[str, Course], tmp_path: Path) -> None:
    """With a range of workers it goes on with those that are left."""
    from ray.cluster_utils import Cluster

    uri, course = undisturbed
    output = tmp_path / "out"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        node = cluster.add_node(num_cpus=1)
        fields = training.fields(uri, output, **options(workers=[1, 2]))
        fields["resources"]["address"] = cluster.address
        run = runs.Run(fields, tmp_path)
        wait_for_step(run, output, 10)
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in (raylet, *raylet.children(recursive=True)):
            process.kill()
        report = run.finish()
    finally:
        cluster.shutdown()
    log = run.log.read_text()
    both, lost, one = map(log.index, ("with 2 workers", "beginning again", "with 1 worker"))
    assert both < lost < one
    assert report["metrics"]["steps"] == STEPS
    losses = training.course(output, tmp_path / "at").losses
    assert losses == pytest.approx(course.losses, rel=1e-2)
