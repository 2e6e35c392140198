"""Garbage: parts that no version of the store has ever named, left by workers that were killed.

A file that any version in the log names stays, whatever its age, so every version can still be read
and rolled back to. That goes for the parts of rebuilds too; an abandoned rebuild's own log goes
before its parts do.
"""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from mmray.storage import Object, Storage, join, with_backoff
from mmray.store import delta
from mmray.store.table import Store

_REBUILD = re.compile(r"_mmray/rebuild/[^/]+")


@dataclass(frozen=True, slots=True)
class GcResult:
    """What was removed (or would be), uris sorted."""

    removed: tuple[str, ...]
    bytes: int


def gc(
    store: Store, *, older_than: timedelta = timedelta(days=1), dry_run: bool = False
) -> GcResult:
    """Remove parts that no version names and that are older than `older_than`.

    The age keeps the parts that a running job has written and not committed yet.

    Raises:
        StorageError: storage stayed broken; what is gone was garbage.
    """
    doomed = orphans(store, older_than)
    if not dry_run:
        for item in doomed:
            store.storage.delete(item.uri)
    return GcResult(tuple(item.uri for item in doomed), sum(item.size for item in doomed))


def orphans(store: Store, older_than: timedelta = timedelta(0)) -> list[Object]:
    """Files of the store that no version names; logs of abandoned rebuilds first."""
    # Listed before the log is read: a part that is committed in between is named by then.
    listed = list(store.storage.list(join(store.uri, "data")))
    rebuilt = list(store.storage.list(join(store.uri, "_mmray", "rebuild")))
    latest = time.time() - older_than.total_seconds()
    named = named_paths(store.uri, store.storage)
    folders: dict[str, list[Object]] = {}
    for item in rebuilt:
        match = _REBUILD.match(item.uri.removeprefix(store.uri).lstrip("/"))
        if match:
            folders.setdefault(match[0], []).append(item)
    found = [item for item in listed if item.mtime < latest]
    for folder, items in folders.items():
        if max(item.mtime for item in items) < latest:
            found += sorted(items, key=lambda item: "/_delta_log/" not in item.uri)
            continue
        # A rebuild that goes on: only what its own log does not name either.
        root = join(store.uri, folder)
        data = [item for item in items if item.uri.startswith(join(root, "data"))]
        if delta.exists(root, store.storage):
            named |= {f"{folder}/{path}" for path in named_paths(root, store.storage)}
            found += [item for item in data if item.mtime < latest]
    return [item for item in found if item.uri.removeprefix(store.uri).lstrip("/") not in named]


def named_paths(uri: str, storage: Storage) -> set[str]:
    """Relative paths of all files that any version in the Delta log at `uri` names."""
    named: set[str] = set()
    for item in storage.list(join(uri, "_delta_log")):
        if item.uri.endswith(".json"):
            data = storage.read_bytes(item.uri)
            named |= {unquote(path) for path in _in_entry(data)}
        elif item.uri.endswith(".parquet"):
            named |= {unquote(path) for path in _in_checkpoint(item.uri, storage)}
    return named


def _in_entry(data: bytes) -> Iterator[str]:
    for line in data.splitlines():
        action = json.loads(line) if line.strip() else {}
        for kind in ("add", "remove"):
            if kind in action:
                yield action[kind]["path"]


def _in_checkpoint(uri: str, storage: Storage) -> Iterator[str]:
    filesystem, path = storage.arrow_filesystem(uri)

    def read() -> pa.Table:
        with filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            kinds = {"add", "remove"} & set(parquet.schema_arrow.names)
            return parquet.read(columns=[f"{kind}.path" for kind in sorted(kinds)])

    table = with_backoff(uri, read)
    for name in table.column_names:
        for entry in table[name].to_pylist():
            if entry and entry.get("path"):
                yield entry["path"]
