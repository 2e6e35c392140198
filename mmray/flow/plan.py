"""What a run has to do: the source's shards held against what the store covers.

Costs time and memory by shards and fragments. Only where a folder of raw files has changed are rows
looked at, and only those of the slices that are no longer as they were: a folder's listing is by
files anyway.
"""

from dataclasses import dataclass, field

from mmray.flow.batch import Work
from mmray.sources import Shard, Source
from mmray.sources.fragment import Member, Span, slice_shard
from mmray.store import Change, Coverage, Store
from mmray.store.liveness import standings


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
            if self._is_known(shard):
                continue
            self.plan.work.append(Work(shard, 0, shard.size))
            if shard.key in self.coverage.shards:
                self.plan.changed.append(shard.uri)
                old = self.store.stored.paths(shard.key)
                self.plan.replacements[shard.key] = Replacement(tuple(old))
        listed = {shard.key for shard in shards}
        for key, uri in self.coverage.shards.items():
            if key not in listed and self.source.covers(uri):
                self.plan.removed.append(uri)
                gone = tuple(self.store.stored.paths(key))
                self.plan.prunes.append(Change(remove=gone, drop_uris=frozenset({uri})))

    def _is_known(self, shard: Shard) -> bool:
        """Whether the store has any of this very version; what is missing of it becomes work."""
        if shard.version not in self.coverage.versions(shard.key):
            return False
        plan, stored = self.plan, self.store.stored
        missing = self.coverage.missing(shard.key, shard.version, shard.size)
        bad = self.quarantined.get(shard.key, 0)
        plan.skipped_rows += bad + sum(stored.parts[p].rows for p in stored.paths(shard.key))
        plan.skipped_quarantined += bad
        plan.finished_shards += not missing
        for start, stop in missing:
            seen = frozenset[str]()
            if start and not self.source.sliced:
                seen = frozenset(self.store.keys(shard.key, shard.version, start))
            plan.work.append(Work(shard, start, stop, seen))
        return True

    def plan_slices(self, slices: list[Shard]) -> None:
        """Raw files: the slices that are no longer as they were are compared file by file."""
        stale = self._stale_rows({shard.key for shard in slices})
        changed: dict[str, list[Member]] = {}
        for shard in slices:
            if self._is_known(shard):
                continue
            fresh = [member for member in shard.members if member.uri not in stale]
            for member in shard.members:
                etag, path = stale.get(member.uri, ("", ""))
                if etag == member.etag:
                    self.plan.skipped_rows += 1
                    self.plan.skipped_quarantined += not path
                elif etag:
                    changed.setdefault(path, []).append(member)
                    self.plan.changed.append(member.uri)
            if fresh:
                whole = len(fresh) == len(shard.members)
                part = shard if whole else slice_shard(tuple(fresh))
                self.plan.work.append(Work(part, 0, part.size))
            else:
                self.plan.finished_shards += 1
        self._replace(changed)
        self._find_removed(stale, {member.uri for shard in slices for member in shard.members})

    def _stale_rows(self, listed: set[str]) -> dict[str, tuple[str, str]]:
        """Of slices that are no longer as they were: source_uri to (etag, path of its part, or ""
        for the quarantine)."""
        rows: dict[str, tuple[str, str]] = {}
        if self.quarantined.keys() - listed:
            for uri, etag, fragment in self.store.quarantine.members():
                if Span.parse(fragment).shard not in listed and self.source.covers(uri):
                    rows[uri] = (etag, "")
        for path, part in self.store.stored.parts.items():
            known = all(span.shard in listed for span in part.spans)
            if known or not self.source.covers(part.min_uri):
                continue
            for row in self.store.members([path]).to_pylist():
                rows[row["source_uri"]] = (row["source_etag"], path)
        return rows

    def _replace(self, changed: dict[str, list[Member]]) -> None:
        """One slice for the changed files of each part, so that one commit swaps their rows."""
        for path, members in changed.items():
            shard = slice_shard(tuple(members))
            self.plan.work.append(Work(shard, 0, shard.size))
            self.plan.replacements[shard.key] = Replacement(
                (path,) if path else (), frozenset(member.uri for member in members)
            )

    def _find_removed(self, stale: dict[str, tuple[str, str]], here: set[str]) -> None:
        removed: dict[str, set[str]] = {}
        for uri, (_, path) in stale.items():
            if uri not in here:
                removed.setdefault(path, set()).add(uri)
                self.plan.removed.append(uri)
        self.plan.prunes += [
            Change(remove=(path,) if path else (), drop_uris=frozenset(uris))
            for path, uris in removed.items()
        ]
