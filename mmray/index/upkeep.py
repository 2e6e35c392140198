"""Looking after an index on storage: whether it is whole, and what no version of it needs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.errors import RefusedError
from mmray.index import manifest
from mmray.index.manifest import BUILDS, Manifest
from mmray.index.searching.rows import Rows
from mmray.index.searching.segments import dead_rows
from mmray.storage import Object, Storage, blobs, join

UNDER_WAY = timedelta(days=1)
"""A file that no version names may be of a build that goes on, while it is younger."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one version."""

    uri: str
    version: int
    files: int
    bytes: int
    rows: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the version is whole."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed (or would be), uris sorted."""

    versions: tuple[int, ...]
    removed: tuple[str, ...]
    bytes: int


def verify(uri: str, storage: Storage, version: int | None = None) -> Verified:
    """Read a version to the last byte, and count its rows.

    Raises:
        RefusedError: no such version is there, or its manifest isn't whole.
        StorageError: storage stayed broken.
    """
    uri = storage.normalise(uri)
    found = manifest.read(uri, storage, version)
    problems: list[str] = []
    for file in found.files:
        try:
            blobs.check(storage, uri, file)
        except RefusedError as error:
            problems.append(str(error))
    if not problems:
        try:
            problems += _miscounted(found, storage, uri)
        except RefusedError as error:
            problems.append(str(error))
    return Verified(uri, found.version, len(found.files), found.size, found.rows, tuple(problems))


def history(uri: str, storage: Storage, limit: int | None = None) -> list[Manifest]:
    """The versions that are there, newest first, at most `limit` of them.

    Raises:
        RefusedError: no index is there, or a manifest isn't whole.
        StorageError: storage stayed broken.
    """
    uri = storage.normalise(uri)
    numbers = manifest.versions(uri, storage)[::-1]
    if not numbers:
        manifest.read(uri, storage)  # says that there is none
    return [manifest.read(uri, storage, number) for number in numbers[:limit]]


def gc(uri: str, storage: Storage, *, keep: int = 3, dry_run: bool = False) -> Collected:
    """Remove versions before the newest `keep`, and files that none of those needs.

    Files that no version names at all stay for a day: a build may be about to publish them.

    Raises:
        RefusedError: no index is there, or a manifest that stays isn't whole.
        StorageError: storage stayed broken; what is gone was garbage.
    """
    uri = storage.normalise(uri)
    # Listed before the versions: a file that is published in between is named by then.
    listed = list(_files(uri, storage))
    numbers = manifest.versions(uri, storage)
    staying = history(uri, storage, keep)
    named = {file.path for each in staying for file in each.files}
    old = [number for number in numbers if number < staying[-1].version]
    dropped = {path for number in old for path in _named_by(uri, storage, number)}
    latest = time.time() - UNDER_WAY.total_seconds()
    doomed: list[Object] = []
    for item in listed:
        path = item.uri.removeprefix(uri).lstrip("/")
        if path not in named and (path in dropped or item.mtime < latest):
            doomed.append(item)
    # Manifests first: who finds one finds its files.
    places = [join(uri, "versions", f"{number:08d}.json") for number in old]
    gone = [*places, *(item.uri for item in doomed)]
    if not dry_run:
        for each in gone:
            storage.delete(each)
    return Collected(tuple(old), tuple(sorted(gone)), sum(item.size for item in doomed))


def _files(uri: str, storage: Storage) -> Iterator[Object]:
    for folder in ("segments", "shared", BUILDS):
        yield from storage.list(join(uri, folder))


def _named_by(uri: str, storage: Storage, number: int) -> set[str]:
    try:
        return {file.path for file in manifest.read(uri, storage, number).files}
    except RefusedError:  # torn, or gone by now: its files go by their age
        return set()


def _miscounted(found: Manifest, storage: Storage, uri: str) -> list[str]:
    """What the rows say against the manifest."""
    problems: list[str] = []
    paths = {
        file.path: blobs.get(storage, uri, file)
        for file in (*(each.table for each in found.segments), found.dead)
        if file is not None
    }
    dead = dead_rows(found, lambda file: paths[file.path])
    rows = Rows(found, paths, dead)
    total = sum(segment.rows for segment in found.segments)
    if len(dead) and (dead[0] < 0 or dead[-1] >= total or (np.diff(dead) <= 0).any()):
        return ["the rows that don't count are not a sorted list of its own rows"]
    if total - len(dead) != found.rows or len(dead) != found.dead_rows:
        problems.append(
            f"{total - len(dead):,} rows answer and {len(dead):,} don't, the manifest says "
            f"{found.rows:,} and {found.dead_rows:,}"
        )
    answering = pa.chunked_array(list(_live_ids(rows)), pa.string())
    if pc.count_distinct(answering).as_py() != len(answering):
        counts = pc.value_counts(answering)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        problems.append(f"{len(twice):,} ids answer twice, such as {twice[0]}")
    return problems


def _live_ids(rows: Rows) -> Iterator[pa.Array]:
    for batch, first in rows.batches(("id",)):
        live = rows.without_dead(np.arange(first, first + batch.num_rows))
        yield batch["id"].take(pa.array(live - first))
