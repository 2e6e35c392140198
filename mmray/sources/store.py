"""An mmray store as a source: its rows are samples again, with the places and ids that they have.

What shards are made of doesn't depend on how the rows lie in parts, so compaction changes nothing.
A shard that was one object is one here too, with the fragments that the store names. Rows that were
raw files make slices, cut by their names as a listing of the files would be: a file that changed in
the store is replaced alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pyarrow as pa

from mmray.errors import RefusedError, SampleError, ShardChanged, StorageError
from mmray.sources.columns import bare, is_bytes, is_text
from mmray.sources.cut import Cut, Item, cut_fragments
from mmray.sources.files import SLICE_ROWS, slices
from mmray.sources.fragment import (
    Fragment,
    Member,
    Sample,
    Shard,
    Span,
    digest,
    is_object,
    slice_shard,
)
from mmray.sources.storelog import (
    Held,
    Snapshot,
    UriHistory,
    follows,
    read_snapshot,
)
from mmray.sources.storepart import DamagedPart, PartReader
from mmray.sources.storerows import Rows
from mmray.specs.common import Limits, StoreSource
from mmray.storage import Storage

DEFAULT_COLUMNS = {"image": "thumbnail", "text": "caption"}
_READERS = 8


class StoreReader:
    """Reads the rows of one version of a store; the latest is looked up at each `shards()`."""

    def __init__(
        self,
        spec: StoreSource,
        storage: Storage,
        limits: Limits,
        cut: Cut,
        wanted: frozenset[str] | None = None,
    ) -> None:
        self._spec = spec
        self._uri = storage.normalise(spec.uri)
        self._storage = storage
        self._cut = cut
        self._wanted = wanted
        columns = {str(modality): name for modality, name in spec.columns.items()}
        self._columns = columns or DEFAULT_COLUMNS
        self._rows = Rows(self._uri, self._columns, limits, wanted)
        self._history: UriHistory | None = None
        self.ignored = 0
        self.sliced = False
        """After `shards()`: whether the rows were raw files."""

    def shards(self, may_be_gone: Callable[[str], bool] | None = None) -> Iterator[Shard]:
        """The shards of the store's objects, or slices of its raw files.

        Raises:
            RefusedError: no store, no such version, no rows, or no column of that name and type.
        """
        self._history = None
        snapshot = read_snapshot(self._uri, self._storage, self._spec.version, self._places)
        self._check_columns(snapshot.schema)
        held = [each for each in snapshot.held if each.rows]
        if not held and not (may_be_gone and may_be_gone(self._uri)):
            raise RefusedError(f"{self._uri}: the store has no rows")
        self.sliced = any(not each.is_object for each in held)
        if not self.sliced:
            return iter(sorted(_objects(snapshot), key=lambda shard: shard.uri))
        mixed = next((each.uri for each in held if each.is_object), None)
        if mixed is not None:
            raise RefusedError(
                f"{self._uri}: holds raw files and also shards such as {mixed}; a source is one "
                "or the other"
            )
        parts = sorted({each.part for each in held})
        return iter([slice_shard(run) for run in slices(self._members(parts))])

    def covers(self, uri: str) -> bool:
        """Whether any version of the store has, or had, rows of this source_uri."""
        if self._history is None:
            self._history = UriHistory(self._uri, self._storage)
        return uri in self._history

    def read(self, shard: Shard, start: int, stop: int, seen: set[str]) -> Iterator[Fragment]:
        """The rows of the parts that hold the shard, in order, a row group at a time.

        Raises:
            ShardChanged: a part is gone, which says nothing about its samples: they may be in
                another part by now, and the next listing finds them.
        """
        del seen  # ids are unique in a store: no key comes back
        if is_object(shard.key, shard.uri):
            return self._read_object(shard, start, stop)
        return cut_fragments(shard, start, stop, self._slice_items(shard, start, stop), self._cut)

    def _check_columns(self, schema: pa.Schema) -> None:
        have = {field.name: field.type for field in schema}
        used = [name for name in self._columns.values() if name in have]
        if not self._spec.columns and not used:
            names = " and ".join(f"source.columns.{m}" for m in DEFAULT_COLUMNS)
            raise RefusedError(
                f"{self._uri}: has neither thumbnail nor caption; {names} say which of its columns "
                f"to read: {', '.join(have)}"
            )
        for modality, name in self._columns.items():
            if name not in have and self._spec.columns:
                raise RefusedError(
                    f"source.columns.{modality}: {self._uri} has no column {name!r}, only "
                    f"{', '.join(have)}"
                )
            right, wrong = (is_text, "text") if modality == "text" else (is_bytes, "bytes")
            if name in have and not right(bare(have[name])):
                raise RefusedError(
                    f"source.columns.{modality}: the column {name!r} of {self._uri} is "
                    f"{have[name]}, not {wrong}"
                )
        for name in sorted((self._wanted or frozenset()) - have.keys() - {"caption"}):
            raise RefusedError(f"{self._uri} has no column {name!r}, only {', '.join(have)}")

    def _places(self, part: str) -> pa.Table:
        return self._column_table(part, ("fragment", "source_uri"))

    def _column_table(self, part: str, columns: tuple[str, ...]) -> pa.Table:
        try:
            with PartReader(self._storage, part) as reader:
                tables = [reader.texts(group, columns) for group in range(reader.groups)]
        except DamagedPart as error:
            raise StorageError(part, f"is damaged: {error}") from error
        empty = pa.table({name: pa.array([], pa.string()) for name in columns})
        return pa.concat_tables([empty, *tables])

    def _members(self, parts: list[str]) -> list[Member]:
        """The raw files that have rows; the sidecars of each are the parts that hold them."""
        files: dict[str, tuple[str, str, int, list[str]]] = {}
        names = ("source_uri", "source_key", "source_etag")
        with ThreadPoolExecutor(_READERS, "mmray-list") as pool:
            tables = pool.map(lambda part: self._column_table(part, names), parts)
            for part, table in zip(parts, tables, strict=True):
                columns = (table[name].to_pylist() for name in names)
                for uri, key, etag in zip(*columns, strict=True):
                    _, _, rows, owners = files.get(uri, (key, etag, 0, []))
                    if part not in owners:
                        owners.append(part)
                    files[uri] = (key, etag, rows + 1, owners)
        return [
            Member(uri, key, etag, rows, tuple((part, "parquet") for part in owners))
            for uri, (key, etag, rows, owners) in sorted(files.items())
        ]

    def _read_object(self, shard: Shard, start: int, stop: int) -> Iterator[Fragment]:
        """The fragments that have rows; each tile begins where the one before stopped."""
        runs, errors = self._find(shard, start, stop)
        order = sorted({*runs, *errors}, key=lambda span: span.start)
        if not order:
            raise ShardChanged(shard.uri, f"no row of it is in {self._uri} from {start} to {stop}")
        open_part: PartReader | None = None
        reached = start
        try:
            for index, span in enumerate(order):
                samples: list[Sample] = []
                found = errors.get(span)
                try:
                    for part, group, first, count in runs.get(span, ()):
                        if open_part is None or open_part.uri != part:
                            if open_part is not None:
                                open_part.close()
                            open_part = PartReader(self._storage, part)
                        table = open_part.rows(group, self._rows.needed)
                        samples += self._rows.samples(table.slice(first, count))
                except DamagedPart as error:
                    lost = sum(count for *_, count in runs[span])
                    samples, found = [], f"{lost:,} rows: {error}"
                if found is not None:
                    samples.append(_damaged(shard, span, found))
                end = stop if index == len(order) - 1 else span.stop
                yield Fragment(shard.span(reached, end), samples)
                reached = end
        finally:
            if open_part is not None:
                open_part.close()

    def _find(
        self, shard: Shard, start: int, stop: int
    ) -> tuple[dict[Span, list["Run"]], dict[Span, str]]:
        """Where the fragments in `[start, stop)` lie; and the spans of parts that can't be read."""
        runs: dict[Span, list[Run]] = defaultdict(list)
        errors: dict[Span, str] = {}
        for member in shard.members:
            whole = Span.parse(member.name)
            if whole.stop <= start or stop <= whole.start:
                continue
            try:
                mine = self._runs_in(member, whole)
            except DamagedPart as error:
                low, high = max(start, whole.start), min(stop, whole.stop)
                clipped = Span(whole.shard, whole.version, low, high)
                errors[clipped] = f"{member.size:,} rows: {error}"
                continue
            for span, run in mine:
                if start <= span.start and span.stop <= stop:
                    runs[span].append(run)
        return runs, errors

    def _runs_in(self, member: Member, whole: Span) -> list[tuple[Span, "Run"]]:
        """The fragments of one part that lie in `whole`. Raises DamagedPart."""
        found: list[tuple[Span, Run]] = []
        rows = 0
        with PartReader(self._storage, member.uri) as reader:
            for group in range(reader.groups):
                for name, first, count in reader.runs(group, "fragment"):
                    span = _parsed(name, member.uri)
                    same = (span.shard, span.version) == (whole.shard, whole.version)
                    if same and whole.start <= span.start and span.stop <= whole.stop:
                        found.append((span, (member.uri, group, first, count)))
                        rows += count
        if rows != member.size:
            raise DamagedPart(f"{member.uri} has {rows:,} of them, the log says {member.size:,}")
        return found

    def _slice_items(self, shard: Shard, start: int, stop: int) -> Iterator[Item]:
        for first in range(start, stop, SLICE_ROWS):
            members = shard.members[first : min(stop, first + SLICE_ROWS)]
            found, damaged = self._rows_of(members)
            for place, member in enumerate(members, first):
                samples = found.pop(member.uri, [])
                words = [damaged[part] for part, _ in member.sidecars if part in damaged]
                if words or len(samples) != member.size:
                    text = words[0] if words else f"{len(samples)} of {member.size} rows are there"
                    error = SampleError("read", "CorruptShard", text[:500])
                    samples = [Sample(member.uri, member.name, member.etag, error=error)]
                yield place, samples[0]
                # A file's windows or frames stay together: none of them is planned by itself.
                yield from ((None, sample) for sample in samples[1:])

    def _rows_of(
        self, members: tuple[Member, ...]
    ) -> tuple[dict[str, list[Sample]], dict[str, str]]:
        """The rows of these files by uri, and what is wrong with parts by their uri."""
        wanted = pa.array([member.uri for member in members], pa.string())
        found: dict[str, list[Sample]] = {}
        damaged: dict[str, str] = {}
        for part in sorted({part for member in members for part, _ in member.sidecars}):
            try:
                with PartReader(self._storage, part) as reader:
                    for group in range(reader.groups):
                        rows = reader.matching(group, "source_uri", wanted)
                        if len(rows):
                            table = reader.rows(group, self._rows.needed).take(rows)
                            for sample in self._rows.samples(table):
                                found.setdefault(sample.source_uri, []).append(sample)
            except DamagedPart as error:
                damaged[part] = str(error)
        return found, damaged


