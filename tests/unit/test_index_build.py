"""An index from a store: what it answers, and what becomes of it as the store goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmray
from mmray.errors import JobFailed, RefusedError, SpecError
from mmray.index import Index, manifest
from mmray.index.building import build as building
from mmray.index.building import cut
from mmray.index.kinds import KINDS
from mmray.report import Report
from mmray.storage import Storage
from mmray.store import Store
from mmray.store.compact import compact
from tests.stores import Vectors, exact, vectors

STORAGE = Storage()


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def index_job(source: Vectors, out: str | Path, **changes: Any) -> Report:
    spec = {
        "job": "index",
        "store": {"uri": source.uri},
        "column": "image_embedding",
        "output": str(out),
    }
    return mmray.run(spec | changes, quiet=True)


def opened(out: str | Path, storage: Storage = STORAGE) -> Index:
    return Index.open(str(out), storage, threads=1)


def answers(index: Index, queries: np.ndarray, k: int = 10) -> list[list[str]]:
    found = index.search(queries, k).numbers
    return [index.ids(row[row >= 0]) for row in found]


def files_of(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def needed(out: Path) -> set[str]:
    found = manifest.read(str(out), STORAGE)
    return {file.path for file in found.files}


@pytest.fixture
def store(tmp_path: Path) -> Vectors:
    return Vectors(tmp_path / "store")


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces of few rows."""
    monkeypatch.setattr(cut, "PIECE_BYTES", 1)  # 4,096 rows
    monkeypatch.setattr(cut, "ONE_PIECE_BYTES", 0)
    monkeypatch.setattr(cut, "GRAPH_ROWS", 4096)


def test_flat_answers_as_numpy_does(store: Vectors, tmp_path: Path) -> None:
    found = vectors(3000)
    ids = store.put("a", found)
    report = index_job(store, tmp_path / "index", index={"kind": "flat"})
    queries = vectors(50, seed=3)
    index = opened(tmp_path / "index")
    hits = index.search(queries, 10)
    scores, places = exact(found, queries, 10)
    assert answers(index, queries) == [[ids[place] for place in row] for row in places]
    np.testing.assert_allclose(hits.scores, scores, atol=1e-6)
    assert report.status == "done"
    assert (report.rows_read, report.rows_written) == (3000, 3000)
    assert report.metrics["recall"] == 1.0
    assert Path(str(report.outputs["page"])).read_text().count("<html") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stays_within_the_recall_that_it_states(
    kind: str, store: Vectors, tmp_path: Path, small_pieces: None
) -> None:
    found = vectors(9000, spread=0.8)
    ids = store.put("a", found, rows=1000)
    report = index_job(store, tmp_path / "i", index={"kind": kind, "min_recall": 0.9})
    queries = vectors(300, seed=3, spread=0.8)
    index = opened(tmp_path / "i")
    got = answers(index, queries)
    _, places = exact(found, queries, 10)
    recall = np.mean(
        [len({*mine} & {ids[p] for p in row}) / 10 for mine, row in zip(got, places, strict=True)]
    )
    assert index.manifest.measured.recall == report.metrics["recall"] >= 0.9
    assert recall >= 0.87
    assert len(index.manifest.segments) == (3 if kind == "hnsw" else 1)
    kept = {path for path in files_of(tmp_path / "i") if not path.startswith(("_mmray/runs", "v"))}
    assert kept == needed(tmp_path / "i")


def test_a_second_run_does_nothing_and_writes_nothing(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(500))
    index_job(store, tmp_path / "i")
    before = files_of(tmp_path / "i")
    again = index_job(store, tmp_path / "i")
    assert (again.rows_read, again.rows_skipped, again.outputs["version"]) == (0, 500, 1)
    assert files_of(tmp_path / "i") == before


