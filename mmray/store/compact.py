"""Compaction: adjacent parts of one shard become one, so that readers open fewer files.

Only contiguous spans of one shard version are merged: a part stays one run of whole fragments, and
its first and last fragment still tell all that it covers. Rows don't change, so neither does
anything that was built from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mmray.store.changes import Change
from mmray.store.commit import Committer
from mmray.store.coverage import PartInfo
from mmray.store.rewrite import merged
from mmray.store.table import Store

TARGET = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CompactResult:
    """Parts before and after, and the version after."""

    merged: int
    written: int
    version: int


def compact(store: Store, *, target: int = TARGET, run_id: str = "compact") -> CompactResult:
    """Merge adjacent parts up to `target` bytes each, one commit a merge.

    Holds one merged part in memory. Other drivers may commit meanwhile; a part that they took out
    is left alone.

    Raises:
        StorageError: storage stayed broken; what was merged stays merged.
    """
    store.reload()
    committer = Committer(store, run_id)
    before = written = 0
    for run in list(_runs(store.parts(), target)):
        if not all(part.path in store.stored.parts for part in run):
            continue
        receipt = merged(store, run)
        change = Change((receipt,), tuple(part.path for part in run), data_change=False)
        outcome = committer.commit([change])
        if outcome.committed:
            before, written = before + len(run), written + 1
    return CompactResult(before, written, store.version)


def _runs(parts: list[PartInfo], target: int) -> Iterator[list[PartInfo]]:
    """Contiguous parts that fit in one; parts of another engine, which may have holes, are out."""
    run: list[PartInfo] = []
    for part in sorted((p for p in parts if p.attempt), key=lambda p: str(p.span)):
        last = run[-1].span if run else None
        fits = last is not None and (last.shard, last.version, last.stop) == (
            part.span.shard,
            part.span.version,
            part.span.start,
        )
        if fits and sum(p.size for p in run) + part.size <= target:
            run.append(part)
            continue
        if len(run) > 1:
            yield run
        run = [part]
    if len(run) > 1:
        yield run
