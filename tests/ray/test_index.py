"""Index, search and duplicates jobs over the session's workers: as one process does them, and no
less when workers are killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmray
from mmray.errors import (
    Interrupted,
    JobFailed,
    MmrayError,
    RefusedError,
    ShardChanged,
    SpecError,
    StorageError,
)
from mmray.index import Index, manifest, workers
from mmray.index.batch.answers import Answered, Answering
from mmray.index.batch.batches import Piece
from mmray.index.batch.duplicates import Found, Ints
from mmray.index.building import build, cut
from mmray.index.upkeep import verify
from mmray.jobs import duplicates, search
from mmray.jobs.duplicates import Neighbouring
from mmray.report import Report
from mmray.specs.index import IndexResources
from mmray.storage import Storage
from tests.stores import Vectors, vectors
from tests.unit.index_jobs import copies, table

STORAGE = Storage()
ROWS = 9000
PIECES = 3
FOUND = vectors(ROWS, spread=0.8)
STEPS: dict[str, Callable[[Any], Any]] = {
    "start": build.start,
    "add": build.add,
    "finish": build.finish,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Vectors:
    store = Vectors(tmp_path_factory.mktemp("store") / "store")
    store.put("a", FOUND, rows=1000)
    return store


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several pieces of few rows."""
    monkeypatch.setattr(cut, "PIECE_BYTES", 1)  # 4,096 rows


def index_job(store: Vectors, out: Path, kind: str = "flat") -> Report:
    spec = {"job": "index", "store": {"uri": store.uri}, "column": "image_embedding"}
    more = {"index": {"kind": kind, "min_recall": 0.9}, "output": str(out)}
    return mmray.run(spec | more, quiet=True)


