"""Trackers: they are told what TensorBoard is told, a training is one run, and none can stop it.

The packages themselves are no dependency of the tests: small fakes stand in `sys.modules`, with the
rules of the real ones that matter here. Where the real ones are installed, the last test runs them.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from mmray.errors import Interrupted, JobFailed, RefusedError
from mmray.jobs import train
from mmray.specs.train import TrainSpec
from mmray.train import track
from mmray.train.seen import Events
from tests import training

BOTH = {"wandb": {"project": "stamps"}, "mlflow": {"experiment": "stamps"}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_tars(tmp_path_factory.mktemp("tars"))


class Wandb(ModuleType):
    """Runs by id; a step below the last one is ignored, as W&B does."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="here")
        self.Settings = dict
        self.runs: dict[str, WandbRun] = {}
        self.inits: list[dict[str, Any]] = []

    def init(self, **options: Any) -> WandbRun:
        self.inits.append(options)
        assert options["resume"] == "allow"
        return self.runs.setdefault(options["id"], WandbRun())


class WandbRun:
    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.ignored: list[int] = []
        self.codes: list[int] = []
        self.config: Any = SimpleNamespace(update=self._configure)
        self.settings: dict[str, Any] = {}
        self.offline, self.url = False, "https://wandb.example/run"

    @property
    def step(self) -> int:
        return max(self.rows) + 1 if self.rows else 0

    def _configure(self, values: dict[str, Any], *, allow_val_change: bool) -> None:
        assert allow_val_change
        self.settings |= values

    def log(self, values: dict[str, float], step: int) -> None:
        if step < self.step - 1:
            self.ignored.append(step)
        else:
            self.rows.setdefault(step, {}).update(values)

    def finish(self, exit_code: int) -> None:
        self.codes.append(exit_code)


class Mlflow:
    """A tracking server and its client."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.uris: list[str | None] = []
        self.experiments: list[str] = []
        self.runs: list[SimpleNamespace] = []
        entities = ModuleType("mlflow.entities")
        entities.Metric = lambda *parts: SimpleNamespace(  # type: ignore[attr-defined]
            **dict(zip(("key", "value", "timestamp", "step"), parts, strict=True))
        )
        entities.Param = lambda key, value: (key, value)  # type: ignore[attr-defined]
        tracking = ModuleType("mlflow.tracking")
        tracking.MlflowClient = self.client  # type: ignore[attr-defined]
        top = ModuleType("mlflow")
        top.__spec__ = ModuleSpec("mlflow", None, origin="here")
        for module in (top, entities, tracking):
            patch.setitem(sys.modules, module.__name__, module)

    def client(self, tracking_uri: str | None) -> Mlflow:
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        known = name in self.experiments
        return SimpleNamespace(experiment_id=name) if known else None

    def create_experiment(self, name: str) -> str:
        self.experiments.append(name)
        return name

    def search_runs(self, experiments: list[str], filter_string: str, max_results: int) -> Any:
        del max_results
        return [
            run
            for run in self.runs
            if run.experiment in experiments
            and all(filter_string == f"tags.`{key}` = '{it}'" for key, it in run.tags.items())
        ]

    def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
        run = SimpleNamespace(
            experiment=experiment,
            tags=tags,
            name=run_name,
            info=SimpleNamespace(run_id=f"run-{len(self.runs)}"),
            params={},
            metrics=[],
            statuses=["RUNNING"],
        )
        self.runs.append(run)
        return run

    def run(self, run_id: str) -> Any:
        return next(run for run in self.runs if run.info.run_id == run_id)

    def update_run(self, run_id: str, status: str) -> None:
        self.run(run_id).statuses.append(status)

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        self.run(run_id).metrics += metrics
        for key, value in params:
            assert isinstance(value, str)
            assert key not in self.run(run_id).params
            self.run(run_id).params[key] = value

    def get_metric_history(self, run_id: str, key: str) -> Any:
        return [each for each in self.run(run_id).metrics if each.key == key]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    return Mlflow(monkeypatch)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, float]]:
    """What TensorBoard is told, by step."""
    told: dict[int, dict[str, float]] = {}
    add = Events.add

    def noted(self: Events, step: int, values: dict[str, float]) -> None:
        told.setdefault(step, {}).update(values)
        add(self, step, values)

    monkeypatch.setattr(Events, "add", noted)
    return told


def run(spec: TrainSpec) -> None:
    train.run(spec, quiet=True)


def stop_at(spec: TrainSpec, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that a signal ends after `step` steps of it."""
    from mmray.train.seen import Seen

    with monkeypatch.context() as patch:
        patch.setattr(Seen, "signal", lambda self: 15 if len(self.losses) >= step else 0)
        with pytest.raises(Interrupted):
            run(spec)


