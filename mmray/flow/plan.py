"""What a run has to do: the source's shards held against what the store covers.

Costs time and memory by shards and fragments. Only where a folder of raw files has changed are rows
looked at, and only those of the slices that are no longer as they were: a folder's listing is by
files anyway.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from mmray.flow.batch import Work
from mmray.sources import Shard, Source
from mmray.sources.fragment import Member, Span, is_object, slice_shard
from mmray.store import Change, Coverage, Store
from mmray.store.liveness import standings

Stale = dict[str, tuple[str, str]]
"""By source_uri: etag, and the path of the part that covers it, "" for the quarantine alone."""
Changed = dict[str, list[Member]]
"""By the path of a part, "" for the quarantine."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """What leaves the store in the commit that brings a changed shard's rows."""

    remove: tuple[str, ...]
    """Paths of parts."""
    drop_uris: frozenset[str] = frozenset()
    """Of raw files: only these rows leave, the others of the parts are kept."""


@dataclass(slots=True)
class Plan:
    """Work, and what else this run finds."""

    work: list[Work] = field(default_factory=list)
    replacements: dict[str, Replacement] = field(default_factory=dict)
    """By shard key; the shard's parts are committed together, in its one commit."""
    shards: int = 0
    finished_shards: int = 0
    skipped_rows: int = 0
    """Rows and quarantined samples of finished fragments."""
    skipped_quarantined: int = 0
    """Those of them that are in quarantine."""
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    """Uris whose rows are in the store and whose source is gone."""
    prunes: list[Change] = field(default_factory=list)
    """The commits that take the removed rows out."""


def make_plan(source: Source, store: Store | None, *, prune: bool = False) -> Plan:
    """List the source and find what no commit covers. Reads no sample.

    A named object that isn't there is refused, unless the store has its rows, or `prune` says that
    the rows of what is gone are to go too.

    Raises:
        RefusedError: the source can't be listed, or has nothing in it.
    """
    if store is None:
        shards = list(source.shards((lambda _: True) if prune else None))
        return Plan([Work(shard, 0, shard.size) for shard in shards], shards=len(shards))
    coverage = store.coverage()
    known = frozenset(coverage.shards.values())
    shards = list(source.shards(lambda uri: prune or uri in known))
    planner = _Planner(source, store, coverage, Plan(shards=len(shards)))
    if source.sliced:
        planner.plan_slices(shards)
    else:
        planner.plan_shards(shards)
    return planner.plan


def first_elsewhere(source: Source, store: Store) -> str | None:
    """A uri that the store has rows of and `source` does not name; None where there is none.

    Raises:
        RefusedError: the source can't be listed.
    """
    shards = store.coverage().shards
    listed = {shard.key for shard in source.shards(lambda _: True)}
    found = {uri for key, uri in shards.items() if key not in listed}
    if source.sliced:  # a slice runs on from folder to folder
        parts = store.stored.parts.items()
        mixed = [p for p, part in parts if any(span.shard not in listed for span in part.spans)]
        found |= set(store.members(mixed)["source_uri"].to_pylist()) if mixed else set()
        found |= {uri for uri, _, _ in store.quarantine.members()}
    return min((uri for uri in found if not source.covers(uri)), default=None)


