"""One piece of a batch search: its queries are asked, and their hits become one Parquet file.

The file's name is a function of what it holds, and its footer tells the counts: a later run knows
what is done without reading a row.
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.errors import Interrupted
from mmray.index.batch import process
from mmray.index.batch.batches import Floats, Piece, Queries, queries
from mmray.index.column import Column
from mmray.index.searching.opened import Index
from mmray.report import MAX_EXAMPLES, Example
from mmray.sources.rangefile import RangeFile
from mmray.storage import Storage, blobs, join

BATCH = 1024
"""Queries that are searched with at once."""
BATCH_HITS = 1 << 19
"""Hits of them, at most."""
GROUP_HITS = 1 << 18
"""About as many hits make a row group, whose kept columns are looked up together."""
OWN = ("query_id", "rank", "id", "score")
"""Columns of every file; `rank` counts from 1."""

_NOTE = b"mmray"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of an index with every query. All of it is in the name of a file."""

    index: str
    """SHA-256 of the manifest."""
    queries: str
    """Which column of which store or file."""
    k: int
    where: str | None
    exclude_self: bool
    columns: tuple[str, ...]

    def name(self, piece: Piece) -> str:
        """Of the file with the hits of a piece."""
        facts = [self.index, self.queries, self.k, self.where, self.exclude_self, *self.columns]
        text = json.dumps([*facts, piece.name])
        return f"part-{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"


@dataclass(frozen=True, slots=True)
class Answered:
    """What a file holds."""

    name: str
    queries: int
    hits: int
    left_out: dict[str, int]
    examples: tuple[Example, ...] = ()
    """Some of what was left out; only of what this run did."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Of the store or file, with what was left out."""
        return self.queries + sum(self.left_out.values())

    def note(self) -> bytes:
        """What its footer says."""
        said = {"queries": self.queries, "hits": self.hits, "left_out": self.left_out}
        return json.dumps(said).encode()


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers pieces, in this process or in one that it was sent to."""

    opening: process.Opening
    question: Question
    column: Column | None
    """Of the store that the queries are in."""
    output: str
    signalled: list[int]
    """Signals that came; only in this process does it fill while work goes on."""

    def __call__(self, piece: Piece) -> Answered:
        """Write the file of one piece.

        Raises:
            RefusedError: the index is torn, or refuses the condition.
            StorageError: storage stayed broken.
            Interrupted: a signal came; nothing of the piece was written.
        """
        index = process.opened(self.opening)
        name = self.question.name(piece)
        counts: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        seconds: dict[str, float] = defaultdict(float)
        examples: list[Example] = []
        with blobs.scratch() as folder:
            local = folder / name
            with _Writer(local, index, self.question.columns, seconds) as writer:
                size = max(1, min(BATCH, BATCH_HITS // self.question.k))
                for batch in self._timed(queries(piece, self.column, size), seconds):
                    if self.signalled:
                        raise Interrupted(self.signalled[0])
                    vectors = self._vectors(batch, seconds)
                    writer.add(*self._hits(index, batch.ids, vectors, seconds))
                    counts["queries"] += len(batch.ids)
                    left_out += batch.left_out
                    examples += batch.examples
                answered = Answered(
                    name,
                    counts["queries"],
                    writer.hits,
                    dict(left_out),
                    tuple(examples[:MAX_EXAMPLES]),
                    seconds,
                )
                writer.note(answered.note())
            begin = time.monotonic()
            blobs.put(self.opening.storage, local, self.output, name)
            _add(seconds, "write", begin)
        return answered

    def _timed(self, batches: Iterator[Queries], seconds: dict[str, float]) -> Iterator[Queries]:
        while True:
            begin = time.monotonic()
            batch = next(batches, None)
            _add(seconds, "read", begin)
            if batch is None:
                return
            yield batch

    def _vectors(self, batch: Queries, seconds: dict[str, float]) -> Floats:
        """float32 [n, dim]"""
        if batch.vectors is not None:
            return batch.vectors
        begin = time.monotonic()
        vectors: Floats = process.encoder(self.opening).texts(list(batch.texts))
        _add(seconds, "encode", begin)
        return vectors

    def _hits(
        self, index: Index, ids: list[str], vectors: Floats, seconds: dict[str, float]
    ) -> tuple[pa.Table, np.ndarray]:
        """The hits as a table, and the row numbers of theirs."""
        begin = time.monotonic()
        asked = self.question
        if not ids:
            return _SCHEMA.empty_table(), np.empty(0, np.int64)
        hits = index.search(vectors, asked.k + asked.exclude_self, where=asked.where)
        wanted = hits.numbers >= 0
        names = np.full(hits.numbers.shape, None, dtype=object)
        names[wanted] = index.ids(hits.numbers[wanted])
        if asked.exclude_self:
            wanted &= names != np.array(ids, dtype=object)[:, None]
        rank = np.cumsum(wanted, axis=1)
        wanted &= rank <= asked.k
        query, _ = np.nonzero(wanted)
        columns = [
            pa.array(ids, pa.string()).take(pa.array(query)),
            pa.array(rank[wanted], pa.int32()),
            pa.array(names[wanted], pa.string()),
            pa.array(hits.scores[wanted], pa.float32()),
        ]
        _add(seconds, "search", begin)
        return pa.table(columns, schema=_SCHEMA), hits.numbers[wanted]


_SCHEMA = pa.schema(
    [
        pa.field("query_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)


class _Writer:
    """Gathers hits to row groups of a local file."""

    def __init__(
        self, path: Path, index: Index, columns: tuple[str, ...], seconds: dict[str, float]
    ) -> None:
        self._index, self._columns, self._seconds = index, columns, seconds
        kept = index.table(np.empty(0, np.int64), columns).schema if columns else pa.schema([])
        self._schema = pa.schema([*_SCHEMA, *kept])
        self._parquet = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._waiting: list[tuple[pa.Table, np.ndarray]] = []
        self._held = 0
        self.hits = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()

    def add(self, table: pa.Table, numbers: np.ndarray) -> None:
        """Hits, and the row numbers that their kept columns are found by."""
        self._waiting.append((table, numbers))
        self._held += table.num_rows
        self.hits += table.num_rows
        if self._held >= GROUP_HITS:
            self._flush()

    def note(self, note: bytes) -> None:
        """The last thing to be written."""
        self._flush()
        self._parquet.add_key_value_metadata({_NOTE: note})

    def _flush(self) -> None:
        if not self._held:
            return
        begin = time.monotonic()
        table = pa.concat_tables(table for table, _ in self._waiting)
        if self._columns:
            numbers = np.concatenate([numbers for _, numbers in self._waiting])
            kept = self._index.table(numbers, self._columns)
            table = pa.table([*chain(table.columns, kept.columns)], schema=self._schema)
        self._parquet.write_table(table)
        self._waiting, self._held = [], 0
        _add(self._seconds, "write", begin)


def read_answered(storage: Storage, output: str, name: str) -> Answered | None:
    """What the file of an earlier run holds; None where it isn't whole, or isn't ours."""
    uri = join(output, name)
    try:
        found = storage.stat(uri)
        file = RangeFile(
            lambda start, stop: storage.read_range(uri, start, stop, found.etag), found.size
        )
        metadata = pq.read_metadata(pa.PythonFile(file, "r")).metadata or {}
        said = json.loads(metadata[_NOTE])
        return Answered(name, said["queries"], said["hits"], said["left_out"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _add(seconds: dict[str, float], stage: str, begin: float) -> None:
    seconds[stage] += time.monotonic() - begin
