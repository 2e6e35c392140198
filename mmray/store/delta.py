"""The few calls to deltalake that the store and its quarantine share.

A commit is one attempt, never retried below us: deltalake's own retries would put a commit on top
of a version that nobody checked it against. Old log entries are kept: they are what rollback and gc
read.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties
from deltalake.exceptions import DeltaError, SchemaMismatchError, TableNotFoundError

from mmray.errors import MmrayError, RefusedError, StorageError
from mmray.storage import Storage, is_transient, join, with_backoff

PATIENCE = 120.0
"""Seconds that a commit waits out broken storage or other writers."""
HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
_UNREADABLE = {"deletionVectors", "columnMapping"}


def properties(**values: Any) -> CommitProperties:
    """Properties of a single attempt to commit; `values` are kept under `mmray` in its entry."""
    return CommitProperties(custom_metadata={"mmray": values}, max_commit_retries=0)


def exists(uri: str, storage: Storage) -> bool:
    """Whether a Delta table is at `uri`.

    Raises:
        RefusedError: the place can't be looked at: wrong credentials, no such bucket.
        StorageError: storage stayed broken.
    """
    options = storage.delta_options(uri)
    try:
        return with_backoff(uri, lambda: DeltaTable.is_deltatable(uri, storage_options=options))
    except OSError as error:
        raise _explained(uri, storage, error) from error


def _explained(uri: str, storage: Storage, error: OSError) -> MmrayError:
    """What is wrong, in the words of a plain listing: deltalake's tell of requests and retries."""
    try:
        for _ in storage.list(join(uri, "_delta_log")):
            break
    except (PermissionError, FileNotFoundError) as clear:
        return RefusedError(str(clear))
    return StorageError(uri, str(error))


def open_table(uri: str, storage: Storage, version: int | None = None) -> DeltaTable:
    """The Delta table at `uri`.

    Raises:
        RefusedError: no Delta table, no such version, or features that mmray can't keep.
        StorageError: storage stayed broken.
    """
    try:
        table = with_backoff(
            uri,
            lambda: DeltaTable(uri, version=version, storage_options=storage.delta_options(uri)),
        )
    except TableNotFoundError as error:
        raise RefusedError(f"{uri} is not a Delta table") from error
    except OSError as error:
        raise _explained(uri, storage, error) from error
    except DeltaError as error:
        if version is not None:
            raise RefusedError(f"{uri} has no version {version} that can be read") from error
        raise StorageError(uri, f"the Delta log can't be read: {error}") from error
    protocol = table.protocol()
    extra = _UNREADABLE & {*(protocol.reader_features or ()), *(protocol.writer_features or ())}
    if extra:
        raise RefusedError(f"{uri} uses Delta's {', '.join(sorted(extra))}, which mmray can't keep")
    return table


def refresh(table: DeltaTable, uri: str, storage: Storage) -> DeltaTable:
    """The table at its latest version; opened anew where its credentials have been renewed."""
    options = storage.delta_options(uri)
    if (getattr(table, "_storage_options", None) or {}) != options:
        return open_table(uri, storage)
    with_backoff(uri, table.update_incremental)
    return table


def actions(table: DeltaTable) -> pa.Table:
    """The add actions of the table's version, flattened."""
    return pa.table(table.get_add_actions(flatten=True))


def pauses(patience: float) -> Iterator[float]:
    """Sleeps with growing, jittered pauses and gives the seconds waited, until patience is out."""
    began, pause = time.monotonic(), 0.02
    while (waited := time.monotonic() - began) < patience:
        yield waited
        time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
        pause = min(pause * 2, 8.0)


def may_pass(error: Exception) -> bool:
    """Whether a failed commit may go through later: a conflict, or passing storage trouble."""
    if isinstance(error, SchemaMismatchError):
        return False
    # Only a CommitFailedError or a message about the transaction says "conflict"; what deltalake
    # reports of a half-heard reply varies, so every error of its own is worth another look.
    return isinstance(error, DeltaError) or is_transient(error)


def persist(uri: str, once: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Call `once` until it says True; its passing errors are waited out.

    Raises:
        StorageError: patience ran out, or an error that lasts.
    """
    failure: Exception | None = None
    for _ in pauses(patience):
        try:
            if once():
                return
        except (DeltaError, OSError) as error:
            if not may_pass(error):
                raise StorageError(uri, f"{type(error).__name__}: {error}") from error
            failure = error
    raise StorageError(uri, f"no commit went through in {patience:.0f} s: {failure}")


def removed(uri: str, storage: Storage) -> set[str]:
    """Paths of the files that any entry of the log took out of the table."""
    found: set[str] = set()
    for item in storage.list(join(uri, "_delta_log"), recursive=False):
        if item.uri.endswith(".json"):
            for line in storage.read_bytes(item.uri).splitlines():
                action = json.loads(line).get("remove") if line.strip() else None
                if action:
                    found.add(unquote(action["path"]))
    return found
