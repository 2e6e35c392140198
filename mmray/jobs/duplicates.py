"""`job: duplicates`: which rows of an index are nearly the same, and which of them to keep.

<output>/keep.parquet       id of each row that is kept
<output>/drop.parquet       id of each other row, kept_id of the row that stands for it, score
<output>/duplicates.json    what the two were made of, and their hashes; written last
<output>/_mmray/            how far a run got, and reports of runs
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmray.errors import Interrupted, JobFailed, RefusedError, SpecError, StorageError
from mmray.flow.run import noted_signals
from mmray.index import manifest as manifests
from mmray.index.batch import process
from mmray.index.batch.duplicates import Floats, Found, Groups, Ints, neighbours
from mmray.index.batch.lists import write_lists
from mmray.index.batch.process import Opening
from mmray.index.batch.settled import Settled
from mmray.index.searching.opened import Index
from mmray.index.workers import spread
from mmray.jobs.begun import Begun
from mmray.jobs.pictures import shown
from mmray.report import Report
from mmray.report.groups import groups_page
from mmray.report.progress import Progress, progress
from mmray.specs.index import DuplicatesSpec
from mmray.storage import Storage, join

RESULT = "duplicates.json"
BLOCK = 1024
"""Rows whose neighbours are asked for at once."""
LOOK_AHEAD = 1 << 16
SAVE_SECONDS = 10.0
BINS = 20
"""Of the page's chart of scores."""


def run(spec: DuplicatesSpec, *, limit: int | None = None, quiet: bool = False) -> Report:
    """Run the job to its end.

    Raises:
        SpecError, RefusedError: the job can't start as asked; nothing was written.
        JobFailed, Interrupted: it ended early; `report` says how far it got.
    """
    if limit is not None:
        raise SpecError("limit", "is of embed jobs; near-duplicates are told by all rows")
    try:
        with progress(quiet=quiet) as show:
            return DuplicatesJob(spec, show).run()
    finally:
        process.forget()


@dataclass(frozen=True, slots=True)
class Neighbouring:
    """Finds the neighbours of rows, in this process or in one that it was sent to."""

    opening: Opening
    threshold: float
    where: str | None
    signalled: list[int]
    """Signals that came; only in this process does it fill while work goes on."""

    def __call__(self, rows: Ints) -> Found:
        """See `neighbours`. Raises Interrupted where a signal came."""
        if self.signalled:
            raise Interrupted(self.signalled[0])
        index = process.opened(self.opening)
        return neighbours(index, rows, self.threshold, self.where)


