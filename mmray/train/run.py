"""The same loop in several workers, which Ray Train starts, and starts again when one is lost.

A worker begins at the newest checkpoint, so a restart is nothing special. Workers tell the driver
what they do through a small actor, and look there whether to stop. With a range of workers Ray
Train takes as many as the cluster holds, and starts anew from the last checkpoint when that
changes.
"""

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from mmray.errors import JobFailed, RefusedError
from mmray.flow.drive import cluster
from mmray.index import files
from mmray.sources import Shard, Source
from mmray.specs.common import Resources
from mmray.specs.train import TrainSpec
from mmray.storage import Storage
from mmray.train.begin import here
from mmray.train.course import Ended, Watch
from mmray.train.pieces import PieceWriter
from mmray.train.pinned import Piece, make_piece
from mmray.train.task import Task

_Told = tuple[str, tuple[Any, ...]]

RESTARTS = 16
"""Losses of workers that a run gets over."""
LITTLE = 64 * 1024 * 1024
TELL_SECONDS = 0.2
COLLECTIVE_SECONDS = 600
"""How long workers wait for one that doesn't answer."""


@contextmanager
def connected(spec: TrainSpec) -> Iterator[None]:
    """Ray, as the spec asks for it. Raises JobFailed where this machine lacks the GPUs."""
    asked = spec.resources
    gpus = asked.gpus_per_worker * asked.worker_range[0]
    with cluster(Resources(address=asked.address, gpus=gpus)):
        yield


def spread_pieces(
    source: Source, spec: TrainSpec, how: str, missing: list[tuple[str, Shard]]
) -> Iterable[Piece]:
    """Pieces made by tasks on the cluster, a shard each; of few bytes, here: a worker takes ten
    seconds to start."""
    import ray

    of_bytes = spec.data.source.kind == "webdataset"
    little = of_bytes and sum(shard.size for _, shard in missing) < LITTLE
    if little and not spec.resources.gpus_per_worker:
        yield from here(source, spec, how, missing)
        return
    gpus = min(1.0, spec.resources.gpus_per_worker)
    task = ray.remote(num_cpus=1, num_gpus=gpus)(_piece)
    waiting = [task.remote(source, spec, how, path, shard) for path, shard in missing]
    while waiting:
        ready, waiting = ray.wait(waiting)
        yield from ray.get(ready)


def _piece(source: Source, spec: TrainSpec, how: str, path: str, shard: Shard) -> Piece:
    storage = Storage.of(spec.storage)
    writer = _writer(spec.model_dump_json(), how)
    return make_piece(storage, spec.output, path, writer, (source, shard))


@lru_cache(1)
def _writer(spec: str, how: str) -> PieceWriter:
    """One for each process: it may hold models."""
    from mmray.train.kept import writer

    return writer(TrainSpec.model_validate_json(spec), how)


def train(task: Task, watch: Watch, say: Callable[[str], None]) -> Ended:
    """Train on the cluster that this process is connected to.

    Raises:
        RefusedError: the workers can't begin.
        JobFailed: workers were lost too often.
    """
    import ray

    board: Any = ray.remote(num_cpus=0)(_Board).remote()
    with files.scratch() as folder:
        fit = _Fit(task, board, str(folder))
        try:
            while fit.running:
                time.sleep(TELL_SECONDS)
                _pass_on(ray.get(board.take.remote()), watch, say)
                signum = watch.signal()
                if signum:
                    ray.get(board.stop.remote(signum))
            _pass_on(ray.get(board.take.remote()), watch, say)
            ended: Ended | None = ray.get(board.ended.remote())
        finally:
            ray.kill(board)
    if ended is None:
        raise JobFailed(f"training ended without a result: {fit.error}") from fit.error
    return ended


def _pass_on(told: list[_Told], watch: Watch, say: Callable[..., Any]) -> None:
    for name, values in told:
        if name == "refused":
            raise RefusedError(*values)
        (say if name == "say" else getattr(watch, name))(*values)