@pytest.mark.parametrize("kind", KINDS)
def test_added_replaced_and_removed_rows_change_the_answers_at_once(
    kind: str, store: Vectors, tmp_path: Path
) -> None:
    first, out = vectors(4000), tmp_path / "i"
    old = store.put("a", first)
    gone = store.put("gone", vectors(100, seed=50))
    options = {"kind": kind, "min_recall": 0.9}
    index_job(store, out, index=options)

    changed = first.copy()
    changed[:50] = vectors(50, seed=60)
    assert store.put("a", changed, etag="2") == old
    fresh = store.put("b", vectors(300, seed=70))
    _remove(store, "gone")
    report = index_job(store, out, index=options)
    assert (report.rows_written, report.metrics["rows_removed"]) == (350, 150)
    assert report.metrics["rows"] == 4300
    assert "rebuilt" not in report.metrics

    index = opened(out)
    assert len(index.live()) == 4300
    everything = answers(index, vectors(20, seed=1), k=4300)
    for row in everything:
        assert len(row) == len(set(row)) == 4300
        assert set(row) == {*old, *fresh}
        assert not {*row} & {*gone}
    # The new vector answers, not the old one. Its nearest is itself but for coarse codes, which
    # promise a share of the nearest ten.
    nearest = 10 if kind == "ivf_pq" else 1
    for place in (0, 7, 49):
        assert old[place] in answers(index, changed[place], nearest)[0]
        np.testing.assert_allclose(index.vectors(index.numbers([old[place]]))[0], changed[place])


def _remove(store: Vectors, name: str) -> None:
    from mmray.sources.fragment import object_shard
    from mmray.store import Change, Committer

    shard = object_shard(f"/in/{name}.tar", "1", 1)
    paths = store.store.stored.paths(shard.key)
    change = Change((), remove=tuple(paths), drop_uris=frozenset({shard.uri}))
    Committer(store.store, "prune").commit([change])
    store.store.reload()


