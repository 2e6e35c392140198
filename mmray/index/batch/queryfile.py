"""A Parquet or JSON-lines file whose rows are queries: words, or vectors.

A row that is no query is left out, counted by its reason, and named; a file in which no row is one
is refused. Rows go by the numbers that an embed job would give them: of Parquet from 0, of JSON
lines from 1.
"""

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmray.errors import BadSample, MmrayError, RefusedError, SpecError, StorageError
from mmray.index.batch.batches import Piece
from mmray.index.batch.queryrows import LIST, Holds, RawRows, Wanted
from mmray.report import Example
from mmray.sources.columns import Column, bare, find, is_text, values
from mmray.sources.jsonl import GZIPPED, PLAIN, dig, parse_line
from mmray.sources.parquet import BUFFER, ENDINGS, read_footer
from mmray.sources.rangefile import RangeFile
from mmray.sources.stream import Broken, ByteStream, GzipChunks, RangeChunks
from mmray.specs.index import FileQueries
from mmray.specs.problems import hint
from mmray.storage import Storage

PIECE = 4096
"""Rows of a file that are held, and answered, together; fewer where they are large."""
PIECE_BYTES = 32 * 1024 * 1024
LINE_BYTES = 16 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class QueryFile:
    """One file of queries, held to the etag that it had when it was opened."""

    def __init__(self, spec: FileQueries, storage: Storage, dim: int, *, unit: bool) -> None:
        """Looks at the file until it knows what it holds.

        Args:
            spec: names the file and its columns.
            storage: where it is.
            dim: numbers of a vector.
            unit: bring vectors to length 1.

        Raises:
            SpecError: vectors without the fingerprint of their encoder.
            RefusedError: there's no such file or column, or it holds no query.
            StorageError: storage stayed broken.
        """
        self._spec, self._storage = spec, storage
        self.uri = storage.normalise(spec.uri)
        name = self.uri.lower()
        if not name.endswith((*ENDINGS, *PLAIN, *GZIPPED)):
            endings = ", ".join((*ENDINGS, *PLAIN))
            raise SpecError("queries.uri", f"must end in {endings}, or .gz after JSON lines")
        self._is_parquet = name.endswith(ENDINGS)
        self._is_gzipped = name.endswith(GZIPPED)
        try:
            self._object = storage.stat(self.uri)
        except (FileNotFoundError, NotADirectoryError):
            raise RefusedError(f"{self.uri}: there is no such file") from None
        except (IsADirectoryError, PermissionError) as error:
            raise RefusedError(str(error)) from None
        word = "row" if self._is_parquet else "line"
        self._wanted = Wanted(self.uri, word, spec.id, dim, unit)
        self.rows: int | None = None
        """None where only reading all of it would tell."""
        self.holds: Holds = self._look()
        if self.holds == "vectors" and spec.fingerprint is None:
            raise SpecError(
                "queries.fingerprint",
                f"is needed: {self.uri} holds vectors, and only those of the index's own encoder "
                "can be compared with it",
            )

    def pieces(self) -> Iterator[Piece]:
        """All of the file's queries, in order.

        Raises:
            StorageError: the file changed or is damaged, or storage stayed broken.
        """
        with closing(self._read()) as read:
            for rows in read:
                held = self._wanted.take(rows, self.holds)
                yield Piece(self.uri, self._object.etag, rows.first, rows.last, held)

    def _look(self) -> Holds:
        """What the rows are, after a look at so many that one of them is a query."""
        holds: Holds | None = None
        seen: Counter[str] = Counter()
        first: Example | None = None
        try:
            with closing(self._read()) as read:
                for rows in read:
                    holds = holds or rows.kind()
                    found = self._wanted.take(rows, holds or "text")
                    if holds is not None and found.ids:
                        return holds
                    seen += found.left_out
                    first = first or next(iter(found.examples), None)
        except StorageError as error:
            if isinstance(error.__cause__, Broken | pa.ArrowException | ValueError):
                raise RefusedError(str(error)) from error
            raise
        if not seen:
            raise RefusedError(f"{self.uri}: has no rows")
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in seen.most_common(3))
        words = f"; {first.message}" if first else ""
        raise RefusedError(f"{self.uri}: none of its rows is a query ({reasons}){words}")

    def _read(self) -> Generator[RawRows, None, None]:
        return self._parquet() if self._is_parquet else self._jsonl()

    def _fetch(self, start: int, stop: int) -> bytes:
        return self._storage.read_range(self.uri, start, stop, self._object.etag)

    def _parquet(self) -> Generator[RawRows, None, None]:
        file = RangeFile(self._fetch, self._object.size)
        with self._readable(file):
            parquet = pq.ParquetFile(
                pa.PythonFile(file, "r"),
                metadata=read_footer(file),
                buffer_size=BUFFER,
                page_checksum_verification=True,
            )
            schema = parquet.schema_arrow
        self.rows = parquet.metadata.num_rows
        column, id_column = self._columns(schema)
        names = list(dict.fromkeys(each.path[0] for each in (column, id_column) if each))
        with self._readable(file):
            size = _rows_at_once(parquet.metadata)
            batches = parquet.iter_batches(size, columns=names, use_threads=False)
        first = 0
        while True:
            with self._readable(file):
                batch = next(batches, None)
                if batch is None:
                    return
                numbers = list(range(first, first + batch.num_rows))
                rows = RawRows(first, first + batch.num_rows, numbers, [*numbers])
                if id_column is not None:
                    rows.ids = values(id_column.take(batch))
                taken = column.take(batch)
                # What is beyond float32 becomes infinite, and so is left out.
                is_texts = is_text(column.type)
                rows.values = values(taken) if is_texts else taken.cast(LIST, safe=False)
            first = rows.last
            yield rows

    def _columns(self, schema: pa.Schema) -> tuple[Column, Column | None]:
        """Those of the queries and of their ids. Raises RefusedError."""
        column = self._column(schema, "column", self._spec.column)
        if not is_text(column.type) and not _is_vector(column.type):
            raise RefusedError(
                f"queries.column: {column.name!r} of {self.uri} is {column.type}; text or lists "
                "of numbers are needed"
            )
        if self._spec.id is None:
            return column, None
        id_column = self._column(schema, "id", self._spec.id)
        if not is_text(id_column.type) and not pa.types.is_integer(id_column.type):
            raise RefusedError(
                f"queries.id: {id_column.name!r} of {self.uri} is {id_column.type}; text or whole "
                "numbers are needed"
            )
        return column, id_column

    def _column(self, schema: pa.Schema, which: str, name: str) -> Column:
        try:
            found = find(schema, name)
        except BadSample as error:
            raise RefusedError(f"queries.{which}: {self.uri}: {error.message}") from error
        if found is None:
            raise RefusedError(
                f"queries.{which}: {self.uri} has no column {name!r}{hint(name, schema.names)}, "
                f"only {', '.join(schema.names)}"
            )
        return found

    @contextmanager
    def _readable(self, file: RangeFile) -> Iterator[None]:
        try:
            yield
        except Broken as error:
            raise StorageError(self.uri, error.message) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            cause = file.failure or error
            if isinstance(cause, MmrayError):
                raise cause from error
            words = " ".join(str(cause).split())[:300]
            raise StorageError(self.uri, f"can't be read as Parquet: {words}") from error

    def _jsonl(self) -> Generator[RawRows, None, None]:
        rows, held = RawRows(1), 0
        with closing(self._lines()) as lines:
            for number, line in lines:
                name, value = self._parsed(number, line)
                rows.numbers.append(number)
                rows.ids.append(name)
                rows.values.append(value)
                rows.last = number + 1
                held += len(line or b"")
                if len(rows.ids) == PIECE or held >= PIECE_BYTES:
                    yield rows
                    rows, held = RawRows(rows.last), 0
        if rows.ids:
            yield rows

    def _lines(self) -> Generator[tuple[int, bytes | None], None, None]:
        """Lines that aren't blank, with their numbers; None for one that is too long."""
        raw = RangeChunks(self._fetch, 0, self._object.size)
        stream = ByteStream(GzipChunks(raw) if self._is_gzipped else raw, 0)
        number = 0
        with closing(raw):
            try:
                while (line := stream.line(LINE_BYTES)) != b"":
                    number += 1
                    if line is not None and number == 1:
                        line = line.removeprefix(_BOM)
                    if line is None or line.strip(b" \t\r\n"):
                        yield number, line
            except Broken as error:
                raise StorageError(self.uri, f"line {number + 1}: {error.message}") from error

    def _parsed(self, number: int, line: bytes | None) -> tuple[Any, Any]:
        """Name and value of a line; a BadSample for what isn't right."""
        if line is None:
            return number, BadSample("bad line", f"it has over {LINE_BYTES:,} bytes")
        try:
            found = parse_line(line)
        except BadSample as error:
            return number, BadSample("bad line", error.message)
        name = number if self._spec.id is None else dig(found, self._spec.id)
        value = dig(found, self._spec.column)
        if value is None and self._spec.column not in found:
            near = hint(self._spec.column, found)
            value = BadSample("no query", f"it has no field {self._spec.column!r}{near}")
        return name, value


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    size = int(sum(group.total_byte_size for group in groups))
    rows = int(sum(group.num_rows for group in groups))
    return max(1, min(PIECE, PIECE_BYTES * rows // max(size, 1)))


def _is_vector(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(check(kind) for check in lists):
        return False
    inner = bare(kind.value_type)
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))
