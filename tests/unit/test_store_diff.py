"""Two versions of a store, or two stores, held against each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mmray.errors import StorageError
from mmray.sources.fragment import Span, sample_id
from mmray.storage import join
from mmray.store import Change, Store, StoreColumns, StoreMeta, buckets, write_part
from mmray.store import diff as module
from mmray.store.compact import compact
from mmray.store.diff import Columns, diff
from tests.unit.store_samples import (
    COLUMNS,
    META,
    SIZE,
    STORAGE,
    committer,
    ids,
    keys_of,
    new_store,
    part,
    shard,
    table_of,
)


def at(store: Store, version: int | None = None) -> Store:
    return Store.open(store.uri, STORAGE, version)


def add(store: Store, name: str, span: Span, etag: str = "1", **columns: Any) -> None:
    """Rows of one fragment; `columns` replace those of every row."""
    of = shard(name, etag)
    table = table_of([(of.uri, key, etag, span) for key in keys_of(span)])
    for column, values in columns.items():
        place = table.schema.get_field_index(column)
        array = pa.array(values, table.schema.field(column).type)
        table = table.set_column(place, table.schema.field(column), array)
    receipt = write_part(STORAGE, store.uri, table, [span], of.uri)
    gone = tuple(at(store).stored.paths(of.key)) if etag != "1" else ()
    assert committer(store).commit([Change((receipt,), gone)]).committed


def span(name: str, start: int = 0, stop: int = SIZE, etag: str = "1") -> Span:
    return shard(name, etag).span(start, stop)


def turned(angles: list[float]) -> list[list[float]]:
    """Vectors at these angles (radians) to those of `table_of`, in a plane."""
    return [[float(np.cos(a)), float(np.sin(a)), 0.0, 0.0] for a in angles]


def test_versions_of_one_store(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    add(store, "a", span("a"))
    add(store, "b", span("b", 0, 500))
    before = at(store)
    add(store, "c", span("c", 0, 300))
    drop = Change(remove=tuple(before.stored.paths(shard("b").key)))
    committer(store).commit([drop])
    hashes = ["1" * 32 if n < 30 else "0" * 32 for n in range(100)]
    angles = [0.5 if n == 7 else 0.0 for n in range(100)]
    add(store, "a", span("a", etag="2"), "2", content_hash=hashes, image_embedding=turned(angles))

    result = diff(before, at(store))
    counts = (result.added, result.removed, result.changed, result.unchanged)
    assert counts == (30, 50, 30, 70)
    assert (result.a.version, result.b.version, result.a.rows, result.b.rows) == (2, 5, 150, 130)
    assert not result.same and not result.columns and result.shared_parts == 0
    drift = result.drift["image"]
    assert drift is not None and drift.rows == 100
    assert drift.least == pytest.approx(np.cos(0.5)) and drift.p5 == pytest.approx(1)
    assert drift.mean == pytest.approx((99 + np.cos(0.5)) / 100)
    for kind, name, most in (("added", "c", 30), ("removed", "b", 50), ("changed", "a", 30)):
        uri = shard(name).uri
        want = sorted((sample_id(uri, f"k{n:04d}"), f"k{n:04d}") for n in range(most))[:5]
        assert [(e.id, e.source_key) for e in result.examples[kind]] == want
        assert {e.source_uri for e in result.examples[kind]} == {uri}

    back = diff(at(store), before)
    assert (back.added, back.removed, back.changed, back.unchanged) == (50, 30, 30, 70)
    again = diff(at(store), at(store))
    assert again.same and again.unchanged == 130 and again.drift == {"image": None}
    assert again.why_no_drift.startswith("no row is in both")


def test_parts_that_both_name_are_not_read(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    add(store, "a", span("a"))
    before = at(store)
    add(store, "b", span("b", 0, 200))
    for path in before.stored.parts:
        (Path(store.uri) / path).unlink()
    result = diff(before, at(store))
    assert (result.added, result.unchanged, result.shared_parts) == (20, 100, 1)
    # Nor those of a copy of the store.
    shutil.copytree(store.uri, tmp_path / "copy")
    assert diff(at(store), Store.open(str(tmp_path / "copy"), STORAGE)).same


def test_compaction_changes_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    run = committer(store)
    run.commit([Change((part(store, shard(), [cut]),)) for cut in ((0, 300), (300, SIZE))])
    before = at(store)
    compact(store)
    result = diff(before, at(store))
    assert result.same and result.unchanged == 100 and result.shared_parts == 0
    assert result.drift["image"] == module.Drift(100, 1.0, 1.0, 1.0)


def test_many_buckets_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = new_store(tmp_path / "1"), new_store(tmp_path / "2")
    rng = np.random.default_rng(5)
    for store, names in ((one, "abcd"), (other, "bcde")):
        for name in names:
            hashes = ["01"[int(n)] * 32 for n in rng.integers(0, 2, 100)]
            vectors = turned(rng.uniform(0, 1, 100).tolist())
            add(store, name, span(name), content_hash=hashes, image_embedding=vectors)
    whole = diff(at(one), at(other))
    assert (whole.added, whole.removed) == (100, 100)
    assert whole.changed + whole.unchanged == 300 and 100 < whole.changed < 200
    monkeypatch.setattr(buckets, "_BATCH", 17)
    for rows in (150, 40, 1):
        monkeypatch.setattr(module, "BUCKET_ROWS", rows)
        assert diff(at(one), at(other)) == whole


def test_a_sample_of_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = new_store(tmp_path / "1"), new_store(tmp_path / "2")
    for name in "abc":
        add(one, name, span(name))
        add(other, name, span(name), image_embedding=turned([0.25] * 100))
    monkeypatch.setattr(module, "BUCKET_ROWS", 100)
    reads: list[str] = []
    monkeypatch.setattr(
        module,
        "batches_of",
        lambda store, part, columns: (
            reads.append(part.path) or buckets.batches_of(store, part, columns)
        ),
    )
    result = diff(at(one), at(other), sample=60)
    drift = result.drift["image"]
    assert drift is not None and drift.rows == 60 and drift.mean == pytest.approx(np.cos(0.25))
    assert len(reads) == 2  # one part of each: the sample costs no more


def test_rows_without_a_vector_do_not_count(tmp_path: Path) -> None:
    one, other = new_store(tmp_path / "1"), new_store(tmp_path / "2")
    vectors: list[list[float] | None] = list(turned([0.0] * 10))
    add(one, "a", span("a", 0, 100), image_embedding=[None, *vectors[1:]])
    add(other, "a", span("a", 0, 100), image_embedding=[*vectors[:9], None])
    drift = diff(at(one), at(other)).drift["image"]
    assert drift is not None and drift.rows == 8 and drift.least == pytest.approx(1)


def test_other_models_are_told_and_ids_compared(tmp_path: Path) -> None:
    one = new_store(tmp_path / "1")
    other = new_store(tmp_path / "2", StoreMeta("e" * 32, "other", {"image": 4}))
    add(one, "a", span("a", 0, 500))
    add(other, "a", span("a", 200, 700))
    result = diff(at(one), at(other))
    assert (result.added, result.removed, result.unchanged) == (20, 20, 30)
    assert result.drift == {"image": None} and "fingerprints differ" in result.why_no_drift
    assert (result.a.fingerprint, result.b.fingerprint) == ("f" * 32, "e" * 32)
    assert not diff(at(one), at(other)).same


def test_columns_that_differ(tmp_path: Path) -> None:
    columns = StoreColumns(("text",), {"caption": "string", "stars": "int"})
    meta = StoreMeta("f" * 32, "fake", {"text": 4})
    other = Store.create(str(tmp_path / "other"), STORAGE, columns, meta)
    result = diff(new_store(tmp_path), other)
    assert result.columns == Columns(
        only_a={"image_embedding": "list<element: float>"},
        only_b={"stars": "int64", "text_embedding": "list<element: float>"},
    )
    assert result.drift == {} and "dims differ" in result.why_no_drift
    assert (result.added, result.removed, result.unchanged) == (0, 0, 0) and not result.same


def test_a_part_that_is_gone(tmp_path: Path) -> None:
    one, other = new_store(tmp_path / "1"), new_store(tmp_path / "2")
    add(one, "a", span("a"))
    for path in at(one).stored.parts:
        (Path(one.uri) / path).unlink()
    with pytest.raises(StorageError, match=r"part-.* can't be read"):
        diff(at(one), other)


def test_on_two_storages(tmp_path: Path, s3_uri: str) -> None:
    local = new_store(tmp_path)
    add(local, "a", span("a"))
    far = Store.create(join(s3_uri, "store"), STORAGE, COLUMNS, META)
    add(far, "a", span("a", 0, 900), image_embedding=turned([0.1] * 90))
    result = diff(at(local), at(far))
    assert (result.removed, result.unchanged, len(ids(far))) == (10, 90, 90)
    drift = result.drift["image"]
    assert drift is not None and drift.mean == pytest.approx(np.cos(0.1))
