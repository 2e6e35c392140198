"""Which rows of the quarantine count, decided from attempts, spans and the store's coverage.

The quarantine is written before the commit that it belongs to, so a crash or a lost race leaves
rows behind that never counted. A group is the rows of one attempt at one fragment; they stand or
fall together:

- `live`: its attempt's part is in the store; or nothing of its fragment is, and no row should be;
- `superseded`: the store holds the fragment by another attempt, or another version of the shard;
- `pending`: neither. Its commit is under way, or never came.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from mmray.sources.fragment import Span
from mmray.store.coverage import Coverage, overlap

IdReader = Callable[[str], pa.Array]
"""Path of a part of the store to its ids."""
Standing = Literal["live", "superseded", "pending"]


@dataclass(frozen=True, slots=True)
class Group:
    """The quarantined samples of one attempt at one fragment."""

    fragment: str
    attempt: str
    written: int
    run_id: str
    at: datetime
    """When its latest row was written."""
    uri: str
    """Its least source_uri."""
    rows: int

    @property
    def span(self) -> Span:
        """The span that `fragment` names."""
        return Span.parse(self.fragment)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies it: attempt and fragment."""
        return self.attempt, self.fragment


def standings(groups: Iterable[Group], stored: Coverage) -> dict[tuple[str, str], Standing]:
    """The standing of each group, by its key, beside the parts `stored`."""
    result: dict[tuple[str, str], Standing] = {}
    alone: dict[str, list[Group]] = {}
    attempts = stored.attempts
    for group in groups:
        span = group.span
        if group.attempt in attempts:
            result[group.key] = "live"
        elif owners := stored.overlapping(span):
            # Another engine's compaction hides which attempt a part came from.
            foreign = any(stored.parts[path].attempt is None for path in owners)
            result[group.key] = "live" if foreign else "superseded"
        elif stored.versions(span.shard) - {span.version}:
            result[group.key] = "superseded"
        elif group.written == 0:
            alone.setdefault(span.shard, []).append(group)
        else:
            result[group.key] = "pending"
    for rivals in alone.values():
        result.update(_settle(rivals))
    return result


def alone(groups: Iterable[Group], stored: Coverage) -> list[Group]:
    """The live groups that cover their fragment by themselves."""
    groups = list(groups)
    standing = standings(groups, stored)
    return [g for g in groups if standing[g.key] == "live" and not stored.overlaps(g.span)]


def _settle(groups: list[Group]) -> dict[tuple[str, str], Standing]:
    """Among fragments of one shard that only the quarantine has: the latest version counts, and of
    attempts at the same samples the smallest, so that every reader picks the same."""
    version = max(groups, key=lambda group: (group.at, group.span.version)).span.version
    result: dict[tuple[str, str], Standing] = {}
    taken: list[Group] = []
    for group in sorted(groups, key=lambda group: (group.attempt, group.fragment)):
        span = group.span
        beaten = span.version != version or any(
            other.attempt != group.attempt and overlap(other.span, span) for other in taken
        )
        result[group.key] = "superseded" if beaten else "live"
        if not beaten:
            taken.append(group)
    return result


def settle_ids(rows: pa.Table, stored: Coverage, read_ids: IdReader) -> pa.Table:
    """Of rows with one id one of the latest etag; none whose id another part of the store has.

    One that goes with a part of the store comes first: others may be on their way into a part that
    takes its place, and count only when that is there.
    """
    order = pc.sort_indices(rows, [("at", "descending"), ("attempt", "ascending")])
    rows = rows.take(order)
    columns = (rows[name].to_pylist() for name in ("id", "source_etag", "attempt"))
    latest: dict[str, str] = {}
    attempts = stored.attempts
    ranks = [
        (latest.setdefault(name, etag) != etag, attempt not in attempts)
        for name, etag, attempt in zip(*columns, strict=True)
    ]
    rows = rows.take(pa.array(sorted(range(len(ranks)), key=ranks.__getitem__), pa.int64()))
    elsewhere = _stored_elsewhere(rows, stored, read_ids)
    seen: set[str] = set(elsewhere)
    keep = []
    for index, name in enumerate(rows["id"].to_pylist()):
        if name not in seen:
            seen.add(name)
            keep.append(index)
    kept = rows.take(pa.array(keep, pa.int64()))
    return kept.sort_by([("source_uri", "ascending"), ("source_key", "ascending")])


def _stored_elsewhere(rows: pa.Table, stored: Coverage, read_ids: IdReader) -> set[str]:
    """Ids of `rows` that stand in a part which their own fragment doesn't explain: a raw file
    that moved to another slice, or rows that another engine compacted."""
    homes: dict[str, set[str]] = {}
    for uri, name in zip(rows["source_uri"].to_pylist(), rows["fragment"].to_pylist(), strict=True):
        homes.setdefault(uri, set()).add(Span.parse(name).shard)
    uris = sorted(homes)
    suspects = set()
    for part in stored.parts.values():
        here = uris[bisect_left(uris, part.min_uri) : bisect_right(uris, part.max_uri)]
        shards = {span.shard for span in part.spans}
        if here and (part.attempt is None or any(homes[uri] - shards for uri in here)):
            suspects.add(part.path)
    wanted = pa.array(rows["id"].to_pylist(), pa.string())
    found: set[str] = set()
    for path in suspects:
        ids = read_ids(path)
        found |= set(ids.filter(pc.is_in(ids, wanted)).to_pylist())
    return found