class _Planner:
    """One planning: the source and the store are as they are now."""

    def __init__(self, source: Source, store: Store, coverage: Coverage, plan: Plan) -> None:
        self.source, self.store, self.coverage, self.plan = source, store, coverage, plan
        self.quarantined: dict[str, int] = {}
        """By shard: samples in quarantine, of finished fragments."""
        groups = store.quarantine.groups()
        standing = standings(groups, store.stored)
        for group in groups:
            if standing[group.key] == "live":
                shard = group.span.shard
                self.quarantined[shard] = self.quarantined.get(shard, 0) + group.rows

    def plan_shards(self, shards: list[Shard]) -> None:
        """Shards that are one object each: a changed one is replaced as a whole."""
        for shard in shards:
            gaps = self._gaps(shard)
            if gaps is None:
                self.plan.work.append(Work(shard, 0, shard.size))
                if shard.key in self.coverage.shards:
                    self.plan.changed.append(shard.uri)
                    old = self.store.stored.paths(shard.key)
                    self.plan.replacements[shard.key] = Replacement(tuple(old))
                continue
            self.plan.finished_shards += not gaps
            for start, stop in gaps:
                seen = self.store.keys(shard.key, shard.version, start) if start else ()
                self.plan.work.append(Work(shard, start, stop, frozenset(seen)))
        listed = {shard.key for shard in shards}
        for key, uri in self.coverage.shards.items():
            if key not in listed and self.source.covers(uri):
                gone = tuple(self.store.stored.paths(key))
                uris = {uri}
                if not is_object(key, uri):  # raw files of a store that has no rows any more
                    members = self.store.members(gone)["source_uri"].to_pylist()
                    uris = set(filter(self.source.covers, members))
                self.plan.removed += sorted(uris)
                self.plan.prunes.append(Change(remove=gone, drop_uris=frozenset(uris)))

    def _gaps(self, shard: Shard) -> list[tuple[int, int]] | None:
        """What the store lacks of this very version, and None where it has none of it."""
        if shard.version not in self.coverage.versions(shard.key):
            return None
        stored, bad = self.store.stored, self.quarantined.get(shard.key, 0)
        self.plan.skipped_rows += bad
        self.plan.skipped_rows += sum(stored.parts[p].rows for p in stored.paths(shard.key))
        self.plan.skipped_quarantined += bad
        return self.coverage.missing(shard.key, shard.version, shard.size)

    def plan_slices(self, slices: list[Shard]) -> None:
        """Raw files: what is in slices that are not listed any more is compared file by file."""
        stale = self._stale_rows(slices)
        changed: Changed = {}
        for shard in slices:
            gaps = self._gaps(shard)
            if gaps is None:
                gaps = [(0, shard.size)]
            missing = [member for a, b in gaps for member in shard.members[a:b]]
            pruned = self._pruned(shard)
            missing += pruned
            fresh = [member for member in missing if member.uri not in stale]
            if stale:
                self._compare(shard.members, stale, changed)
                self._count_done(missing, stale)
            part = shard
            if pruned or len(fresh) < len(missing):
                # Some may be done and have no row to show for it: those that were left out.
                part = slice_shard(tuple(fresh)) if fresh else shard
                gaps = self.coverage.missing(part.key, part.version, part.size) if fresh else []
            self.plan.work += [Work(part, start, stop) for start, stop in gaps]
            self.plan.finished_shards += not gaps
        self._replace(changed)
        self._find_removed(stale, {member.uri for shard in slices for member in shard.members})

    @cached_property
    def _bad(self) -> dict[str, tuple[str, Span]]:
        """Quarantined files: source_uri to etag and fragment."""
        rows = self.store.quarantine.members()
        return {uri: (etag, Span.parse(fragment)) for uri, etag, fragment in rows}

    def _pruned(self, shard: Shard) -> list[Member]:
        """Files that fragments of quarantined samples alone cover, and that none of these is of: a
        file that was gone and has come back, or one that was left out."""
        spans = self.coverage.added(shard.key)
        if not spans:
            return []
        covered = [member for span in spans for member in shard.members[span.start : span.stop]]
        return [member for member in covered if member.uri not in self._bad]

    def _compare(self, members: Iterable[Member], stale: Stale, changed: Changed) -> None:
        """Files that are others than those the store has, by the part that has them."""
        for member in members:
            etag, path = stale.get(member.uri, ("", ""))
            if etag and etag != member.etag:
                changed.setdefault(path, []).append(member)
                self.plan.changed.append(member.uri)

    def _count_done(self, missing: Iterable[Member], stale: Stale) -> None:
        for member in missing:
            etag, _ = stale.get(member.uri, ("", ""))
            if etag == member.etag:
                self.plan.skipped_rows += 1
                self.plan.skipped_quarantined += member.uri in self._bad

    def _stale_rows(self, slices: list[Shard]) -> Stale:
        """What slices that are not listed any more have of this source."""
        listed = {shard.key for shard in slices}
        first, last = slices[0].members[0].uri, slices[-1].members[-1].uri
        rows: Stale = {}
        if self.quarantined.keys() - listed:
            for uri, (etag, span) in self._bad.items():
                if span.shard not in listed and self.source.covers(uri):
                    owners = self.store.stored.overlapping(span)
                    rows[uri] = (etag, owners[0] if owners else "")
        for path, part in self.store.stored.parts.items():
            if all(span.shard in listed for span in part.spans):
                continue
            # A slice runs on from folder to folder: of another job's, some may be this source's.
            ends = part.min_uri, part.max_uri
            if (ends[0] > last or ends[1] < first) and not any(map(self.source.covers, ends)):
                continue
            for row in self.store.members([path]).to_pylist():
                if self.source.covers(row["source_uri"]):
                    rows[row["source_uri"]] = (row["source_etag"], path)
        return rows

    def _replace(self, changed: Changed) -> None:
        """One slice for the changed files of each part, so that one commit swaps their rows."""
        for path, members in changed.items():
            shard = slice_shard(tuple(members))
            self.plan.work.append(Work(shard, 0, shard.size))
            # Files may be as they were once, and then have been left out without a row.
            before = self.store.stored.paths(shard.key)
            self.plan.replacements[shard.key] = Replacement(
                (*filter(None, [path]), *before), frozenset(member.uri for member in members)
            )

    def _find_removed(self, stale: Stale, here: set[str]) -> None:
        removed: dict[str, set[str]] = {}
        for uri, (_, path) in stale.items():
            if uri not in here:
                removed.setdefault(path, set()).add(uri)
                self.plan.removed.append(uri)
        self.plan.prunes += [
            Change(remove=(path,) if path else (), drop_uris=frozenset(uris))
            for path, uris in removed.items()
        ]
