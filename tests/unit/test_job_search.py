"""`job: search`: the same hits as plain numpy, once for each query, whatever ends a run."""

from __future__ import annotations

import gzip
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmray
from mmray.encoders import describe
from mmray.errors import Interrupted, JobFailed, RefusedError, SpecError, StorageError
from mmray.index.batch import answers, process, queryfile
from mmray.index.searching.opened import Index
from mmray.jobs import search
from mmray.report import Report
from mmray.specs.common import HfEncoder, ImportEncoder
from mmray.specs.index import SearchSpec
from mmray.storage import blobs
from tests import indexes, rows, tinymodels
from tests.stores import CATEGORIES, FINGERPRINT, Vectors, exact, vectors
from tests.unit.index_jobs import build, scattered, table

ROWS, K = 300, 5
FOUND = vectors(ROWS, seed=2)
"""Scores of a row's neighbours are 7e-6 apart at least: float32 tells them apart on every CPU."""


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Vectors(folder / "store")
        self.ids = self.store.put("a", FOUND, rows=100)
        self.index = build(self.store, folder / "index")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def spec(world: World, output: Path, queries: dict[str, Any] | None = None, **more: Any) -> Any:
    of_store = {"kind": "store", "uri": world.store.uri, "column": "image_embedding"}
    return SearchSpec(
        job="search",
        index={"uri": world.index},
        queries=queries or of_store,
        output=str(output),
        **{"k": K} | more,
    )


def run(*args: Any, **more: Any) -> Report:
    return search.run(spec(*args, **more), quiet=True)


def vectors_file(path: Path, found: Sequence[Any], **columns: Any) -> dict[str, Any]:
    rows = [
        {"v": each, **{name: values[place] for name, values in columns.items()}}
        for place, each in enumerate(found)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "file", "uri": str(path), "column": "v", "fingerprint": FINGERPRINT}


def hits(folder: Path) -> dict[str, list[str]]:
    """Ids of the hits of each query, by rank."""
    found: dict[str, list[str]] = {}
    rows = table(folder).select(["query_id", "rank", "id"]).to_pylist()
    for row in rows:
        ids = found.setdefault(row["query_id"], [])
        ids.append(row["id"])
        assert row["rank"] == len(ids)  # ranks are in order, and no query is there twice
    return found


def expected(world: World, queries: np.ndarray, k: int = K) -> list[list[str]]:
    _, order = exact(FOUND, queries, k)
    return [[world.ids[place] for place in row] for row in order]


# --- queries of a store ---------------------------------------------------------------------------


def test_each_row_of_a_store_finds_what_numpy_finds(world: World, tmp_path: Path) -> None:
    report = run(world, tmp_path, columns=("caption", "category"))
    assert hits(tmp_path) == dict(zip(world.ids, expected(world, FOUND), strict=True))
    scores, _ = exact(FOUND, FOUND, K)
    by_query = table(tmp_path).to_pandas().groupby("query_id")["score"].apply(list)
    got = np.array([by_query[name] for name in world.ids])
    np.testing.assert_allclose(got, scores, atol=1e-5)
    for row in table(tmp_path).to_pylist():
        place = world.ids.index(row["id"])
        assert row["caption"] == f"a picture of a-{place:06d}"
        assert row["category"] == CATEGORIES[place % 4]
    assert (report.rows_read, report.rows_written, report.rows_filtered) == (ROWS, ROWS, 0)
    assert report.metrics["hits"] == ROWS * K
    assert Path(str(report.outputs["page"])).exists()


def test_a_querys_own_row_is_left_out_and_another_comes(world: World, tmp_path: Path) -> None:
    run(world, tmp_path, exclude_self=True)
    want = expected(world, FOUND, K + 1)
    others = [
        [each for each in row if each != own] for own, row in zip(world.ids, want, strict=True)
    ]
    assert hits(tmp_path) == dict(zip(world.ids, others, strict=True))


def test_a_query_that_is_no_row_of_the_index_has_no_hit_too_many(
    world: World, tmp_path: Path
) -> None:
    asked = vectors_file(tmp_path / "q.jsonl", vectors(9, seed=4).tolist())
    run(world, tmp_path / "out", asked, exclude_self=True)
    assert list(hits(tmp_path / "out").values()) == expected(world, vectors(9, seed=4))


def test_hits_meet_the_condition(world: World, tmp_path: Path) -> None:
    run(world, tmp_path, where="category = 'food'", columns=("category",))
    assert set(table(tmp_path)["category"].to_pylist()) == {"food"}
    assert table(tmp_path).num_rows == ROWS * K
    run(world, tmp_path, where="category = 'nothing'", columns=("category",))
    assert table(tmp_path).num_rows == 0
    assert table(tmp_path).schema.names == ["query_id", "rank", "id", "score", "category"]