class _Fit:
    """Ray Train's run, on a thread: it blocks."""

    def __init__(self, task: Task, board: Any, folder: str) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(task, board, folder), name="fit", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self, task: Task, board: Any, folder: str) -> None:
        try:
            _trainer(task, board, folder).fit()
        except BaseException as error:  # noqa: BLE001 (told where the result is missing)
            self.error = error


def _trainer(task: Task, board: Any, folder: str) -> Any:
    # Ray Train's own words on standard error are not our user's.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.data
        import ray.train as library
        from ray.train.torch import TorchConfig, TorchTrainer

        # Ray Train asks for it, and it warns of a setting of its own.
        ray.data.DataContext.get_current()
    api: Any = library
    asked = task.spec.resources
    least, most = asked.worker_range
    each = {"CPU": asked.cpus_per_worker}
    if asked.gpus_per_worker:
        each["GPU"] = asked.gpus_per_worker
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    return TorchTrainer(
        _worker,
        train_loop_config={"task": task, "board": board},
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=api.ScalingConfig(
            num_workers=most if least == most else (least, most),
            use_gpu=bool(asked.gpus_per_worker),
            resources_per_worker=each,
        ),
        run_config=api.RunConfig(
            name="mmray",
            storage_path=folder,
            failure_config=api.FailureConfig(max_failures=RESTARTS),
            logging_config=api.LoggingConfig(log_level="ERROR"),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train.torch as library
    import torch

    from mmray.train.loop import Place
    from mmray.train.worker import work

    api: Any = library
    task, board = config["task"], config["board"]
    context = ray.train.get_context()
    place: Place = Place(context.get_world_rank(), context.get_world_size(), str(api.get_device()))
    torch.set_num_threads(max(1, int(task.spec.resources.cpus_per_worker)))
    telling = _Telling(board)
    try:
        ended = work(task, place, telling, telling.say)
    except RefusedError as error:
        telling.tell("refused", str(error))
        telling.flush()
        raise
    if place.rank == 0:
        telling.flush()
        ray.get(board.end.remote(ended))


class _Board:
    """What rank 0 tells the driver, and the driver rank 0; an actor."""

    def __init__(self) -> None:
        self._told: list[_Told] = []
        self._signum = 0
        self._ended: Ended | None = None

    def tell(self, told: list[_Told]) -> int:
        self._told += told
        return self._signum

    def take(self) -> list[_Told]:
        told, self._told = self._told, []
        return told

    def stop(self, signum: int) -> None:
        self._signum = signum

    def end(self, ended: Ended) -> None:
        self._ended = ended

    def ended(self) -> Ended | None:
        return self._ended


class _Telling:
    """A worker's watch: what happens goes to the board a few times a second, and no step waits."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._held: list[_Told] = []
        self._sent: Any = None
        self._last = 0.0
        self._signum = 0

    def begun(self, step: int, steps: int, batch: int) -> None:
        self.tell("begun", step, steps, batch)

    def stepped(self, step: int, loss: float, told: dict[str, float]) -> None:
        self.tell("stepped", step, loss, told)

    def measured(self, metrics: dict[str, float]) -> None:
        self.tell("measured", dict(metrics))

    def say(self, words: str) -> None:
        self.tell("say", words)

    def signal(self) -> int:
        self._send(time.monotonic())
        return self._signum

    def tell(self, name: str, *values: Any) -> None:
        self._held.append((name, values))

    def flush(self) -> None:
        import ray

        self._answer(wait=True)
        ray.get(self._board.tell.remote(self._held))
        self._held = []

    def _send(self, now: float) -> None:
        if self._answer() and now - self._last >= TELL_SECONDS:
            self._sent = self._board.tell.remote(self._held)
            self._held, self._last = [], now

    def _answer(self, wait: bool = False) -> bool:
        """Take up what the board answered; whether nothing is under way."""
        import ray

        if self._sent is None:
            return True
        ready, _ = ray.wait([self._sent], timeout=None if wait else 0)
        if ready:
            self._signum = ray.get(self._sent)
            self._sent = None
        return bool(ready)
