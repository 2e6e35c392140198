"""Compaction, garbage, verification and rebuild."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import AddAction

from mmray.sources.fragment import Member, sample_id, slice_shard
from mmray.store import Change, Receipt, Store, StoreColumns, StoreMeta, staging_uri, write_part
from mmray.store.compact import compact
from mmray.store.gc import gc
from mmray.store.rebuild import swap
from mmray.store.verify import verify
from tests.unit.store_samples import (
    COLUMNS,
    META,
    SIZE,
    STORAGE,
    assert_exactly_once,
    committer,
    ids,
    new_store,
    part,
    quarantine_ids,
    quarantined,
    raw_quarantine,
    shard,
    table_of,
)


def filled(store: Store, bad: tuple[str, ...] = ("k0003", "k0070")) -> list[Receipt]:
    """Shard a in three parts; the samples [500, 520) of the second are a fragment without rows."""
    a = shard()
    parts = [
        part(store, a, [(0, 500)], bad),
        part(store, a, [(500, 520), (520, 800)], ["k0050", "k0051", *bad]),
        part(store, a, [(800, SIZE)], bad),
    ]
    for receipt in parts:
        committer(store).commit([Change((receipt,))])
    store.reload()
    return parts


def test_compaction_keeps_rows_coverage_and_quarantine(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    filled(store)
    committer(store).commit([Change((part(store, shard("b"), [(0, 100)]),))])
    committer(store).commit([Change((part(store, shard("b"), [(200, SIZE)]),))])
    before = ids(store), quarantine_ids(store)
    result = compact(store)
    assert (result.merged, result.written) == (3, 1)
    assert (ids(store), quarantine_ids(store)) == before
    fresh = Store.open(store.uri, STORAGE)
    assert fresh.coverage().missing(a.key, a.version, SIZE) == []
    b = shard("b")
    assert fresh.coverage().missing(b.key, b.version, SIZE) == [(100, 200)]
    assert len(fresh.parts()) == 3
    assert len(raw_quarantine(store)) == len(before[1])
    assert verify(fresh).ok
    assert compact(fresh).merged == 0
    # A changed shard replaces the merged part, a rollback undoes the merge.
    fresh.rollback(3)
    assert (quarantine_ids(store), len(fresh.parts())) == (before[1], 3)
    assert_exactly_once(store, [a])


def test_compaction_that_is_killed_or_comes_too_late(tmp_path: Path) -> None:
    store, a, new = new_store(tmp_path), shard(), shard(etag="2")
    old = filled(store)
    late = Store.open(store.uri, STORAGE)
    inner = late.apply

    def replaced_first(*args: object) -> None:
        late.apply = inner  # type: ignore[method-assign]
        change = Change((part(store, new, [(0, SIZE)], ["k0009"]),), tuple(r.path for r in old))
        committer(store).commit([change])
        inner(*args)  # type: ignore[arg-type]

    late.apply = replaced_first  # type: ignore[method-assign]
    assert compact(late).written == 0
    assert_exactly_once(store, [new])
    assert len(raw_quarantine(store)) == 1
    assert a.key == new.key


def test_compaction_by_another_engine(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard(), shard("b")
    filled(store)
    # A hole in shard b, which the bounds of a merged file would hide.
    committer(store).commit([Change((part(store, b, [(0, 100)]), part(store, b, [(200, SIZE)])))])
    before = ids(store), quarantine_ids(store)
    DeltaTable(store.uri).optimize.compact()
    fresh = Store.open(store.uri, STORAGE)
    assert [p.attempt for p in fresh.parts()] == [None]
    assert (ids(store), quarantine_ids(store)) == before
    coverage = fresh.coverage()
    assert coverage.missing(a.key, a.version, SIZE) == []
    assert coverage.missing(b.key, b.version, SIZE) == [(100, 200)]
    assert fresh.keys(a.key, a.version, 1 << 40) == {f"k{n:04d}" for n in range(100)}
    assert verify(fresh).ok
    committer(store).commit([Change((part(store, b, [(100, 200)], ["k0011"]),))])
    committer(store).reconcile()
    assert_exactly_once(store, [a, b])
    # Shard b changes: its rows leave the merged file, those of a stay.
    new, paths = shard("b", "2"), Store.open(store.uri, STORAGE).stored.paths(b.key)
    committer(store).commit([Change((part(store, new, [(0, SIZE)]),), tuple(paths))])
    assert_exactly_once(store, [a, new])
    with_a = Store.open(store.uri, STORAGE)
    assert with_a.coverage().missing(a.key, a.version, SIZE) == []
    assert verify(with_a).ok


def test_prune_of_a_merged_file_says_which_rows(tmp_path: Path) -> None:
    store, a, b = new_store(tmp_path), shard(), shard("b")
    filled(store)
    committer(store).commit([Change((part(store, b, [(0, SIZE)], ["k0001"]),))])
    DeltaTable(store.uri).optimize.compact()
    (path,) = Store.open(store.uri, STORAGE).stored.parts
    with pytest.raises(ValueError, match="drop_uris"):
        committer(store).commit([Change(remove=(path,))])
    committer(store).commit([Change(remove=(path,), drop_uris=frozenset([a.uri]))])
    assert_exactly_once(store, [b])
    assert Store.open(store.uri, STORAGE).coverage().versions(a.key) == set()


def files(names: str, etag: str = "1") -> tuple[Member, ...]:
    return tuple(Member(f"/in/{name}.jpg", f"{name}.jpg", etag, 1) for name in names)


def slice_part(store: Store, members: tuple[Member, ...], bad: str = "") -> Receipt:
    of = slice_shard(members)
    span = of.span(0, len(members))
    rows = [(m.uri, m.name, m.etag, span) for m in members if m.name[0] not in bad]
    failed = [replace_etag(quarantined(of, span, m.name), m) for m in members if m.name[0] in bad]
    return write_part(STORAGE, store.uri, table_of(rows), [span], members[0].uri, failed)


def replace_etag(row: object, member: Member) -> object:
    from dataclasses import replace

    return replace(  # type: ignore[type-var]
        row, id=sample_id(member.uri, member.name), source_uri=member.uri, source_etag=member.etag
    )


def names(store: Store) -> str:
    """First letters of the stored files, then of the quarantined."""
    fresh = Store.open(store.uri, STORAGE)
    good = "".join(sorted(k[0] for k in fresh.to_arrow(["source_key"])["source_key"].to_pylist()))
    bad = "".join(sorted(k[0] for k in fresh.quarantine.live()["source_key"].to_pylist()))
    return f"{good} {bad}".strip()


def test_raw_files_that_change_leave_their_neighbours(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first = slice_part(store, files("abcdef"), bad="cd")
    committer(store).commit([Change((first,))])
    assert names(store) == "abef cd"
    # b is new and now bad, c is new and now good; d stays as it was.
    mini = slice_part(store, files("bc", "2"), bad="b")
    change = Change((mini,), (first.path,), frozenset(m.uri for m in files("bc")))
    outcome = committer(store).commit([change])
    assert outcome.committed == [mini]
    assert names(store) == "acef bd"
    assert len(raw_quarantine(store)) == 2
    assert verify(Store.open(store.uri, STORAGE)).ok
    # The rest of the slice goes, its quarantined sample stays.
    paths = [p.path for p in Store.open(store.uri, STORAGE).parts() if p.max_uri == "/in/f.jpg"]
    drop = frozenset(m.uri for m in files("aef"))
    committer(store).commit([Change(remove=tuple(paths), drop_uris=drop)])
    assert names(store) == "c bd"
    # A file that only the quarantine has is pruned.
    committer(store).commit([Change(drop_uris=frozenset(["/in/d.jpg"]))])
    assert names(store) == "c b"


def test_a_crash_before_the_quarantine_is_tidied_changes_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    committer(store).commit([Change((slice_part(store, files("ab"), bad="b"),))])
    run = committer(store)
    run._store.quarantine.remove = lambda groups: None  # type: ignore[method-assign]
    run._store.quarantine.remove_uris = lambda *args: None  # type: ignore[method-assign]
    run.commit([Change((slice_part(store, files("b", "2")),), (), frozenset(["/in/b.jpg"]))])
    assert names(store) == "ab"
    assert len(raw_quarantine(store)) == 1
    assert committer(store).reconcile() == 1
    assert raw_quarantine(store) == []


def test_two_drivers_that_listed_differently(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    one, two = committer(store, "one"), committer(store, "two")
    assert one.commit([Change((slice_part(store, files("abc")),))]).committed
    assert not two.commit([Change((slice_part(store, files("bcd")),))]).committed
    assert two.commit([Change((slice_part(store, files("xyz")),))]).committed
    assert names(store) == "abcxyz"
    # Planned on what is there, a file in between is no rival.
    between = (Member("/in/b2.jpg", "n.jpg", "1", 1),)
    assert committer(store).commit([Change((slice_part(store, between),))]).committed


def test_gc_removes_only_what_no_version_names(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    filled(store)
    orphan = part(store, a, [(0, SIZE)])
    committer(store).commit([Change((part(store, shard("b"), [(0, SIZE)]),))])
    store.reload()
    store.rollback(3)
    compact(store)
    assert verify(store).orphans == 1
    assert gc(store).removed == ()
    path = Path(store.uri, orphan.path)
    assert gc(store, older_than=timedelta(0), dry_run=True).removed == (str(path),)
    assert path.exists()
    result = gc(store, older_than=timedelta(0))
    assert (result.removed, result.bytes) == ((str(path),), orphan.bytes)
    assert not path.exists()
    for version in range(store.version + 1):
        assert verify(Store.open(store.uri, STORAGE, version)).ok


def test_gc_reads_checkpoints(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    filled(store)
    DeltaTable(store.uri).create_checkpoint()
    for entry in Path(store.uri, "_delta_log").glob("*.json"):
        entry.unlink()
    assert gc(Store.open(store.uri, STORAGE), older_than=timedelta(0)).removed == ()


def damaged(change: Callable[[Path], None]) -> Callable[[Store, list[Receipt]], None]:
    return lambda store, parts: change(Path(store.uri, parts[1].path))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 0x10
    path.write_bytes(bytes(data))


def rewritten(edit: Callable[[pa.Table], pa.Table]) -> Callable[[Store, list[Receipt]], None]:
    """Swap the second part's file for one with other content, of which the log knows the size."""

    def damage(store: Store, parts: list[Receipt]) -> None:
        name = f"data/00/part-{'0' * 32}.parquet"
        path = Path(store.uri, name)
        path.parent.mkdir(exist_ok=True)
        table = edit(pq.read_table(Path(store.uri, parts[1].path), partitioning=None))
        pq.write_table(table, path)
        stats = json.loads(parts[1].stats) | {"numRecords": table.num_rows}
        replace_part(store, parts[1].path, name, json.dumps(stats))

    return damage


