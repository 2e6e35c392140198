"""What came into a store, and what left it, since an index was built: at the cost of what changed.

Rows are the same by id and equal by content hash. Parts that both versions of the store name are
not looked at; of the others only ids and hashes are read, so that a compaction, which moves every
row, adds nothing to the index.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.errors import RefusedError, StorageError
from mmray.index.column import PartRows
from mmray.index.manifest import Manifest
from mmray.index.searching.segments import Fetch, dead_rows
from mmray.store import PartInfo, Store
from mmray.store.buckets import RECORD, Buckets, fixed, records_of

BUCKET_ROWS = 1_000_000
_MOST_BUCKETS = 512
_BATCH = 65_536


@dataclass(frozen=True, slots=True)
class Changes:
    """From an index to a version of its store."""

    added: tuple[PartRows, ...]
    """Rows that the index lacks, or has with other content."""
    removed: np.ndarray
    """int64 numbers of the index's rows that are gone, or have other content now."""

    @property
    def rows(self) -> int:
        """How many are added."""
        return sum(part.rows for part in self.added)


def changes(before: Manifest, store: Store, fetch: Fetch) -> Changes:
    """What to do to bring the index `before` to the version that `store` is on.

    Raises:
        RefusedError: a file of the index isn't what it was.
        StorageError: storage stayed broken, or a part is gone or damaged.
    """
    dead = dead_rows(before, fetch)
    new = store.parts()
    then = _then(before, store)
    if then is not None:
        known = {part.path for part in then.parts()}
        come = [part for part in new if part.path not in known]
        now = {part.path for part in new}
        gone = [part for part in then.parts() if part.path not in now]
        try:
            return _compared(before, store, (come, records_of(then, gone)), dead, fetch)
        except StorageError:
            if not gone:
                raise
            # A vacuum took the parts that are gone: the index itself knows what was in them.
    return _compared(before, store, (new, _of_index(before, dead, fetch)), dead, fetch)


def _then(before: Manifest, store: Store) -> Store | None:
    """The store at the version that was indexed; None where it can't be had any more."""
    try:
        return Store.open(store.uri, store.storage, before.made.store_version)
    except RefusedError:
        return None


Sides = tuple[list[PartInfo], Iterator[np.ndarray]]
"""Parts of the store that may bring something, and the records of what the index may lose."""


def _compared(
    before: Manifest, store: Store, sides: Sides, dead: np.ndarray, fetch: Fetch
) -> Changes:
    come, lost = sides
    rows = max(before.rows, sum(part.rows for part in come))
    number = min(_MOST_BUCKETS, -(-rows // BUCKET_ROWS)) or 1
    places: dict[int, list[np.ndarray]] = {}
    removed: list[np.ndarray] = []
    with tempfile.TemporaryDirectory(prefix="mmray-changes-") as folder:
        ours = Buckets(lost, number, Path(folder) / "ours")
        theirs = Buckets(records_of(store, come), number, Path(folder) / "theirs")
        for bucket in range(number):
            one, other = ours.take(bucket), theirs.take(bucket)
            _, mine, its = np.intersect1d(
                one["id"], other["id"], assume_unique=True, return_indices=True
            )
            same = one["hash"][mine] == other["hash"][its]
            removed.append(np.delete(one["id"], mine[same]))
            fresh = np.delete(other, its[same])
            for part in np.unique(fresh["part"]).tolist():
                places.setdefault(part, []).append(fresh["row"][fresh["part"] == part])
    added = tuple(_part(come[part], np.concatenate(found)) for part, found in places.items())
    ids = np.sort(np.concatenate(removed)) if removed else np.empty(0, "S32")
    return Changes(added, _numbers(before, ids, dead, fetch))


def _part(part: PartInfo, places: np.ndarray) -> PartRows:
    if len(places) == part.rows:
        return PartRows(part.path, part.rows)
    return PartRows(part.path, len(places), np.sort(places).astype(np.int64))


def _of_index(before: Manifest, dead: np.ndarray, fetch: Fetch) -> Iterator[np.ndarray]:
    """All rows that answer, as records; their places don't matter."""
    for _, ids, hashes in _rows(before, dead, fetch):
        records = np.zeros(len(ids), RECORD)
        records["id"], records["hash"] = ids, hashes
        yield records


def _numbers(before: Manifest, ids: np.ndarray, dead: np.ndarray, fetch: Fetch) -> np.ndarray:
    """The numbers of these ids' rows; one without a vector has none."""
    if not len(ids):
        return np.empty(0, np.int64)
    found = []
    for numbers, mine, _ in _rows(before, dead, fetch):
        at = np.minimum(np.searchsorted(ids, mine), len(ids) - 1)
        found.append(numbers[ids[at] == mine])
    return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)


def _rows(
    before: Manifest, dead: np.ndarray, fetch: Fetch
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Numbers, ids and hashes of the rows that answer."""
    for segment in before.segments:
        first = segment.first
        with pq.ParquetFile(fetch(segment.table), page_checksum_verification=True) as parquet:
            for batch in parquet.iter_batches(_BATCH, columns=["id", "content_hash"]):
                numbers = np.arange(first, first + len(batch))
                first += len(batch)
                live = ~np.isin(numbers, dead, assume_unique=True)
                columns = [fixed(pa.chunked_array([batch[n]])) for n in ("id", "content_hash")]
                yield numbers[live], columns[0][live], columns[1][live]