def test_adding_costs_what_was_added(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("a", vectors(6000))
    index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    before = files_of(tmp_path / "i")
    store.put("b", vectors(40, seed=2))
    read: list[str] = []
    inner = building.add
    monkeypatch.setattr(
        building, "add", lambda work: read.extend(p.path for p in work[1].parts) or inner(work)
    )
    report = index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    assert report.rows_read == 40
    assert len(read) == 1
    index = manifest.read(str(tmp_path / "i"), STORAGE)
    assert [segment.rows for segment in index.segments] == [6000, 40]
    assert index.unmeasured == 40
    new = files_of(tmp_path / "i") - before
    sizes = [(tmp_path / "i" / path).stat().st_size for path in new if path.startswith("segments")]
    assert sum(sizes) < 200_000  # the whole is five times that


def test_a_compaction_adds_nothing(store: Vectors, tmp_path: Path) -> None:
    ids = store.put("a", vectors(2000), rows=100)
    index_job(store, tmp_path / "i")
    store.store.reload()
    assert compact(store.store).merged
    report = index_job(store, tmp_path / "i")
    assert (report.rows_read, report.metrics["rows_removed"]) == (0, 0)
    assert report.outputs["store_version"] == Store.open(store.uri, STORAGE).version
    assert set(answers(opened(tmp_path / "i"), vectors(1), k=2000)[0]) == set(ids)


def test_an_index_goes_on_when_the_store_forgot_its_old_parts(
    store: Vectors, tmp_path: Path
) -> None:
    found = vectors(1000)
    ids = store.put("a", found)
    index_job(store, tmp_path / "i")
    old = {part.path for part in store.store.parts()}
    found[:5] = vectors(5, seed=9)
    store.put("a", found, etag="2")
    for path in old:
        (Path(store.uri) / path).unlink()
    report = index_job(store, tmp_path / "i")
    assert (report.rows_written, report.metrics["rows_removed"]) == (5, 5)
    assert set(answers(opened(tmp_path / "i"), vectors(1), k=1000)[0]) == set(ids)


def test_past_a_fifth_of_dead_rows_it_is_built_anew(store: Vectors, tmp_path: Path) -> None:
    ids = store.put("a", vectors(1000))
    store.put("b", vectors(400, seed=4))
    index_job(store, tmp_path / "i", index={"kind": "hnsw"})
    _remove(store, "b")
    report = index_job(store, tmp_path / "i", index={"kind": "hnsw"})
    assert "don't count any more" in str(report.metrics["rebuilt"])
    index = opened(tmp_path / "i")
    assert (index.manifest.dead_rows, index.manifest.version) == (0, 2)
    assert set(answers(index, vectors(1), k=1000)[0]) == set(ids)


def test_a_grown_store_is_clustered_anew(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(1000))
    index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    store.put("b", vectors(1500, seed=4))
    report = index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    assert "trained for 1,000 rows" in str(report.metrics["rebuilt"])
    assert report.rows_written == 2500


@pytest.mark.parametrize("kind", ["hnsw", "ivf_pq"])
def test_many_small_additions_become_one_segment(
    kind: str, store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmray.index.building.finish.MOST_SEGMENTS", 3)
    every = store.put("a", vectors(4000))
    for number in range(5):
        index_job(store, tmp_path / "i", index={"kind": kind, "min_recall": 0.5})
        every += store.put(f"b{number}", vectors(20, seed=10 + number))
    index_job(store, tmp_path / "i", index={"kind": kind, "min_recall": 0.5})
    index = opened(tmp_path / "i")
    assert len(index.manifest.segments) <= 3
    assert set(answers(index, vectors(1), k=4100)[0]) == set(every)
    some = index.numbers([every[-1], every[0]])
    np.testing.assert_array_equal(
        index.vectors(some), np.stack([vectors(20, seed=14)[-1], vectors(4000)[0]])
    )


ADD = "mmray.index.building.build.add"
STEPS = [
    ("start", "mmray.index.building.build.start"),
    ("piece", ADD),
    ("finish", "mmray.index.building.build.finish"),
    ("publish", "mmray.index.manifest.publish"),
    ("tidy", "mmray.index.building.build.tidy"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("step", "target"), STEPS)
def test_a_killed_build_goes_on(
    step: str,
    target: str,
    after: bool,
    store: Vectors,
    tmp_path: Path,
    small_pieces: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = vectors(9000)
    ids = store.put("a", found, rows=1500)
    at = 2 if step == "piece" else 1
    with monkeypatch.context() as patch:
        patch.setattr(target, _killing(target, at, after))
        with pytest.raises(Killed):
            index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    published = step == "tidy" or (step == "publish" and after)
    assert manifest.exists(str(tmp_path / "i"), STORAGE) == published

    made = _count(monkeypatch, "mmray.index.building.pieces._Adding.run")
    index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    done_before = {"start": 0, "piece": 1 + after}.get(step, 3)
    assert len(made) == 3 - done_before
    index = opened(tmp_path / "i")
    assert index.manifest.version == 1
    assert set(answers(index, found[:1], k=9000)[0]) == set(ids)
    assert answers(index, found[:30], 1) == [[each] for each in ids[:30]]


@pytest.mark.parametrize(("first", "then"), [(4096, 6000), (6000, 4096), (4096, 9000)])
def test_a_killed_build_goes_on_with_pieces_of_another_size(
    first: int, then: int, store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does on a machine with other memory, on a cluster, or with `resources.piece`."""
    found = vectors(9000)
    ids = store.put("a", found, rows=1500)
    monkeypatch.setattr("mmray.index.building.cut.ONE_PIECE_BYTES", 0)
    row_bytes = KINDS["ivf_flat"].row_bytes(found.shape[1], found.shape[1])
    with monkeypatch.context() as patch:
        patch.setattr("mmray.index.building.cut.PIECE_BYTES", int(first * row_bytes) + 1)
        patch.setattr(ADD, _killing(ADD, 1, True))
        with pytest.raises(Killed):
            index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    monkeypatch.setattr("mmray.index.building.cut.PIECE_BYTES", int(then * row_bytes) + 1)
    index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    hits = answers(opened(tmp_path / "i"), found[:1], k=9000)[0]
    assert sorted(hits) == sorted(ids)


def _killing(target: str, at: int, after: bool) -> Callable[..., Any]:
    inner, calls = _resolve(target), iter(range(1, 100))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        mine = next(calls) == at
        if mine and not after:
            raise Killed
        result = inner(*args, **kwargs)
        if mine:
            raise Killed
        return result

    return wrapped


def _count(monkeypatch: pytest.MonkeyPatch, target: str) -> list[int]:
    inner, calls = _resolve(target), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return inner(*args, **kwargs)

    monkeypatch.setattr(target, wrapped)
    return calls


def _resolve(target: str) -> Any:
    import pkgutil

    return pkgutil.resolve_name(target)


def test_of_two_builds_at_once_one_is_published(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = store.put("a", vectors(2000))
    inner, other = building.finish, []

    def meanwhile(ending: Any) -> Any:
        if not other:
            other.append(1)
            other.append(index_job(store, tmp_path / "i", index={"kind": "ivf_flat"}))
        return inner(ending)

    monkeypatch.setattr(building, "finish", meanwhile)
    mine = index_job(store, tmp_path / "i", index={"kind": "ivf_flat"})
    assert (mine.status, other[1].status) == ("done", "done")
    assert mine.outputs["version"] == other[1].outputs["version"] == 1
    assert set(answers(opened(tmp_path / "i"), vectors(1), k=2000)[0]) == set(ids)


def test_an_index_below_its_floor_is_not_published(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmray.index.building.tune.EFFORTS", (1,))
    monkeypatch.setattr("mmray.index.kinds.GRAPH_LINKS", 2)
    noise = np.random.default_rng(0).standard_normal((8000, 32)).astype(np.float32)
    store.put("a", noise)
    with pytest.raises(JobFailed, match=r"HNSW2,Flat reaches recall@10 0\.\d+ .*not published"):
        index_job(store, tmp_path / "i", index={"kind": "hnsw", "min_recall": 0.999})
    assert not manifest.exists(str(tmp_path / "i"), STORAGE)
    assert files_of(tmp_path / "i") == set()


def test_auto_takes_the_next_kind_where_one_is_not_good_enough(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmray.index.building.tune.EFFORTS", (1,))
    monkeypatch.setattr("mmray.index.kinds.GRAPH_LINKS", 2)
    monkeypatch.setattr("mmray.index.kinds.EXACT_VALUES", 1)
    noise = np.random.default_rng(0).standard_normal((8000, 32)).astype(np.float32)
    store.put("a", noise)
    report = index_job(store, tmp_path / "i", index={"min_recall": 0.99})
    assert report.metrics["kind"] == "ivf_flat"
    assert float(report.metrics["recall"]) >= 0.99


def test_rows_without_a_usable_vector_are_left_out_and_counted(
    store: Vectors, tmp_path: Path
) -> None:
    found: list[Any] = list(vectors(300))
    found[3] = found[250] = None
    found[7] = np.full(32, np.nan)
    found[9] = np.zeros(32)
    found[11] = found[11][:5]
    ids = store.put("a", found)
    report = index_job(store, tmp_path / "i")
    assert report.filtered == {
        "no vector": 2,
        "not finite": 1,
        "zero length": 1,
        "wrong length": 1,
    }
    assert (report.rows_read, report.rows_written) == (300, 295)
    index = opened(tmp_path / "i")
    assert {*answers(index, vectors(1), 300)[0]} == {
        each for place, each in enumerate(ids) if place not in (3, 7, 9, 11, 250)
    }


def test_inner_products_go_by_length(store: Vectors, tmp_path: Path) -> None:
    found = vectors(1000) * np.linspace(0.1, 5, 1000, dtype=np.float32)[:, None]
    ids = store.put("a", found)
    index_job(store, tmp_path / "i", index={"metric": "inner_product", "kind": "ivf_flat"})
    index = opened(tmp_path / "i")
    _, places = exact(found, found[:5], 1)
    assert answers(index, found[:5], 1) == [[ids[place]] for (place,) in places]


def test_one_row(store: Vectors, tmp_path: Path) -> None:
    ids = store.put("a", vectors(1))
    for kind in KINDS:
        if kind == "ivf_pq":
            continue  # 256 codes can't be trained on one vector: see below
        index_job(store, tmp_path / kind, index={"kind": kind})
        assert answers(opened(tmp_path / kind), vectors(1, seed=5), k=10) == [ids]


def test_codes_of_too_few_rows_are_refused_with_words(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(100))
    with pytest.raises(RefusedError, match="ivf_pq needs 256 vectors .*there are 100"):
        index_job(store, tmp_path / "i", index={"kind": "ivf_pq"})


def test_a_store_with_nothing_to_index_is_refused(store: Vectors, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="the store has no rows to index"):
        index_job(store, tmp_path / "i")
    store.put("a", [None, None])
    with pytest.raises(RefusedError, match="none of its 2 rows has a .*vector in image_embedding"):
        index_job(store, tmp_path / "i")


def test_wrong_fields_are_named(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(10))
    with pytest.raises(SpecError, match=r"column: .*no vector column 'image_embeding'.*did you"):
        index_job(store, tmp_path / "i", column="image_embeding")
    with pytest.raises(SpecError, match=r"keep\.1: .*'categori'"):
        index_job(store, tmp_path / "i", keep=["caption", "categori"])
    with pytest.raises(SpecError, match="limit"):
        mmray.run(
            {
                "job": "index",
                "store": {"uri": store.uri},
                "column": "image_embedding",
                "output": str(tmp_path / "i"),
            },
            limit=5,
            quiet=True,
        )
    assert not (tmp_path / "i").exists()


def test_another_models_vectors_are_refused_or_built_anew(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(50))
    index_job(store, tmp_path / "i")
    other = Vectors(tmp_path / "other", fingerprint="e" * 32)
    ids = other.put("z", vectors(60))
    with pytest.raises(RefusedError, match=f"{'f' * 32}.*{'e' * 32}.*on_model_change"):
        index_job(other, tmp_path / "i")
    report = index_job(other, tmp_path / "i", on_model_change="rebuild")
    assert (report.outputs["version"], report.rows_written) == (2, 60)
    assert set(answers(opened(tmp_path / "i"), vectors(1), 60)[0]) == set(ids)


def test_another_column_needs_another_output(tmp_path: Path) -> None:
    store = Vectors(tmp_path / "store", modalities=("image", "text"))
    store.put("a", vectors(50))
    index_job(store, tmp_path / "i")
    with pytest.raises(RefusedError, match="index of image_embedding, not of text_embedding"):
        index_job(store, tmp_path / "i", column="text_embedding")


def test_recall_may_be_measured_with_another_columns_vectors(tmp_path: Path) -> None:
    store = Vectors(tmp_path / "store", modalities=("image", "text"))
    store.put("a", vectors(3000))
    options = {"kind": "ivf_flat", "queries": "text_embedding"}
    index_job(store, tmp_path / "i", index=options)
    found = manifest.read(str(tmp_path / "i"), STORAGE)
    assert found.measured.column == "text_embedding"
    assert found.measured.recall >= 0.95


def test_versions_can_be_pinned_and_opened(store: Vectors, tmp_path: Path) -> None:
    first = store.put("a", vectors(50))
    version = store.store.version
    index_job(store, tmp_path / "i")
    store.put("b", vectors(5, seed=3))
    index_job(store, tmp_path / "i")
    pinned = {"uri": store.uri, "version": version}
    index_job(store, tmp_path / "p", store=pinned)
    for index in (opened(tmp_path / "p"), Index.open(str(tmp_path / "i"), STORAGE, 1)):
        assert set(answers(index, vectors(1), 100)[0]) == set(first)


def test_a_rolled_back_store_takes_its_rows_out_again(store: Vectors, tmp_path: Path) -> None:
    first = store.put("a", vectors(500))
    version = store.store.version
    store.put("b", vectors(20, seed=3))
    index_job(store, tmp_path / "i")
    store.store.rollback(version)
    report = index_job(store, tmp_path / "i")
    assert report.metrics["rows_removed"] == 20
    assert set(answers(opened(tmp_path / "i"), vectors(1), 600)[0]) == set(first)


def test_options_that_change_build_it_anew(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(1000))
    index_job(store, tmp_path / "i")
    report = index_job(store, tmp_path / "i", index={"kind": "hnsw"})
    assert (report.metrics["kind"], report.outputs["version"]) == ("hnsw", 2)
    report = index_job(store, tmp_path / "i", index={"kind": "hnsw"}, keep=["caption"])
    assert opened(tmp_path / "i").columns == ("id", "source_uri", "source_key", "caption")
    assert report.outputs["version"] == 3


def test_disk_and_s3_answer_alike(s3_uri: str, tmp_path: Path) -> None:
    found, queries = vectors(3000), vectors(20, seed=8)
    exactly = []
    for place in (str(tmp_path), s3_uri):
        store = Vectors(f"{place}/store")
        store.put("a", found)
        for kind in ("flat", "sq8"):
            index_job(store, f"{place}/{kind}", index={"kind": kind})
        exactly.append(opened(f"{place}/flat").search(queries, 10).scores)
        assert answers(opened(f"{place}/sq8"), found[:5], 1) == answers(
            opened(f"{place}/flat"), found[:5], 1
        )
    np.testing.assert_allclose(*exactly, atol=1e-6)
    for path in (tmp_path / "sq8").rglob("*"):  # the very same index, there
        if path.is_file():
            name = path.relative_to(tmp_path)
            STORAGE.write_bytes(f"{s3_uri}/copy/{name}", path.read_bytes())
    here, there = opened(tmp_path / "sq8"), opened(f"{s3_uri}/copy/sq8")
    assert answers(here, queries) == answers(there, queries)
    np.testing.assert_array_equal(here.search(queries, 10).scores, there.search(queries, 10).scores)


def test_a_torn_or_tampered_index_is_refused(store: Vectors, tmp_path: Path) -> None:
    store.put("a", vectors(600))
    out = tmp_path / "i"
    index_job(store, out, index={"kind": "sq8"})
    saved = tmp_path / "saved"
    shutil.copytree(out, saved)
    for path in sorted(needed(out)):
        for damage, words in ((_flip, "changed after it was written"), (_cut, "torn")):
            damage(out / path)
            with pytest.raises(RefusedError, match=words) as caught:
                opened(out)
            assert path in str(caught.value)
            shutil.copy(saved / path, out / path)
        (out / path).unlink()
        with pytest.raises(RefusedError, match="missing"):
            opened(out)
        shutil.copy(saved / path, out / path)
    place = out / "versions" / "00000001.json"
    for damage, words in ((_flip, "torn|changed"), (_cut, "torn")):
        damage(place)
        with pytest.raises(RefusedError, match=words):
            opened(out)
        shutil.copy(saved / "versions" / "00000001.json", place)
    opened(out)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x01
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [_flip, _cut, Path.unlink])
def test_a_damaged_index_is_built_anew(
    damage: Callable[[Path], None], store: Vectors, tmp_path: Path
) -> None:
    ids = store.put("a", vectors(600))
    index_job(store, tmp_path / "i")
    [segment] = manifest.read(str(tmp_path / "i"), STORAGE).segments
    damage(tmp_path / "i" / segment.table.path)
    gone = store.put("a", vectors(600)[1:], etag="2")  # so that the rows are looked at
    report = index_job(store, tmp_path / "i")
    assert "can't be used" in str(report.metrics["rebuilt"])
    assert set(answers(opened(tmp_path / "i"), vectors(1), 600)[0]) == set(gone) <= set(ids)


def test_an_open_index_outlives_its_files(store: Vectors, tmp_path: Path) -> None:
    ids = store.put("a", vectors(600))
    index_job(store, tmp_path / "i", index={"kind": "sq8"})
    index = opened(tmp_path / "i")
    shutil.rmtree(tmp_path / "i")
    assert set(answers(index, vectors(1), 600)[0]) == set(ids)
    rows = index.table(index.numbers([ids[5], ids[599]]))
    assert rows["source_key"].to_pylist() == ["a-000005", "a-000599"]
    assert len(index.allowed("category = 'food'")) == 150