def replace_part(store: Store, old: str, new: str, stats: str) -> None:
    from deltalake.transaction import RemoveAction

    table = DeltaTable(store.uri)
    actions = [AddAction(new, Path(store.uri, new).stat().st_size, {}, 0, True, stats)]
    if old:
        actions.append(RemoveAction(old, True, 0, 1, {}))
    table.create_write_transaction(actions, "append", table.schema())


def overlapping(store: Store, parts: list[Receipt]) -> None:
    receipt = part(store, shard(), [(700, 900)])
    replace_part(store, "", receipt.path, receipt.stats)


def also_quarantined(store: Store, parts: list[Receipt]) -> None:
    a = shard()
    store.quarantine.ensure([(parts[0].attempt, quarantined(a, a.span(0, 500), "k0001"))], "x")
    # Rows of a group that is there already aren't added: it stands or falls as one.
    a_span = a.span(500, 520)
    store.quarantine.ensure([(parts[2].attempt, quarantined(a, a_span, "k0001"))], "x")


def vectors(edit: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = np.stack(table["image_embedding"].to_pylist()).astype(np.float32)
        column = pa.array(edit(values).tolist(), table.schema.field("image_embedding").type)
        at = table.schema.get_field_index("image_embedding")
        return table.set_column(at, table.schema.field(at), column)

    return change


def with_nan(values: np.ndarray) -> np.ndarray:
    values[3, 2] = np.nan
    return values


def lost_rows(store: Store, parts: list[Receipt]) -> None:
    name = f"data/00/part-{'0' * 32}.parquet"
    path = Path(store.uri, name)
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pq.read_table(Path(store.uri, parts[1].path), partitioning=None).slice(1), path)
    replace_part(store, parts[1].path, name, parts[1].stats)


