"""Commits: receipts become rows, exactly once, whoever else commits at the same time.

The table version decides. Every attempt is checked against the version that it commits on; when
another driver was first, the check is made again on the new version. The order is always: check,
quarantine rows, commit on the checked version, tidy the quarantine. A crash between any two leaves
quarantine rows that don't count (see liveness.py) and parts that nothing names.
"""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from mmray.errors import JobFailed, RefusedError
from mmray.store import delta
from mmray.store.changes import Change, Outcome, Ready, make_ready, uri_range
from mmray.store.coverage import Coverage, PartInfo, overlap
from mmray.store.liveness import Group, Standing, alone, standings
from mmray.store.parts import Receipt, attempt_of
from mmray.store.rewrite import without_rows
from mmray.store.schema import StoreMeta
from mmray.store.table import Store

GRACE = timedelta(minutes=15)
"""Age from which another run's quarantine rows without a commit are taken for dead; a live driver
commits or gives up within `delta.PATIENCE`."""


class Committer:
    """The one writer of a run. `base_version` is the version that the run was planned on, and
    `meta` says what its vectors are, where the store might not any more."""

    def __init__(
        self,
        store: Store,
        run_id: str,
        base_version: int | None = None,
        *,
        meta: StoreMeta | None = None,
        patience: float = delta.PATIENCE,
        grace: timedelta = GRACE,
    ) -> None:
        self._store, self._run_id = store, run_id
        self._patience, self._grace = patience, grace
        seen = store
        if base_version is not None and base_version != store.version:
            seen = Store.open(store.uri, store.storage, base_version)
        self._base, self._meta = seen.stored.copy(), meta or seen.meta
        self._own: set[str] = set()

    def commit(self, changes: Sequence[Change]) -> Outcome:
        """Commit the changes that still fit the store; the others are dropped, and nothing of them
        stays. Also safe to call again with changes that had landed.

        Raises:
            JobFailed: the store is of another model by now.
            StorageError: storage stayed broken past patience. Nothing is known to be lost: the
                commit may have landed, and the next run finds out.
            ValueError: a part of several shards is removed without saying which rows.
        """
        self._store.reload()
        attempt = _Attempt(self, [make_ready(change) for change in changes])
        delta.persist(self._store.uri, attempt.once, self._patience)
        return attempt.finish()

    def rebase(self) -> None:
        """The run was planned anew, on the version that is loaded."""
        self._base = self._store.stored.copy()

    def require_same_model(self) -> None:
        """Raises JobFailed where the store has become another model's since the run was planned: a
        rebuild or a rollback came between."""
        try:
            self._store.meta.require_same(self._store.uri, self._meta)
        except RefusedError as error:
            raise JobFailed(f"{error}: another run has changed that meanwhile") from error

    def reconcile(self) -> int:
        """Remove quarantine rows that don't count; returns how many. Call it when a run ends.

        Rows of other runs are left alone until they are older than `grace`: their commit may be
        under way. But those of a part that was in the store and was replaced are over for good.
        """
        store = self._store
        store.reload()
        groups = store.quarantine.groups()
        standing = standings(groups, store.stored)
        oldest = datetime.now(UTC) - self._grace
        dead, young = list[Group](), list[Group]()
        for group in groups:
            if standing[group.key] != "live":
                over = group.run_id == self._run_id or group.at < oldest
                (dead if over else young).append(group)
        if young:  # few, and seldom: a run was killed a moment ago, or another one is at work
            replaced = store.replaced()
            dead += [group for group in young if group.attempt in replaced]
        store.quarantine.remove(group.key for group in dead)
        outdated = store.quarantine.remove_outdated()
        store.quarantine.tidy()
        return sum(group.rows for group in dead) + outdated


