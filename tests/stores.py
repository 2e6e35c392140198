"""Stores of vectors made by hand: real tables, no source and no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmray.sources.fragment import object_shard, sample_id
from mmray.storage import Storage
from mmray.store import Change, Committer, Store, StoreColumns, StoreMeta, write_part

FINGERPRINT = "f" * 32
CATEGORIES = ("food", "animals", "tools", "plants")


def vectors(count: int, dim: int = 32, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    """float32 [count, dim] of length 1, in clusters as embeddings are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1234 + dim).standard_normal((24, dim))
    found = centres[rng.integers(0, len(centres), count)]
    found = found + spread * rng.standard_normal((count, dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Vectors:
    """A store that rows are put into and taken from, a shard at a time."""

    def __init__(
        self,
        uri: str | Path,
        storage: Storage | None = None,
        dim: int = 32,
        fingerprint: str = FINGERPRINT,
        modalities: Sequence[str] = ("image",),
    ) -> None:
        self.storage, self.dim = storage or Storage(), dim
        self.modalities = tuple(modalities)
        self.columns = StoreColumns(self.modalities, {"caption": "string", "category": "string"})
        dims = dict.fromkeys(self.modalities, dim)
        meta = StoreMeta(fingerprint, "fake", dims)
        self.store = Store.create(str(uri), self.storage, self.columns, meta)

    @property
    def uri(self) -> str:
        return self.store.uri

    def put(
        self, name: str, found: np.ndarray | Sequence[Any], etag: str = "1", rows: int = 500
    ) -> list[str]:
        """Write the shard `name` anew, in parts of `rows`; a row of None has no vector. Its ids."""
        uri = f"/in/{name}.tar"
        shard = object_shard(uri, etag, max(1, len(found)))
        self.store.reload()
        keys = [f"{name}-{place:06d}" for place in range(len(found))]
        receipts = []
        for first in range(0, len(found), rows):
            stop = min(len(found), first + rows)
            span = shard.span(first, stop)
            table = self._table(uri, keys[first:stop], etag, str(span), found[first:stop])
            receipts.append(write_part(self.storage, self.uri, table, [span], uri))
        old = [
            path
            for version in self.store.stored.versions(shard.key)
            for path in self.store.stored.paths(shard.key, version)
        ]
        drop = frozenset({uri} if old else ())
        change = Change(tuple(receipts), remove=tuple(old), drop_uris=drop)
        Committer(self.store, "run").commit([change])
        self.store.reload()
        return [sample_id(uri, key) for key in keys]

    def _table(
        self, uri: str, keys: Sequence[str], etag: str, fragment: str, found: Sequence[Any]
    ) -> pa.Table:
        columns: dict[str, Any] = {
            "id": [sample_id(uri, key) for key in keys],
            "source_uri": [uri] * len(keys),
            "source_key": list(keys),
            "source_etag": [etag] * len(keys),
            "fragment": [fragment] * len(keys),
            "content_hash": [
                sample_id(uri, "" if v is None else np.asarray(v, np.float32).tobytes().hex())
                for v in found
            ],
            "caption": [f"a picture of {key}" for key in keys],
            "category": [CATEGORIES[int(key[-6:]) % 4] for key in keys],
        }
        values = [None if v is None else np.asarray(v, np.float32).tolist() for v in found]
        for modality in self.modalities:
            columns[f"{modality}_embedding"] = values
        return pa.table(columns, schema=self.columns.arrow_schema())


def exact(found: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and places of the k best by plain numpy."""
    scores = queries.astype(np.float64) @ found.astype(np.float64).T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order