FAULTS = {
    "deleted": (damaged(Path.unlink), "is missing"),
    "truncated": (damaged(truncate), "bytes, the log says"),
    "flipped": (damaged(flip), "can't be read"),
    "lost rows": (lost_rows, "rows, the log says"),
    "overlap": (overlapping, "overlap"),
    "twice": (rewritten(lambda t: pa.concat_tables([t, t.slice(0, 1)])), "a second time"),
    "also quarantined": (also_quarantined, "quarantined as well"),
    "nan": (rewritten(vectors(with_nan)), "NaN"),
    "dim": (rewritten(vectors(lambda v: v[:, :3])), "not 4"),
    "length": (rewritten(vectors(lambda v: v * 2)), "away from 1"),
    "wrong id": (
        rewritten(lambda t: t.set_column(0, t.schema.field(0), pa.array(["x"] * t.num_rows))),
        "is not that of",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_finds(tmp_path: Path, fault: str) -> None:
    store = new_store(tmp_path)
    parts = filled(store)
    assert verify(store).ok
    damage, words = FAULTS[fault]
    damage(store, parts)
    result = verify(Store.open(store.uri, STORAGE))
    assert not result.ok
    assert any(words in problem for problem in result.problems), result.problems


def test_verify_counts_and_forgives_orphans(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    filled(store)
    part(store, shard(), [(0, 10)])
    result = verify(store)
    assert (result.rows, result.parts, result.quarantined, result.orphans) == (96, 3, 4, 1)
    assert result.ok


OTHER = StoreMeta("e" * 32, "other", {"text": 4})
OTHER_COLUMNS = StoreColumns(("text",), {"title": "string"})


def staging_of(store: Store, meta: StoreMeta = OTHER) -> Store:
    uri = staging_uri(store.uri, meta.fingerprint)
    return Store.create(uri, STORAGE, OTHER_COLUMNS, meta)


def other_part(store: Store, key: str, bad: tuple[str, ...]) -> Receipt:
    """A part of shard `key` with the other model's columns."""
    a = shard(key)
    span = a.span(0, SIZE)
    rows = [(a.uri, f"k{n:04d}", a.etag, span) for n in range(100) if f"k{n:04d}" not in bad]
    table = table_of(rows).rename_columns([*COLUMNS.arrow_schema().names[:6], "title", "text_embedding"])  # fmt: skip  # noqa: E501
    failed = [quarantined(a, span, key) for key in bad]
    return write_part(STORAGE, store.uri, table, [span], a.uri, failed)


def test_a_rebuild_swaps_everything_in_one_commit(tmp_path: Path) -> None:
    store, a = new_store(tmp_path), shard()
    filled(store)
    b = shard("b")
    broken = [quarantined(b, b.span(0, SIZE), f"k{n:04d}") for n in range(100)]
    committer(store).commit(
        [Change((write_part(STORAGE, store.uri, table_of([]), [b.span(0, SIZE)], b.uri, broken),))]
    )
    old = quarantine_ids(store)
    store.reload()
    before = store.version
    staging = staging_of(store)
    committer(staging).commit([Change((other_part(staging, "a", ("k0009",)),))])
    # Taken up again after a crash.
    staging = staging_of(store)
    committer(staging).commit([Change((other_part(staging, "b", ("k0001",)),))])
    assert (quarantine_ids(store), Store.open(store.uri, STORAGE).meta) == (old, META)
    staging.reload()
    assert swap(store, staging) == before + 1
    assert store.meta.fingerprint == OTHER.fingerprint
    assert store.meta.lineage["rebuilt_from"]["fingerprint"] == META.fingerprint
    assert "text_embedding" in store.schema.names
    assert_exactly_once(store, [a, b])
    assert len(raw_quarantine(store)) == 2
    assert store.coverage().missing(a.key, a.version, SIZE) == []
    assert polars.read_delta(store.uri).height == 198
    assert verify(store).ok
    assert swap(store, staging) == before + 1
    # Incremental work and compaction go on under the main root.
    c = shard("c")
    committer(store).commit([Change((other_part(store, "c", ()),))])
    assert_exactly_once(store, [a, b, c])
    # gc keeps what the swap brought, whatever its age.
    assert all("/_mmray/rebuild/" not in name for name in gc(store, older_than=timedelta(0)).removed if name.endswith(".parquet") and "/data/" in name)  # fmt: skip  # noqa: E501
    assert verify(Store.open(store.uri, STORAGE)).ok
    # And back to the old model.
    store.reload()
    store.rollback(before)
    assert store.meta == META
    assert quarantine_ids(store) == old
    assert verify(store).ok


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_swap_that_is_killed(tmp_path: Path, when: str) -> None:
    store, a = new_store(tmp_path), shard()
    filled(store)
    staging = staging_of(store)
    committer(staging).commit([Change((other_part(staging, "a", ("k0009",)),))])

    def kill(*args: object) -> None:
        raise KeyboardInterrupt

    staging.reload()
    if when == "before":
        store.quarantine.ensure_rows(staging.quarantine.live())
        assert_exactly_once(store, [a])
    else:
        store.quarantine.remove = kill  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            swap(store, staging)
        assert_exactly_once(store, [a])
    swap(Store.open(store.uri, STORAGE), staging)
    assert_exactly_once(store, [a])
    assert quarantine_ids(store) == [sample_id(a.uri, "k0009")]
    committer(store).reconcile()
    assert verify(Store.open(store.uri, STORAGE)).ok


def test_an_abandoned_rebuild_is_garbage(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    filled(store)
    staging = staging_of(store)
    committer(staging).commit([Change((other_part(staging, "a", ("k0009",)),))])
    assert gc(store).removed == ()
    old = time.time() - 3 * 86400
    for folder, _, found in os.walk(staging.uri):
        for name in found:
            os.utime(Path(folder, name), (old, old))
    assert gc(store).removed
    assert not Store.exists(staging.uri, STORAGE)
    assert verify(store).ok
