"""The real stages on a few fragments, timed: what `mmray plan` knows of a job's speed.

They run in processes of their own, as a worker's do: how long a worker takes to start can only be
seen in a fresh process, and workers side by side slow each other. The parts that they write go to a
temporary folder.
"""

import importlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mmray.errors import JobFailed
from mmray.flow.batch import Batch, Failed, Finished, Work
from mmray.flow.decoding import keeps_times
from mmray.flow.drive import WORKER_ENVIRONMENT
from mmray.flow.pieces import base_key
from mmray.flow.processes import environment
from mmray.flow.stages import Stages

MODULES = {"ray": "ray", "data": "ray.data", "mmray": "mmray.flow.drive"}
"""What a worker imports before its model, in this order, by the name that its seconds get."""

OPEN = 8
"""Shards that one process reads in turns."""


@dataclass(frozen=True, slots=True)
class Limits:
    """When a probe has seen enough; it ends with the fragment under way."""

    seconds: float = 10.0
    """Once the models are loaded and warm."""
    samples: int = 512


@dataclass(frozen=True, slots=True)
class Timed:
    """One fragment that went through all stages."""

    work: int
    """Its place in the work that was given."""
    start: int
    stop: int
    samples: int
    rows: int
    """Rows and quarantined samples: more than the samples where windows are rows."""
    seconds: dict[str, float]
    """By stage."""


@dataclass(slots=True)
class Seen:
    """What one process saw."""

    imports: dict[str, float] = field(default_factory=dict)
    """Seconds by the names of `MODULES`."""
    load: float = 0.0
    """Seconds until the model was there."""
    gpus: int = 0
    """GPUs that torch can use here, where the job wants any."""
    fragments: list[Timed] = field(default_factory=list)
    """The first one warmed up the model."""
    quarantined: list[dict[str, str]] = field(default_factory=list)
    failed: str = ""


def probe(stages: Stages, work: Sequence[Work], processes: int, limits: Limits) -> list[Seen]:
    """Run fragments of `work` through the stages in `processes` processes at once.

    Raises:
        JobFailed: the encoder does not load, or nothing could be read.
    """
    share = replace(limits, samples=-(-limits.samples // processes))
    places = list(enumerate(work))
    with tempfile.TemporaryDirectory(prefix="mmray-plan-") as folder, _children() as running:
        for number in range(processes):
            home = Path(folder) / str(number)
            home.mkdir()
            mine = places[number::processes] or places[:1]
            job = (replace(stages, root=str(home / "parts")), mine, share)
            (home / "job").write_bytes(pickle.dumps(job))
            running.append(_start(home, stages.options.threads or 1))
        for child in running:
            child.wait()
        found = [_result(Path(folder) / str(number)) for number in range(processes)]
    failed = next((seen.failed for seen in found if seen.failed), "")
    if failed:
        raise JobFailed(failed)
    return found


@contextmanager
def _children() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that don't outlive the block."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        yield running
    finally:
        for child in running:
            if child.poll() is None:
                child.kill()
                child.wait()


def _start(home: Path, threads: int) -> subprocess.Popen[bytes]:
    # Threads as Ray sets them for an actor of so many CPUs.
    env = environment() | WORKER_ENVIRONMENT | {"OMP_NUM_THREADS": str(threads)}
    with (home / "log").open("wb") as log:
        command = [sys.executable, "-m", "mmray.jobs.probe", str(home)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)


def _result(home: Path) -> Seen:
    try:
        found = json.loads((home / "result").read_text())
    except FileNotFoundError:
        words = (home / "log").read_text(errors="replace").strip().splitlines()
        last = words[-1] if words else "it died without a word; out of memory is the usual reason"
        raise JobFailed(f"the probe ended early: {last}") from None
    return Seen(**found | {"fragments": [Timed(**each) for each in found["fragments"]]})


def main(home: Path) -> None:
    """One process of a probe: `home` holds its job, and gets its result."""
    seen = Seen()
    with redirect_stdout(sys.stderr):
        for name, module in MODULES.items():
            begin = time.perf_counter()
            importlib.import_module(module)
            seen.imports[name] = time.perf_counter() - begin
        begin = time.perf_counter()
        # Only what the parent wrote, in a folder that is its own.
        stages, work, limits = pickle.loads((home / "job").read_bytes())  # noqa: S301
        if stages.spec.resources.gpus:
            stages, seen.gpus = _placed(stages)
        _work(stages, work, limits, seen, begin)
    (home / "result").write_text(json.dumps(asdict(seen)))


def _placed(stages: Stages) -> tuple[Stages, int]:
    """The stages on the GPU that the spec wants, or on the CPU where there is none."""
    import torch

    if torch.cuda.is_available():
        return stages, torch.cuda.device_count()
    resources = stages.spec.resources.model_copy(update={"gpus": 0.0})
    return replace(stages, spec=stages.spec.model_copy(update={"resources": resources})), 0


def _work(
    stages: Stages, work: list[tuple[int, Work]], limits: Limits, seen: Seen, begin: float
) -> None:
    """Fragments in turns over the shards, until there is enough of them."""
    samples, deadline = 0, float("inf")
    for place, batch in _batches(stages, work):
        if isinstance(batch, Failed):
            seen.failed = batch.message if batch.fatal else f"{batch.uri}: {batch.message}"
            return
        timed = _timed(stages, place, batch, seen)
        if timed is None:
            return
        if not seen.fragments:
            now = time.perf_counter()
            seen.load = now - begin - sum(timed.seconds.values())
            deadline = now + limits.seconds
        seen.fragments.append(timed)
        samples += timed.samples
        enough = time.perf_counter() >= deadline or samples >= limits.samples
        if enough and len(seen.fragments) > 1:
            return


def _batches(stages: Stages, work: list[tuple[int, Work]]) -> Iterator[tuple[int, Batch | Failed]]:
    waiting = [(place, stages.decoded(each)) for place, each in work]
    turn, waiting = waiting[:OPEN], waiting[OPEN:]
    while turn:
        place, batches = turn.pop(0)
        batch = next(batches, None)
        if batch is not None:
            yield place, batch
            turn.append((place, batches))
        elif waiting:
            turn.append(waiting.pop(0))


def _timed(stages: Stages, place: int, batch: Batch, seen: Seen) -> Timed | None:
    """The fragment's times; None where its writing or the encoder failed, which `seen` tells."""
    samples = len(batch.samples)
    if keeps_times(stages.spec):
        samples = len({base_key(each.source_key) for each in batch.samples})
    samples += sum(batch.filtered.values())
    for item in stages.encoded(batch):
        if isinstance(item, Failed):
            seen.failed = item.message
            return None
        seen.quarantined += [_told(row) for row in item.receipt.quarantined]
        return Timed(
            work=place,
            start=batch.span.start,
            stop=batch.span.stop,
            samples=samples,
            rows=_rows(item),
            seconds=item.seconds,
        )
    return None


def _rows(item: Finished) -> int:
    return item.receipt.rows + len(item.receipt.quarantined) + sum(item.filtered.values())


def _told(row: Any) -> dict[str, str]:
    names = ("source_uri", "source_key", "stage", "error_type", "message")
    return {name: str(getattr(row, name)) for name in names}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
