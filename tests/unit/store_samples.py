"""Parts and stores on a local folder, made by hand: no source, no model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmray.sources.fragment import Shard, Span, object_shard, sample_id
from mmray.storage import Storage
from mmray.store import (
    Committer,
    Quarantined,
    Receipt,
    Store,
    StoreColumns,
    StoreMeta,
    write_part,
)

STORAGE = Storage()
COLUMNS = StoreColumns(modalities=("image",), keep={"caption": "string"})
META = StoreMeta("f" * 32, "fake", {"image": 4})
SIZE = 1000


def new_store(folder: Path, meta: StoreMeta = META) -> Store:
    return Store.create(str(folder / "store"), STORAGE, COLUMNS, meta)


def shard(name: str = "a", etag: str = "1") -> Shard:
    return object_shard(f"/in/{name}.tar", etag, SIZE)


def table_of(samples: Sequence[tuple[str, str, str, Span]], dim: int = 4) -> pa.Table:
    """Rows of (uri, key, etag, fragment)."""
    vectors = np.zeros((len(samples), dim), np.float32)
    vectors[:, 0] = 1
    rows = [
        {
            "id": sample_id(uri, key),
            "source_uri": uri,
            "source_key": key,
            "source_etag": etag,
            "fragment": str(span),
            "content_hash": "0" * 32,
            "caption": key,
            "image_embedding": vector.tolist(),
        }
        for (uri, key, etag, span), vector in zip(samples, vectors, strict=True)
    ]
    return pa.Table.from_pylist(rows, COLUMNS.arrow_schema())


def keys_of(span: Span) -> list[str]:
    """Ten units make one sample, whatever the shard's version."""
    return [f"k{position:04d}" for position in range(span.start // 10, span.stop // 10)]


def quarantined(of: Shard, span: Span, key: str, message: str = "") -> Quarantined:
    return Quarantined(
        sample_id(of.uri, key), of.uri, key, of.etag, str(span), "decode", "Bad", message
    )


def part(
    store: Store, of: Shard, spans: Sequence[tuple[int, int]], bad: Sequence[str] = ()
) -> Receipt:
    """One part with the fragments `spans`; samples named in `bad` are quarantined."""
    fragments = [of.span(*span) for span in spans]
    good = [
        (of.uri, key, of.etag, span)
        for span in fragments
        for key in keys_of(span)
        if key not in bad
    ]
    failed = [
        quarantined(of, span, key) for span in fragments for key in keys_of(span) if key in bad
    ]
    return write_part(STORAGE, store.uri, table_of(good), fragments, of.uri, failed)


def committer(store: Store, run: str = "run", base: int | None = None) -> Committer:
    """With a store object of its own, as another process has."""
    return Committer(Store.open(store.uri, STORAGE), run, base, patience=5)


def ids(store: Store) -> list[str]:
    return sorted(Store.open(store.uri, STORAGE).to_arrow(["id"])["id"].to_pylist())


def quarantine_ids(store: Store) -> list[str]:
    return sorted(Store.open(store.uri, STORAGE).quarantine.live()["id"].to_pylist())


def raw_quarantine(store: Store) -> list[str]:
    return sorted(Store.open(store.uri, STORAGE).quarantine.rows()["id"].to_pylist())


def assert_exactly_once(store: Store, shards: Sequence[Shard]) -> None:
    """Every sample of the shards is in the store or in quarantine, once."""
    want = sorted(sample_id(s.uri, key) for s in shards for key in keys_of(s.span(0, SIZE)))
    assert sorted(ids(store) + quarantine_ids(store)) == want
