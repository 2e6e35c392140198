"""Parts: what readers see, statistics, refusals; and coverage from them."""

import json
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray.errors import RefusedError
from mmray.store import Change, Coverage, Store, StoreMeta, write_part
from mmray.store.delta import actions
from mmray.store.parts import attempt_of, bounds_of, read_part
from mmray.store.schema import StoreColumns, require_columns
from tests.unit.store_samples import (
    COLUMNS,
    META,
    SIZE,
    STORAGE,
    committer,
    new_store,
    part,
    quarantined,
    shard,
    table_of,
)


def test_a_receipt_tells_all_of_its_part(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    bad = ["k0000", "k0003", "k0004"]
    receipt = part(store, a, [(0, 10), (10, 50), (50, 100)], bad)
    assert receipt.span == a.span(0, 100)
    assert receipt.rows == 7
    assert attempt_of(receipt.path) == receipt.attempt
    assert Path(store.uri, receipt.path).stat().st_size == receipt.bytes
    assert {row.source_key: row.written for row in receipt.quarantined} == {
        "k0000": 0, "k0003": 2, "k0004": 2,
    }  # fmt: skip
    stats = json.loads(receipt.stats)
    # The first fragment has no row, and its name is the bound all the same.
    assert stats["minValues"]["source_uri"] == stats["maxValues"]["source_uri"] == a.uri
    assert stats["minValues"]["fragment"] == str(a.span(0, 10))
    assert stats["maxValues"]["fragment"] == str(a.span(50, 100))
    # Bounds of all columns that can have them: readers that prune take missing ones for no match.
    bounded = {"caption", "content_hash", "fragment", "id"}
    bounded |= {"source_etag", "source_key", "source_uri"}
    assert stats["minValues"].keys() == stats["maxValues"].keys() == bounded
    assert stats["numRecords"] == 7
    assert stats["tightBounds"] is False
    assert stats["nullCount"]["caption"] == 0
    assert "image_embedding" not in stats["nullCount"]


@pytest.mark.parametrize(
    "values",
    [
        ["b", "a", None],
        ["x" * 200, "x" * 64],
        ["\U0010ffff" * 90, "z"],
        ["é" * 80 + "a", "é" * 80 + "b"],
        [3.5, -1.0, None],
        [math.nan, 2.0],
        [math.inf, -math.inf],
        [2**62, -5],
    ],
)
def test_bounds_hold_every_value(values: list[Any]) -> None:
    low, high = bounds_of(pa.chunked_array([values]), exact=False)
    assert json.loads(json.dumps([low, high], allow_nan=False)) == [low, high]
    for value in values:
        if isinstance(value, str):
            assert str(low).encode() <= value.encode() <= str(high).encode()
        elif value is not None and math.isfinite(value):
            assert low <= value <= high  # type: ignore[operator]


def test_a_part_without_rows_has_no_file(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    span = a.span(0, 20)
    failed = [quarantined(a, span, "k0000"), quarantined(a, span, "k0001")]
    receipt = write_part(STORAGE, store.uri, table_of([]), [span], a.uri, failed)
    assert (receipt.path, receipt.rows, receipt.bytes, receipt.stats) == ("", 0, 0, "")
    assert not Path(store.uri, "data").exists()


def test_faults_of_the_caller(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    one, gap = a.span(0, 10), a.span(20, 30)
    row = (a.uri, "k0000", a.etag, one)
    with pytest.raises(ValueError, match="contiguous"):
        write_part(STORAGE, store.uri, table_of([row]), [one, gap], a.uri)
    with pytest.raises(ValueError, match="rows of the fragment"):
        write_part(STORAGE, store.uri, table_of([row]), [gap], a.uri)
    with pytest.raises(ValueError, match="twice"):
        write_part(STORAGE, store.uri, table_of([row, row]), [one], a.uri)
    with pytest.raises(ValueError, match="at least one"):
        write_part(STORAGE, store.uri, table_of([row]), [], a.uri)


def test_long_uris_are_not_cut_in_statistics(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard("ü" * 500)
    committer(store).commit([Change((part(store, a, [(0, SIZE)]),))])
    store.reload()
    assert [(p.min_uri, p.max_uri) for p in store.parts()] == [(a.uri, a.uri)]


def test_other_readers_read_the_vectors(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    committer(store).commit([Change((part(store, a, [(0, SIZE)]),))])
    store.reload()
    want = np.tile([1, 0, 0, 0], (100, 1)).tolist()
    files = [str(Path(store.uri, p.path)) for p in store.parts()]
    assert [r[0] for r in duckdb.sql(f"select image_embedding from read_parquet({files})").fetchall()] == want  # fmt: skip  # noqa: E501
    assert polars.read_delta(store.uri)["image_embedding"].to_list() == want
    frame = store.to_arrow(["id", "image_embedding"]).to_pandas()
    assert np.stack(frame["image_embedding"].tolist()).tolist() == want
    schema = pq.read_schema(files[0])
    assert schema.field("image_embedding").type == pa.list_(pa.field("element", pa.float32()))
    assert not schema.field("id").nullable


def test_items_of_any_name_become_elements(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    table = table_of([(a.uri, "k0000", a.etag, a.span(0, 10))])
    table = table.set_column(7, "image_embedding", table["image_embedding"].cast(pa.large_list(pa.float32())))  # fmt: skip  # noqa: E501
    receipt = write_part(STORAGE, store.uri, table, [a.span(0, 10)], a.uri)
    committer(store).commit([Change((receipt,))])
    assert read_part(STORAGE, store.uri, receipt.path).schema.field(7).type.value_field.name == "element"  # fmt: skip  # noqa: E501
    store.reload()
    assert store.to_arrow(["image_embedding"]).num_rows == 1


def test_coverage_by_hand() -> None:
    a, b = shard("a"), shard("b")
    done = Coverage()
    for start, stop in [(100, 200), (0, 50), (300, 400)]:
        done.add(a.span(start, stop), a.uri)
    assert done.missing(a.key, a.version, 500) == [(50, 100), (200, 300), (400, 500)]
    assert done.missing(a.key, "ffffffff", 500) == [(0, 500)]
    assert done.missing(b.key, b.version, 5) == [(0, 5)]
    assert done.overlaps(a.span(40, 60))
    assert not done.overlaps(a.span(50, 100))
    assert done.versions(a.key) == {a.version}
    assert done.shards == {a.key: a.uri}


def test_coverage_of_a_table(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    committer(store).commit([Change((part(store, a, [(0, 500)]),))])
    committer(store).commit([Change((part(store, b, [(500, SIZE)]),))])
    store.reload()

    def never(path: str) -> pa.Table:
        raise AssertionError(f"read {path}")

    done = Coverage.from_parts(actions(store._table), never)
    assert done.missing(a.key, a.version, SIZE) == [(500, SIZE)]
    assert done.missing(b.key, b.version, SIZE) == [(0, 500)]
    assert done.rows(a.key) == 50
    assert done.shards == {a.key: a.uri, b.key: b.uri}
    copy = done.copy()
    copy.add(a.span(500, SIZE))
    assert copy.missing(a.key, a.version, SIZE) == []
    assert done.missing(a.key, a.version, SIZE) == [(500, SIZE)]


def test_keys_members_info(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    first = part(store, a, [(0, 50)], ["k0003"])
    committer(store, "one").commit([Change((first,))])
    committer(store, "two").commit([Change((part(store, b, [(0, 50)]),))])
    store.reload()
    assert store.keys(a.key, a.version, 1 << 40) == {f"k000{n}" for n in range(5)}
    assert store.keys(a.key, "ffffffff", 1 << 40) == set()
    assert store.keys(a.key, a.version, 0) == set()
    assert (
        store.members([first.path]).to_pylist() == [{"source_uri": a.uri, "source_etag": "1"}] * 4
    )
    assert store.members([]).num_rows == 0
    assert store.quarantine.members() == [(a.uri, "1", str(a.span(0, 50)))]
    info = store.info()
    assert (info.rows, info.parts, info.shards, info.version) == (9, 2, 2, 2)
    assert info.quarantined == {"Bad": 1}
    assert info.bytes == sum(p.size for p in store.parts())
    assert [(v.version, v.run_id) for v in store.history(2)] == [(2, "two"), (1, "one")]
    assert Store.open(store.uri, STORAGE, 1).count == 4


def test_open_refuses_with_words(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not a Delta table"):
        Store.open(str(tmp_path / "none"), STORAGE)
    polars.DataFrame({"x": [1]}).write_delta(str(tmp_path / "other"))
    with pytest.raises(RefusedError, match="not an mmray store"):
        Store.open(str(tmp_path / "other"), STORAGE)
    newer = StoreMeta("f" * 32, "fake", {"image": 4}, mmray_format=2)
    with pytest.raises(RefusedError, match="format 2"):
        Store.create(str(tmp_path / "newer"), STORAGE, COLUMNS, newer)
    store = new_store(tmp_path)
    with pytest.raises(RefusedError, match="no version 7"):
        Store.open(store.uri, STORAGE, 7)
    with pytest.raises(RefusedError, match="no version 7"):
        store.rollback(7)
    assert Store.exists(store.uri, STORAGE)
    assert not Store.exists(str(tmp_path / "none"), STORAGE)


def test_create_twice_opens_and_compares(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    assert new_store(tmp_path).version == 0
    assert new_store(tmp_path).meta == store.meta == META
    for other, words in [
        (StoreMeta("e" * 32, "other", {"image": 4}), "e" * 32),
        (StoreMeta("f" * 32, "fake", {"image": 4}, normalised=False), "not normalised"),
        (StoreMeta("f" * 32, "fake", {"image": 5}), "dims"),
    ]:
        with pytest.raises(RefusedError, match=words):
            new_store(tmp_path, other)


def test_columns_are_compared() -> None:
    want = StoreColumns(("image",), {"caption": "int", "size": "float"}, thumbnail=True)
    with pytest.raises(RefusedError, match="no column size, thumbnail"):
        require_columns("/s", COLUMNS.arrow_schema(), want.arrow_schema())
    wrong = StoreColumns(("image",), {"caption": "int"})
    with pytest.raises(RefusedError, match="caption as string, not as int64"):
        require_columns("/s", COLUMNS.arrow_schema(), wrong.arrow_schema())
    require_columns("/s", COLUMNS.arrow_schema(), COLUMNS.arrow_schema())
