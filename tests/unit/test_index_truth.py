"""Recall is what it says: against exact search, own rows and ties taken care of, honestly tuned."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from mmray.index.building.truth import Questions, Truth, recall
from mmray.index.building.tune import tune
from mmray.index.kinds import KINDS, choices
from mmray.index.searching.loaded import Loaded, Part
from mmray.index.searching.nearest import nearest
from mmray.specs.index import IndexOptions
from tests.stores import exact, vectors

DIM = 32


def truth_of(found: np.ndarray, queries: np.ndarray, depth: int = 36) -> Truth:
    truth = Truth.empty(queries, depth)
    for first in range(0, len(found), 700):
        truth.see(found[first : first + 700], first)
    return truth


def loaded(kind: str, found: np.ndarray, cuts: int = 3, dead: np.ndarray | None = None) -> Loaded:
    choice = choices(IndexOptions(kind=kind), len(found), DIM, 1 << 30)[0]  # type: ignore[arg-type]
    base = faiss.index_factory(DIM, choice.factory, faiss.METRIC_INNER_PRODUCT)
    base.train(found)
    edges = np.linspace(0, len(found), cuts + 1).astype(int)
    parts, whole = [], []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        index = faiss.clone_index(base)
        index.add(found[start:stop])
        parts.append(Part(index, int(start), int(stop - start)))
        if KINDS[kind].codes:
            whole.append(found[start:stop])
    return Loaded(kind, DIM, parts, whole, dead)


def test_truth_is_exact_search_however_it_was_gathered() -> None:
    found, queries = vectors(3000, DIM), vectors(40, DIM, seed=7)
    truth = truth_of(found, queries)
    scores, places = exact(found, queries, 36)
    np.testing.assert_allclose(truth.scores, scores, atol=1e-6)
    assert (truth.numbers == places).mean() > 0.999  # but for rows that score the same

    joined = Truth.empty(queries, 36)
    for first in (0, 1000, 2000):
        joined.join(truth_of(found[first : first + 1000], queries), first)
    np.testing.assert_array_equal(joined.numbers, truth.numbers)


def test_recall_of_exact_search_is_1_and_of_half_of_it_a_half() -> None:
    found, queries = vectors(2000, DIM), vectors(50, DIM, seed=3)
    truth = truth_of(found, queries)
    hits = nearest(queries, found, 11)
    assert recall(hits, truth, 10) == 1.0
    worse = hits[0].copy(), hits[1].copy()
    worse[1][:, 5:], worse[0][:, 5:] = -1, -np.inf
    assert recall(worse, truth, 10) == pytest.approx(0.5)


def test_a_query_that_is_a_row_gains_nothing_by_finding_itself() -> None:
    found = vectors(2000, DIM)
    truth = truth_of(found, found[:50])
    truth.own[:] = np.arange(50)
    itself = np.full((50, 11), -1, np.int64)
    itself[:, 0] = np.arange(50)
    scores = np.where(itself >= 0, 1.0, -np.inf).astype(np.float32)
    assert recall((scores, itself), truth, 10) == 0.0
    assert recall(nearest(found[:50], found, 11), truth, 10) == 1.0


def test_rows_that_repeat_each_other_are_as_good_as_each_other() -> None:
    found = np.repeat(vectors(5, DIM), 40, axis=0)
    truth = truth_of(found, found[::40].copy())
    scores, numbers = nearest(found[::40].copy(), found, 40)
    others = scores[:, 20:31], numbers[:, 20:31]  # none of the first rows, which truth names
    assert recall(others, truth, 10) == 1.0


def test_without_dead_rows_the_next_ones_count() -> None:
    found, queries = vectors(3000, DIM), vectors(30, DIM, seed=5)
    truth = truth_of(found, queries)
    dead = np.unique(truth.numbers[:, :3])
    left = np.setdiff1d(np.arange(3000), dead)
    judged = truth.without(dead, 10)
    assert 0 < len(judged.vectors) <= 30
    scores, _ = exact(found[left], judged.vectors, 10)
    np.testing.assert_allclose(judged.scores[:, :10], scores, atol=1e-6)


def test_queries_that_know_too_little_are_left_out() -> None:
    found, queries = vectors(3000, DIM), vectors(30, DIM, seed=5)
    truth = truth_of(found, queries, depth=12)
    dead = np.sort(truth.numbers[0, :6])
    judged = truth.without(dead, 10)
    assert not (judged.vectors == queries[0]).all(1).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_tuned_setting_reaches_the_floor_on_queries_it_was_not_tuned_on(kind: str) -> None:
    found, queries = vectors(6000, DIM, spread=1.0), vectors(400, DIM, seed=9, spread=1.0)
    index, truth = loaded(kind, found), truth_of(found, queries)
    tuned = tune(index, truth, 10, 0.9)
    fresh = vectors(400, DIM, seed=99, spread=1.0)
    again = recall(index.search(fresh, 11, tuned.parameters), truth_of(found, fresh), 10)
    assert tuned.recall >= 0.9
    assert again > 0.86
    assert tuned.queries == 200


def test_more_recall_costs_more_effort() -> None:
    found, queries = vectors(6000, DIM, spread=1.0), vectors(400, DIM, seed=9, spread=1.0)
    index, truth = loaded("ivf_flat", found), truth_of(found, queries)
    low, high = (tune(index, truth, 10, floor).parameters["nprobe"] for floor in (0.5, 0.99))
    assert low < high


def test_a_floor_that_is_out_of_reach_is_told_not_met() -> None:
    found = np.random.default_rng(0).standard_normal((4000, DIM)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    index = loaded("hnsw", found)
    index._parts[0].index.hnsw.entry_point = 0
    truth = truth_of(found[2000:], found[:100])  # of other rows: nothing finds these numbers
    tuned = tune(loaded("hnsw", found[:2000] * -1), truth, 10, 0.95)
    assert tuned.recall < 0.95


def test_one_row_has_nothing_to_find() -> None:
    found = vectors(1, DIM)
    truth = truth_of(found, found)
    truth.own[:] = 0
    tuned = tune(loaded("flat", found, cuts=1), truth, 10, 0.95)
    assert tuned.recall == 1.0


def test_files_of_queries_come_back_and_hold_no_objects(tmp_path: Path) -> None:
    found = vectors(50, DIM)
    truth = truth_of(found, found[:7])
    truth.save(tmp_path / "t.npz")
    again = Truth.read(tmp_path / "t.npz")
    np.testing.assert_array_equal(again.numbers, truth.numbers)
    asked = Questions(found[:2], np.array(["a", "b"]), np.array([1, 2]))
    asked.save(tmp_path / "q.npz")
    assert Questions.read(tmp_path / "q.npz").paths.tolist() == ["a", "b"]
    np.savez(tmp_path / "bad.npz", vectors=np.array([{}], object))
    with pytest.raises(ValueError, match="pickle"):
        Questions.read(tmp_path / "bad.npz")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.9])
def test_a_filter_keeps_recall_also_where_it_points_away_from_the_query(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmray.index.searching.loaded.EXACT_ROWS", 100)
    found, queries = vectors(6000, DIM, spread=0.6), vectors(60, DIM, seed=2, spread=0.6)
    dead = np.arange(0, 6000, 17)
    index = loaded(kind, found, dead=dead)
    settings = {"nprobe": 12, "ef_search": 64, "rerank": 8}
    away = np.argsort(found @ queries.mean(0))[: max(5, int(share * 6000))]
    for allowed in (np.sort(away), np.arange(0, 6000, round(1 / share))):
        live = np.setdiff1d(allowed, dead)
        scores, numbers = index.search(queries, 10, settings, allowed)
        want = min(10, len(live))
        assert np.isin(numbers[:, :want], live).all()
        assert (numbers[:, want:] == -1).all()
        best, _ = exact(found[live], queries, want)
        assert (scores[:, :want] >= best[:, -1:] - 1e-5).mean() > 0.93


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_come_back_as_they_went_in(kind: str) -> None:
    found = vectors(3000, DIM)
    index = loaded(kind, found, dead=np.array([3, 2999]))
    some = np.array([2998, 0, 1500, 7, 7])
    np.testing.assert_array_equal(index.vectors(some), found[some])
    assert index.rows == 2998


@pytest.mark.parametrize("kind", KINDS)
def test_dead_rows_never_answer(kind: str) -> None:
    found = vectors(2000, DIM)
    dead = np.arange(0, 2000, 3)
    index = loaded(kind, found, dead=dead)
    settings = {"nprobe": 64, "ef_search": 200, "rerank": 8}
    _, numbers = index.search(found[dead[:50]], 20, settings)
    assert not np.isin(numbers, dead).any()
    assert (numbers >= 0).all()
