"""Parts: the Parquet files of a store, and the receipts that make them visible.

A part holds whole fragments, contiguous ones of one shard version. Nothing sees it until a commit
names it, so a worker may be killed at any point and leaves at most an orphan. The statistics in the
receipt name the part's first and last fragment exactly; they are what resume reads.
"""

import io
import json
import re
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import Stage, StorageError
from mmray.sources.fragment import Span
from mmray.storage import Storage, join, with_backoff
from mmray.store.schema import BASE, VECTOR

ROW_GROUP = 8192
LONGEST_BOUND = 64
"""Characters of a text kept in statistics; a caption may be a page."""
LAST_CODE_POINT = "\U0010ffff"
# Few distinct values a part, so a dictionary is all but free; ids and vectors never repeat.
_DICTIONARY = ("source_uri", "source_etag", "fragment")
_NAME = re.compile(
    r"(?:_mmray/rebuild/[0-9a-f]{16}/)?data/[0-9a-f]{2}/part-([0-9a-f]{32})\.parquet"
)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A sample that could not be used. `written`: rows that the store gets for its fragment; 0
    where the quarantine alone covers the fragment."""

    id: str
    source_uri: str
    source_key: str
    source_etag: str
    fragment: str
    stage: Stage
    error_type: str
    message: str
    written: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker hands to the driver for one finished part.

    `path` is relative to the store root, and empty when every sample was quarantined; a part may be
    without rows, where all its samples were left out. `stats` is
    the JSON of Delta's add action.
    """

    span: Span
    first: str
    last: str
    shard_uri: str
    path: str
    attempt: str
    rows: int
    bytes: int
    quarantined: tuple[Quarantined, ...]
    stats: str


def attempt_of(path: str) -> str | None:
    """The attempt in the name of a part that mmray wrote; None for another engine's file."""
    match = _NAME.fullmatch(path)
    return match[1] if match else None


def write_part(
    storage: Storage,
    root: str,
    table: pa.Table,
    spans: Sequence[Span],
    shard_uri: str,
    quarantined: Sequence[Quarantined] = (),
) -> Receipt:
    """Write `table`, the good rows of the fragments `spans`, as one part under the store `root`.

    `spans` are contiguous and of one shard version; fragments without rows are among them. The
    `written` of `quarantined` is counted here. At most one encoded copy is held beside the table.

    Raises:
        ValueError: spans with a gap, rows of another fragment, an id twice: a fault of the caller.
        StorageError: the file could not be written.
    """
    _require_contiguous(spans)
    names = [str(span) for span in spans]
    rows = _rows_by_fragment(table, names)
    failed = tuple(replace(row, written=rows.get(row.fragment, 0)) for row in quarantined)
    attempt = uuid.uuid4().hex
    whole = Span(spans[0].shard, spans[0].version, spans[0].start, spans[-1].stop)
    path, size, stats = "", 0, ""
    # A fragment that was left out as a whole is told by a part's bounds alone, an empty one's too.
    accounted = rows.keys() | {row.fragment for row in failed}
    if table.num_rows or accounted < set(names):
        path = f"data/{attempt[:2]}/part-{attempt}.parquet"
        data = _encode(_plain(table))
        size = len(data)
        stats = _stats(table, names[0], names[-1], shard_uri)
        _put(storage, join(root, path), data)
    return Receipt(
        span=whole,
        first=names[0],
        last=names[-1],
        shard_uri=shard_uri,
        path=path,
        attempt=attempt,
        rows=table.num_rows,
        bytes=size,
        quarantined=failed,
        stats=stats,
    )


def _put(storage: Storage, uri: str, data: bytes) -> None:
    try:
        storage.write_bytes(uri, data)
    except OSError as error:  # a full disk, rights that have run out
        words = error.strerror or str(error).removeprefix(f"{uri}: ")
        raise StorageError(uri, f"can't be written: {words}") from error


def read_part(
    storage: Storage, root: str, path: str, columns: Sequence[str] | None = None
) -> pa.Table:
    """The rows of one part, all columns or those named. Page checksums are verified.

    Raises:
        FileNotFoundError, pa.ArrowInvalid, OSError: the part is gone or damaged.
    """
    filesystem, base = storage.arrow_filesystem(root)

    def read() -> pa.Table:
        with filesystem.open_input_file(f"{base}/{path}") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            return ordinary(parquet.read(columns=list(columns) if columns is not None else None))

    return with_backoff(join(root, path), read)


