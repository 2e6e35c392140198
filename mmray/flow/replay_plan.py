"""What a replay has to do: the quarantine held against the source as it is now.

Only samples whose shard is as it was when they failed are tried. What has changed is work for the
job itself, which replaces the shard as a whole.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

from mmray.flow.pieces import base_key
from mmray.flow.retry import Again, Retry, Run, stands_for_more
from mmray.sources import Source, Span
from mmray.sources.fragment import Member, slice_shard
from mmray.store import Store
from mmray.store.coverage import overlap
from mmray.store.parts import Quarantined

_FIELDS = tuple(Quarantined.__slots__)


@dataclass(slots=True)
class ReplayPlan:
    """Work, and the quarantined samples that can't be tried."""

    work: list[Retry] = field(default_factory=list)
    quarantined: int = 0
    """Samples in quarantine, tried or not."""
    skipped: int = 0
    """Samples asked for that are not tried."""
    changed: list[str] = field(default_factory=list)
    """Uris of shards or files that are no longer as they were."""
    removed: list[str] = field(default_factory=list)
    """Uris of those that are gone."""
    elsewhere: int = 0
    """Samples that another spec's source brought."""

    @property
    def wanted(self) -> frozenset[str]:
        """Ids of the quarantined samples that are tried."""
        return frozenset().union(*(retry.wanted for retry in self.work))


@dataclass(frozen=True, slots=True)
class Wish:
    """Which of the quarantined samples are asked for; all where nothing is said."""

    reasons: tuple[str, ...] = ()
    """Error types."""
    limit: int | None = None
    ids: frozenset[str] | None = None

    def choose(self, rows: Collection[Quarantined]) -> frozenset[str]:
        """The ids of those asked for, in the order of the rows as far as the limit goes."""
        ids = [
            row.id
            for row in rows
            if (not self.reasons or row.error_type in self.reasons)
            and (self.ids is None or row.id in self.ids)
        ]
        return frozenset(ids[: self.limit])


def plan_replay(source: Source, store: Store, wish: Wish) -> ReplayPlan:
    """Hold the quarantine of the store's seen version against the source. Reads no sample.

    Raises:
        RefusedError: the source can't be listed.
    """
    live = store.quarantine.live().to_pylist()
    rows = [Quarantined(**{name: row[name] for name in _FIELDS}) for row in live]
    plan = ReplayPlan(quarantined=len(rows))
    wanted = wish.choose(rows)
    if wanted:
        _Planner(source, store, rows, plan).plan_all(wanted)
    return plan


class _Planner:
    """One planning: the quarantine, the store and the source are as they are now."""

    def __init__(
        self, source: Source, store: Store, rows: list[Quarantined], plan: ReplayPlan
    ) -> None:
        self.source, self.store, self.plan = source, store, plan
        self.fragments: dict[str, list[Quarantined]] = {}
        for row in rows:
            self.fragments.setdefault(row.fragment, []).append(row)
        self.of_shard: dict[str, list[str]] = {}
        for name in self.fragments:
            self.of_shard.setdefault(_shard_of(name), []).append(name)
        shards = list(source.shards(lambda _: True))
        self.shards = {shard.key: shard for shard in shards}
        self.members = {member.uri: member for shard in shards for member in shard.members}
        self.changed: dict[str, None] = {}
        self.removed: dict[str, None] = {}

    def plan_all(self, wanted: frozenset[str]) -> None:
        """Make the work, part by part."""
        owners: dict[str, list[str]] = {}
        """Path of a part to its fragments that have quarantined samples."""
        again: dict[str, Again] = {}
        for name, rows in self.fragments.items():
            span = Span.parse(name)
            paths = self.store.stored.overlapping(span)
            mine = [row for row in rows if row.id in wanted]
            # Two parts share a fragment only where another engine has torn it apart.
            found = self._again(span, mine) if mine and len(paths) < 2 else None
            self.plan.skipped += len(mine) - (len(found.wanted) if found else 0)
            if found is not None:
                again[name] = found
            if paths:
                owners.setdefault(paths[0], []).append(name)
            elif found is not None:
                self._add("", [Run(span, rows[0].source_uri, tuple(rows), (found,))])
        for path, names in owners.items():
            if any(name in again for name in names):
                part = self.store.stored.parts[path]
                self._add(path, [self._run(span, path, names, again) for span in part.spans])
        self.plan.changed, self.plan.removed = [*self.changed], [*self.removed]

    def _run(self, span: Span, path: str, names: list[str], again: dict[str, Again]) -> Run:
        mine = [name for name in names if overlap(Span.parse(name), span)]
        rows = tuple(row for name in mine for row in self.fragments[name])
        part = self.store.stored.parts[path]
        uri = rows[0].source_uri if rows else part.min_uri
        return Run(span, uri, rows, tuple(again[name] for name in mine if name in again))

    def _add(self, path: str, runs: list[Run]) -> None:
        shards = {(run.span.shard, run.span.version) for run in runs if run.again}
        beside: set[str] = set()
        if not self.source.sliced:
            beside = {path for each in shards for path in self.store.stored.paths(*each)} - {path}
        self.plan.work.append(Retry(path, tuple(runs), tuple(sorted(beside))))

    def _again(self, span: Span, rows: list[Quarantined]) -> Again | None:
        """How to read the wanted `rows` of a fragment again; None where that can't be."""
        if self.source.sliced:
            return self._again_files(span, rows)
        shard = self.shards.get(span.shard)
        if shard is None or shard.version != span.version:
            self._note(rows, shard is not None)
            return None
        return Again(
            span=span,
            shard=shard,
            start=span.start,
            stop=span.stop,
            wanted=frozenset(row.id for row in rows),
            whole=any(map(stands_for_more, rows)),
            seen=self._seen(span),
        )

    def _again_files(self, span: Span, rows: list[Quarantined]) -> Again | None:
        """Raw files are read one by one: the wanted ones alone, also of a slice that is cut
        otherwise by now."""
        members: dict[str, Member] = {}
        known: list[Quarantined] = []
        for row in rows:
            member = self.members.get(row.source_uri)
            if member is None or member.etag != row.source_etag:
                self._note([row], member is not None)
                continue
            members[member.uri] = member
            known.append(row)
        if not members:
            return None
        shard = slice_shard(tuple(members[uri] for uri in sorted(members)))
        ids, whole = frozenset(row.id for row in known), any(map(stands_for_more, known))
        return Again(span, shard, 0, shard.size, ids, whole, files=True)

    def _note(self, rows: list[Quarantined], is_there: bool) -> None:
        """Say why these rows can't be tried."""
        uri = rows[0].source_uri
        if is_there:
            self.changed[uri] = None
        elif self.source.covers(uri):
            self.removed[uri] = None
        else:
            self.plan.elsewhere += len(rows)

    def _seen(self, span: Span) -> frozenset[str]:
        """Quarantined keys of the shard that come before the fragment."""
        keys = [
            row.source_key
            for name in self.of_shard[_shard_of(str(span))]
            if Span.parse(name).start < span.start
            for row in self.fragments[name]
        ]
        return frozenset({*keys, *map(base_key, keys)})


def _shard_of(fragment: str) -> str:
    """Shard and version in the name of a fragment."""
    return fragment.rsplit("-", 2)[0]