class _Attempt:
    """One call of `Committer.commit`: what it has tried and done so far."""

    def __init__(self, owner: Committer, ready: list[Ready]) -> None:
        self._owner, self._store, self._ready = owner, owner._store, ready
        self._id = uuid.uuid4().hex
        self._since = self._store.version
        self._tried = False
        self._strange: list[PartInfo] = []
        self._accepted: list[Ready] = []
        self._dropped: list[Ready] = []
        self._before: list[tuple[Group, Standing]] = []

    def once(self) -> bool:
        """One try; True when there is nothing left to commit."""
        store = self._store
        store.reload()
        self._owner.require_same_model()
        if self._tried and store.landed(self._id, self._since) is not None:
            return True
        self._judge()
        fresh = [ready for ready in self._accepted if not ready.landed]
        self._ensure(fresh)
        groups = store.quarantine.groups()
        standing = standings(groups, store.stored)
        self._before = [(group, standing[group.key]) for group in groups]
        adds = [(r, ready.change.data_change) for ready in fresh for r in ready.all if r.path]
        removes = [(p, ready.change.data_change) for ready in fresh for p in ready.change.remove]
        if adds or removes:
            self._tried = True
            store.apply(adds, removes, self._id, self._owner._run_id)
            store.reload()
        return True

    def _ensure(self, accepted: list[Ready]) -> None:
        rows = [(r.attempt, row) for ready in accepted for r in ready.all for row in r.quarantined]
        if rows:
            self._store.quarantine.ensure(rows, self._owner._run_id)

    def _judge(self) -> None:
        """Split the changes by whether they fit the version that is seen."""
        self._accepted, self._dropped = [], []
        self._strange = self._find_strange()
        taken, removed = Coverage(), set[str]()
        for ready in self._ready:
            if self._landed_before(ready):
                ready.landed = True
            else:
                ready.landed = False
                if not self._fits(ready, taken, removed):
                    self._dropped.append(ready)
                    continue
                self._rewrite(ready)
            self._accepted.append(ready)
            removed.update(ready.change.remove)
            for receipt in ready.receipts:
                taken.add(receipt.span)

    def _landed_before(self, ready: Ready) -> bool:
        """An earlier commit of this very change landed though nobody heard."""
        return any(r.path in self._store.stored.parts for r in ready.all if r.path)

    def _fits(self, ready: Ready, taken: Coverage, removed: set[str]) -> bool:
        stored, change = self._store.stored, ready.change
        gone = frozenset(change.remove)
        if ready.torn or gone & removed or gone - stored.parts.keys():
            return False
        for receipt in ready.receipts:
            span = receipt.span
            if stored.overlaps(span, gone) or taken.overlaps(span):
                return False
            if (stored.versions(span.shard, gone) | taken.versions(span.shard)) - {span.version}:
                # Other rows of the part that leaves may stay in it, but then of another shard.
                return False
        if change.drop_uris and self._made_good(change.drop_uris, gone):
            return False
        if not gone and ready.receipts and not any(r.path for r in ready.receipts):
            return not self._quarantined_by_others(ready)
        return not self._rivals(ready, gone)

    def _quarantined_by_others(self, ready: Ready) -> bool:
        """Whether the quarantine already covers these samples, none of which gave a row."""
        mine = {receipt.attempt for receipt in ready.receipts}
        return any(
            group.attempt not in mine and overlap(group.span, receipt.span)
            for group in alone(self._store.quarantine.groups(), self._store.stored)
            for receipt in ready.receipts
        )

    def _rivals(self, ready: Ready, gone: frozenset[str]) -> bool:
        """Whether another driver has since added parts with source_uris among ours but of another
        shard: raw files that it listed, and so sliced, differently."""
        ranges = [(r.span.shard, *uri_range(r)) for r in ready.receipts]
        for part in self._strange:
            if part.path in gone:
                continue
            shards = {span.shard for span in part.spans}
            for shard, low, high in ranges:
                if shard not in shards and part.min_uri <= high and low <= part.max_uri:
                    return True
        return False

    def _made_good(self, uris: frozenset[str], gone: frozenset[str]) -> bool:
        """Whether rows of these source_uris stand in a part that came since this run was planned:
        a replay could use samples that the plan knew as quarantined."""
        for path in self._fresh() - gone:
            part = self._store.stored.parts[path]
            if any(part.min_uri <= uri <= part.max_uri for uri in uris):
                members = self._store.members([path])
                if not uris.isdisjoint(members["source_uri"].to_pylist()):
                    return True
        return False

    def _fresh(self) -> set[str]:
        """Paths of the parts that other drivers have added since this run was planned."""
        owner = self._owner
        return set(self._store.stored.parts.keys() - owner._base.parts.keys() - owner._own)

    def _find_strange(self) -> list[PartInfo]:
        """Those of them that are no rewrite of rows that the plan knew, at spans that it knew."""
        stored, base = self._store.stored.parts, self._owner._base
        return [stored[p] for p in self._fresh() if not all(map(base.overlaps, stored[p].spans))]

    def _rewrite(self, ready: Ready) -> None:
        """Write the parts that keep what is not dropped; once, since parts never change."""
        change, stored = ready.change, self._store.stored
        if ready.kept is not None:
            return
        kept: list[Receipt] = []
        targets = frozenset(receipt.span.shard for receipt in ready.receipts)
        for path in change.remove:
            part = stored.parts[path]
            shards = frozenset(span.shard for span in part.spans)
            if change.drop_uris:
                kept += without_rows(self._store, part, change.drop_uris, frozenset())
            elif shards - targets and len(shards) > 1:
                if not targets:
                    raise ValueError(f"{path} holds {len(shards)} shards: say which with drop_uris")
                kept += without_rows(self._store, part, frozenset(), targets)
        ready.kept = kept

    def finish(self) -> Outcome:
        """Tidy the quarantine after the commit."""
        store, owner = self._store, self._owner
        store.reload()
        # Another driver's tidying may have taken our rows for dead meanwhile.
        self._ensure([ready for ready in self._accepted if not self._superseded(ready)])
        committed = [r for ready in self._accepted for r in ready.receipts]
        owner._own.update(r.path for ready in self._accepted for r in ready.all if r.path)
        dropped = [r for ready in self._dropped for r in ready.receipts]
        dropped += [r for ready in self._ready for r in ready.repeated]
        self._clean()
        return Outcome(committed, dropped, store.version)

    def _superseded(self, ready: Ready) -> bool:
        paths = [r.path for r in ready.all if r.path]
        return bool(paths) and not any(path in self._store.stored.parts for path in paths)

    def _clean(self) -> None:
        """Remove what this commit outdated, and what was added for changes that were dropped.

        Only groups that were there before our commit and that every other driver must now drop or
        add again: a commit that is under way on an older version fails, and starts over.
        """
        store = self._store
        mine = {r.attempt for ready in self._accepted for r in ready.all}
        lost = {r.attempt for ready in self._dropped for r in ready.all} - mine
        removed = {p for ready in self._accepted for p in ready.change.remove}
        touched = {r.span.shard for ready in self._accepted for r in ready.all}
        gone = {a for a in map(attempt_of, removed) if a} - store.stored.attempts
        standing = standings(store.quarantine.groups(), store.stored)
        doomed = {key for key in standing if key[0] in lost}
        for group, before in self._before:
            now = standing.get(group.key)
            if now is None or now == "live" or group.attempt in mine:
                doomed |= {group.key} if group.attempt in gone else set()
            elif before == "live" or (now == "superseded" and group.span.shard in touched):
                doomed.add(group.key)
        store.quarantine.remove(doomed)
        uris = {u for ready in self._accepted for u in ready.change.drop_uris}
        if uris:
            counted = {g.attempt for g, before in self._before if before == "live"}
            store.quarantine.remove_uris(uris, counted - mine)