@contextmanager
def here() -> Iterator[None]:
    """Work is done in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "on_cluster", lambda _: False)
        yield


def ids(store: Vectors) -> list[str]:
    return sorted(store.store.to_arrow(["id"])["id"].to_pylist())


def assert_whole(out: Path, store: Vectors) -> Index:
    assert manifest.versions(str(out), STORAGE) == [1]
    assert verify(str(out), STORAGE).ok
    index = Index.open(str(out), STORAGE)
    assert sorted(index.ids(index.live())) == ids(store)
    return index


def killed_once(marks: Path, name: str) -> bool:
    """Whether this is the first time; the mark says which process was killed."""
    marks.mkdir(exist_ok=True)
    mark = marks / name
    if mark.exists():
        return False
    mark.write_text(str(os.getpid()))
    return True


def dying(marks: Path, step: str, after: bool, task: Any) -> Any:
    """A step of a build whose process is killed the first time: before its work, or after it."""
    if not after and killed_once(marks, step):
        os.kill(os.getpid(), signal.SIGKILL)
    result = STEPS[step](task)
    if after and killed_once(marks, step):
        os.kill(os.getpid(), signal.SIGKILL)
    return result


# --- index ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flat", "sq8", "hnsw"])
def test_an_index_is_built_as_in_one_process(kind: str, store: Vectors, tmp_path: Path) -> None:
    report = index_job(store, tmp_path / "there", kind)
    with here():
        alone = index_job(store, tmp_path / "here", kind)
    assert (report.rows_read, report.rows_written) == (ROWS, ROWS)
    assert report.metrics.keys() == alone.metrics.keys()
    mine, other = (assert_whole(tmp_path / each, store) for each in ("there", "here"))
    assert len(mine.manifest.segments) == len(other.manifest.segments)
    queries = vectors(50, seed=3, spread=0.8)
    found, wanted = mine.search(queries, 10), other.search(queries, 10)
    if kind == "flat":
        np.testing.assert_array_equal(found.numbers, wanted.numbers)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
    assert mine.manifest.measured.recall >= 0.9


def noting(marks: Path, task: Any) -> Any:
    killed_once(marks, f"{os.getpid()}-{task[1].name}")
    return STEPS["add"](task)


def test_the_work_is_done_by_workers(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "add", partial(noting, tmp_path / "marks"))
    index_job(store, tmp_path / "i")
    done = [each.name.split("-", 1) for each in (tmp_path / "marks").iterdir()]
    assert len(done) == PIECES
    assert os.getpid() not in {int(pid) for pid, _ in done}


@pytest.mark.parametrize(
    ("step", "after"), [("start", True), ("add", False), ("add", True), ("finish", True)]
)
def test_a_killed_worker_is_replaced(
    step: str,
    after: bool,
    store: Vectors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, step, partial(dying, tmp_path / "marks", step, after))
    report = index_job(store, tmp_path / "i")
    pid = int((tmp_path / "marks" / step).read_text())
    assert pid != os.getpid()
    assert (report.status, report.rows_written) == ("done", ROWS)
    index = assert_whole(tmp_path / "i", store)
    rows = {row["id"]: row for row in store.store.to_arrow().to_pylist()}
    for name, vector in zip(index.ids(index.live()[::500]), _some(index), strict=True):
        np.testing.assert_allclose(vector, rows[name]["image_embedding"], atol=1e-6)


def _some(index: Index) -> np.ndarray:
    return index.vectors(index.live()[::500])


def signalling(marks: Path, driver: int, task: Any) -> Any:
    if killed_once(marks, "signal"):
        os.kill(driver, signal.SIGTERM)
    return STEPS["add"](task)


def test_a_signal_ends_it_and_the_next_run_goes_on(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "add", partial(signalling, tmp_path / "marks", os.getpid()))
    with pytest.raises(Interrupted) as caught:
        index_job(store, tmp_path / "i")
    assert caught.value.signum == signal.SIGTERM
    assert not manifest.exists(str(tmp_path / "i"), STORAGE)
    index_job(store, tmp_path / "i")
    assert_whole(tmp_path / "i", store)


def test_a_part_that_is_gone_is_told_as_in_one_process(tmp_path: Path) -> None:
    store = Vectors(tmp_path / "store")
    store.put("a", vectors(100), rows=50)
    (Path(store.uri) / store.store.parts()[0].path).unlink()
    with pytest.raises(JobFailed, match="can't be read") as caught:
        index_job(store, tmp_path / "i")
    with here(), pytest.raises(JobFailed) as alone:
        index_job(store, tmp_path / "i")
    assert str(caught.value) == str(alone.value)


# --- what a task ends with ------------------------------------------------------------------------

ERRORS = (
    SpecError("index.kind", "is wrong"),
    RefusedError("can't start"),
    StorageError("s3://b/x", "stayed broken"),
    ShardChanged("s3://b/x", "was rewritten"),
    JobFailed("ended early"),
    Interrupted(signal.SIGTERM),
)


def failing(number: int) -> None:
    raise ERRORS[number]


def test_errors_arrive_as_they_were_raised() -> None:
    for number, error in enumerate(ERRORS):
        with pytest.raises(MmrayError) as caught:
            list(workers.spread(failing, [number], IndexResources()))
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)
        assert vars(caught.value) == vars(error)


def odd(_: int) -> None:
    raise ValueError("the cause, in words")


def test_other_errors_are_a_failed_job_that_names_the_cause() -> None:
    with pytest.raises(JobFailed, match="ValueError: the cause, in words") as caught:
        list(workers.spread(odd, [0], IndexResources()))
    assert "\x1b" not in str(caught.value)
    assert "ended" not in str(caught.value), "no worker died"


def always_dying(marks: Path) -> None:
    (marks / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_always_die_end_the_job(tmp_path: Path) -> None:
    with pytest.raises(JobFailed, match=f"ended {workers.ATTEMPTS} times"):
        list(workers.spread(always_dying, [tmp_path], IndexResources()))
    assert len([*tmp_path.iterdir()]) == workers.ATTEMPTS


# --- search and duplicates ------------------------------------------------------------------------


class DyingAnswering(Answering):
    """Killed the first time."""

    def __call__(self, piece: Piece) -> Answered:
        if killed_once(Path(f"{self.output}-marks"), "answering"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(piece)


class DyingNeighbouring(Neighbouring):
    """Killed the first time."""

    def __call__(self, rows: Ints) -> Found:
        if killed_once(Path(f"{self.opening.uri}-marks"), "neighbouring"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


def search_job(store: Vectors, index: Path, out: Path) -> Report:
    spec = {
        "job": "search",
        "index": {"uri": str(index)},
        "queries": {"kind": "store", "uri": store.uri, "column": "image_embedding"},
        "k": 5,
        "columns": ["caption"],
        "output": str(out),
    }
    return mmray.run(spec, quiet=True)


def test_a_search_finds_what_one_process_finds(
    store: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Answering", DyingAnswering)
    with here():
        index_job(store, tmp_path / "i")
        (tmp_path / "here-marks").mkdir()
        (tmp_path / "here-marks" / "answering").touch()
        alone = search_job(store, tmp_path / "i", tmp_path / "here")
    report = search_job(store, tmp_path / "i", tmp_path / "there")
    assert int((tmp_path / "there-marks" / "answering").read_text()) != os.getpid()
    assert report.rows_written == alone.rows_written == ROWS
    mine, other = (table(tmp_path / each).to_pandas() for each in ("there", "here"))
    assert len(mine) == ROWS * 5
    columns = ["query_id", "rank", "id", "caption"]
    assert mine[columns].equals(other[columns])
    np.testing.assert_allclose(mine["score"], other["score"], atol=1e-6)
    again = search_job(store, tmp_path / "i", tmp_path / "there")
    assert (again.rows_read, again.rows_skipped) == (0, ROWS)


def test_duplicates_are_those_that_one_process_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "Neighbouring", DyingNeighbouring)
    monkeypatch.setattr(duplicates, "BLOCK", 100)
    store = Vectors(tmp_path / "store")
    store.put("a", copies(1000))
    index, marks = tmp_path / "i", tmp_path / "i-marks"
    spec = {"job": "duplicates", "index": {"uri": str(index)}, "threshold": 0.8}
    with here():
        index_job(store, index)
        marks.mkdir()
        (marks / "neighbouring").touch()
        mmray.run(spec | {"output": str(tmp_path / "here")}, quiet=True)
    (marks / "neighbouring").unlink()
    report = mmray.run(spec | {"output": str(tmp_path / "there")}, quiet=True)
    assert int((marks / "neighbouring").read_text()) != os.getpid()
    assert 0 < report.rows_filtered < 1000
    for name in ("keep.parquet", "drop.parquet"):
        mine, other = (
            pq.read_table(tmp_path / each / name).to_pandas() for each in ("there", "here")
        )
        assert mine.drop(columns="score", errors="ignore").equals(
            other.drop(columns="score", errors="ignore")
        )