class DuplicatesJob:
    """One run: what was resolved from the spec before any work."""

    def __init__(self, spec: DuplicatesSpec, show: Progress) -> None:
        self.begun = Begun(spec.job)
        self.spec, self.show = spec, show
        self.storage = Storage.of(spec.storage)
        self.uri = self.storage.normalise(spec.index.uri)
        self.output = self.storage.normalise(spec.output)
        if self.output == self.uri:
            raise SpecError("output", "is the index itself; name another folder")
        self.manifest = manifests.read(self.uri, self.storage, spec.index.version)
        self.opening = Opening(self.uri, self.manifest.version, self.storage, spec.where_seconds)
        index = hashlib.sha256(self.manifest.to_json()).hexdigest()
        facts = [index, spec.threshold, spec.where]
        self.key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        self.log = join(self.output, "_mmray", "duplicates")
        self.seconds: dict[str, float] = {}
        self.before = 0
        """Rows that earlier runs settled."""

    def run(self) -> Report:
        """Do what is left, and keep the report."""
        self.show.say("opening the index")
        index = process.opened(self.opening)
        rows = index.live() if self.spec.where is None else index.allowed(self.spec.where)
        if not len(rows):
            raise RefusedError(f"{self.uri}: no row is there to compare")
        if (told := self._published()) is not None:
            return self._nothing_to_do(told, len(rows))
        groups = Groups(rows)
        settled = Settled(self.storage, join(self.log, self.key[:32]))
        settled.restore(groups)
        self.before = groups.settled
        failure: Interrupted | JobFailed | None = None
        try:
            self._work(index, groups, settled)
            self._publish(index, groups)
        except (Interrupted, JobFailed) as error:
            failure = error
        except StorageError as error:
            failure = JobFailed(str(error))
        report = self._report(index, groups, failure)
        if failure is not None:
            failure.report = report
            raise failure
        return report

    def _work(self, index: Index, groups: Groups, settled: Settled) -> None:
        begin = saved = time.monotonic()
        spec, resources = self.spec, self.spec.resources
        stops: list[int] = []
        arrived: dict[int, Found] = {}
        following = 0

        def every(number: int) -> tuple[Ints, Floats]:
            one = np.array([number])
            return neighbours(index, one, spec.threshold, spec.where, all_of=True).of(0)

        try:
            with noted_signals() as signalled:
                asked = Neighbouring(
                    opening=self.opening,
                    threshold=spec.threshold,
                    where=spec.where,
                    signalled=signalled,
                )
                blocks = _blocks(groups, stops)
                self._tell(groups)
                for place, found in spread(asked, blocks, resources, self.manifest.size):
                    arrived[place] = found
                    while following in arrived:  # rows are settled in their order
                        drops = groups.settle(stops[following], arrived.pop(following), every)
                        settled.add(drops)
                        following += 1
                    if signalled:
                        raise Interrupted(signalled[0])
                    if time.monotonic() - saved >= SAVE_SECONDS:
                        settled.save(groups.settled)
                        saved = time.monotonic()
                    self._tell(groups)
        finally:
            self.seconds["search"] = time.monotonic() - begin
            settled.save(groups.settled)

    def _tell(self, groups: Groups) -> None:
        done = slice(self.before, groups.settled)
        self.show.update(
            rows=groups.settled - self.before,
            filtered=int((groups.stands[done] >= 0).sum()),
            fraction=groups.settled / len(groups.rows),
            stage="comparing",
        )

    def _publish(self, index: Index, groups: Groups) -> None:
        begin = time.monotonic()
        written = write_lists(index, groups, self.storage, self.output)
        told = {
            "mmray_format": 1,
            "key": self.key,
            "index": {"uri": self.uri, "version": self.manifest.version},
            "threshold": self.spec.threshold,
            "where": self.spec.where,
            **_counts(groups),
            "files": [asdict(each) for each in written],
        }
        uri = join(self.output, RESULT)
        self.storage.write_bytes(uri, json.dumps(told, indent=1).encode())
        for each in self.storage.list(self.log):
            self.storage.delete(each.uri)
        self.seconds["write"] = time.monotonic() - begin

    def _published(self) -> dict[str, Any] | None:
        """What `RESULT` says, where it is of this very search and its files are there."""
        try:
            told = json.loads(self.storage.read_bytes(join(self.output, RESULT)))
            if told["key"] != self.key:
                return None
            for each in told["files"]:
                if self.storage.stat(join(self.output, each["path"])).size != each["bytes"]:
                    return None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return dict(told)

    def _nothing_to_do(self, told: dict[str, Any], rows: int) -> Report:
        counts = {name: int(told[name]) for name in ("kept", "dropped", "groups")}
        return Report(
            **self.begun.fields(None),
            rows_skipped=rows,
            metrics={**self._metrics, **counts},
            outputs=self._outputs,
        )

    def _report(
        self, index: Index, groups: Groups, failure: Interrupted | JobFailed | None
    ) -> Report:
        done = groups.stands[self.before : groups.settled]
        dropped = int((done >= 0).sum())
        made = self.manifest.made
        seconds = self.begun.elapsed()
        report = Report(
            **self.begun.fields(failure),
            rows_read=len(done),
            rows_written=len(done) - dropped,
            rows_skipped=self.before,
            rows_filtered=dropped,
            filtered={"near-duplicate": dropped} if dropped else {},
            rows_per_second=len(done) / seconds if seconds else 0.0,
            stages=self.seconds,
            encoder={"name": made.encoder, "fingerprint": made.fingerprint},
            metrics={**self._metrics, **_counts(groups)},
            outputs=self._outputs if failure is None else {"index": self.uri},
        )
        if failure is not None:
            return report.save(self.storage, self.output)
        page = groups_page(report, shown(index, groups, self.show), _histogram(groups, self.spec))
        return report.save(self.storage, self.output, page)

    @property
    def _metrics(self) -> dict[str, float | int | str]:
        return {"threshold": self.spec.threshold, "recall": self.manifest.measured.recall}

    @property
    def _outputs(self) -> dict[str, str | int]:
        return {
            "index": self.uri,
            "version": self.manifest.version,
            "output": self.output,
            "keep": join(self.output, "keep.parquet"),
            "drop": join(self.output, "drop.parquet"),
        }


def _blocks(groups: Groups, stops: list[int]) -> Iterator[Ints]:
    """The rows that nothing has dropped by the time that they're asked for, some at a time.

    `stops` gets the place after each block's last row.
    """
    start, total = groups.settled, len(groups.rows)
    while start < total:
        free = np.flatnonzero(groups.stands[start : start + LOOK_AHEAD] < 0)[:BLOCK]
        is_full = len(free) == BLOCK
        stop = start + int(free[-1]) + 1 if is_full else min(start + LOOK_AHEAD, total)
        stops.append(stop)
        yield groups.open(start, stop)
        start = stop


def _counts(groups: Groups) -> dict[str, int]:
    """Of the rows that are settled, in this run or an earlier one."""
    stands = groups.stands[: groups.settled]
    dropped = stands[stands >= 0]
    return {
        "kept": len(stands) - len(dropped),
        "dropped": len(dropped),
        "groups": len(np.unique(dropped)),
    }


def _histogram(groups: Groups, spec: DuplicatesSpec) -> list[tuple[float, int]]:
    """Scores of dropped rows with the rows that stand for them."""
    scores = groups.scores[groups.stands >= 0]
    low = min(spec.threshold, 1 - 1e-3)
    edges = np.linspace(low, 1.0, BINS + 1)
    counts, _ = np.histogram(np.clip(scores, low, 1.0), bins=edges)
    return list(zip(edges[:-1].tolist(), counts.tolist(), strict=True))
