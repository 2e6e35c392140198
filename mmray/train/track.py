"""Trackers: Weights & Biases and MLflow, told what TensorBoard is told, by the driver alone.

A tracker works on a thread of its own and is waited for only at the end, and not for long: what it
can't take is lost, told once, and no reason to stop. A training is one run there, however often it
is killed: its id is kept at the output, and steps that are done again are not told again.
"""

import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mmray.errors import RefusedError
from mmray.report.scrub import scrub
from mmray.specs.track import MlflowRun, Track, WandbRun
from mmray.specs.train import TrainSpec
from mmray.storage import Storage, join
from mmray.train.start import learned

HELD = 10_000
"""Calls that wait for a tracker; more are lost."""
CLOSE_SECONDS, SIGNALLED_SECONDS = 60.0, 10.0
"""How long a run's end waits for trackers; the second where a signal ended it."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class About:
    """What a tracker is told of a training."""

    id: str
    """See `training_id`."""
    name: str
    """For people."""
    settings: Mapping[str, Any]
    """What is learned, as the spec says it."""


def check_installed(track: Track) -> None:
    """Raises RefusedError where a tracker that is asked for isn't installed."""
    for name in track.names:
        found = find_spec(name)
        # A folder of that name is no package, and W&B makes one where it runs.
        if found is None or found.origin is None:
            raise RefusedError(f"track.{name} needs a package: pip install 'mmray[{name}]'")


def training_id(storage: Storage, output: str) -> str:
    """The id of the training at an output: made once, and gone with it.

    Raises RefusedError, StorageError.
    """
    place = join(output, "_mmray", "track.json")
    storage.put_if_absent(place, json.dumps({"id": uuid.uuid4().hex}).encode())
    try:
        found: str = json.loads(storage.read_bytes(place))["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{place} is broken: {error}") from error
    return found


def trackers(spec: TrainSpec, storage: Storage, say: Say) -> list["Tracked"]:
    """Those that a spec asks for. Raises RefusedError, StorageError."""
    track = spec.track
    if not track.names:
        return []
    name = spec.output.rstrip("/").rpartition("/")[2]
    about = About(training_id(storage, spec.output), name, learned(spec))
    found: dict[str, Tracker] = {}
    if track.wandb is not None:
        found["wandb"] = _Wandb(track.wandb, about)
    if track.mlflow is not None:
        found["mlflow"] = _Mlflow(track.mlflow, about)
    return [Tracked(name, tracker, say) for name, tracker in found.items()]


def close_all(those: Sequence["Tracked"], code: int) -> None:
    """End trackers' runs, by the exit code of the job, and wait until what's left is sent."""
    seconds = SIGNALLED_SECONDS if code > 128 else CLOSE_SECONDS
    deadline = time.monotonic() + seconds
    for tracker in those:
        tracker.end(code)
    for tracker in those:
        tracker.wait(deadline)


class Tracker(Protocol):
    """A tracker as it is: anything of it may fail or take long."""

    def open(self) -> tuple[int, str]:
        """Begin the run, or go on with it: the last step that it has, or 0, and where it's seen."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step."""

    def close(self, code: int) -> None:
        """End the run, by the exit code of the job."""


class Tracked:
    """A tracker on its thread; nothing of it fails, and nothing but `wait` takes long."""

    def __init__(self, name: str, tracker: Tracker, say: Say) -> None:
        self._name, self._tracker, self._say = name, tracker, say
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue(HELD)
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._known: int | None = None
        """The last step that was told; None until the run is open."""
        self._warned = False

    def open(self) -> None:
        """Begin, once."""
        if self._thread.ident is None:
            self._thread.start()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a step."""
        self._put(lambda: self._add(step, values))

    def end(self, code: int) -> None:
        """No more numbers will come."""
        self._put(lambda: self._close(code))
        self._put(None)

    def wait(self, deadline: float) -> None:
        """Until all is sent, or the clock says `deadline`."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._warn("has not taken all that it was told")

    def _put(self, call: Callable[[], None] | None) -> None:
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._warn(f"is {HELD:,} calls behind")

    def _work(self) -> None:
        call: Callable[[], None] | None = self._open
        while call is not None:
            try:
                call()
            except Exception as error:  # noqa: BLE001 (told; a training isn't there for it)
                self._warn(f"{type(error).__name__}: {error}")
            call = self._calls.get()

    def _open(self) -> None:
        self._known, place = self._tracker.open()
        self._say(f"track.{self._name}: {place}")

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        # The last step is told again: a run may have died before it was measured.
        if self._known is not None and step >= self._known:
            self._known = step
            self._tracker.add(step, values)

    def _close(self, code: int) -> None:
        if self._known is not None:
            self._tracker.close(code)

    def _warn(self, words: str) -> None:
        if not self._warned:
            self._warned = True
            shown = " ".join(scrub(words).split())[:300]
            self._say(f"track.{self._name}: {shown}; numbers may be missing there")


class _Wandb:
    """A run of Weights & Biases, whose id is the training's."""

    def __init__(self, asked: WandbRun, about: About) -> None:
        self._asked, self._about = asked, about
        self._run: Any = None

    def open(self) -> tuple[int, str]:
        import wandb

        library: Any = wandb
        self._run = library.init(
            project=self._asked.project,
            entity=self._asked.entity,
            name=self._asked.name or self._about.name,
            id=self._about.id,
            resume="allow",
            settings=library.Settings(console="off", silent=True),
        )
        self._run.config.update(dict(self._about.settings), allow_val_change=True)
        place = Path(self._run.dir).parent if self._run.offline else self._run.url
        return max(0, int(self._run.step) - 1), str(place)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, code: int) -> None:
        self._run.finish(exit_code=code)


class _Mlflow:
    """A run of MLflow, found by a tag: MLflow names its runs itself."""

    TAG = "mmray.training"

    def __init__(self, asked: MlflowRun, about: About) -> None:
        self._asked, self._about = asked, about
        self._client: Any = None
        self._run = ""

    def open(self) -> tuple[int, str]:
        # It prints to standard output where a run is, which is the report's.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._asked.uri)
        experiment = self._experiment()
        wanted = f"tags.`{self.TAG}` = '{self._about.id}'"
        found = self._client.search_runs([experiment], wanted, max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._begin(experiment)
        history = self._client.get_metric_history(self._run, "train/loss")
        place = f"run {self._run} in the experiment {self._asked.experiment}"
        return max((each.step for each in history), default=0), place

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, code: int) -> None:
        status = {0: "FINISHED", 1: "FAILED"}.get(code, "KILLED")
        self._client.set_terminated(self._run, status)

    def _experiment(self) -> str:
        name = self._asked.experiment
        known = self._client.get_experiment_by_name(name)
        found: str = known.experiment_id if known else self._client.create_experiment(name)
        return found

    def _begin(self, experiment: str) -> None:
        from mlflow.entities import Param

        name = self._asked.name or self._about.name
        tags = {self.TAG: self._about.id}
        self._run = self._client.create_run(experiment, tags=tags, run_name=name).info.run_id
        params = [Param(name, str(value)[:PARAM]) for name, value in _flat(self._about.settings)]
        for start in range(0, len(params), PARAMS):
            self._client.log_batch(self._run, params=params[start : start + PARAMS])


PARAM, PARAMS = 500, 100
"""What MLflow takes: characters of a parameter, and parameters of a call."""


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value