def test_more_hits_than_rows_are_all_rows(world: World, tmp_path: Path) -> None:
    run(world, tmp_path, k=ROWS + 50)
    assert {len(each) for each in hits(tmp_path).values()} == {ROWS}


def test_rows_without_a_usable_vector_are_counted(world: World, tmp_path: Path) -> None:
    store = Vectors(tmp_path / "store")
    nan = [np.nan] * 32
    ids = store.put("b", [None, FOUND[1], nan, [0.0] * 32, None, FOUND[2]])
    asked = {"kind": "store", "uri": store.uri, "column": "image_embedding"}
    report = run(world, tmp_path / "out", asked)
    assert list(hits(tmp_path / "out")) == [ids[1], ids[5]]
    assert report.filtered == {"no vector": 2, "not finite": 1, "zero length": 1}
    assert (report.rows_read, report.rows_written) == (6, 2)
    told = json.loads((tmp_path / "out" / "hits.json").read_text())
    assert (told["queries"], told["hits"], told["left_out"]) == (2, 2 * K, report.filtered)


def test_a_store_of_another_model_or_shape_is_refused(world: World, tmp_path: Path) -> None:
    other = Vectors(tmp_path / "other", fingerprint="e" * 32)
    other.put("a", FOUND[:3])
    asked = {"kind": "store", "uri": other.uri, "column": "image_embedding"}
    with pytest.raises(RefusedError, match=f"{'e' * 32}.*{FINGERPRINT}"):
        run(world, tmp_path / "out", asked)
    narrow = Vectors(tmp_path / "narrow", dim=8)
    narrow.put("a", vectors(3, 8))
    with pytest.raises(RefusedError, match="8 dimensions, the index 32"):
        run(world, tmp_path / "out", {**asked, "uri": narrow.uri})
    with pytest.raises(SpecError, match="did you mean 'image_embedding'") as caught:
        run(world, tmp_path / "out", {**asked, "uri": world.store.uri, "column": "imageembedding"})
    assert caught.value.path == "queries.column"
    empty = Vectors(tmp_path / "empty")
    with pytest.raises(RefusedError, match="has no rows"):
        run(world, tmp_path / "out", {**asked, "uri": empty.uri})
    assert not (tmp_path / "out").exists()


# --- queries of a file ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "parquet", "fixed", "doubles", "nested"])
def test_vectors_of_a_file(world: World, tmp_path: Path, form: str) -> None:
    found = vectors(20, seed=9)
    names = [1000 + place for place in range(20)]
    path = tmp_path / f"q.{form if 'json' in form else 'parquet'}"
    asked = vectors_file(path, found.tolist(), name=names) | {"id": "name"}
    if form == "jsonl.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    if "json" not in form:
        kind = {"fixed": pa.list_(pa.float32(), 32), "doubles": pa.large_list(pa.float64())}
        column = pa.array(found.tolist(), kind.get(form, pa.list_(pa.float32())))
        columns = {"v": column, "name": pa.array(names)}
        if form == "nested":
            columns = {"outer": pa.StructArray.from_arrays([column], ["v"]), "name": names}
            asked["column"] = "outer.v"
        pq.write_table(pa.table(columns), path, row_group_size=7)
    report = run(world, tmp_path / "out", asked)
    assert report.rows_written == 20
    want = dict(zip(map(str, names), expected(world, found), strict=True))
    assert hits(tmp_path / "out") == want