def by_step(metrics: list[Any]) -> dict[int, dict[str, float]]:
    """Those of the last step before a kill may be there twice; they are the same."""
    found: dict[int, dict[str, float]] = {}
    for each in metrics:
        row = found.setdefault(each.step, {})
        assert row.setdefault(each.key, each.value) == each.value
    return found


def test_they_are_told_what_tensorboard_is_told(
    tars: str,
    tmp_path: Path,
    wandb: Wandb,
    mlflow: Mlflow,
    board: dict[int, dict[str, float]],
) -> None:
    spec = training.spec(tars, tmp_path / "stamps", track=BOTH)
    run(spec)
    (one,) = wandb.runs.values()
    (other,) = mlflow.runs
    assert set(board) == set(range(1, max(board) + 1))
    assert {"train/loss", "train/contrastive", "train/rate", "val/mrr"} <= set(board[max(board)])
    assert one.rows == board
    assert by_step(other.metrics) == board
    assert one.settings["train"]["lr"] == 3e-3
    assert other.params["train.lr"] == "0.003"
    assert other.params["model.towers.image.kind"] == "conv"
    assert (wandb.inits[0]["project"], wandb.inits[0]["name"]) == ("stamps", "stamps")
    assert (other.experiment, other.name, other.tags) == (
        "stamps",
        "stamps",
        {"mmray.training": wandb.inits[0]["id"]},
    )
    assert one.codes == [0]
    assert other.statuses == ["RUNNING", "FINISHED"]
    run(spec)  # done: no tracker is asked
    assert len(wandb.inits) == 1


