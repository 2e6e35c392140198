"""An open index: searches are exact numpy searches, and what can't be searched is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import mmray
from mmray.errors import RefusedError
from mmray.index import Index, manifest
from mmray.index.searching.opened import FEW
from mmray.store import Store
from tests import indexes
from tests.indexes import DIM, ROWS, STORAGE, unit

VECTORS = unit(ROWS)
DEAD = (3, 30, 59)
LIVE = [row for row in range(ROWS) if row not in DEAD]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "index")


@pytest.fixture
def index(root: str) -> Index:
    indexes.index(root, VECTORS, cuts=(25, 40), dead=DEAD)
    return mmray.open_index(root)


def exact(queries: np.ndarray, k: int, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ VECTORS[rows].T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.array(rows)[order]


def test_hits_are_those_of_numpy(index: Index) -> None:
    queries = unit(9, seed=1)
    hits = index.search(queries, 5)
    scores, numbers = exact(queries, 5, LIVE)
    assert hits.numbers.dtype == np.int64
    assert hits.scores.dtype == np.float32
    assert hits.numbers.tolist() == numbers.tolist()
    assert np.allclose(hits.scores, scores, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-200, 0.01, 1.0, 1e30])
def test_the_length_of_a_query_does_not_matter(index: Index, factor: float) -> None:
    query = unit(1, seed=2)[0]
    found = index.search(query.astype(np.float64) * factor, 3)
    assert found.numbers.shape == (1, 3)
    assert found.numbers.tolist() == exact(query[None], 3, LIVE)[1].tolist()
    assert np.allclose(found.scores, exact(query[None], 3, LIVE)[0], atol=1e-6)


def test_by_inner_product_it_does(root: str) -> None:
    vectors = unit(20) * np.arange(1, 21)[:, None].astype(np.float32)
    indexes.index(root, vectors, metric="inner_product")
    index = Index.open(root, STORAGE)
    query = unit(1, seed=3) * 7
    found = index.search(query, 20)
    assert np.allclose(found.scores[0], np.sort(vectors @ query[0])[::-1], rtol=1e-5)
    assert index.search(np.zeros(DIM), 2).scores.tolist() == [[0, 0]]


def test_k_above_the_rows_gives_all(index: Index) -> None:
    hits = index.search(VECTORS[:2], 100)
    assert hits.numbers.shape == (2, 100)
    assert sorted(hits.numbers[0, : len(LIVE)].tolist()) == LIVE
    assert (hits.numbers[:, len(LIVE) :] == -1).all()
    assert np.isneginf(hits.scores[:, len(LIVE) :]).all()


def test_no_query_gives_no_hits(index: Index) -> None:
    for nothing in ([], np.zeros((0, DIM)), np.zeros((0, DIM), np.float32)):
        assert index.search(nothing, 4).numbers.shape == (0, 4)


def test_lists_of_whole_numbers_are_queries(index: Index) -> None:
    assert index.search([1] + [0] * (DIM - 1), 1).numbers[0, 0] == max(
        LIVE, key=lambda row: VECTORS[row, 0]
    )


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (np.zeros(DIM), "query 0 is all zeros"),
        (np.stack([VECTORS[0], np.zeros(DIM)]), "query 1 is all zeros"),
        (np.stack([VECTORS[0], np.full(DIM, np.nan)]), "query 1 can't be .* its number 0 is nan"),
        ([*VECTORS[0][:-1], np.inf], "query 0 can't be .* its number 15 is inf"),
        ([*VECTORS[0][:-1], 1e39], "query 0 can't be .* its number 15 is 1e[+]39"),
        ([*VECTORS[0][:-1], None], "its number 15 is nan"),
        (VECTORS[:, :7], "queries have 7 dimensions, the index has 16"),
        ([1.0, 2.0], "queries have 2 dimensions, the index has 16"),
        (np.zeros((1, 1, DIM)), "not of 3 dimensions"),
        (1.0, "not of 0 dimensions"),
        ([[1.0], [1.0, 2.0]], "must be numbers"),
        (["a red disc"], "must be numbers"),
        ("a red disc", "must be numbers"),
    ],
)
def test_what_can_not_be_searched_with(index: Index, queries: object, words: str) -> None:
    with pytest.raises(RefusedError, match=words):
        index.search(queries, 3)


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_one_at_least(index: Index, k: int) -> None:
    with pytest.raises(RefusedError, match=f"k is {k}"):
        index.search(VECTORS[0], k)


def test_another_encoders_vectors_are_refused(index: Index) -> None:
    assert index.search(VECTORS[0], 1, fingerprint="f" * 32).numbers[0, 0] == 0
    with pytest.raises(RefusedError, match=f"{'f' * 32}.*{'e' * 32}"):
        index.search(VECTORS[0], 1, fingerprint="e" * 32)


def test_parameters_that_the_kind_has_not(index: Index) -> None:
    with pytest.raises(RefusedError, match="'nprobe' is no parameter of this flat index"):
        index.search(VECTORS[0], 1, parameters={"nprobe": 3})


def test_hits_meet_the_condition(index: Index) -> None:
    food = [row for row in LIVE if row % 3 == 0]
    queries = unit(4, seed=4)
    found = index.search(queries, 30, where="category = 'food'")
    assert found.numbers[:, : len(food)].tolist() == exact(queries, 30, food)[1].tolist()
    assert (found.numbers[:, len(food) :] == -1).all()
    nothing = index.search(queries, 3, where="category = 'nothing'")
    assert (nothing.numbers == -1).all()


def test_a_row_is_among_its_own_hits_unless_it_is_excluded(index: Index) -> None:
    assert index.search(VECTORS[7], 1).numbers[0, 0] == 7
    found = index.search(VECTORS[7], 4, exclude=[indexes.name(7), "no such id"])
    left = [row for row in LIVE if row != 7]
    assert found.numbers.tolist() == exact(VECTORS[7:8], 4, left)[1].tolist()


@pytest.mark.parametrize("few", [FEW, 3])
@pytest.mark.parametrize("where", [None, "number >= 0"])
def test_many_excluded_rows(
    index: Index, monkeypatch: pytest.MonkeyPatch, few: int, where: str | None
) -> None:
    monkeypatch.setattr("mmray.index.searching.opened.FEW", few)
    gone = [*range(10), 59]
    left = [row for row in LIVE if row not in gone and (where is None or row % 7)]
    found = index.search(VECTORS[:5], 60, where=where, exclude=[indexes.name(row) for row in gone])
    assert found.numbers[:, : len(left)].tolist() == exact(VECTORS[:5], 60, left)[1].tolist()
    assert (found.numbers[:, len(left) :] == -1).all()


def test_rows_by_number(index: Index) -> None:
    numbers = np.array([41, 0, 24, 25, 0])
    assert index.ids(numbers) == [indexes.name(row) for row in numbers]
    table = index.table(numbers)
    assert tuple(table.column_names) == index.columns
    assert index.columns[:4] == ("id", "source_uri", "source_key", "category")
    assert table["source_key"].to_pylist() == ["k0041", "k0000", "k0024", "k0025", "k0000"]
    assert table["number"].to_pylist() == [41, None, 24, 25, None]
    some = index.table(numbers[:2], ["number", "id"])
    assert some.to_pydict() == {"number": [41, None], "id": [indexes.name(41), indexes.name(0)]}
    assert index.table(numbers[:0]).num_rows == 0
    assert index.ids(numbers[:0]) == []
    assert np.allclose(index.vectors(numbers), VECTORS[numbers])
    assert index.live().tolist() == LIVE


def test_a_column_that_is_not_kept(index: Index) -> None:
    with pytest.raises(RefusedError, match=r"no column 'nubmer' \(did you mean 'number'\?\)"):
        index.table(np.array([1]), ["nubmer"])


@pytest.mark.parametrize("number", [-1, ROWS, 10**9])
def test_a_number_that_is_no_row(index: Index, number: int) -> None:
    with pytest.raises(IndexError):
        index.ids(np.array([1, number]))
    with pytest.raises(IndexError):
        index.table(np.array([1, number]))


def test_rows_by_id(index: Index) -> None:
    assert index.numbers([indexes.name(row) for row in (40, 2, 40)]).tolist() == [40, 2, 40]
    assert index.numbers([]).tolist() == []
    for name in ("nothing", indexes.name(3)):  # one that doesn't answer any more
        with pytest.raises(RefusedError, match=f"no row with the id '{name}'"):
            index.numbers([indexes.name(1), name])


def test_an_id_that_came_again_is_the_later_row(root: str) -> None:
    table = indexes.rows_of(6)
    names = table["id"].to_pylist()
    table = table.set_column(0, "id", pa.array([*names[:5], names[1]]))
    indexes.index(root, unit(6), table, cuts=(3,), dead=[1])
    assert Index.open(root, STORAGE).numbers([indexes.name(1)]).tolist() == [5]


def test_an_index_without_rows(root: str) -> None:
    indexes.index(root, np.zeros((0, DIM), np.float32), cuts=())
    index = Index.open(root, STORAGE)
    assert (index.search(VECTORS[:2], 3).numbers == -1).all()
    assert index.live().tolist() == []


def test_disk_and_s3_answer_alike(index: Index, s3_uri: str) -> None:
    indexes.index(s3_uri, VECTORS, cuts=(25, 40), dead=DEAD)
    there = mmray.open_index(s3_uri, mmray.Storage())
    queries = unit(5, seed=5)
    for where in (None, "number > 20"):
        mine, theirs = (each.search(queries, 7, where=where) for each in (index, there))
        assert mine.numbers.tolist() == theirs.numbers.tolist()
        assert mine.scores.tolist() == theirs.scores.tolist()
    assert there.table(there.live()).equals(index.table(index.live()))


def test_versions(root: str) -> None:
    indexes.index(root, VECTORS)
    indexes.index(root, VECTORS[:30], version=2)
    assert len(mmray.open_index(root).live()) == 30
    assert len(mmray.open_index(root, version=1).live()) == ROWS
    with pytest.raises(RefusedError, match="no version 3, only 1 to 2"):
        mmray.open_index(root, version=3)


def test_where_no_index_is(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no index is there"):
        mmray.open_index(str(tmp_path))


def tamper(root: str, path: str, data: bytes) -> None:
    STORAGE.write_bytes(f"{root}/{path}", data)


@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_a_torn_or_tampered_index_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    root = str(tmp_path / "i") if kind == "disk" else request.getfixturevalue("s3_uri")
    found = indexes.index(root, VECTORS, dead=DEAD)
    for file in found.files:
        data = STORAGE.read_bytes(f"{root}/{file.path}")
        for other, words in (
            (data[: len(data) // 2], "is torn"),
            (data[:-1] + bytes([data[-1] ^ 1]), "was changed after it was written"),
        ):
            tamper(root, file.path, other)
            with pytest.raises(RefusedError, match=f"{file.path} {words}"):
                Index.open(root, STORAGE)
        STORAGE.delete(f"{root}/{file.path}")
        with pytest.raises(RefusedError, match=f"{file.path} is missing"):
            Index.open(root, STORAGE)
        tamper(root, file.path, data)
    assert Index.open(root, STORAGE).search(VECTORS[5], 1).numbers[0, 0] == 5


def test_a_tampered_manifest_is_refused(root: str) -> None:
    indexes.index(root, VECTORS)
    path = Path(root) / "versions" / "00000001.json"
    value = json.loads(path.read_bytes())
    path.write_text(json.dumps({**value, "rows": 1}))
    with pytest.raises(RefusedError, match="changed after it was written"):
        Index.open(root, STORAGE)


def test_rows_that_are_not_of_the_segment_are_refused(root: str) -> None:
    found = indexes.index(root, VECTORS, cuts=(25,))
    first, second = found.segments
    wrong = replace(found, version=2, segments=(replace(first, table=second.table), second))
    assert manifest.publish(root, STORAGE, wrong)
    with pytest.raises(RefusedError, match="has 35 rows, not 25"):
        Index.open(root, STORAGE)


# --- pictures of the store ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    return indexes.embedded(folder, indexes.samples(12), indexes.TOY)


def test_thumbnails_come_from_the_store(store: Store, root: str) -> None:
    indexes.index_of(store, "image_embedding", root)
    index = Index.open(root, STORAGE)
    table = store.to_arrow(["id", "thumbnail"]).to_pylist()
    wanted = {row["id"]: row["thumbnail"] for row in table}
    assert len(wanted) == 12
    assert index.thumbnails([*wanted]) == wanted
    some = sorted(wanted)[3:5]
    assert index.thumbnails([*some, "nothing"]) == {name: wanted[name] for name in some}
    assert index.thumbnails([]) == {}


def test_thumbnails_of_a_version_that_is_gone_are_the_latest(store: Store, root: str) -> None:
    made = indexes.index_of(store, "image_embedding", root).made
    names = store.to_arrow(["id"])["id"].to_pylist()

    def shown(**changes: object) -> dict[str, bytes]:
        index = Index.open(root, STORAGE)
        index.manifest = replace(index.manifest, made=replace(made, **changes))  # type: ignore[arg-type]
        return index.thumbnails(names)

    assert len(shown(store_version=99)) == 12
    assert shown(store="/no/store/there") == {}


def test_a_store_without_thumbnails(tmp_path: Path, root: str) -> None:
    plain = indexes.embedded(tmp_path, indexes.samples(3), indexes.TOY, thumbnails=0)
    indexes.index_of(plain, "image_embedding", root)
    index = Index.open(root, STORAGE)
    assert index.thumbnails(index.ids(index.live())) == {}
