"""The quarantine: a Delta table beside the store with the samples that could not be used.

Rows are added before the store's commit and never replaced before it: two drivers may race on one
fragment, and the loser must not take the winner's rows along. So the table may hold rows that don't
count; `live()` is the truth, and commits remove what they outdate.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from datetime import UTC, datetime

import pyarrow as pa
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import DeltaError

from mmray.errors import StorageError
from mmray.storage import Storage, join
from mmray.store import delta
from mmray.store.coverage import Coverage
from mmray.store.liveness import Group, settle_ids, standings
from mmray.store.parts import Quarantined, read_part
from mmray.store.summary import EXAMPLES, Reason, summary

SCHEMA = pa.schema(
    [
        *(
            pa.field(f.name, pa.int64() if f.name == "written" else pa.string(), nullable=False)
            for f in fields(Quarantined)
        ),
        pa.field("attempt", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)
_MANY_FILES = 64
_READERS = 8
_CACHED_ROWS = 100_000


class Quarantine:
    """The quarantined samples of the store at `root`."""

    def __init__(self, root: str, storage: Storage, stored: Callable[[], Coverage]) -> None:
        self.uri = join(root, "_mmray", "quarantine")
        self._root, self._storage, self._stored = root, storage, stored
        self._table: DeltaTable | None = None
        self._groups: dict[str, list[Group]] = {}
        self._files: dict[str, pa.Table] = {}
        self._live: tuple[tuple[int | None, int], pa.Table] | None = None

    def _reload(self) -> DeltaTable | None:
        if self._table is not None:
            self._table = delta.refresh(self._table, self.uri, self._storage)
        elif delta.exists(self.uri, self._storage):
            self._table = delta.open_table(self.uri, self._storage)
        return self._table

    @property
    def version(self) -> int | None:
        """The Delta version last seen; None where there is no quarantine yet."""
        return self._table.version() if self._table is not None else None

    def groups(self) -> list[Group]:
        """All groups of rows, counting or not; reads only files that came since the last call."""
        table = self._reload()
        if table is None:
            return []
        paths = delta.actions(table)["path"].to_pylist()
        fresh = [path for path in paths if path not in self._groups]
        read = zip(fresh, map(self.grouped, self._read(fresh)), strict=True)
        known = {**self._groups, **dict(read)}
        self._groups = {path: known[path] for path in paths}
        merged: dict[tuple[str, str], Group] = {}
        for group in (group for path in paths for group in self._groups[path]):
            other = merged.get(group.key)
            merged[group.key] = group if other is None else max(other, group, key=lambda g: g.at)
        return list(merged.values())

    def _read(self, paths: list[str]) -> list[pa.Table]:
        """The rows of these files; the small ones that commits leave are kept in memory."""
        fresh = [path for path in paths if path not in self._files]
        with ThreadPoolExecutor(_READERS) as pool:
            read = pool.map(lambda path: read_part(self._storage, self.uri, path), fresh)
            tables = {path: table.cast(SCHEMA) for path, table in zip(fresh, read, strict=True)}
        found = [tables[path] if path in tables else self._files[path] for path in paths]
        if sum(table.num_rows for table in self._files.values()) > _CACHED_ROWS:
            self._files.clear()
        self._files.update((p, t) for p, t in tables.items() if t.num_rows < _CACHED_ROWS)
        return found

    @staticmethod
    def grouped(rows: pa.Table) -> list[Group]:
        """The groups of these rows."""
        keys = ["fragment", "attempt", "written", "run_id"]
        sums = [("at", "max"), ("source_uri", "min"), ("fragment", "count")]
        return [
            Group(
                fragment=row["fragment"],
                attempt=row["attempt"],
                written=row["written"],
                run_id=row["run_id"],
                at=row["at_max"],
                uri=row["source_uri_min"],
                rows=row["fragment_count"],
            )
            for row in rows.group_by(keys).aggregate(sums).to_pylist()
        ]

    def rows(self, version: int | None = None) -> pa.Table:
        """Every row, counting or not, of this or an older version of the quarantine."""
        table = self._reload()
        if table is not None and version is not None:
            table = delta.open_table(self.uri, self._storage, version)
        if table is None:
            return SCHEMA.empty_table()
        paths = delta.actions(table)["path"].to_pylist()
        return pa.concat_tables([SCHEMA.empty_table(), *self._read(paths)])

    def live(self) -> pa.Table:
        """The rows that count, each id once; columns of `Quarantined`, attempt, run_id, at."""
        stored = self._stored()
        groups = self.groups()
        mark = (self.version, stored.serial)
        if self._live is None or self._live[0] != mark:
            self._live = (mark, self._count(groups, self.rows(), stored))
        return self._live[1]

    def _count(self, groups: list[Group], rows: pa.Table, stored: Coverage) -> pa.Table:
        standing = standings(groups, stored)
        good = pa.array(
            [
                # A row that came between the two reads has no group yet: it isn't counted yet.
                standing.get(key) == "live"
                for key in zip(
                    rows["attempt"].to_pylist(), rows["fragment"].to_pylist(), strict=True
                )
            ],
            pa.bool_(),
        )
        return settle_ids(rows.filter(good), stored, self._read_ids)

    def settled(self, tables: Sequence[pa.Table]) -> pa.Table:
        """These rows, which all count, with each id once."""
        return settle_ids(pa.concat_tables(tables), self._stored(), self._read_ids)

    def _read_ids(self, path: str) -> pa.Array:
        column = read_part(self._storage, self._root, path, ["id"])["id"]
        return column.cast(pa.string()).combine_chunks()

    def members(self) -> list[tuple[str, str, str]]:
        """source_uri, source_etag and fragment of the rows that count."""
        rows = self.live().select(["source_uri", "source_etag", "fragment"])
        return [tuple(row.values()) for row in rows.to_pylist()]

    def counts(self) -> dict[str, int]:
        """Rows that count, by error type, most frequent first."""
        return dict(Counter(self.live()["error_type"].to_pylist()).most_common())

    def summary(self, by: str = "reason", examples: int = EXAMPLES) -> list[Reason]:
        """Rows that count, by reason, stage, shard or run, with examples; most frequent first."""
        return summary(self.live(), by, examples)

    def ensure(self, rows: Sequence[tuple[str, Quarantined]], run_id: str) -> None:
        """Have the rows in the table, each (attempt, row) once, also after a reply was lost.

        Raises:
            StorageError: the table can't be written.
        """
        at = datetime.now(UTC)
        values = [{**asdict(row), "attempt": a, "run_id": run_id, "at": at} for a, row in rows]
        self.ensure_rows(pa.Table.from_pylist(values, SCHEMA))

    def ensure_rows(self, rows: pa.Table) -> None:
        """`ensure` for rows that already are in the table's form."""
        if not rows.num_rows:
            return
        keys = list(zip(rows["attempt"].to_pylist(), rows["fragment"].to_pylist(), strict=True))

        def once() -> bool:
            present = {group.key for group in self.groups()}
            missing = rows.filter(pa.array([key not in present for key in keys], pa.bool_()))
            if missing.num_rows:
                self._append(missing)
            return True

        delta.persist(self.uri, once)

    def bring_back(self, rows: pa.Table) -> None:
        """Have in the table again what a rollback makes count again; rows are told apart by id."""

        def places(table: pa.Table) -> list[tuple[str, str, str]]:
            columns = (table[name].to_pylist() for name in ("attempt", "fragment", "id"))
            return list(zip(*columns, strict=True))

        def once() -> bool:
            present = set(places(self.rows()))
            missing = rows.filter(pa.array([p not in present for p in places(rows)], pa.bool_()))
            if missing.num_rows:
                self._append(missing)
            return True

        delta.persist(self.uri, once)

    def _append(self, rows: pa.Table) -> None:
        if self._table is None:
            self._create()
        assert self._table is not None
        write_deltalake(
            self._table,
            rows,
            mode="append",
            commit_properties=delta.properties(),
            post_commithook_properties=delta.HOOKS,
        )

    def _create(self) -> None:
        try:
            DeltaTable.create(
                self.uri,
                Schema.from_arrow(SCHEMA),
                mode="error",
                storage_options=self._storage.delta_options(self.uri),
            )
        except (DeltaError, OSError):
            # Another driver was first, or the reply was lost.
            if not delta.exists(self.uri, self._storage):
                raise
        self._table = delta.open_table(self.uri, self._storage)

    def remove(self, groups: Iterable[tuple[str, str]]) -> None:
        """Delete the rows of these (attempt, fragment) pairs."""
        by_attempt: dict[str, list[str]] = {}
        for attempt, fragment in groups:
            by_attempt.setdefault(attempt, []).append(fragment)
        terms = [
            f"(attempt = '{attempt}' AND fragment IN ({_quoted(fragments)}))"
            for attempt, fragments in sorted(by_attempt.items())
        ]
        for start in range(0, len(terms), 50):
            self._delete(" OR ".join(terms[start : start + 50]))

    def remove_uris(self, uris: Iterable[str], attempts: Iterable[str]) -> None:
        """Delete the rows of these source_uris that these attempts wrote."""
        wanted, owners = sorted(set(uris)), _quoted(sorted(set(attempts)))
        for start in range(0, len(wanted) if owners else 0, 500):
            chunk = _quoted(wanted[start : start + 500])
            self._delete(f"source_uri IN ({chunk}) AND attempt IN ({owners})")

    def remove_outdated(self) -> int:
        """Delete rows of live groups whose id is in the store by now, or quarantined anew later;
        returns how many."""
        rows, live = self.rows(), self.live()

        def places(table: pa.Table) -> list[tuple[str, str]]:
            return list(zip(table["attempt"].to_pylist(), table["id"].to_pylist(), strict=True))

        groups = self.groups()
        standing = standings(groups, self._stored())
        counted = set(places(live))
        outdated: dict[str, list[str]] = {}
        for place, fragment in zip(places(rows), rows["fragment"].to_pylist(), strict=True):
            if standing.get((place[0], fragment)) == "live" and place not in counted:
                outdated.setdefault(place[0], []).append(place[1])
        for attempt, ids in outdated.items():
            for start in range(0, len(ids), 500):
                chunk = _quoted(ids[start : start + 500])
                self._delete(f"attempt = '{attempt}' AND id IN ({chunk})")
        return sum(map(len, outdated.values()))

    def _delete(self, predicate: str) -> None:
        def once() -> bool:
            table = self._reload()
            if table is not None:
                table.delete(
                    predicate,
                    commit_properties=delta.properties(),
                    post_commithook_properties=delta.HOOKS,
                )
            return True

        delta.persist(self.uri, once)

    def tidy(self) -> None:
        """Merge the many small files that commits leave."""
        table = self._reload()
        if table is None or delta.actions(table).num_rows < _MANY_FILES:
            return
        try:
            table.optimize.compact(
                commit_properties=delta.properties(), post_commithook_properties=delta.HOOKS
            )
        except (DeltaError, OSError) as error:
            # It is housekeeping: another driver's commit came between, the next run does it.
            if not delta.may_pass(error):
                raise StorageError(self.uri, str(error)) from error


def _quoted(values: Sequence[str]) -> str:
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)
