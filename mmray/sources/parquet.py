"""Parquet files: a row is a sample, its number its key.

Listing reads no footer, so every shard has the same extent and its units are row numbers. A worker
goes from row group to row group in small batches of the columns that are needed. A fragment never
crosses from one row group into the next.
"""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmray.errors import BadSample, RefusedError, ShardChanged
from mmray.sources.choose import Chosen, Rows, choose
from mmray.sources.cut import Cut, cut_fragments
from mmray.sources.fragment import Fragment, Shard, object_shard
from mmray.sources.links import Allowed, Links
from mmray.sources.rangefile import RangeFile
from mmray.sources.rows import Row, error_row, fill
from mmray.sources.stream import Broken
from mmray.specs.common import Limits, ParquetSource
from mmray.storage import Storage

ROWS = 1 << 40
"""Extent of every file: its rows are told by its footer, which listing doesn't read."""

ENDINGS = (".parquet", ".parq", ".pq")

BATCH_BYTES = 16 * 1024 * 1024
WORST_BYTES = 64 * 1024 * 1024
BATCH_ROWS = 256

WHOLE_BYTES = 32 * 1024 * 1024
"""A row group of which more is needed is read page by page."""
BUFFER = 4 * 1024 * 1024

SIGNATURE = 28
"""Bytes of a footer's signature: a nonce and a tag of AES GCM."""

# pyarrow's own, and those of Python's that it raises in their stead.
_UNREADABLE = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    MemoryError,
    NotImplementedError,
)


class ParquetReader:
    """Reads `.parquet`, `.parq` and `.pq`; other objects of a folder are counted as ignored."""

    sliced = False

    def __init__(
        self,
        spec: ParquetSource,
        storage: Storage,
        limits: Limits,
        cut: Cut,
        wanted: frozenset[str] | None,
    ) -> None:
        self._uri = spec.uri
        self._named = {str(modality): name for modality, name in spec.columns.items()}
        self._storage = storage
        self._limits = limits
        self._cut = cut
        self._wanted = wanted
        self._allowed = Allowed.of(spec.allow, spec.allow_private)
        self.ignored = 0

    def shards(self, may_be_gone: Callable[[str], bool] | None = None) -> Iterator[Shard]:
        """One shard for each file; its units are row numbers."""
        found: list[Shard] = []
        self.ignored = 0
        for item in self._storage.expand(self._uri, may_be_gone):
            if item.uri.lower().endswith(ENDINGS):
                found.append(object_shard(item.uri, item.etag, ROWS))
            else:
                self.ignored += 1
        if not found:
            raise RefusedError(f"{self._uri}: holds no {', '.join(ENDINGS)}")
        return iter(found)

    def covers(self, uri: str) -> bool:
        """Whether a file of this uri is, or was, one of this source's shards."""
        return uri.lower().endswith(ENDINGS) and self._storage.matcher(self._uri)(uri)

    def read(self, shard: Shard, start: int, stop: int, seen: set[str]) -> Iterator[Fragment]:
        """Reads rows `[start, stop)`, from the beginning of the row group that `start` is in."""
        del seen  # a row's number is its place
        links = Links(shard, self._storage, self._limits, self._allowed)
        breaks: frozenset[int] = frozenset()
        rows: Iterator[Row]
        try:
            table = self._open(shard)
            breaks = frozenset(first for first, _ in table.groups)
            rows = self._rows(table, start, stop)
        except Broken as error:
            rows = iter([error_row(start, str(start), error.error_type, error.message)])
        with closing(links.items(rows)) as items:
            yield from cut_fragments(shard, start, stop, items, self._cut, breaks)

    def _open(self, shard: Shard) -> "_Table":
        """Reads the footer. Raises Broken."""

        def fetch(first: int, end: int) -> bytes:
            return self._storage.read_range(shard.uri, first, end, shard.etag)

        try:
            item = self._storage.stat(shard.uri)
        except (FileNotFoundError, PermissionError) as error:
            raise Broken("UnreadableShard", str(error)) from error
        if item.etag != shard.etag:
            words = f"changed after it was listed: {shard.etag} became {item.etag}"
            raise ShardChanged(shard.uri, words)
        file = RangeFile(fetch, item.size)
        with _readable():
            metadata = read_footer(file)
            schema = metadata.schema.to_arrow_schema()
        try:
            chosen = choose(schema, self._named, self._wanted)
        except BadSample as error:
            raise Broken(error.error_type, error.message) from error
        with _readable():
            return _Table.of(file, metadata, chosen)

    def _rows(self, table: "_Table", start: int, stop: int) -> Generator[Row, None, None]:
        place = start
        try:
            with closing(_one_ahead(table.batches(start, stop))) as batches:
                for batch in batches:
                    for found, metadata in batch:
                        yield fill(Row(place, str(place)), found, metadata, self._limits.bytes)
                        place += 1
        except Broken as error:
            words = f"from row {place} on: {error.message}"
            yield error_row(place, str(place), error.error_type, words)


