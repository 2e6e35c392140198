"""The store: a Delta table of parts, its meta, and what one version of it covers.

The table version is the truth of what is done; nothing else is remembered between runs. A `Store`
stays on the version it has seen until `reload`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, Schema
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction

from mmray.errors import RefusedError, StorageError
from mmray.storage import Storage, join
from mmray.store import delta
from mmray.store.coverage import Coverage, PartInfo
from mmray.store.liveness import alone, standings
from mmray.store.parts import Receipt, attempt_of, read_part
from mmray.store.quarantine import Quarantine
from mmray.store.schema import BASE, StoreColumns, StoreMeta

_START = slice(26, 38)
"""Where the name of a fragment tells its start."""


@dataclass(frozen=True, slots=True)
class Version:
    """One entry of a store's history."""

    version: int
    at: datetime
    operation: str
    run_id: str
    """Empty where another program made the version."""


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """What a store holds; `quarantined` counts by error type."""

    uri: str
    version: int
    rows: int
    parts: int
    bytes: int
    shards: int
    quarantined: dict[str, int]
    meta: StoreMeta


class Store:
    """Made by `Store.open` or `Store.create`."""

    def __init__(self, uri: str, storage: Storage, table: DeltaTable) -> None:
        self.uri, self.storage = uri, storage
        self._table = table
        self.stored = Coverage()
        """The parts of this version; `coverage()` counts the quarantine in."""
        self.quarantine = Quarantine(uri, storage, lambda: self.stored)
        self.meta = self._read_meta()
        self._sync()

    @classmethod
    def exists(cls, uri: str, storage: Storage) -> bool:
        """Whether a Delta table is at `uri`."""
        return delta.exists(storage.normalise(uri), storage)

    @classmethod
    def open(cls, uri: str, storage: Storage, version: int | None = None) -> "Store":
        """The store at `uri`, at its latest version or the one given.

        Raises:
            RefusedError: no store is there, it's of a newer format, or there's no such version.
            StorageError: storage stayed broken.
        """
        uri = storage.normalise(uri)
        return cls(uri, storage, delta.open_table(uri, storage, version))

    @classmethod
    def create(cls, uri: str, storage: Storage, columns: StoreColumns, meta: StoreMeta) -> "Store":
        """An empty store at `uri`; where another run is first, the one it made.

        Raises:
            RefusedError: the other run's is of another model.
        """
        uri = storage.normalise(uri)

        def once() -> bool:
            if not delta.exists(uri, storage):
                DeltaTable.create(
                    uri,
                    Schema.from_arrow(columns.arrow_schema()),
                    mode="error",
                    description=meta.to_json(),
                    storage_options=storage.delta_options(uri),
                )
            return True

        delta.persist(uri, once)
        store = cls.open(uri, storage)
        store.meta.require_same(uri, meta)
        return store

    def _read_meta(self) -> StoreMeta:
        meta = StoreMeta.from_json(self.uri, self._table.metadata().description)
        missing = set(BASE) - set(self.schema.names)
        if missing:
            raise RefusedError(f"{self.uri} is no mmray store: it has no column {min(missing)}")
        return meta

    def _sync(self) -> None:
        self.stored.sync(delta.actions(self._table), self._read_fragments)
        self._synced = self._table.version()

    def _read_fragments(self, path: str) -> pa.Table:
        return read_part(self.storage, self.uri, path, ["source_uri", "fragment"])

    def reload(self) -> None:
        """Move to the latest version."""
        self._table = delta.refresh(self._table, self.uri, self.storage)
        # Not compared with the table before: some of deltalake's calls advance it in place.
        if self._table.version() != self._synced:
            self.meta = self._read_meta()
            self._sync()

    @property
    def version(self) -> int:
        """The Delta version that is seen."""
        version: int = self._table.version()
        return version

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the rows."""
        return pa.schema(self._table.schema().to_arrow())

    @property
    def count(self) -> int:
        """Rows."""
        return sum(part.rows for part in self.stored.parts.values())

    def parts(self) -> list[PartInfo]:
        """Active parts, sorted by path."""
        return [part for _, part in sorted(self.stored.parts.items())]

    def coverage(self) -> Coverage:
        """What is done: by parts, and by the quarantine alone. A copy; planning may add to it."""
        coverage = self.stored.copy()
        for group in alone(self.quarantine.groups(), self.stored):
            coverage.add(group.span, group.uri)
        return coverage

    def keys(self, shard: str, version: str, before: int) -> set[str]:
        """The source_keys of one shard version that are in the store or in quarantine and come
        before a place in it; of rows that are windows or frames, those of their samples too."""
        paths = self.stored.paths(shard, version)
        tables = [read_part(self.storage, self.uri, p, ["source_key", "fragment"]) for p in paths]
        tables.append(self.quarantine.live().select(["source_key", "fragment"]))
        keys: set[str] = set()
        for table in tables:
            name = table["fragment"].cast(pa.string())
            mine = pc.starts_with(name, f"{shard}-{version}-")
            starts = pc.utf8_slice_codeunits(name, _START.start, _START.stop)
            earlier = pc.less(starts, f"{before:012x}")
            keys |= set(table.filter(pc.and_(mine, earlier))["source_key"].to_pylist())
        if "start_seconds" in self.schema.names:
            keys |= {key.rpartition("#t=")[0] or key for key in keys}
        return keys

    def members(self, parts: Sequence[str]) -> pa.Table:
        """source_uri and source_etag of every row of these parts; the quarantine has its own
        `members`."""
        schema = pa.schema([("source_uri", pa.string()), ("source_etag", pa.string())])
        tables = [read_part(self.storage, self.uri, path, schema.names) for path in parts]
        return pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in tables)])

    def to_arrow(self, columns: Sequence[str] | None = None, filters: Any = None) -> pa.Table:
        """Rows of this version, in no particular order; `filters` is a pyarrow expression."""
        return self._table.to_pyarrow_table(
            columns=list(columns) if columns is not None else None, filters=filters
        )

    def info(self) -> StoreInfo:
        """Rows, parts, bytes, version, meta and quarantined."""
        parts = self.stored.parts.values()
        return StoreInfo(
            uri=self.uri,
            version=self.version,
            rows=self.count,
            parts=len(parts),
            bytes=sum(part.size for part in parts),
            shards=len(self.stored.shards),
            quarantined=self.quarantine.counts(),
            meta=self.meta,
        )

    def history(self, limit: int | None = None) -> list[Version]:
        """Versions, newest first."""
        return [
            Version(
                version=entry["version"],
                at=datetime.fromtimestamp(entry.get("timestamp", 0) / 1000, UTC),
                operation=str(entry.get("operation", "")),
                run_id=str((entry.get("mmray") or {}).get("run") or ""),
            )
            for entry in self._table.history(limit)
        ]

    def replaced(self) -> set[str]:
        """The attempts whose parts were in the store once and are not any more, by its log."""
        paths = delta.removed(self.uri, self.storage)
        return {attempt for attempt in map(attempt_of, paths) if attempt} - self.stored.attempts

    def landed(self, commit: str, since: int) -> int | None:
        """The version that `apply` made with this commit id after version `since`, if any."""
        newer = self.version - since
        for entry in self._table.history(newer) if newer > 0 else ():
            if (entry.get("mmray") or {}).get("commit") == commit:
                version: int = entry["version"]
                return version
        return None

    def apply(
        self,
        adds: Sequence[tuple[Receipt, bool]],
        removes: Sequence[tuple[str, bool]],
        commit: str,
        run_id: str,
    ) -> None:
        """One attempt to commit on the version that is seen; the bools say whether rows change.

        Raises:
            DeltaError, OSError: another commit came first, or no one knows whether it landed.
        """  # fmt: skip
        now = int(datetime.now(UTC).timestamp() * 1000)
        actions: list[AddAction | RemoveAction] = [
            AddAction(r.path, r.bytes, {}, now, changes, r.stats) for r, changes in adds
        ]
        actions += [
            RemoveAction(path, changes, now, self.stored.parts[path].size, {})
            for path, changes in removes
        ]
        self._table.create_write_transaction(
            actions,
            "append",
            self._table.schema(),
            commit_properties=delta.properties(
                commit=commit, run=run_id, quarantine=self.quarantine.version
            ),
            post_commithook_properties=delta.HOOKS,
        )

    def rollback(self, version: int) -> int:
        """Make the rows, columns and meta of `version` the latest again; the new version's number.

        Quarantined samples that counted then are brought back first, so that a crash in between
        leaves rows that don't count yet rather than samples that are nowhere.

        Raises:
            RefusedError: there's no such version, or files of it are gone.
        """
        then = Store.open(self.uri, self.storage, version)
        self.reload()
        self._bring_back(then)
        try:
            self._table.restore(
                version,
                commit_properties=delta.properties(
                    commit="", run="", quarantine=self.quarantine.version
                ),
                post_commithook_properties=delta.HOOKS,
            )
        except (DeltaError, OSError) as error:
            raise StorageError(self.uri, f"can't go back to version {version}: {error}") from error
        self.reload()
        return self.version

    def _bring_back(self, then: "Store") -> None:
        for rows in self._counted(then):
            self.quarantine.bring_back(rows)

    def _counted(self, then: "Store") -> list[pa.Table]:
        """The quarantine's rows that counted at `then`, an older version of this store."""
        # Every commit notes the quarantine's version just before it. The note of the first commit
        # after `then` is of a quarantine that nothing had been tidied out of yet; the note of
        # `then` itself serves where other programs made the versions after.
        notes = {
            entry["version"]: note
            for entry in self._table.history()
            if (note := (entry.get("mmray") or {}).get("quarantine")) is not None
        }
        after = min((v for v in notes if v > then.version), default=None)
        at = max((v for v in notes if v <= then.version), default=None)
        found: list[pa.Table] = []
        for number in {notes[v] for v in (after, at) if v is not None}:
            rows = self.quarantine.rows(number)
            live = standings(self.quarantine.grouped(rows), then.stored)
            places = zip(rows["attempt"].to_pylist(), rows["fragment"].to_pylist(), strict=True)
            counted = pa.array([live[place] == "live" for place in places], pa.bool_())
            found.append(rows.filter(counted))
        return found

    def quarantined(self) -> pa.Table:
        """The quarantined samples of the version that is seen, each id once; the columns are those
        of `Quarantine.live`, which tells those of the latest version."""
        latest = Store.open(self.uri, self.storage)
        if latest.version == self.version:
            return self.quarantine.live()
        counted = latest._counted(self)
        return self.quarantine.settled(counted) if counted else self.quarantine.live()


def staging_uri(uri: str, fingerprint: str) -> str:
    """Where a rebuild of the store at `uri` for another model gathers its parts."""
    return join(uri, "_mmray", "rebuild", fingerprint[:16])