def test_a_row_without_an_id_column_goes_by_its_number(world: World, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    asked = vectors_file(path, FOUND[:2].tolist())
    path.write_text("\n" + path.read_text())
    run(world, tmp_path / "lines", asked)
    assert list(hits(tmp_path / "lines")) == ["2", "3"]
    rows = tmp_path / "q.parquet"
    pq.write_table(pa.table({"v": FOUND[:2].tolist()}), rows)
    run(world, tmp_path / "rows", {**asked, "uri": str(rows)})
    assert list(hits(tmp_path / "rows")) == ["0", "1"]


def test_a_bad_row_costs_itself_and_is_named(world: World, tmp_path: Path) -> None:
    good = FOUND[0].tolist()
    values: list[Any] = [good, good[:3], None, [0.0] * 32, [1e39] * 32, ["1"] * 32, 7, "text", good]
    path = tmp_path / "q.jsonl"
    asked = vectors_file(path, values, name=[*range(8), None]) | {"id": "name"}
    path.write_text(path.read_text() + '{"v": [NaN]}\n{"v\n{"w": [1]}\n[1]\n')
    report = run(world, tmp_path / "out", asked)
    assert list(hits(tmp_path / "out")) == ["0"]
    assert report.filtered == {
        "wrong length": 1,
        "no vector": 1,
        "zero length": 1,
        "not finite": 1,
        "wrong type": 3,
        "bad line": 3,
        "no id": 2,
    }
    told = {each.source_key: each.message for each in report.examples}
    assert told["2"] == "line 2: its vector has 3 numbers, those of the index 32"
    assert "line 5: its vector has inf at position 0" in told["5"]
    assert "line 8: a list of numbers is needed" in told["8"]
    assert {each.source_uri for each in report.examples} == {str(path)}
    assert report.rows_read == 13


def test_bad_rows_of_parquet(world: World, tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    holes = [[1.0] * 31 + [None], FOUND[3].tolist(), [np.nan] * 32, [1.0], None, [1e300] * 32]
    pq.write_table(pa.table({"v": pa.array(holes, pa.list_(pa.float64()))}), path)
    asked = {"kind": "file", "uri": str(path), "column": "v", "fingerprint": FINGERPRINT}
    report = run(world, tmp_path / "out", asked)
    assert list(hits(tmp_path / "out")) == ["1"]
    assert report.filtered == {"not finite": 3, "wrong length": 1, "no vector": 1}
    assert report.examples[0].message == "row 0: its vector has nan at position 31"


def test_a_file_without_a_query_is_refused(world: World, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    asked = vectors_file(path, [[1.0, 2.0]] * 3 + [None])
    words = r"none of its rows is a query \(3 wrong length, 1 no vector\); line 1: its vector has 2"
    with pytest.raises(RefusedError, match=words):
        run(world, tmp_path / "out", asked)
    with pytest.raises(RefusedError, match="has no field 'vv'.*did you mean 'v'"):
        run(world, tmp_path / "out", {**asked, "column": "vv"})
    path.write_text("\n\n")
    with pytest.raises(RefusedError, match="has no rows"):
        run(world, tmp_path / "out", asked)
    with pytest.raises(RefusedError, match="no such file"):
        run(world, tmp_path / "out", {**asked, "uri": str(tmp_path / "x.jsonl")})
    with pytest.raises(SpecError, match=r"queries.uri: must end in .parquet"):
        run(world, tmp_path / "out", {**asked, "uri": str(tmp_path / "x.csv")})
    assert not (tmp_path / "out").exists()


def test_columns_of_parquet_that_cannot_be_queries_are_refused(
    world: World, tmp_path: Path
) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"vector": FOUND[:2].tolist(), "n": [1, 2], "f": [0.5, 1.5]}), path)
    asked = {"kind": "file", "uri": str(path), "column": "vector", "fingerprint": FINGERPRINT}
    with pytest.raises(RefusedError, match=r"queries.column: .* 'vectr' \(did you mean 'vector'"):
        run(world, tmp_path / "out", {**asked, "column": "vectr"})
    with pytest.raises(RefusedError, match="'n' of .* is int64; text or lists of numbers"):
        run(world, tmp_path / "out", {**asked, "column": "n"})
    with pytest.raises(RefusedError, match="queries.id: 'f' of .* is double"):
        run(world, tmp_path / "out", {**asked, "id": "f"})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RefusedError, match="can't be read as Parquet"):
        run(world, tmp_path / "out", asked)


