"""An index that is open: search it, and see what its rows are.

Everything that the version names is checked before it answers, and is in memory or on this machine
from then on. Rows are numbers here; people get ids.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmray.errors import RefusedError
from mmray.index import manifest
from mmray.index.manifest import Manifest
from mmray.index.searching.loaded import Loaded
from mmray.index.searching.query import QueryEncoder
from mmray.index.searching.rows import Rows
from mmray.index.searching.segments import dead_rows, load
from mmray.specs.index import WHERE_SECONDS
from mmray.specs.problems import hint
from mmray.storage import Storage, blobs
from mmray.storage.blobs import File

FEW = 256
"""So many excluded rows are found and dropped; more are left out of the search itself."""
KEPT_CONDITIONS = 8
"""Conditions whose rows are remembered: 8 bytes a row each."""
FETCHED_AT_ONCE = 4
_SHORT = 1e-15
"""Shorter vectors have squares that float32 has no room for."""


@dataclass(frozen=True, slots=True)
class Hits:
    """What several queries found, best first."""

    numbers: np.ndarray
    """int64 [q, k] row numbers, -1 where there are no more."""
    scores: np.ndarray
    """float32 [q, k]: cosines or inner products; -inf where there are no more."""


class Index:
    """One version of an index; made by `Index.open`."""

    def __init__(
        self, uri: str, storage: Storage, manifest: Manifest, loaded: Loaded, rows: Rows
    ) -> None:
        self.uri, self.storage, self.manifest = uri, storage, manifest
        self.where_seconds = WHERE_SECONDS
        """Time that a condition may take."""
        self._loaded, self._rows = loaded, rows
        self._allowed: OrderedDict[str, np.ndarray] = OrderedDict()

    @classmethod
    def open(
        cls,
        uri: str,
        storage: Storage,
        version: int | None = None,
        *,
        threads: int | None = None,
        where_seconds: float = WHERE_SECONDS,
    ) -> "Index":
        """The index at `uri`, at its latest version or the one given.

        Args:
            uri: folder or `s3://` prefix.
            storage: how to reach it.
            version: an older version.
            threads: of a search; left out: one for each core.
            where_seconds: time that a condition may take over all rows.

        Raises:
            RefusedError: no index is there, or one of its files is missing, torn or changed.
            StorageError: storage stayed broken.
        """
        uri = storage.normalise(uri)
        found = manifest.read(uri, storage, version)
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            places = pool.map(lambda file: blobs.get(storage, uri, file), found.files)
            paths = dict(zip((file.path for file in found.files), places, strict=True))

        def fetch(file: File) -> Path:
            return paths[file.path]

        rows = Rows(found, paths, dead_rows(found, fetch))
        index = cls(uri, storage, found, load(found, fetch, threads), rows)
        index.where_seconds = where_seconds
        return index

    def search(
        self,
        vectors: Any,
        k: int = 10,
        *,
        where: str | None = None,
        exclude: Sequence[str] | None = None,
        fingerprint: str | None = None,
        parameters: Mapping[str, int] | None = None,
    ) -> Hits:
        """The nearest rows of each query.

        Args:
            vectors: [q, d] or [d] numbers; of any length where the metric is cosine.
            k: hits of each query; above the rows that there are, all of them come.
            where: a condition in SQL that hits meet, on kept columns, `id`, `source_uri` and
                `source_key`.
            exclude: ids left out of every query's hits; those that aren't there don't matter.
            fingerprint: of the encoder that made the vectors; has to be the index's.
            parameters: of the search, over those that were tuned: `nprobe`, `ef_search`, `rerank`.

        Raises:
            RefusedError: vectors that can't be searched with, another encoder's, a bad condition.
        """
        self._require_fingerprint(fingerprint)
        merged = self._parameters(parameters)
        if k < 1:
            raise RefusedError(f"k is {k}: ask for one hit at least")
        queries = self._queries(vectors)
        allowed = None if where is None else self.allowed(where)
        left_out = self._numbers_of(exclude) if exclude else np.empty(0, np.int64)
        if len(left_out) > FEW:
            allowed = np.setdiff1d(self.live() if allowed is None else allowed, left_out)
            left_out = left_out[:0]
        room = self._loaded.rows if allowed is None else len(allowed)
        most = min(k + len(left_out), room)
        if len(queries) and most == k and not len(left_out):
            values, found = self._loaded.search(queries, k, merged, allowed)
            return Hits(found, values)
        numbers = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if len(queries) and most:
            values, found = self._loaded.search(queries, most, merged, allowed)
            if len(left_out):
                values, found = _without(left_out, values, found)
            width = min(k, most)
            numbers[:, :width], scores[:, :width] = found[:, :width], values[:, :width]
        return Hits(numbers, scores)

    def ids(self, numbers: np.ndarray) -> list[str]:
        """The ids of rows, in the order of their numbers, none of which is -1."""
        return self._rows.ids(numbers)

    def table(self, numbers: np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows in the order of their numbers: the columns named, or `id`, `source_uri`,
        `source_key` and all kept ones. Raises RefusedError for a column that isn't kept."""
        wanted = self.columns if columns is None else tuple(columns)
        self._rows.require(wanted)
        return self._rows.table(numbers, wanted)

    @property
    def columns(self) -> tuple[str, ...]:
        """`id`, `source_uri`, `source_key` and the kept columns."""
        return self._rows.columns

    def numbers(self, ids: Sequence[str]) -> np.ndarray:
        """int64 row numbers of ids. Raises RefusedError naming one that isn't in the index."""
        found = self._rows.numbers(ids)
        for name in ids:
            if name not in found:
                raise RefusedError(f"{self.uri} has no row with the id {name!r:.80}")
        return np.array([found[name] for name in ids], np.int64)

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """float32 [n, d]: the vectors of rows, as they were indexed."""
        return self._loaded.vectors(np.asarray(numbers, np.int64))

    def allowed(self, where: str) -> np.ndarray:
        """Sorted int64 numbers of the rows that meet a condition. Raises RefusedError, also for one
        that takes longer than `where_seconds`."""
        found = self._allowed.pop(where, None)
        if found is None:
            from mmray.index.searching.where import matching

            found = matching(self._rows, where, self.where_seconds)
        self._allowed[where] = found
        while len(self._allowed) > KEPT_CONDITIONS:
            self._allowed.popitem(last=False)
        return found

    def live(self) -> np.ndarray:
        """Sorted int64 numbers of the rows that answer."""
        return self._rows.live()

    def encoder(self, model: str | None = None, device: str = "cpu") -> QueryEncoder:
        """The encoder that queries need; loads nothing yet.

        `model` is where its weights are, a folder or a checkpoint's uri, when they lie elsewhere
        than they did for the store. Raises RefusedError where they are missing or others.
        """
        return QueryEncoder.of(self.manifest.made, model, device, self.storage)

    def thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        """JPEGs that the store keeps of rows, by id; rows that it has none of are left out."""
        from mmray.index.searching.pictures import thumbnails

        numbers = self._rows.numbers(ids)
        found = self._rows.table(np.array([*numbers.values()], np.int64), ("id", "fragment"))
        places = zip(found["id"].to_pylist(), found["fragment"].to_pylist(), strict=True)
        made = self.manifest.made
        return thumbnails(self.storage, made.store, made.store_version, dict(places))

    def _queries(self, vectors: Any) -> np.ndarray:
        """float32 [q, d], of length 1 where the metric is cosine."""
        dim = self.manifest.dim
        plain = isinstance(vectors, np.ndarray) and vectors.dtype == np.float32
        if plain and vectors.ndim == 2 and vectors.shape[1] == dim:
            lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
            if np.isfinite(lengths).all() and (lengths > _SHORT).all():  # nearly all queries are
                if self.manifest.metric == "cosine":
                    vectors = vectors / lengths[:, None]
                return np.ascontiguousarray(vectors)
        try:
            # float64, which sees a number that float32 has no room for.
            given = np.asarray(vectors, np.float64)
        except (TypeError, ValueError):
            raise RefusedError(
                f"queries must be numbers, [queries, {dim}]: these are no such table"
            ) from None
        if given.ndim == 1:
            given = given[None] if len(given) else given.reshape(0, dim)
        if given.ndim != 2:
            raise RefusedError(f"queries must be [queries, {dim}], not of {given.ndim} dimensions")
        if not len(given):
            return np.zeros((0, dim), np.float32)
        if given.shape[1] != dim:
            raise RefusedError(f"queries have {given.shape[1]} dimensions, the index has {dim}")
        with np.errstate(over="ignore"):
            whole = np.isfinite(given.astype(np.float32))
        if not whole.all():
            query, place = np.argwhere(~whole)[0]
            raise RefusedError(
                f"query {query} can't be searched with: its number {place} is {given[query, place]}"
            )
        if self.manifest.metric == "cosine":
            # Scaled first: the square of a small number may be too small.
            largest = np.abs(given).max(axis=1, keepdims=True)
            if not largest.all():
                query = int(np.argmin(largest))
                raise RefusedError(f"query {query} is all zeros: it has no direction")
            given = given / largest
            given = given / np.linalg.norm(given, axis=1, keepdims=True)
        return np.ascontiguousarray(given, np.float32)

    def _require_fingerprint(self, fingerprint: str | None) -> None:
        made = self.manifest.made
        if fingerprint is not None and fingerprint != made.fingerprint:
            raise RefusedError(
                f"{self.uri} holds vectors of {made.encoder} (fingerprint {made.fingerprint}); the "
                f"queries are of another encoder (fingerprint {fingerprint})"
            )

    def _parameters(self, given: Mapping[str, int] | None) -> dict[str, int]:
        tuned = self.manifest.parameters
        for name, value in (given or {}).items():
            if name not in tuned:
                has = f"has {', '.join(sorted(tuned))}" if tuned else "has none"
                raise RefusedError(
                    f"{name!r} is no parameter of this {self.manifest.kind} index, which {has}"
                    f"{hint(name, tuned)}"
                )
            if value < 1:
                raise RefusedError(f"{name} is {value}: it must be 1 or more")
        return {**tuned, **(given or {})}

    def _numbers_of(self, ids: Sequence[str]) -> np.ndarray:
        return np.array(sorted(self._rows.numbers(ids).values()), np.int64)


def _without(
    left_out: np.ndarray, scores: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The hits without some rows, the others moved up."""
    gone = np.isin(numbers, left_out)
    order = np.argsort(gone, axis=1, kind="stable")
    scores = np.where(gone, np.float32(-np.inf), scores)
    numbers = np.where(gone, -1, numbers)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(numbers, order, axis=1)
