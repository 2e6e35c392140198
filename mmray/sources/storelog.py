"""What one version of an mmray store holds, from its Delta log: which shards are in which parts.

Reads the log and no rows; only of parts that another engine wrote, whose statistics don't say what
is in them, are two columns read. The room of stores lies above this one, so this speaks to the
table itself.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from mmray.errors import RefusedError, StorageError
from mmray.sources.fragment import Span, is_object
from mmray.storage import Storage, join, with_backoff

FORMAT = 1
"""The store format that this reads, that of `mmray.store.schema`."""
PLACE = ("source_uri", "source_key", "source_etag", "fragment")
"""Columns that say where a row comes from; every store has them."""

_OURS = re.compile(r"(?:.*/)?part-[0-9a-f]{32}\.parquet")
_UNREADABLE = {"deletionVectors", "columnMapping"}
_FIRST_ENTRY = f"/{0:020d}.json"


@dataclass(frozen=True, slots=True)
class Held:
    """A contiguous run of one shard in one part."""

    part: str
    """Uri of the part."""
    span: Span
    rows: int
    uri: str
    """The least source_uri of its rows."""

    @property
    def is_object(self) -> bool:
        """Whether its shard is one object; else it is a slice of raw files."""
        return is_object(self.span.shard, self.uri)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a store."""

    schema: pa.Schema
    held: tuple[Held, ...]


def read_snapshot(
    uri: str, storage: Storage, version: int | None, places: Callable[[str], pa.Table]
) -> Snapshot:
    """The store at `uri`; `places` gives fragment and source_uri of all rows of a part.

    Raises:
        RefusedError: no mmray store is there, or it has no such version.
        StorageError: storage stayed broken.
    """
    table = _open(uri, storage, version)
    schema = pa.schema(table.schema().to_arrow())
    _require_ours(uri, table, schema)
    held: list[Held] = []
    for row in pa.table(table.get_add_actions(flatten=True)).to_pylist():
        found = _bounded(uri, row)
        held += [found] if found else _looked_up(join(uri, row["path"]), places)
    return Snapshot(schema, tuple(held))


def _open(uri: str, storage: Storage, version: int | None) -> DeltaTable:
    def once() -> DeltaTable:
        return DeltaTable(uri, version=version, storage_options=storage.delta_options(uri))

    try:
        return with_backoff(uri, once)
    except TableNotFoundError as error:
        raise RefusedError(f"{uri} is not a Delta table, so no mmray store") from error
    except DeltaError as error:
        if version is not None:
            raise RefusedError(f"{uri} has no version {version} that can be read") from error
        raise StorageError(uri, f"the Delta log can't be read: {error}") from error
    except OSError as error:
        try:  # a plain listing says it in clearer words
            next(storage.list(join(uri, "_delta_log")), None)
        except (PermissionError, FileNotFoundError) as clear:
            raise RefusedError(str(clear)) from error
        raise StorageError(uri, str(error)) from error


def _require_ours(uri: str, table: DeltaTable, schema: pa.Schema) -> None:
    try:
        meta = json.loads(table.metadata().description or "")
    except ValueError:
        meta = None
    lacking = sorted({"id", *PLACE} - set(schema.names))
    if not isinstance(meta, dict) or "mmray_format" not in meta or lacking:
        raise RefusedError(f"{uri} is a Delta table, but not an mmray store")
    if meta["mmray_format"] > FORMAT:
        raise RefusedError(
            f"{uri} has store format {meta['mmray_format']}, this mmray reads up to {FORMAT}: "
            "upgrade mmray"
        )
    protocol = table.protocol()
    extra = _UNREADABLE & {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if extra:
        raise RefusedError(f"{uri} uses Delta's {', '.join(sorted(extra))}, which mmray can't read")


def _bounded(root: str, row: dict[str, Any]) -> Held | None:
    """What a part of ours holds, by its statistics; None where they don't say."""
    low, high, uri = (row.get(f) for f in ("min.fragment", "max.fragment", "min.source_uri"))
    if not (_OURS.fullmatch(row["path"]) and low and high and uri):
        return None
    try:
        first, last = Span.parse(low), Span.parse(high)
    except ValueError:
        return None
    if (first.shard, first.version) != (last.shard, last.version):
        return None
    span = Span(first.shard, first.version, first.start, last.stop)
    return Held(join(root, row["path"]), span, row["num_records"] or 0, uri)


def _looked_up(part: str, places: Callable[[str], pa.Table]) -> list[Held]:
    """What a part of another engine holds, by its rows: it may have several shards, and holes."""
    counts = (
        places(part)
        .group_by(["fragment"])
        .aggregate([("source_uri", "min"), ("fragment", "count")])
    )
    runs: list[Held] = []
    for row in counts.sort_by("fragment").to_pylist():
        span, uri, rows = Span.parse(row["fragment"]), row["source_uri_min"], row["fragment_count"]
        last = runs[-1] if runs else None
        if last is not None and follows(last.span, span):
            whole = Span(span.shard, span.version, last.span.start, span.stop)
            runs[-1] = Held(part, whole, last.rows + rows, min(last.uri, uri))
        else:
            runs.append(Held(part, span, rows, uri))
    return runs


def follows(one: Span, other: Span) -> bool:
    """Whether `other` begins where `one` stops."""
    return (one.shard, one.version, one.stop) == (other.shard, other.version, other.start)


class UriHistory:
    """The source_uris that any version of a store has had, by the statistics in its log."""

    def __init__(self, uri: str, storage: Storage) -> None:
        ranges: set[tuple[str, str]] = set()
        for stats in _statistics(uri, storage):
            bounds = json.loads(stats)
            low = (bounds.get("minValues") or {}).get("source_uri")
            high = (bounds.get("maxValues") or {}).get("source_uri")
            if low is not None and high is not None:
                ranges.add((low, high))
        self._lows: list[str] = []
        self._highs: list[str] = []
        for low, high in sorted(ranges):
            if self._highs and low <= self._highs[-1]:
                self._highs[-1] = max(high, self._highs[-1])
            else:
                self._lows.append(low)
                self._highs.append(high)

    def __contains__(self, uri: str) -> bool:
        place = bisect_right(self._lows, uri) - 1
        return place >= 0 and uri <= self._highs[place]


def _statistics(uri: str, storage: Storage) -> Iterator[str]:
    """The statistics of every file that the log tells of."""
    listed = list(storage.list(join(uri, "_delta_log"), recursive=False))
    for item in listed:
        if item.uri.endswith(".json"):
            for line in storage.read_bytes(item.uri).splitlines():
                action = json.loads(line) if line.strip() else {}
                if stats := (action.get("add") or {}).get("stats"):
                    yield stats
    # Checkpoints repeat the entries; only where another engine has cleaned up do they know more.
    if not any(item.uri.endswith(_FIRST_ENTRY) for item in listed):
        for item in listed:
            if item.uri.endswith(".parquet"):
                yield from _in_checkpoint(item.uri, storage)


def _in_checkpoint(uri: str, storage: Storage) -> Iterator[str]:
    parquet = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri)))
    for row in parquet.read(columns=["add.stats"])["add"].to_pylist():
        if row and row.get("stats"):
            yield row["stats"]
