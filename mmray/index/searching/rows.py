"""The rows of an index: what is known of a row beside its vector, by row number.

`rows.parquet` of each segment is read a row group at a time, and the ids that were read last are
kept: memory does not grow with the index.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import RefusedError
from mmray.index.manifest import BASE, Manifest, Segment
from mmray.specs.problems import hint

SHOWN = ("id", "source_uri", "source_key")
"""Of BASE, what hits bring and filters see."""
KEPT_GROUPS = 128
"""Row groups whose ids are kept: 2 million of them."""


class Rows:
    """Opened once for an index version; safe to call from many threads."""

    def __init__(self, manifest: Manifest, paths: Mapping[str, Path], dead: np.ndarray) -> None:
        """`paths`: local files by their path in the index; `dead`: sorted row numbers.

        Raises:
            RefusedError: a file is no table of its segment's rows.
        """
        self._dead = dead
        self._segments = manifest.segments
        paths_in_order = [paths[segment.table.path] for segment in manifest.segments]
        self._groups: list[np.ndarray] = []
        """For each segment, the row number that each of its groups begins with, and the end."""
        self.schema = pa.schema([])
        for segment, path in zip(self._segments, paths_in_order, strict=True):
            self.schema, starts = _examine(path, segment, (*BASE, *manifest.columns))
            self._groups.append(starts)
        # In the store's order, which a manifest sorts.
        kept = [name for name in self.schema.names if name in manifest.columns]
        self.columns = (*SHOWN, *(kept or manifest.columns))
        # Mapped, so that the rows stay when `gc` takes the files of a version that is open.
        self._files = [pa.memory_map(str(path)) for path in paths_in_order]
        self._firsts = np.array([segment.first for segment in self._segments], np.int64)
        self._ids: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()

    @property
    def count(self) -> int:
        """Of all rows, the dead ones too."""
        return sum(segment.rows for segment in self._segments)

    def live(self) -> np.ndarray:
        """Sorted int64 numbers of the rows that answer."""
        runs = [np.arange(each.first, each.first + each.rows) for each in self._segments]
        return self.without_dead(np.concatenate([np.zeros(0, np.int64), *runs]))

    def without_dead(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers, sorted, of those that answer."""
        if not len(self._dead):
            return numbers
        return numbers[~np.isin(numbers, self._dead, assume_unique=True)]

    def ids(self, numbers: np.ndarray) -> list[str]:
        """The ids of these rows, in the order given."""
        numbers = np.asarray(numbers, np.int64).ravel()
        found = np.empty(len(numbers), object)
        for place, places in self._placed(numbers).items():
            offsets = numbers[places] - self._groups[place[0]][place[1]]
            found[places] = self._group_ids(*place).take(pa.array(offsets)).to_pylist()
        return list(found)

    def table(self, numbers: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Columns of these rows, in the order given."""
        numbers = np.asarray(numbers, np.int64).ravel()
        schema = pa.schema([self.schema.field(name) for name in columns])
        found: list[pa.Table] = []
        order: list[np.ndarray] = []
        for (segment, group), places in self._placed(numbers).items():
            with self._open(segment) as parquet:
                read = parquet.read_row_group(group, columns=list(columns)).select(list(columns))
            offsets = numbers[places] - self._groups[segment][group]
            found.append(read.take(pa.array(offsets)))
            order.append(places)
        if not found:
            return schema.empty_table()
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(found).take(pa.array(back))

    def numbers(self, ids: Sequence[str]) -> dict[str, int]:
        """The numbers of the rows that answer to these ids; ids that none does are left out."""
        wanted = pa.array(sorted(set(ids)), pa.string())
        found: dict[str, int] = {}
        if not len(wanted):
            return found
        for batch, first in self.batches(("id",)):
            match = pc.is_in(batch["id"], value_set=wanted).to_numpy(zero_copy_only=False)
            places = np.flatnonzero(match)
            live = self.without_dead(places + first)
            names = batch["id"].take(pa.array(live - first)).to_pylist()
            found |= dict(zip(names, live.tolist(), strict=True))
            if len(found) == len(wanted):
                break
        return found

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, int]]:
        """All rows, the dead ones too: columns in the order given, and the first row's number."""
        for place, segment in enumerate(self._segments):
            first = segment.first
            with self._open(place) as parquet:
                for batch in parquet.iter_batches(batch_size=1 << 16, columns=list(columns)):
                    yield batch.select(list(columns)), first
                    first += batch.num_rows

    def require(self, columns: Sequence[str]) -> None:
        """Raises RefusedError where one isn't among `columns`."""
        for name in columns:
            if name not in self.columns:
                raise RefusedError(
                    f"the index keeps no column {name!r}{hint(name, self.columns)}; "
                    f"it has {', '.join(self.columns)}"
                )

    def _placed(self, numbers: np.ndarray) -> dict[tuple[int, int], np.ndarray]:
        """(segment, row group) to the places in `numbers` that lie in it."""
        segments = np.searchsorted(self._firsts, numbers, side="right") - 1
        found: dict[tuple[int, int], np.ndarray] = {}
        for segment in np.unique(segments):
            inside = np.flatnonzero(segments == segment)
            starts = self._groups[segment] if segment >= 0 else np.zeros(1, np.int64)
            groups = np.searchsorted(starts, numbers[inside], side="right") - 1
            if segment < 0 or groups.max() >= len(starts) - 1:
                raise IndexError("a row number that is not of this index")
            for group in np.unique(groups):
                found[int(segment), int(group)] = inside[groups == group]
        return found

    def _group_ids(self, segment: int, group: int) -> pa.ChunkedArray:
        kept = self._ids.pop((segment, group), None)
        if kept is None:
            with self._open(segment) as parquet:
                kept = parquet.read_row_group(group, columns=["id"])["id"]
        self._ids[segment, group] = kept
        while len(self._ids) > KEPT_GROUPS:
            self._ids.popitem(last=False)
        return kept

    def _open(self, segment: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._files[segment], page_checksum_verification=True)


def _examine(path: Path, segment: Segment, columns: Sequence[str]) -> tuple[pa.Schema, np.ndarray]:
    try:
        with pq.ParquetFile(path) as parquet:
            schema, meta = parquet.schema_arrow, parquet.metadata
    except (pa.ArrowException, OSError) as error:
        raise RefusedError(f"{segment.table.path} of the index is no Parquet file") from error
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise RefusedError(f"{segment.table.path} of the index lacks the column {missing[0]}")
    if meta.num_rows != segment.rows:
        raise RefusedError(
            f"{segment.table.path} of the index has {meta.num_rows:,} rows, not {segment.rows:,}"
        )
    sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    starts = np.cumsum([segment.first, *sizes], dtype=np.int64)
    return schema.remove_metadata(), starts