@pytest.mark.parametrize("column", ["v.list.element", "n"])
def test_an_encrypted_file_is_refused(world: World, tmp_path: Path, column: str) -> None:
    """pyarrow would end the process."""
    path = tmp_path / "q.parquet"
    path.write_bytes(rows.encrypted(pa.table({"v": FOUND[:2].tolist(), "n": [1, 2]}), column))
    asked = {"kind": "file", "uri": str(path), "column": "v", "fingerprint": FINGERPRINT}
    with pytest.raises(RefusedError, match=r"q\.parquet: .*columns of it are encrypted"):
        run(world, tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()


def test_vectors_need_the_fingerprint_of_the_index(world: World, tmp_path: Path) -> None:
    asked = vectors_file(tmp_path / "q.jsonl", FOUND[:2].tolist())
    with pytest.raises(SpecError, match="is needed") as caught:
        run(world, tmp_path / "out", {**asked, "fingerprint": None})
    assert caught.value.path == "queries.fingerprint"
    with pytest.raises(RefusedError, match=f"{'0' * 32}.*{FINGERPRINT}"):
        run(world, tmp_path / "out", {**asked, "fingerprint": "0" * 32})


class FakeEncoder:
    """Words are numbers of rows; each is a call's worth of them."""

    card = describe(ImportEncoder(kind="import", model="tests.toys:Toy"))

    def __init__(self) -> None:
        self.calls: list[int] = []

    def require(self, modality: str) -> int:
        assert modality == "text"
        return 0

    def texts(self, texts: list[str]) -> np.ndarray:
        self.calls.append(len(texts))
        return FOUND[[int(each) for each in texts]]


def test_words_are_encoded_in_batches(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeEncoder()
    monkeypatch.setattr(process, "encoder", _Cached(fake))
    monkeypatch.setattr(answers, "BATCH", 16)
    path = tmp_path / "q.jsonl"
    texts: list[Any] = [str(place) for place in range(40)] + ["  ", None, 5, "nul\0"]
    path.write_text("".join(json.dumps({"q": each}) + "\n" for each in texts))
    report = run(world, tmp_path / "out", {"kind": "file", "uri": str(path), "column": "q"})
    assert fake.calls == [16, 16, 8]
    assert report.filtered == {"no text": 2, "wrong type": 1, "bad text": 1}
    want = expected(world, FOUND[:40])
    assert list(hits(tmp_path / "out").values()) == want


def test_weights_that_lie_elsewhere(tmp_path: Path) -> None:
    there = tinymodels.build("clip", tmp_path / "there")
    encoder = {"kind": "hf", "model": str(there)}
    card = describe(HfEncoder(kind="hf", model=str(there)))
    made = replace(indexes.MADE, encoder_spec=encoder, fingerprint=card.fingerprint)
    index = str(tmp_path / "index")
    indexes.index(index, indexes.unit(60, card.dims["text"]), made=made)
    here = there.rename(tmp_path / "here")
    words = ["a red disc", "the sea"]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"q": each}) + "\n" for each in words))
    fields = {
        "job": "search",
        "index": {"uri": index},
        "queries": {"kind": "file", "uri": str(path), "column": "q"},
        "k": 3,
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(RefusedError, match=r"no model folder at .*there; --model .*job: model"):
        mmray.run(fields, quiet=True)
    mmray.run(fields | {"model": str(here)}, quiet=True)
    opened = Index.open(index, indexes.STORAGE)
    found = opened.search(opened.encoder(str(here)).texts(words), 3).numbers
    assert list(hits(tmp_path / "out").values()) == [opened.ids(row) for row in found]


def test_a_model_without_words_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="queries are vectors") as caught:
        run(world, tmp_path / "out", model="/models/x")
    assert caught.value.path == "model"
    assert not (tmp_path / "out").exists()


