"""The same loop in several workers, which Ray Train starts; a run of its own for each time that
workers were lost.

A worker begins at the newest checkpoint, so a restart is nothing special. Workers tell the driver
what they do through a small actor, and look there whether to stop. With a range of workers Ray
Train takes as many as the cluster holds, and starts anew from the last checkpoint when it has room
for more.
"""

import logging
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from typing import Any

from mmray.errors import Interrupted, JobFailed, RefusedError
from mmray.flow.drive import cluster
from mmray.sources import Shard, Source
from mmray.specs.common import Resources
from mmray.specs.train import TrainResources, TrainSpec
from mmray.storage import Storage, blobs
from mmray.train.begin import here
from mmray.train.board import TELL_SECONDS, Heard, Telling, put_up
from mmray.train.course import Ended, Watch
from mmray.train.lost import RESTARTS, Losses, is_echo, own_fault, words_of
from mmray.train.pieces import PieceWriter
from mmray.train.pinned import Piece, make_piece
from mmray.train.task import Task

LITTLE = 64 * 1024 * 1024
COLLECTIVE_SECONDS = 600
"""How long workers wait for one that doesn't answer."""


@contextmanager
def connected(spec: TrainSpec) -> Iterator[None]:
    """Ray, as the spec asks for it.

    Raises:
        JobFailed: this machine can't hold the workers.
        Interrupted: SIGTERM came meanwhile.
    """
    asked = spec.resources
    gpus = asked.gpus_per_worker * asked.worker_range[0]
    handler = signal.getsignal(signal.SIGTERM)
    with ExitStack() as stack:
        try:
            stack.enter_context(cluster(Resources(address=asked.address, gpus=gpus)))
        except SystemExit as error:  # of the handler that Ray puts in the place of ours
            raise Interrupted(signal.SIGTERM) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        lacking = _lacking(asked)
        if lacking and not (asked.address or os.environ.get("RAY_ADDRESS")):
            raise JobFailed(lacking)  # a cluster may grow, this machine doesn't
        yield


def _lacking(asked: TrainResources) -> str:
    """What Ray has too little of for the least number of workers, in words."""
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    least = asked.worker_range[0]
    for name, each in (("CPU", asked.cpus_per_worker), ("GPU", asked.gpus_per_worker)):
        if there.get(name, 0.0) < least * each:
            have = there.get(name, 0.0)
            return f"resources: {least} workers need {least * each:g} {name}s, Ray has {have:g}"
    return ""


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
        for made in ready:
            yield _taken(made)


def _taken(made: Any) -> Piece:
    """What a task made. Raises what it raised, and JobFailed where it was lost."""
    import ray

    try:
        piece: Piece = ray.get(made)
    except ray.exceptions.RayTaskError as error:
        raise own_fault(error.cause, "reading a shard") from error
    except ray.exceptions.RayError as error:
        raise JobFailed(f"a worker that read shards was lost: {words_of(error)}") from error
    return piece


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
        RefusedError: torch can't use the GPUs that Ray has; or a worker's own.
        StorageError, JobFailed: a worker's own, or workers were lost too often.
        Interrupted: a signal came while no worker was training.
    """
    import ray

    losses = Losses()
    try:
        if task.spec.resources.gpus_per_worker:
            say("looking at a GPU")
            _look(task.spec.resources, watch)
        board = put_up()
        with blobs.scratch() as folder:
            while True:
                lacking = _lacking(task.spec.resources)
                if lacking:
                    say(f"waiting for workers: {lacking}")
                fit = _Fit(task, board, str(folder))
                heard = Heard(watch, say)
                _listen(fit, board, heard)
                ended: Ended | None = ray.get(board.ended.remote())
                if ended is not None:
                    return ended
                if heard.failure is not None:
                    raise heard.failure
                if watch.signal():
                    raise Interrupted(watch.signal())
                words = words_of(fit.error)
                losses.add(heard.furthest, words)
                say(f"beginning again at the last checkpoint: {words}")
    except ray.exceptions.RayError as error:
        raise JobFailed(f"Ray was lost: {error}") from error


def _look(asked: TrainResources, watch: Watch) -> None:
    """Whether torch can use a GPU that Ray gives: if not, workers can't reach each other, and Ray
    Train would start them again and again.

    Raises:
        RefusedError: torch can't.
        Interrupted: a signal came before a GPU was free.
    """
    import ray

    look = ray.remote(num_cpus=0, num_gpus=min(1.0, asked.gpus_per_worker))(_sees_gpu).remote()
    while not ray.wait([look], timeout=TELL_SECONDS)[0]:
        if watch.signal():
            raise Interrupted(watch.signal())
    if not ray.get(look):
        raise RefusedError(
            "resources.gpus_per_worker asks for a GPU: Ray gave one, and torch sees none"
        )


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _listen(fit: "_Fit", board: Any, heard: Heard) -> None:
    """Until all workers are gone, or a signal comes while none trains that could end in order."""
    import ray

    while fit.running:
        time.sleep(TELL_SECONDS)
        heard.take(ray.get(board.take.remote()))
        signum = heard.watch.signal()
        if signum:
            ray.get(board.stop.remote(signum))
            if not heard.begun:
                return
    heard.take(ray.get(board.take.remote()))


class _Fit:
    """Ray Train's run, on a thread: it blocks. It ends when a worker fails."""

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
        except BaseException as error:  # noqa: BLE001 (said where workers were lost)
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
    if least < most:
        # What it takes for room may be a node that went up to 20 seconds ago. Only its next look
        # finds it gone, and that needn't be a minute later.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
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
            # `train` begins again when workers are lost; Ray Train, when they don't come up.
            failure_config=api.FailureConfig(max_failures=0, controller_failure_limit=RESTARTS),
            logging_config=api.LoggingConfig(log_level="ERROR"),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train.torch as library
    import torch

    from mmray.train.feed import one_ahead
    from mmray.train.loading import loaded, loads
    from mmray.train.loop import Place
    from mmray.train.worker import work

    api: Any = library
    task, board = config["task"], config["board"]
    context = ray.train.get_context()
    place: Place = Place(context.get_world_rank(), context.get_world_size(), str(api.get_device()))
    torch.set_num_threads(max(1, int(task.spec.resources.cpus_per_worker)))
    telling = Telling(board)
    if ray.get(board.stopped.remote()):
        raise RuntimeError("the run was told to stop")
    if place.rank == 0:
        telling.say(f"training with {place.world} worker{'s' if place.world > 1 else ''}")
    loaders = task.spec.resources.loaders_per_worker
    try:
        feed = partial(loaded, loaders=loaders, world=place.world) if loads(task) else one_ahead
        ended = work(task, place, telling, telling.say, feed)
    except Exception as error:
        if not is_echo(error):
            failure = own_fault(error, f"worker {place.rank}")
            if failure is not error:
                telling.say(traceback.format_exc())
            telling.tell("failed", failure)
            telling.flush()
        raise
    if place.rank == 0:
        telling.flush()
        ray.get(board.end.remote(ended))
