"""A store as a source: the same ids, whatever became of its parts; stores that follow it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from mmray.errors import RefusedError, ShardChanged
from mmray.flow.plan import Plan, make_plan
from mmray.sources.cut import Cut
from mmray.sources.fragment import Fragment, Member, Sample, Shard, sample_id, slice_shard
from mmray.sources.store import StoreReader
from mmray.sources.storelog import FORMAT
from mmray.specs.common import Limits, StoreSource
from mmray.storage import join
from mmray.store import Change, Receipt, Store, StoreColumns, StoreMeta, schema, write_part
from mmray.store.compact import compact
from mmray.store.verify import verify
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

CUTS = [(0, 200), (200, 300), (300, 700), (700, SIZE)]


def reader(
    store: Store | str, version: int | None = None, wanted: Any = None, **columns: str
) -> StoreReader:
    uri = store if isinstance(store, str) else store.uri
    spec = StoreSource(kind="store", uri=uri, version=version, columns=columns)
    return StoreReader(spec, STORAGE, Limits(), Cut(rows=8), wanted)


def read_all(source: StoreReader) -> list[Sample]:
    found = []
    for each in source.shards():
        for fragment in source.read(each, 0, each.size, set()):
            found += fragment.samples
    return found


def facts(source: StoreReader) -> list[Any]:
    """All that must not depend on how rows lie in parts."""
    return [
        (s.uri, s.key, s.version, s.size, s.etag, tiles(source, s, 0, s.size))
        for s in source.shards()
    ]


def tiles(
    source: StoreReader, of: Shard, start: int, stop: int
) -> list[tuple[int, int, list[str]]]:
    """What was read, after a check that it tiles `[start, stop)`."""
    fragments = list(source.read(of, start, stop, set()))
    reached = start
    for fragment in fragments:
        span = fragment.span
        assert (span.shard, span.version, span.start) == (of.key, of.version, reached)
        assert span.stop > span.start and fragment.samples
        reached = span.stop
    assert reached == stop
    return [(f.span.start, f.span.stop, [s.source_key for s in f.samples]) for f in fragments]


def filled(tmp_path: Path) -> Store:
    """Two objects; of the second one a fragment and the end are in quarantine."""
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    bad = [key for span in (b.span(200, 300), b.span(700, SIZE)) for key in keys_of(span)]
    run = committer(store)
    run.commit([Change((part(store, a, CUTS[:2]),)), Change((part(store, a, CUTS[2:]),))])
    run.commit([Change((part(store, b, [cut], bad),)) for cut in CUTS])
    store.reload()
    return store


# --- a derived store, made as the flow makes one ------------------------------------------------


def derive(source: StoreReader, store: Store, most: int | None = None, prune: bool = False) -> Plan:
    """One run of a job; `most` fragments, then it is killed."""
    store.reload()
    plan = make_plan(source, store, prune=prune)
    run = committer(store)
    left = most
    for work in plan.work:
        receipts: list[Receipt] = []
        replacement = plan.replacements.get(work.shard.key)
        # A worker has a reader of its own, which has listed nothing.
        fresh = pickle.loads(pickle.dumps(source))
        for fragment in fresh.read(work.shard, work.start, work.stop, set(work.seen)):
            if left is not None and left == 0:
                return plan
            left = None if left is None else left - 1
            receipts.append(written(store, work.shard, fragment))
            if replacement is None:
                run.commit([Change((receipts.pop(),))])
        if replacement is not None:
            change = Change(tuple(receipts), replacement.remove, replacement.drop_uris)
            assert run.commit([change]).committed
    if prune and plan.prunes:
        run.commit(plan.prunes)
    run.reconcile()
    store.reload()
    return plan


def written(store: Store, of: Shard, fragment: Fragment) -> Receipt:
    assert all(sample.error is None for sample in fragment.samples)
    rows = [(s.source_uri, s.source_key, s.source_etag, fragment.span) for s in fragment.samples]
    return write_part(STORAGE, store.uri, table_of(rows), [fragment.span], of.uri)


def derived_store(tmp_path: Path) -> Store:
    return new_store(tmp_path / "derived")


# --- objects -------------------------------------------------------------------------------------


def test_rows_are_samples_with_their_ids(tmp_path: Path) -> None:
    store = filled(tmp_path)
    samples = read_all(reader(store))
    assert sorted(sample.id for sample in samples) == ids(store)
    first = samples[0]
    assert (first.source_uri, first.source_key, first.source_etag) == ("/in/a.tar", "k0000", "1")
    assert first.members == {"text": b"k0000"} and first.metadata == {"caption": "k0000"}
    assert len({sample.content_hash for sample in samples}) == 100
    assert [s.source_key for s in samples[:100]] == keys_of(shard().span(0, SIZE))


def test_fragments_are_those_of_the_store(tmp_path: Path) -> None:
    store = filled(tmp_path)
    source = reader(store)
    a, b = source.shards()
    assert (a.key, b.key) == (shard("a").key, shard("b").key)
    assert [t[:2] for t in tiles(source, a, 0, a.size)] == CUTS
    # What is in quarantine there is no error here: its span belongs to a neighbour. The end of b
    # gave no row at all, so no part tells of it.
    assert [t[:2] for t in tiles(source, b, 0, b.size)] == [(0, 200), (200, 700)]


def test_reading_goes_on_from_every_boundary(tmp_path: Path) -> None:
    source = reader(filled(tmp_path))
    for each in source.shards():
        whole = tiles(source, each, 0, each.size)
        edges = [0, *(stop for _, stop, _ in whole)]
        for low, start in enumerate(edges[:-1]):
            for high, stop in enumerate(edges[low + 1 :], low + 1):
                assert tiles(source, each, start, stop) == whole[low:high]


def test_compaction_changes_nothing(tmp_path: Path) -> None:
    store = filled(tmp_path)
    before = facts(reader(store))
    assert compact(store).merged
    assert facts(reader(store)) == before


def test_compaction_by_another_engine(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    run = committer(store)
    for cut in reversed(CUTS):
        run.commit([Change(tuple(part(store, shard(n), [cut]) for n in "ba"))])
    before = facts(reader(store))
    DeltaTable(store.uri).optimize.compact()
    assert len(DeltaTable(store.uri).file_uris()) == 1
    assert facts(reader(store)) == before
    # Several row groups, rows in an order of their own, and Arrow's view types.
    rows = DeltaTable(store.uri).to_pyarrow_table().sort_by("source_key")
    views = [
        pa.field(f.name, pa.string_view()) if pa.types.is_string(f.type) else f for f in rows.schema
    ]
    path = Path(DeltaTable(store.uri).file_uris()[0])
    pq.write_table(rows.cast(pa.schema(views)), path, row_group_size=7)
    assert facts(reader(store)) == before


def test_compaction_by_another_engine_around_a_hole(tmp_path: Path) -> None:
    """Its statistics would say that what lies between is there."""
    store = new_store(tmp_path)
    run = committer(store)
    for cut in (CUTS[0], CUTS[2]):
        run.commit([Change((part(store, shard(), [cut]),))])
    before = facts(reader(store))
    DeltaTable(store.uri).optimize.compact()
    assert len(DeltaTable(store.uri).file_uris()) == 1
    assert facts(reader(store)) == before


def test_rows_that_were_filtered_out_leave_no_hole(tmp_path: Path) -> None:
    """A part without rows tells of fragments none of whose samples is in the store."""
    store, a, b = new_store(tmp_path), shard("a"), shard("b")
    empty = table_of([])
    parts = [
        part(store, a, [(0, 500)]),
        write_part(STORAGE, store.uri, empty, [a.span(500, SIZE)], a.uri),
        write_part(STORAGE, store.uri, empty, [b.span(0, SIZE)], b.uri),
    ]
    committer(store).commit([Change((each,)) for each in parts])
    source = reader(store)
    (only,) = source.shards()
    assert (only.key, only.size) == (a.key, SIZE)
    assert [t[:2] for t in tiles(source, only, 0, SIZE)] == [(0, SIZE)]


def test_a_derived_store_follows(tmp_path: Path) -> None:
    store, derived, source = filled(tmp_path), derived_store(tmp_path), None
    source = reader(store)
    derive(source, derived)
    assert ids(derived) == ids(store)
    assert not derive(source, derived).work
    compact(store)
    assert not derive(source, derived).work

    committer(store).commit([Change((part(store, shard("c"), CUTS[:2]),))])
    plan = derive(source, derived)
    assert [work.shard.uri for work in plan.work] == ["/in/c.tar"]
    committer(store).commit([Change((part(store, shard("c"), CUTS[2:]),))])
    assert derive(source, derived).changed == ["/in/c.tar"]
    store.reload()
    assert ids(derived) == ids(store)

    grown = store.version
    store.rollback(grown - 1)
    assert derive(source, derived).changed == ["/in/c.tar"]
    assert ids(derived) == ids(store)
    store.rollback(1)
    plan = derive(source, derived, prune=True)
    assert sorted(plan.removed) == ["/in/b.tar", "/in/c.tar"]
    assert ids(derived) == ids(store) and verify(derived).ok


def test_a_run_that_is_killed_goes_on(tmp_path: Path) -> None:
    store, derived = filled(tmp_path), derived_store(tmp_path)
    for most in (1, 1, 2):
        derive(reader(store), derived, most)
        assert len(set(ids(derived))) == len(ids(derived))
        compact(store)
    derive(reader(store), derived)
    assert ids(derived) == ids(store) and verify(derived).ok


def test_another_version_of_a_shard_is_another_shard_version(tmp_path: Path) -> None:
    store = filled(tmp_path)
    old = {s.uri: s.version for s in reader(store).shards()}
    change = Change((part(store, shard("a", "2"), CUTS),), tuple(store.stored.paths(shard().key)))
    assert committer(store).commit([change]).committed
    new = {s.uri: s.version for s in reader(store).shards()}
    assert new["/in/a.tar"] != old["/in/a.tar"] and new["/in/b.tar"] == old["/in/b.tar"]


def test_rows_that_came_back_from_quarantine_are_read(tmp_path: Path) -> None:
    store, derived, a = new_store(tmp_path), derived_store(tmp_path), shard()
    first = part(store, a, CUTS, ["k0003"])
    committer(store).commit([Change((first,))])
    derive(reader(store), derived)
    assert len(ids(derived)) == 99
    replayed = Change((part(store, a, CUTS),), (first.path,))
    assert committer(store).commit([replayed]).committed
    assert derive(reader(store), derived).changed == [a.uri]
    assert len(ids(derived)) == 100 and ids(derived) == ids(store)


def test_an_older_version_stays_readable(tmp_path: Path) -> None:
    store = filled(tmp_path)
    assert {s.source_uri for s in read_all(reader(store, version=1))} == {"/in/a.tar"}
    assert {s.source_uri for s in read_all(reader(store))} == {"/in/a.tar", "/in/b.tar"}


def test_what_was_in_the_store_is_covered(tmp_path: Path) -> None:
    store = filled(tmp_path)
    gone = tuple(store.stored.paths(shard("b").key))
    committer(store).commit([Change(remove=gone, drop_uris=frozenset({"/in/b.tar"}))])
    source = reader(store)
    assert [each.uri for each in source.shards()] == ["/in/a.tar"]
    assert source.covers("/in/a.tar") and source.covers("/in/b.tar")
    assert not source.covers("/in/c.tar") and not source.covers("/in")
    # Another engine's clean-up leaves a checkpoint for the older entries.
    DeltaTable(store.uri).create_checkpoint()
    for entry in (Path(store.uri) / "_delta_log").glob("*.json"):
        if int(entry.stem) < DeltaTable(store.uri).version():
            entry.unlink()
    assert reader(store).covers("/in/a.tar")


# --- raw files -----------------------------------------------------------------------------------


def files(names: str, etag: str = "1") -> Shard:
    """A slice of raw files, as a listing of them makes it."""
    uris = [f"/pictures/{name}.jpg" for name in names]
    return slice_shard(tuple(Member(uri, Path(uri).name, etag, 1) for uri in uris))


def slice_part(store: Store, of: Shard) -> Receipt:
    rows = [
        (m.uri, m.name, m.etag, of.span(place, place + 1)) for place, m in enumerate(of.members)
    ]
    spans = [of.span(place, place + 1) for place in range(of.size)]
    return write_part(STORAGE, store.uri, table_of(rows), spans, of.uri)


def test_raw_files_are_slices(tmp_path: Path) -> None:
    store, one = new_store(tmp_path), files("abcdefghijklmnop")
    committer(store).commit([Change((slice_part(store, one),))])
    source = reader(store)
    (only,) = source.shards()
    assert source.sliced
    assert (only.key, only.version, only.size) == (one.key, one.version, 16)  # the very same
    assert [t[:2] for t in tiles(source, only, 0, 16)] == [(0, 8), (8, 16)]
    assert [t[2] for t in tiles(source, only, 8, 16)] == [[f"{n}.jpg" for n in "ijklmnop"]]
    assert sorted(sample.id for sample in read_all(source)) == ids(store)
    assert source.covers("/pictures/c.jpg") and not source.covers("/pictures/q.jpg")


def test_a_raw_file_that_changed_is_replaced_alone(tmp_path: Path) -> None:
    store, derived = new_store(tmp_path), derived_store(tmp_path)
    committer(store).commit([Change((slice_part(store, files("abc")),))])
    source = reader(store)
    derive(source, derived)
    assert ids(derived) == ids(store)

    path = tuple(store.stored.parts) or tuple(Store.open(store.uri, STORAGE).stored.parts)
    fresh = slice_part(store, files("b", "2"))
    change = Change((fresh,), path, frozenset({"/pictures/b.jpg"}))
    assert committer(store).commit([change]).committed
    plan = derive(source, derived)
    assert plan.changed == ["/pictures/b.jpg"]
    assert sum(work.stop - work.start for work in plan.work) == 1
    assert ids(derived) == ids(store)
    rows = derived.to_arrow(["source_key", "source_etag"]).sort_by("source_key").to_pydict()
    assert rows == {"source_key": ["a.jpg", "b.jpg", "c.jpg"], "source_etag": ["1", "2", "1"]}

    # One file of a slice goes: the others stay.
    drop = Change(remove=(fresh.path,), drop_uris=frozenset({"/pictures/b.jpg"}))
    committer(store).commit([drop])
    assert derive(source, derived, prune=True).removed == ["/pictures/b.jpg"]
    assert ids(derived) == ids(store) and verify(derived).ok


def test_the_windows_of_a_raw_file_stay_together(tmp_path: Path) -> None:
    store, one = new_store(tmp_path), files("abc")
    span = one.span(0, 3)
    rows = [
        (m.uri, f"{m.name}#t={second},{second + 1}", m.etag, span)
        for m in one.members
        for second in range(6)
    ]
    receipt = write_part(STORAGE, store.uri, table_of(rows), [span], one.uri)
    committer(store).commit([Change((receipt,))])
    source = reader(store)
    (only,) = source.shards()
    assert [t[:2] for t in tiles(source, only, 0, 3)] == [(0, 2), (2, 3)]
    assert sorted(sample.id for sample in read_all(source)) == ids(store)


def test_raw_files_beside_objects_are_refused(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    changes = [Change((slice_part(store, files("abc")),)), Change((part(store, shard(), CUTS),))]
    committer(store).commit(changes)
    with pytest.raises(RefusedError, match=r"raw files and also shards such as /in/a\.tar"):
        list(reader(store).shards())


# --- columns and bad rows ------------------------------------------------------------------------

WIDE = StoreColumns(
    ("image",),
    {"caption": "string", "title": "string", "stars": "int", "price": "float", "sold": "bool"},
    thumbnail=True,
)


def wide(tmp_path: Path, rows: Sequence[dict[str, Any]]) -> Store:
    store = Store.create(str(tmp_path / "wide"), STORAGE, WIDE, META)
    a = shard()
    span = a.span(0, SIZE)
    base = table_of([(a.uri, f"k{n}", a.etag, span) for n in range(len(rows))]).to_pylist()
    merged = [{**one, "caption": None, **other} for one, other in zip(base, rows, strict=True)]
    table = pa.Table.from_pylist(merged, WIDE.arrow_schema())
    committer(store).commit([Change((write_part(STORAGE, store.uri, table, [span], a.uri),))])
    return store


def test_columns_become_members_and_metadata(tmp_path: Path) -> None:
    row = {"thumbnail": b"jpeg", "caption": " A cat ", "title": "Cat", "stars": 3, "sold": True}
    store = wide(tmp_path, [row])
    (sample,) = read_all(reader(store))
    assert sample.members == {"image": b"jpeg", "text": b"A cat"}
    kept = {"caption": " A cat ", "title": "Cat", "stars": 3, "sold": True}
    assert sample.metadata == kept
    (sample,) = read_all(reader(store, text="title", wanted=frozenset({"stars"})))
    assert (sample.members, sample.metadata) == ({"text": b"Cat"}, {"stars": 3})


def test_a_row_without_anything_to_encode(tmp_path: Path) -> None:
    store = wide(tmp_path, [{"stars": 3}, {"caption": "  "}, {"caption": "A cat"}])
    samples = read_all(reader(store))
    assert [s.error.type if s.error else None for s in samples] == ["NoModality"] * 2 + [None]
    assert samples[0].error is not None and "thumbnail, caption" in samples[0].error.message
    assert [s.id for s in samples] == [sample_id("/in/a.tar", f"k{n}") for n in range(3)]


def test_a_value_over_the_limit(tmp_path: Path) -> None:
    store = wide(tmp_path, [{"thumbnail": b"x" * 11}, {"thumbnail": b"x" * 10}])
    spec = StoreSource(kind="store", uri=store.uri)
    samples = read_all(StoreReader(spec, STORAGE, Limits(bytes=10), Cut()))
    assert [s.error.type if s.error else None for s in samples] == ["OversizedMember", None]


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    receipt = part(store, shard(), [(0, 20)])
    path = Path(store.uri) / receipt.path
    table = pq.read_table(path)
    broken = pa.array([b"\xff\xfe", b"fine"]).view(pa.string())
    pq.write_table(
        table.set_column(table.schema.get_field_index("caption"), "caption", broken), path
    )
    committer(store).commit([Change((receipt,))])
    samples = read_all(reader(store))
    assert [s.error.type if s.error else None for s in samples] == ["BadText", None]


def test_what_is_refused_before_work(tmp_path: Path) -> None:
    store = filled(tmp_path)
    foreign = str(tmp_path / "foreign")
    write_deltalake(foreign, pa.table({"id": ["a"]}))
    empty = new_store(tmp_path / "empty")
    cases = [
        (reader(str(tmp_path / "nothing")), "nothing is not a Delta table"),
        (reader(foreign), "foreign is a Delta table, but not an mmray store"),
        (reader(store, version=99), "has no version 99"),
        (reader(empty), "the store has no rows"),
        (reader(store, image="picture"), r"source\.columns\.image: .* has no column 'picture'"),
        (reader(store, image="caption"), "'caption' of .* is string, not bytes"),
        (reader(store, text="image_embedding"), "'image_embedding' of .* not text"),
        (reader(store, wanted=frozenset({"licence"})), "has no column 'licence', only id, "),
    ]
    for source, words in cases:
        with pytest.raises(RefusedError, match=words):
            source.shards()
    assert not (tmp_path / "nothing").exists()
    assert list(reader(empty).shards(lambda uri: uri == empty.uri)) == []
    bare = Store.create(str(tmp_path / "bare"), STORAGE, StoreColumns(("image",)), META)
    with pytest.raises(RefusedError, match="has neither thumbnail nor caption"):
        reader(bare).shards()


def test_the_format_is_that_of_stores() -> None:
    assert schema.FORMAT == FORMAT
    newer = json.loads(META.to_json()) | {"mmray_format": FORMAT + 1}
    assert newer["mmray_format"] > FORMAT


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    newer = StoreMeta("f" * 32, "fake", {"image": 4}, mmray_format=FORMAT + 1)
    DeltaTable.create(str(tmp_path / "newer"), COLUMNS.arrow_schema(), description=newer.to_json())
    with pytest.raises(RefusedError, match="upgrade mmray"):
        reader(str(tmp_path / "newer")).shards()


# --- parts that are gone or broken ---------------------------------------------------------------


@pytest.mark.parametrize("sliced", [False, True])
def test_a_part_that_is_gone_makes_no_quarantine(tmp_path: Path, sliced: bool) -> None:
    store = new_store(tmp_path)
    receipt = slice_part(store, files("abc")) if sliced else part(store, shard(), CUTS)
    committer(store).commit([Change((receipt,))])
    source = reader(store)
    (only,) = source.shards()
    (Path(store.uri) / receipt.path).unlink()
    with pytest.raises(ShardChanged, match="can't be had any more"):
        list(source.read(only, 0, only.size, set()))


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
        return
    if how == "other":
        pq.write_table(pq.read_table(path).slice(1), path)
        return
    column = pq.ParquetFile(path).metadata.row_group(0).column(6)
    assert column.path_in_schema == "caption"
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["cut", "flipped", "other"])
def test_a_broken_part_costs_its_own_rows(tmp_path: Path, how: str) -> None:
    store, a = new_store(tmp_path), shard()
    receipts = [part(store, a, [cut]) for cut in CUTS]
    committer(store).commit([Change((each,)) for each in receipts])
    source = reader(store)
    (only,) = source.shards()
    damage(Path(store.uri) / receipts[2].path, how)
    fragments = list(source.read(only, 0, SIZE, set()))
    assert [(f.span.start, f.span.stop) for f in fragments] == CUTS
    errors = [[s.error for s in f.samples if s.error] for f in fragments]
    assert [len(each) for each in errors] == [0, 0, 1, 0]
    assert errors[2][0].type == "CorruptShard" and receipts[2].path in errors[2][0].message
    assert errors[2][0].message.startswith("40 rows")
    assert len({s.id for f in fragments for s in f.samples}) == 61
    assert tiles(source, only, 200, 300) and tiles(source, only, 700, SIZE)


@pytest.mark.parametrize("how", ["cut", "flipped", "other"])
def test_a_broken_part_of_raw_files_costs_its_own_files(tmp_path: Path, how: str) -> None:
    store = new_store(tmp_path)
    receipts = [slice_part(store, files("abc")), slice_part(store, files("de"))]
    committer(store).commit([Change((each,)) for each in receipts])
    source = reader(store)
    (only,) = source.shards()
    damage(Path(store.uri) / receipts[1].path, how)
    samples = [s for f in source.read(only, 0, only.size, set()) for s in f.samples]
    assert [s.source_key for s in samples] == [f"{n}.jpg" for n in "abcde"]
    bad = [s.source_key for s in samples if s.error]
    assert bad == (["d.jpg"] if how == "other" else ["d.jpg", "e.jpg"])


def test_on_s3(s3_uri: str, tmp_path: Path) -> None:
    store = Store.create(join(s3_uri, "store"), STORAGE, COLUMNS, META)
    a = shard()
    committer(store).commit([Change((part(store, a, [cut]),)) for cut in CUTS])
    source = reader(store)
    before = facts(source)
    assert [t[:2] for t in before[0][-1]] == CUTS
    compact(Store.open(store.uri, STORAGE))
    assert facts(reader(store)) == before
    assert source.covers(a.uri) and not source.covers("/in/b.tar")
    (only,) = source.shards()
    STORAGE.delete(only.members[0].uri)
    with pytest.raises(ShardChanged, match="can't be had any more"):
        list(source.read(only, 0, SIZE, set()))
    with pytest.raises(RefusedError, match="not a Delta table"):
        reader(join(s3_uri, "nothing")).shards()
