"""Which spans of which shards are done: known from parts and fragments, never from rows.

A part that mmray wrote is contiguous, so its first and last fragment in Delta's statistics tell all
of it. A part that another engine wrote (its compaction) may have holes and truncated statistics:
of that one the fragment column is read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import pyarrow as pa

from mmray.sources.fragment import Span
from mmray.store.parts import attempt_of

FragmentReader = Callable[[str], pa.Table]
"""Path of a part to its columns source_uri and fragment."""

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One active file of a store, from the log."""

    path: str
    size: int
    rows: int
    min_uri: str
    max_uri: str
    spans: tuple[Span, ...]
    """What it covers: one span, or several where another engine wrote it."""
    attempt: str | None
    """None where another engine wrote it."""
    uris: Mapping[str, str] = field(default_factory=dict)
    """Least source_uri by shard, where another engine put several into it."""

    @property
    def span(self) -> Span:
        """Its first span: the only one, unless another engine wrote the part."""
        return self.spans[0]


class Coverage:
    """The spans that are done, by shard and version."""

    def __init__(self) -> None:
        self._parts: dict[str, PartInfo] = {}
        self._shards: dict[str, list[tuple[Span, str]]] = {}
        self._uris: dict[str, str] = {}
        self.serial = 0
        """Changes whenever `sync` changed anything."""

    @classmethod
    def from_parts(cls, actions: pa.Table, read: FragmentReader) -> "Coverage":
        """The coverage of the add actions of one table version (flattened)."""
        coverage = cls()
        coverage.sync(actions, read)
        return coverage

    def sync(self, actions: pa.Table, read: FragmentReader) -> None:
        """Follow the table to another version; parts seen before are not looked at again."""
        paths = actions["path"].to_pylist()
        active = set(paths)
        gone = [path for path in self._parts if path not in active]
        for path in gone:
            self._forget(path)
        fresh = [row for row, path in enumerate(paths) if path not in self._parts]
        self.serial += bool(gone or fresh)
        if fresh:
            for row in actions.take(fresh).to_pylist():
                self._learn(_info(row, read))

    def copy(self) -> "Coverage":
        """One that can be added to."""
        other = Coverage()
        other._parts = dict(self._parts)
        other._shards = {shard: list(spans) for shard, spans in self._shards.items()}
        other._uris = dict(self._uris)
        return other

    def add(self, span: Span, uri: str = "") -> None:
        """Count `span` as done though no part holds it."""
        self._shards.setdefault(span.shard, []).append((span, ""))
        if uri:
            self._uris.setdefault(span.shard, uri)

    def _learn(self, part: PartInfo) -> None:
        self._parts[part.path] = part
        for span in part.spans:
            self._shards.setdefault(span.shard, []).append((span, part.path))
            self._uris.setdefault(span.shard, part.uris.get(span.shard, part.min_uri))

    def _forget(self, path: str) -> None:
        for shard in {span.shard for span in self._parts.pop(path).spans}:
            left = [(span, owner) for span, owner in self._shards[shard] if owner != path]
            if left:
                self._shards[shard] = left
            else:
                del self._shards[shard]
                self._uris.pop(shard, None)

    @property
    def parts(self) -> Mapping[str, PartInfo]:
        """Active parts by path."""
        return MappingProxyType(self._parts)

    @property
    def attempts(self) -> set[str]:
        """The attempts whose parts are active."""
        return {part.attempt for part in self._parts.values() if part.attempt}

    @property
    def shards(self) -> dict[str, str]:
        """Shard key to its uri (of a slice, its least source_uri)."""
        return {shard: self._uris.get(shard, "") for shard in self._shards}

    def versions(self, shard: str, without: frozenset[str] = _NOTHING) -> set[str]:
        """The versions of `shard` that are covered, not counting the parts `without`."""
        return {s.version for s, path in self._shards.get(shard, ()) if path not in without}

    def paths(self, shard: str, version: str | None = None) -> list[str]:
        """The parts that hold rows of `shard`, sorted."""
        entries = self._shards.get(shard, ())
        return sorted({p for s, p in entries if p and version in (None, s.version)})

    def rows(self, shard: str) -> int:
        """Rows of the parts of `shard` (of a part that spans shards, all its rows)."""
        return sum(self._parts[path].rows for path in self.paths(shard))

    def overlapping(self, span: Span, without: frozenset[str] = _NOTHING) -> list[str]:
        """Paths of the parts that overlap `span`; "" stands for a span that was added."""
        return [
            path
            for other, path in self._shards.get(span.shard, ())
            if path not in without and overlap(span, other)
        ]

    def overlaps(self, span: Span, without: frozenset[str] = _NOTHING) -> bool:
        """Whether any of `span` is done, not counting the parts `without`."""
        return bool(self.overlapping(span, without))

    def added(self, shard: str) -> list[Span]:
        """The spans of `shard` that were added."""
        return [span for span, path in self._shards.get(shard, ()) if not path]

    def missing(self, shard: str, version: str, extent: int) -> list[tuple[int, int]]:
        """The ranges of `[0, extent)` that are not done, sorted."""
        spans = sorted(
            (s.start, s.stop) for s, _ in self._shards.get(shard, ()) if s.version == version
        )
        gaps, reached = [], 0
        for start, stop in spans:
            if start > reached:
                gaps.append((reached, min(start, extent)))
            reached = max(reached, stop)
        if reached < extent:
            gaps.append((reached, extent))
        return [(start, stop) for start, stop in gaps if start < stop]


def overlap(one: Span, other: Span) -> bool:
    """Whether two spans share a sample."""
    return (
        one.shard == other.shard
        and one.version == other.version
        and one.start < other.stop
        and other.start < one.stop
    )


def contiguous(spans: Iterable[Span]) -> list[Span]:
    """The spans merged where one ends at the next one's start, sorted."""
    merged: list[Span] = []
    for span in sorted(spans, key=str):
        last = merged[-1] if merged else None
        if last and (last.shard, last.version, last.stop) == (span.shard, span.version, span.start):
            merged[-1] = Span(last.shard, last.version, last.start, span.stop)
        else:
            merged.append(span)
    return merged


def _info(row: dict[str, object], read: FragmentReader) -> PartInfo:
    path, size, rows = str(row["path"]), row["size_bytes"], row["num_records"]
    attempt = attempt_of(path)
    bounds = _bounds(row) if attempt else None
    if bounds:
        low, high = str(row["min.source_uri"]), str(row["max.source_uri"])
        return PartInfo(path, _int(size), _int(rows), low, high, (bounds,), attempt)
    table = read(path)
    spans = contiguous(Span.parse(name) for name in set(table["fragment"].to_pylist()))
    names = zip(table["source_uri"].to_pylist(), table["fragment"].to_pylist(), strict=True)
    places = sorted({(uri, Span.parse(name).shard) for uri, name in names}, reverse=True)
    low, high = (places[-1][0], places[0][0]) if places else ("", "")
    least = {shard: uri for uri, shard in places}
    return PartInfo(path, _int(size), table.num_rows, low, high, tuple(spans), attempt, least)


def _bounds(row: dict[str, object]) -> Span | None:
    try:
        first = Span.parse(str(row["min.fragment"]))
        last = Span.parse(str(row["max.fragment"]))
        # A cut-off uri would do no harm to the span, but range checks rest on it.
        complete = isinstance(row["min.source_uri"], str) and isinstance(row["max.source_uri"], str)
    except (ValueError, KeyError):
        return None
    if not complete or (first.shard, first.version) != (last.shard, last.version):
        return None
    return Span(first.shard, first.version, first.start, last.stop)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0