@dataclass(frozen=True, slots=True)
class _Table:
    """An open file: `groups` are the first row and the rows of each row group."""

    parquet: pq.ParquetFile
    chosen: Chosen
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, file: RangeFile, metadata: pq.FileMetaData, chosen: Chosen) -> "_Table":
        """Raises Broken where the footer contradicts itself."""
        groups: list[tuple[int, int]] = []
        first = 0
        for index in range(metadata.num_row_groups):
            count = metadata.row_group(index).num_rows
            if count < 0 or first + count > ROWS:
                raise Broken("CorruptShard", f"row group {index} has {count} rows by its footer")
            groups.append((first, count))
            first += count
        sizes = [_compressed(metadata, index, chosen.names) for index in range(len(groups))]
        parquet = pq.ParquetFile(
            pa.PythonFile(file, "r"),
            metadata=metadata,
            pre_buffer=False,
            buffer_size=BUFFER if max(sizes, default=0) > WHOLE_BYTES else 0,
            page_checksum_verification=True,
        )
        return cls(parquet, chosen, tuple(groups))

    def batches(self, start: int, stop: int) -> Iterator[Rows]:
        """The rows `[start, stop)` in batches. Raises Broken."""
        names = self.chosen.names
        for index, (first, count) in enumerate(self.groups):
            if first + count <= start or first >= stop or not count:
                continue
            with _readable():
                size = _batch_rows(self.parquet.metadata, index, names)
                batches = self.parquet.iter_batches(size, [index], names, use_threads=False)
            place = first
            while place < min(first + count, stop):
                with _readable():
                    batch = next(batches, None)
                    if batch is None or not batch.num_rows:
                        words = f"row group {index} ends at row {place} and should have {count}"
                        raise Broken("CorruptShard", words)
                    skipped = min(max(start - place, 0), batch.num_rows)
                    place += batch.num_rows
                    batch = batch.slice(skipped, batch.num_rows - skipped - max(place - stop, 0))
                    rows = self.chosen.take(batch) if batch.num_rows else []
                if rows:
                    yield rows


def read_footer(file: RangeFile) -> pq.FileMetaData:
    """The footer. Raises Broken where columns are encrypted, and what pyarrow raises of others.

    pyarrow ends the whole process when it is asked of an encrypted column. A plain footer over
    encrypted columns is followed by its signature: Parquet modular encryption, "Plaintext footer
    mode".
    """
    metadata = pq.read_metadata(pa.PythonFile(file, "r"))
    file.seek(-8, 2)
    length = int.from_bytes(file.read(4), "little")
    if length == metadata.serialized_size + SIGNATURE:
        raise Broken("CorruptShard", "not to be read as Parquet: columns of it are encrypted")
    return metadata


def _chunks(metadata: pq.FileMetaData, index: int, names: list[str]) -> list[Any]:
    """What the footer says of a row group's columns under `names`."""
    group = metadata.row_group(index)
    every = [group.column(i) for i in range(group.num_columns)]
    tops = tuple(name + "." for name in names)
    return [c for c in every if c.path_in_schema in names or c.path_in_schema.startswith(tops)]


def _compressed(metadata: pq.FileMetaData, index: int, names: list[str]) -> int:
    return sum(chunk.total_compressed_size for chunk in _chunks(metadata, index, names))


def _batch_rows(metadata: pq.FileMetaData, index: int, names: list[str]) -> int:
    """Rows to read at a time: `BATCH_BYTES` by their mean, and at worst `WORST_BYTES`.

    A value that repeats is stored once, in a dictionary, and comes out for each row: at worst each
    row is as large as the dictionary.
    """
    mean = worst = 0
    rows = max(metadata.row_group(index).num_rows, 1)
    for chunk in _chunks(metadata, index, names):
        mean += chunk.total_uncompressed_size // rows
        if chunk.has_dictionary_page and chunk.physical_type.endswith("BYTE_ARRAY"):
            page = max(chunk.data_page_offset - (chunk.dictionary_page_offset or 0), 0)
            worst += page * chunk.total_uncompressed_size // max(chunk.total_compressed_size, 1)
    most = min(BATCH_BYTES // max(mean, 1), WORST_BYTES // max(worst, 1), BATCH_ROWS)
    return max(most, 1)


def _one_ahead(batches: Iterator[Rows]) -> Generator[Rows, None, None]:
    """`batches`, each read in a thread while the one before is worked on."""
    with ThreadPoolExecutor(1, "mmray-read-ahead") as pool:
        ahead = pool.submit(next, batches, None)
        while (batch := ahead.result()) is not None:
            ahead = pool.submit(next, batches, None)
            yield batch


@contextmanager
def _readable() -> Iterator[None]:
    """What pyarrow can't read becomes Broken; it hands on errors of storage as they are."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise Broken("UnreadableShard", str(error)) from error
        raise Broken("CorruptShard", f"not to be read as Parquet: {error}") from error