def ordinary(table: pa.Table) -> pa.Table:
    """The table with Arrow's usual types: other engines leave views and large types in their files,
    for which many of Arrow's functions don't exist."""
    fields = []
    for column in table.schema:
        kind = column.type
        if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
            kind = pa.string()
        elif pa.types.is_binary_view(kind) or pa.types.is_large_binary(kind):
            kind = pa.binary()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
            kind = VECTOR
        fields.append(pa.field(column.name, kind, column.nullable))
    schema = pa.schema(fields)
    return table if table.schema.equals(schema) else table.cast(schema)


def _require_contiguous(spans: Sequence[Span]) -> None:
    if not spans:
        raise ValueError("a part needs at least one fragment")
    for before, after in pairwise(spans):
        if (before.shard, before.version, before.stop) != (
            after.shard,
            after.version,
            after.start,
        ):
            raise ValueError(f"fragments {before} and {after} are not contiguous")


def _rows_by_fragment(table: pa.Table, names: list[str]) -> dict[str, int]:
    counts = {
        entry["values"].as_py(): entry["counts"].as_py()
        for entry in pc.value_counts(table["fragment"])
    }
    strange = counts.keys() - set(names)
    if strange:
        raise ValueError(f"rows of the fragment {min(strange)} in a part of {names[0]}..")
    if pc.count_distinct(table["id"]).as_py() != table.num_rows:
        raise ValueError(f"an id stands twice in the part of {names[0]}..")
    return counts


def _plain(table: pa.Table) -> pa.Table:
    """Base columns that can't be null, and lists whose item is called `element` as Parquet's is."""
    fields = []
    for column in table.schema:
        if column.name in BASE:
            fields.append(pa.field(column.name, pa.string(), nullable=False))
        elif pa.types.is_list(column.type):
            fields.append(pa.field(column.name, VECTOR))
        else:
            fields.append(column.remove_metadata())
    schema = pa.schema(fields)
    return table if table.schema.equals(schema) else table.cast(schema)


def _encode(table: pa.Table) -> bytes:
    # Normalised float32 vectors shrink by 15% at most, and compressing them costs more than a small
    # model: they stay plain. Checksums cost 0.1 ms a fragment and let verify find a flipped byte.
    small = [f.name for f in table.schema if not pa.types.is_list(f.type)]
    compression = dict.fromkeys(small, "zstd")
    compression |= {
        f"{f.name}.list.element": "none" for f in table.schema if pa.types.is_list(f.type)
    }
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP,
        compression=compression,
        compression_level=dict.fromkeys(small, 1),
        use_dictionary=[name for name in _DICTIONARY if name in small],
        write_statistics=small,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _stats(table: pa.Table, first: str, last: str, shard_uri: str) -> str:
    # Every column that can have bounds gets them: beside bounds of others, deltalake's dataset
    # takes missing ones for "nothing matches", and a filter on such a column would find no row.
    bounds = {
        field.name: bounds_of(table[field.name], exact=field.name == "source_uri")
        for field in table.schema
        if _has_bounds(field.type)
    }
    bounds = {name: each for name, each in bounds.items() if each[0] is not None}
    bounds.setdefault("source_uri", (shard_uri, shard_uri))
    names = pc.min_max(table["fragment"]).as_py()
    stats: dict[str, object] = {
        "numRecords": table.num_rows,
        "minValues": {name: low for name, (low, _) in bounds.items()} | {"fragment": first},
        "maxValues": {name: high for name, (_, high) in bounds.items()} | {"fragment": last},
        "nullCount": {
            field.name: column.null_count
            for field, column in zip(table.schema, table.columns, strict=True)
            if not pa.types.is_list(field.type)
        },
    }
    if (names["min"], names["max"]) != (first, last):
        # The outermost fragments are in quarantine as a whole: say that bounds are wider than rows.
        stats["tightBounds"] = False
    return json.dumps(stats)


def _has_bounds(kind: pa.DataType) -> bool:
    """Delta keeps bounds of strings and numbers, not of booleans, bytes and lists."""
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def bounds_of(column: pa.ChunkedArray, *, exact: bool) -> tuple[object, object]:
    """Least and greatest value, or values beyond them; None for a column of nulls."""
    found = pc.min_max(column).as_py()
    low, high = found["min"], found["max"]
    if isinstance(low, float):  # JSON has no infinity, and NaN is beyond no bound
        largest = sys.float_info.max
        finite = bool(pc.all(pc.is_finite(column), skip_nulls=True).as_py())
        return (low, high) if finite else (-largest, largest)
    if isinstance(low, str) and not exact:
        # A prefix sorts before, and a prefix with the last code point after, what it starts.
        return low[:LONGEST_BOUND], _above(high)
    return low, high


def _above(text: str) -> str:
    if len(text) <= LONGEST_BOUND or LAST_CODE_POINT in text:
        return text
    return text[:LONGEST_BOUND] + LAST_CODE_POINT