def test_a_condition_has_its_time(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def matching(rows: Any, where: str, seconds: float) -> np.ndarray:
        given.append(seconds)
        return np.arange(3)

    monkeypatch.setattr("mmray.index.searching.where.matching", matching)
    run(world, tmp_path, where="true", where_seconds=2.5)
    assert given == [2.5]


class _Cached:
    def __init__(self, encoder: FakeEncoder) -> None:
        self.encoder = encoder

    def __call__(self, *_: object) -> FakeEncoder:
        return self.encoder

    def cache_clear(self) -> None:
        pass


# --- what the spec may not say --------------------------------------------------------------------


def test_a_spec_that_cannot_be_is_refused_by_its_field(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for path, more in {
        "columns": {"columns": ("captoin",)},
        "output": {"output": world.index},
    }.items():
        with pytest.raises(SpecError) as caught:
            search.run(SearchSpec.model_validate(spec(world, out).model_dump() | more), quiet=True)
        assert caught.value.path == path
    with pytest.raises(SpecError, match="every hit already"):
        run(world, out, columns=("score",))
    with pytest.raises(SpecError, match="limit"):
        search.run(spec(world, out), limit=3, quiet=True)
    with pytest.raises(RefusedError, match="no column 'nope'"):
        run(world, out, where="nope = 1")
    assert not out.exists()


# --- runs that end early, and runs again ----------------------------------------------------------


def test_a_run_that_died_goes_on_and_answers_each_query_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, tmp_path / "whole", columns=("caption",))
    put = blobs.put
    calls: list[str] = []

    def fails(storage: Any, local: Path, root: str, path: str) -> Any:
        calls.append(path)
        if len(calls) == 2:
            raise StorageError(path, "stayed broken")
        return put(storage, local, root, path)

    monkeypatch.setattr(blobs, "put", fails)
    out = tmp_path / "out"
    with pytest.raises(JobFailed, match="stayed broken") as caught:
        run(world, out, columns=("caption",))
    report = caught.value.report
    assert report is not None
    assert (report.status, report.rows_written) == ("failed", 100)
    assert not (out / "hits.json").exists()
    [first] = out.glob("part-*")
    stamp = first.stat().st_mtime_ns
    report = run(world, out, columns=("caption",))
    assert (report.rows_skipped, report.rows_written) == (100, 200)
    assert first.stat().st_mtime_ns == stamp
    assert len(calls) == 4
    assert table(out).equals(table(tmp_path / "whole"))
    assert (out / "hits.json").read_text() == (tmp_path / "whole" / "hits.json").read_text()
    again = run(world, out, columns=("caption",))
    assert (again.status, again.rows_skipped, again.rows_read) == ("done", ROWS, 0)
    assert len(calls) == 4


def test_a_file_of_queries_goes_on_too(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queryfile, "PIECE", 8)
    asked = vectors_file(tmp_path / "q.jsonl", [*FOUND[:20].tolist(), None])
    answering = answers.Answering.__call__

    def dies(self: answers.Answering, piece: Any) -> Any:
        if piece.start > 8:
            raise JobFailed("a worker died")
        return answering(self, piece)

    with monkeypatch.context() as patch:
        patch.setattr(answers.Answering, "__call__", dies)
        with pytest.raises(JobFailed):
            run(world, tmp_path / "out", asked)
    report = run(world, tmp_path / "out", asked)
    assert (report.rows_skipped, report.rows_read, report.rows_filtered) == (8, 13, 1)
    assert list(hits(tmp_path / "out").values()) == expected(world, FOUND[:20])


def test_a_signal_ends_a_run_between_batches(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Index.search
    calls: list[int] = []

    def signals(self: Index, found: Any, *args: Any, **more: Any) -> Any:
        calls.append(len(found))
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return seen(self, found, *args, **more)

    monkeypatch.setattr(answers, "BATCH", 40)
    monkeypatch.setattr(Index, "search", signals)
    with pytest.raises(Interrupted) as caught:
        run(world, tmp_path)
    assert caught.value.signum == signal.SIGTERM
    assert caught.value.report is not None
    assert (caught.value.report.status, caught.value.report.rows_written) == ("interrupted", 100)
    assert calls == [40, 40, 20, 40]  # the batch under way ended, and no other began
    assert run(world, tmp_path).rows_written == 200
    assert list(hits(tmp_path)) == [*dict.fromkeys(table(tmp_path)["query_id"].to_pylist())]
    assert sorted(hits(tmp_path)) == sorted(world.ids)


def test_pieces_that_come_back_as_they_please(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = vectors_file(tmp_path / "q.jsonl", FOUND.tolist())
    monkeypatch.setattr(queryfile, "PIECE", 16)
    for name, queries in {"store": None, "file": asked}.items():
        run(world, tmp_path / name / "here", queries)
        with monkeypatch.context() as patch:
            patch.setattr(search, "spread", scattered)
            run(world, tmp_path / name / "there", queries)
        assert table(tmp_path / name / "there").equals(table(tmp_path / name / "here"))


def test_a_torn_part_is_done_again(world: World, tmp_path: Path) -> None:
    run(world, tmp_path)
    whole = table(tmp_path)
    part = sorted(tmp_path.glob("part-*"))[1]
    part.write_bytes(part.read_bytes()[:100])
    report = run(world, tmp_path)
    assert (report.rows_skipped, report.rows_written) == (200, 100)
    assert table(tmp_path).equals(whole)


def test_new_parts_of_a_store_alone_are_asked_and_a_new_index_all(tmp_path: Path) -> None:
    world = World(tmp_path)
    out = tmp_path / "out"
    run(world, out)
    more = world.store.put("b", vectors(50, seed=3))
    report = run(world, out)
    assert (report.rows_skipped, report.rows_written) == (ROWS, 50)
    assert sorted(hits(out)) == sorted([*world.ids, *more])
    build(world.store, tmp_path / "index")
    report = run(world, out)
    assert (report.rows_skipped, report.rows_written) == (0, ROWS + 50)
    named = {each["path"] for each in json.loads((out / "hits.json").read_text())["parts"]}
    assert {path.name for path in out.glob("part-*")} == named  # no hits of the older version
    assert hits(out)[more[0]][0] == more[0]
    other = run(world, out, k=2)
    assert (other.rows_skipped, table(out).num_rows) == (0, 2 * (ROWS + 50))