def test_a_training_that_goes_on_is_one_run(
    tars: str,
    tmp_path: Path,
    wandb: Wandb,
    mlflow: Mlflow,
    board: dict[int, dict[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where steps are done again, as after a kill: the last checkpoint is gone."""
    spec = training.spec(tars, tmp_path / "out", track=BOTH)
    stop_at(spec, 6, monkeypatch)
    (one,) = wandb.runs.values()
    (other,) = mlflow.runs
    assert one.codes == [143]
    assert other.statuses == ["RUNNING", "KILLED"]
    newest = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1]
    (newest / "manifest.json").unlink()
    run(spec)
    assert len(wandb.runs) == len(mlflow.runs) == 1
    assert one.rows == by_step(other.metrics) == board
    told = [each.step for each in other.metrics if each.key == "train/loss"]
    assert len(told) == len(set(told)) + 1
    assert one.ignored == []
    assert one.codes == [143, 0]
    assert other.statuses == ["RUNNING", "KILLED", "RUNNING", "FINISHED"]


def test_another_training_at_the_place_of_one_is_another_run(
    tars: str, tmp_path: Path, wandb: Wandb
) -> None:
    import shutil

    spec = training.spec(tars, tmp_path / "out", track={"wandb": BOTH["wandb"]}, train__epochs=1)
    for _ in range(2):
        run(spec)
        shutil.rmtree(tmp_path / "out")
    assert len(wandb.runs) == 2


def test_options_reach_them(tars: str, tmp_path: Path, wandb: Wandb, mlflow: Mlflow) -> None:
    asked = {
        "wandb": {"project": "p", "entity": "team", "name": "mine"},
        "mlflow": {"experiment": "e", "uri": "http://localhost:1", "name": "mine"},
    }
    run(training.spec(tars, tmp_path / "out", track=asked, train__epochs=1))
    assert wandb.inits[0] | {"project": "p", "entity": "team", "name": "mine"} == wandb.inits[0]
    assert mlflow.uris == ["http://localhost:1"]
    assert (mlflow.experiments, mlflow.runs[0].name) == (["e"], "mine")


def test_what_is_tracked_does_not_change_what_is_learned(
    tars: str, tmp_path: Path, wandb: Wandb
) -> None:
    """A tracker may be added to a training that is there."""
    run(training.spec(tars, tmp_path / "out", train__epochs=1))
    run(training.spec(tars, tmp_path / "out", train__epochs=1, track={"wandb": {"project": "p"}}))
    assert wandb.runs == {}


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_refused_before_any_work(
    tars: str, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, name, raising=False)
    folder = tmp_path / "cwd" / name  # W&B makes one where it runs
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(folder.parent)])
    spec = training.spec(tars, tmp_path / "out", track={name: BOTH[name]})
    words = rf"track\.{name} needs a package: pip install 'mmray\[{name}\]'"
    with pytest.raises(RefusedError, match=words):
        run(spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("when", ["open", "log", "finish"])
def test_a_tracker_that_fails_is_told_once_and_training_goes_on(
    tars: str,
    tmp_path: Path,
    wandb: Wandb,
    mlflow: Mlflow,
    when: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")

    def fails(*_: Any, **__: Any) -> Any:
        raise ConnectionError("https://me:secret@host is\ndown for 0123456789abcdef")

    monkeypatch.setattr(wandb if when == "open" else WandbRun, when.replace("open", "init"), fails)
    spec = training.spec(tars, tmp_path / "out", track=BOTH)
    report = train.run(spec)
    assert report.status == "done"
    words = capsys.readouterr().err
    assert (
        words.count("track.wandb: ConnectionError: https://***@host is down for ***; numbers") == 1
    )
    assert mlflow.runs[0].statuses[-1] == "FINISHED"


def test_a_tracker_that_hangs_does_not_hold_training_up(
    tars: str,
    tmp_path: Path,
    wandb: Wandb,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(track, "CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(track, "HELD", 3)
    monkeypatch.setattr(wandb, "init", lambda **_: ended.wait(60))
    begun = time.monotonic()
    try:
        report = train.run(training.spec(tars, tmp_path / "out", track={"wandb": BOTH["wandb"]}))
    finally:
        ended.set()
    assert time.monotonic() - begun < 50
    assert report.status == "done"
    assert capsys.readouterr().err.count("track.wandb: is 3 calls behind; numbers may") == 1


def test_a_training_that_diverges_has_failed_there_too(
    tars: str, tmp_path: Path, wandb: Wandb, mlflow: Mlflow
) -> None:
    spec = training.spec(
        tars,
        tmp_path / "out",
        track=BOTH,
        train__lr=1e30,
        train__optimizer="sgd",
        train__grad_clip=None,
    )
    with pytest.raises(JobFailed):
        run(spec)
    assert next(iter(wandb.runs.values())).codes == [1]
    assert mlflow.runs[0].statuses == ["RUNNING", "FAILED"]


def test_no_secret_stands_in_a_spec(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold no user or password"):
        training.spec(
            "x", tmp_path, track={"mlflow": {"experiment": "e", "uri": "https://me:pw@host"}}
        )


def test_the_real_ones_where_they_are_installed(
    tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    pytest.importorskip("mlflow", exc_type=ImportError)
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    asked = {"wandb": {"project": "p"}, "mlflow": {"experiment": "e", "uri": uri}}
    spec = training.spec(tars, tmp_path / "out", track=asked)
    stop_at(spec, 4, monkeypatch)
    run(spec)
    client: Any = MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert found.info.status == "FINISHED"
    steps = [each.step for each in client.get_metric_history(found.info.run_id, "train/loss")]
    assert steps == list(range(1, len(steps) + 1))
    name = json.loads((tmp_path / "out" / "_mmray" / "track.json").read_text())["id"]
    assert len(list(tmp_path.glob(f"wandb/offline-run-*-{name}"))) == 2
