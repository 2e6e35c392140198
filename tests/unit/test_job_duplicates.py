"""`job: duplicates`: groups as a plain loop makes them, each row in one list, whatever ends it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmray.errors import Interrupted, JobFailed, RefusedError, SpecError, StorageError
from mmray.index.batch import duplicates as grouping
from mmray.index.batch import lists
from mmray.index.batch.duplicates import Found, Groups, neighbours
from mmray.index.searching.opened import Index
from mmray.jobs import duplicates
from mmray.report import Report
from mmray.specs.index import DuplicatesSpec
from mmray.storage import Storage
from tests.stores import CATEGORIES, Vectors, vectors
from tests.unit.index_jobs import build, copies, scattered

ROWS, THRESHOLD = 600, 0.8
FOUND = copies(ROWS)


class World:
    def __init__(self, folder: Path, found: np.ndarray = FOUND, **options: Any) -> None:
        self.store = Vectors(folder / "store")
        ids = self.store.put("a", found, rows=200)
        self.index = build(self.store, folder / "index", **options)
        opened = Index.open(self.index, Storage())
        self.ids = opened.ids(opened.live())
        """By row number."""
        place = {name: number for number, name in enumerate(ids)}
        self.found = found[[place[name] for name in self.ids]]
        self.places = [place[name] for name in self.ids]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def spec(world: World, output: Path, **more: Any) -> DuplicatesSpec:
    fields = {"threshold": THRESHOLD} | more
    return DuplicatesSpec(
        job="duplicates", index={"uri": world.index}, output=str(output), **fields
    )


def run(*args: Any, **more: Any) -> Report:
    return duplicates.run(spec(*args, **more), quiet=True)


def plain(found: np.ndarray, threshold: float = THRESHOLD) -> list[int]:
    """The place of the row that stands for each row: a plain loop over all pairs."""
    near = found.astype(np.float64) @ found.astype(np.float64).T >= threshold
    stands = [-1] * len(found)
    for row in range(len(found)):
        if stands[row] < 0:
            for other in range(row + 1, len(found)):
                if near[row, other] and stands[other] < 0:
                    stands[other] = row
    return stands


def lists_of(folder: Path) -> tuple[list[str], dict[str, tuple[str, float]]]:
    keep = pq.read_table(folder / "keep.parquet")["id"].to_pylist()
    rows = pq.read_table(folder / "drop.parquet").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return keep, {row["id"]: (row["kept_id"], row["score"]) for row in rows}


def assert_lists(world: World, folder: Path, stands: list[int]) -> None:
    keep, drop = lists_of(folder)
    assert keep == [name for name, by in zip(world.ids, stands, strict=True) if by < 0]
    assert {name: by for name, (by, _) in drop.items()} == {
        name: world.ids[by] for name, by in zip(world.ids, stands, strict=True) if by >= 0
    }


# --- which rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9, 0.999])
def test_groups_are_those_of_a_plain_loop(world: World, tmp_path: Path, threshold: float) -> None:
    report = run(world, tmp_path, threshold=threshold)
    stands = plain(world.found, threshold)
    assert_lists(world, tmp_path, stands)
    kept = sum(by < 0 for by in stands)
    assert (report.rows_read, report.rows_written) == (ROWS, kept)
    assert report.filtered == ({"near-duplicate": ROWS - kept} if kept < ROWS else {})
    assert report.metrics["groups"] == len({by for by in stands if by >= 0})
    place = {name: number for number, name in enumerate(world.ids)}
    for name, (by, score) in lists_of(tmp_path)[1].items():
        cosine = world.found[place[name]].astype(np.float64) @ world.found[place[by]]
        assert score == pytest.approx(cosine, abs=1e-6)
        assert score >= threshold - 1e-6


def test_small_steps_give_the_same_groups(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Groups are larger than what is asked for at first, at most, and in one block.
    for name, value in {"FIRST": 2, "STEP": 2, "MOST": 8, "PAIR_BYTES": 1024}.items():
        monkeypatch.setattr(grouping, name, value)
    monkeypatch.setattr(duplicates, "BLOCK", 50)
    monkeypatch.setattr(duplicates, "LOOK_AHEAD", 70)
    monkeypatch.setattr(lists, "CHUNK", 7)
    run(world, tmp_path)
    assert_lists(world, tmp_path, plain(world.found))


def test_blocks_that_come_back_as_they_please_give_the_same_groups(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    monkeypatch.setattr(duplicates, "spread", scattered)
    run(world, tmp_path)
    assert_lists(world, tmp_path, plain(world.found))


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat", "sq8"])
def test_other_kinds_leave_no_row_out_and_none_too_far(tmp_path: Path, kind: str) -> None:
    world = World(tmp_path, copies(2_000), kind=kind)
    run(world, tmp_path / "out")
    keep, drop = lists_of(tmp_path / "out")
    assert sorted([*keep, *drop]) == sorted(world.ids)
    place = {name: number for number, name in enumerate(world.ids)}
    for name, (by, score) in drop.items():
        assert by in set(keep)
        assert score >= THRESHOLD - 1e-6
        assert score == pytest.approx(world.found[place[name]] @ world.found[place[by]], abs=1e-5)
    missed = abs(len(keep) - sum(by < 0 for by in plain(world.found)))
    assert missed <= 0.05 * len(keep)


def test_rows_found_out_of_date_settle_alike(world: World) -> None:
    # On a cluster neighbours are asked for before it's known what earlier rows drop.
    index = Index.open(world.index, Storage())
    rows = index.live()
    found = neighbours(index, rows, THRESHOLD)
    near = world.found.astype(np.float64) @ world.found.astype(np.float64).T >= THRESHOLD
    for place in np.flatnonzero(~found.cut):  # each neighbour once
        want = np.flatnonzero(near[place])
        assert found.of(place)[0].tolist() == want[want != place].tolist()
    groups = Groups(rows)

    def every(number: int) -> Any:
        return neighbours(index, np.array([number]), THRESHOLD, all_of=True).of(0)

    groups.settle(len(rows), found, every)
    assert groups.stands.tolist() == plain(world.found)


def found_by(near: dict[int, list[int]], count: int) -> Found:
    """What an index says that may be blind in one of two directions."""
    runs = [near.get(row, []) for row in range(count)]
    starts = np.cumsum([0, *map(len, runs)])
    numbers = np.array([each for run in runs for each in run], dtype=np.int64)
    scores = np.linspace(0.9, 0.99, len(numbers), dtype=np.float32)
    return Found(np.arange(count), starts, numbers, scores, np.zeros(count, bool))


@pytest.mark.parametrize(
    ("near", "stands"),
    [
        ({1: [0]}, [-1, 0, -1, -1]),  # a kept row was blind to a later one
        ({0: [1], 1: [2]}, [-1, 0, -1, -1]),  # what a dropped row is near to doesn't matter
        ({2: [0, 1]}, [-1, -1, 0, -1]),  # of two kept rows the first stands for it
        ({0: [3], 1: [3, 2]}, [-1, -1, 1, 0]),  # and who drops a row first
    ],
)
def test_rows_of_an_index_that_is_half_blind(near: dict[int, list[int]], stands: list[int]) -> None:
    groups = Groups(np.arange(4))
    found = found_by(near, 4)
    places, keepers, _ = groups.settle(4, found, found.of)
    assert groups.stands.tolist() == stands
    dropped = {place: by for place, by in enumerate(stands) if by >= 0}
    assert dict(zip(places.tolist(), keepers.tolist(), strict=True)) == dropped
    again = Groups(np.arange(4))
    again.restore(4, places, keepers, np.zeros(len(places), np.float32))
    assert again.stands.tolist() == stands


def test_thousands_of_copies_cost_one_long_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, rest = vectors(1), vectors(40, seed=2)
    world = World(tmp_path, np.concatenate([rest, np.repeat(one, 3_000, axis=0)]))
    asked: list[tuple[int, int]] = []
    search = Index.search

    def counted(self: Index, found: Any, k: int = 10, **more: Any) -> Any:
        asked.append((len(found), k))
        return search(self, found, k, **more)

    monkeypatch.setattr(Index, "search", counted)
    report = run(world, tmp_path / "out", threshold=1.0)
    assert report.rows_written == 41
    assert sum(queries * k for queries, k in asked) < 20 * len(world.ids) * grouping.FIRST
    assert max(queries * k for queries, k in asked) <= duplicates.BLOCK * grouping.MOST
    assert max(k for _, k in asked) >= 3_000
    assert report.metrics["groups"] == 1


def test_only_rows_that_meet_the_condition_are_compared(world: World, tmp_path: Path) -> None:
    run(world, tmp_path, where="category = 'food'")
    mine = [n for n, place in enumerate(world.places) if CATEGORIES[place % 4] == "food"]
    stands = plain(world.found[mine])
    keep, drop = lists_of(tmp_path)
    assert keep == [world.ids[n] for n, by in zip(mine, stands, strict=True) if by < 0]
    assert sorted([*keep, *drop]) == sorted(world.ids[n] for n in mine)


def test_replaced_rows_are_in_no_list(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.store.put("a", FOUND[:100], etag="2")
    build(world.store, tmp_path / "index")
    run(world, tmp_path / "out")
    keep, drop = lists_of(tmp_path / "out")
    assert sorted([*keep, *drop]) == sorted(world.store.store.to_arrow(["id"])["id"].to_pylist())


# --- what can't be ------------------------------------------------------------------------------


def test_what_cannot_be_compared_is_refused(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(RefusedError, match="no row is there to compare"):
        run(world, out, where="category = 'nothing'")
    with pytest.raises(RefusedError, match="no column 'nope'"):
        run(world, out, where="nope = 1")
    with pytest.raises(SpecError, match="limit"):
        duplicates.run(spec(world, out), limit=3, quiet=True)
    with pytest.raises(SpecError, match="output: is the index itself"):
        duplicates.run(
            DuplicatesSpec(
                job="duplicates",
                index={"uri": world.index},
                output=f"{world.index}/../{Path(world.index).name}",
            ),
            quiet=True,
        )
    assert not out.exists()


def test_inner_products_of_long_vectors_are_no_cosines(tmp_path: Path) -> None:
    long = World(tmp_path / "long", 3 * FOUND[:50], metric="inner_product")
    with pytest.raises(RefusedError, match="inner products .*`metric: cosine`"):
        run(long, tmp_path / "out")
    unit = World(tmp_path / "unit", FOUND[:50], metric="inner_product")
    run(unit, tmp_path / "out")
    assert_lists(unit, tmp_path / "out", plain(unit.found))


# --- runs that end early, and runs again --------------------------------------------------------


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 20)
    monkeypatch.setattr(duplicates, "LOOK_AHEAD", 100)
    monkeypatch.setattr(duplicates, "SAVE_SECONDS", 0.0)


def dying(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException | None) -> None:
    """The search of the block `at` fails, or gets a signal."""
    ask = duplicates.Neighbouring.__call__
    calls: list[int] = []

    def dies(self: duplicates.Neighbouring, rows: Any) -> Any:
        calls.append(len(rows))
        if len(calls) == at:
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
        return ask(self, rows)

    monkeypatch.setattr(duplicates.Neighbouring, "__call__", dies)


@pytest.mark.parametrize(
    "error", [JobFailed("a worker died"), StorageError("x", "broken"), KeyboardInterrupt(), None]
)
def test_a_run_that_died_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    run(world, tmp_path / "whole")
    small_blocks(monkeypatch)
    with monkeypatch.context() as patch:
        dying(patch, 5, error)
        with pytest.raises((JobFailed, Interrupted, KeyboardInterrupt)) as caught:
            run(world, tmp_path / "out")
    done = 0
    if not isinstance(error, KeyboardInterrupt):
        assert not isinstance(caught.value, KeyboardInterrupt)
        report = caught.value.report
        assert report is not None
        assert report.status == ("interrupted" if error is None else "failed")
        done = report.rows_read
        assert 0 < done < ROWS
    assert not (tmp_path / "out" / "keep.parquet").exists()
    report = run(world, tmp_path / "out")
    assert report.rows_skipped == done or (not done and report.rows_skipped > 0)
    assert report.rows_skipped + report.rows_read == ROWS
    for name in ("keep", "drop"):
        ours, theirs = (pq.read_table(tmp_path / f / f"{name}.parquet") for f in ("out", "whole"))
        assert ours.equals(theirs)
    log = tmp_path / "out" / "_mmray" / "duplicates"
    assert not [path for path in log.rglob("*") if path.is_file()]


def test_what_an_earlier_run_left_torn_is_found_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    with monkeypatch.context() as patch:
        dying(patch, 6, JobFailed("a worker died"))
        with pytest.raises(JobFailed):
            run(world, tmp_path)
    saved = sorted((tmp_path / "_mmray" / "duplicates").rglob("*.parquet"))
    assert len(saved) >= 4
    saved[2].write_bytes(saved[2].read_bytes()[:-30])
    report = run(world, tmp_path)
    assert report.rows_skipped == int(saved[1].stem.partition("-")[2])
    assert_lists(world, tmp_path, plain(world.found))


def test_a_run_again_does_nothing_and_another_threshold_all(world: World, tmp_path: Path) -> None:
    run(world, tmp_path)
    stamp = (tmp_path / "keep.parquet").stat().st_mtime_ns
    report = run(world, tmp_path)
    assert (report.status, report.rows_skipped, report.rows_read) == ("done", ROWS, 0)
    assert (tmp_path / "keep.parquet").stat().st_mtime_ns == stamp
    report = run(world, tmp_path, threshold=0.9)
    assert (report.rows_skipped, report.rows_read) == (0, ROWS)
    assert_lists(world, tmp_path, plain(world.found, 0.9))
    (tmp_path / "drop.parquet").unlink()
    assert run(world, tmp_path, threshold=0.9).rows_read == ROWS
    told = json.loads((tmp_path / "duplicates.json").read_text())
    assert [each["path"] for each in told["files"]] == ["keep.parquet", "drop.parquet"]
    assert told["kept"] + told["dropped"] == ROWS


def test_the_page_shows_the_largest_groups(world: World, tmp_path: Path) -> None:
    report = run(world, tmp_path)
    page = Path(str(report.outputs["page"])).read_text()
    stands = plain(world.found)
    largest = max(set(stands) - {-1}, key=stands.count)
    assert f"a picture of a-{world.places[largest]:06d}" in page
    assert f"and {stands.count(largest) - 12:,} more dropped" in page