Run = tuple[str, int, int, int]
"""Rows one after another: uri of the part, row group, first row in it, how many."""


def _objects(snapshot: Snapshot) -> Iterator[Shard]:
    """One shard for each object that has rows; its version tells what of it is there."""
    shards: dict[str, list[Held]] = defaultdict(list)
    for each in snapshot.held:
        if each.is_object:
            shards[each.span.shard].append(each)
    for key, held in shards.items():
        rows = sum(each.rows for each in held)
        if not rows:
            continue
        held.sort(key=lambda each: str(each.span))
        # Where parts meet is not part of the version: compaction moves it.
        edges = [str(held[0].span)[:-13]]
        for one, other in pairwise(held):
            if not follows(one.span, other.span):
                edges += [str(one.span.stop), str(other.span)[:-13]]
        size = max(each.span.stop for each in held)
        mark = digest("\n".join([*edges, str(held[-1].span.stop), str(rows)]), 16)
        members = tuple(
            Member(each.part, str(each.span), "", each.rows) for each in held if each.rows
        )
        yield Shard(min(each.uri for each in held), mark, size, key, mark[:8], members)


def _damaged(shard: Shard, span: Span, words: str) -> Sample:
    error = SampleError("read", "CorruptShard", words[:500])
    return Sample(shard.uri, "", shard.etag, error=error, ordinal=span.start or None)


def _parsed(name: str, part: str) -> Span:
    try:
        return Span.parse(name)
    except ValueError as error:
        raise DamagedPart(f"{part}: {error}") from error
