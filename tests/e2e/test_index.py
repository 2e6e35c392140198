"""Indexes on real parts: built on real S3 whatever is killed, and searched by the command line."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmray
from mmray.index import manifest
from mmray.storage import Storage
from mmray.store import Store
from tests import indexes, runs, shards
from tests.conftest import TestServer, use
from tests.stores import Vectors, vectors

pytestmark = pytest.mark.e2e

DIM, ROWS, PART_ROWS = 512, 32_768, 256
PIECES = 8
"""Of 4,096 rows: the memory that `job` names makes them no larger."""
FOUND = vectors(ROWS, DIM)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store in many small parts on disk, and its ids in the order of `FOUND`."""
    folder = tmp_path_factory.mktemp("made") / "store"
    return folder, Vectors(folder, dim=DIM).put("a", FOUND, rows=PART_ROWS)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is fetched goes with the test."""
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))


class World:
    """The store under a prefix of an S3 server, and an index that a job makes of it."""

    def __init__(self, server: TestServer, name: str, made: tuple[Path, list[str]]) -> None:
        local, self.ids = made
        self.prefix = server.uri(name)
        self.storage = Storage()
        self.store, self.index = f"{self.prefix}/store", f"{self.prefix}/index"
        files = {
            f"store/{path.relative_to(local)}": path.read_bytes()
            for path in local.rglob("*")
            if path.is_file()
        }
        shards.put(self.prefix, files, server.client())

    def job(self, kind: str = "flat", memory: str = "64MiB") -> runs.Spec:
        """A build of `PIECES` pieces, some seconds long."""
        return {
            "job": "index",
            "store": {"uri": self.store},
            "column": "image_embedding",
            "index": {"kind": kind, "memory": memory},
            "output": self.index,
            "resources": {"piece": "1MiB"},
        }

    def notes(self) -> dict[str, bytes]:
        """What the build has noted as done: its start, and pieces by number."""
        found = {}
        for each in self.storage.list(f"{self.index}/_mmray/building"):
            place, _, name = each.uri.rpartition("/")
            if name in ("start.json", "done.json"):
                piece = place.rpartition("/")[2].partition("-")[0]
                key = "start" if name == "start.json" else piece
                found[key] = self.storage.read_bytes(each.uri)
        return found

    @property
    def is_published(self) -> bool:
        """Whether a version is there."""
        return manifest.exists(self.index, self.storage)

    def wait_for(self, run: runs.Run, notes: int) -> None:
        """Wait until so many notes are there, or the run ends."""
        deadline = time.monotonic() + runs.TIMEOUT
        while run.running and len(self.notes()) < notes:
            assert time.monotonic() < deadline, run.log.read_text()
            time.sleep(0.02)

    def take_away(self, pieces: list[str]) -> None:
        """Remove the parts of the store that these pieces were made of, in the order of the job."""
        each = ROWS // PIECES // PART_ROWS
        parts = [part.path for part in Store.open(self.store, self.storage).parts()]
        for piece in pieces:
            for path in parts[int(piece) * each : (int(piece) + 1) * each]:
                self.storage.delete(f"{self.store}/{path}")

    def assert_whole(self, version: int = 1) -> None:
        """One version, whole by `mmray index verify`, in which each id answers once."""
        assert manifest.versions(self.index, self.storage) == [version]
        code, line = mmray_json("index", "verify", self.index)
        assert (code, line["ok"], line["rows"], line["problems"]) == (0, True, ROWS, [])
        index = mmray.open_index(self.index)
        assert sorted(index.ids(index.live())) == sorted(self.ids)
        some = np.random.default_rng(0).choice(ROWS, 50, replace=False)
        hits = index.search(FOUND[some], 1).numbers[:, 0]
        assert index.ids(hits) == [self.ids[place] for place in some]


@pytest.fixture
def world(
    s3: TestServer,
    s3_env: dict[str, str],
    made: tuple[Path, list[str]],
    request: pytest.FixtureRequest,
) -> World:
    return World(s3, request.node.name, made)


def mmray_json(*words: object, code: int | None = None) -> tuple[int, dict[str, Any]]:
    """A command with `--json`: its exit code, and the object that is all of its output."""
    done = subprocess.run(
        [sys.executable, "-m", "mmray", *map(str, words), "--json"],
        capture_output=True,
        timeout=runs.TIMEOUT,
        cwd=runs.ROOT,
        check=False,
    )
    errors = done.stderr.decode()
    assert code in (None, done.returncode), errors
    assert "Traceback" not in errors
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 1, done.stdout.decode() + errors
    value = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(value, dict)
    return done.returncode, value


# --- whatever is killed ---------------------------------------------------------------------------


def test_killed_again_and_again(world: World, tmp_path: Path) -> None:
    chance = random.Random(4)
    kills, before = 0, dict[str, bytes]()
    for notes in (1, 3, 5, 7, 1 + PIECES):  # the start, and pieces; the last is in the finish
        run = runs.Run(world.job(), tmp_path)
        world.wait_for(run, notes)
        time.sleep(chance.uniform(0, 0.25))
        if not run.running:
            break
        run.kill()
        kills += 1
        if world.is_published:
            break
        after = world.notes()
        assert before.items() <= after.items(), "what was done is as it was"
        # Made again, these pieces would lack what they are made of.
        world.take_away(sorted(after.keys() - before.keys() - {"start"}))
        before = after
    assert kills >= 4
    left = 0 if world.is_published else ROWS
    assert runs.run(world.job(), tmp_path)["rows_written"] == left
    world.assert_whole()
    again = runs.run(world.job(), tmp_path)
    assert (again["rows_read"], again["rows_skipped"]) == (0, ROWS)


def test_sigterm_keeps_what_is_done(world: World, tmp_path: Path) -> None:
    run = runs.Run(world.job("ivf_flat", "66MiB"), tmp_path)
    world.wait_for(run, 3)
    run.signal(signal.SIGTERM)
    report = run.finish(code=143)
    assert (report["job"], report["status"]) == ("index", "interrupted")
    done = world.notes()
    assert 3 <= len(done) <= PIECES
    world.take_away(sorted(done.keys() - {"start"}))
    report = runs.run(world.job("ivf_flat", "66MiB"), tmp_path)
    assert (report["status"], report["rows_written"]) == ("done", ROWS)
    world.assert_whole()


def test_two_builds_at_once(world: World, tmp_path: Path) -> None:
    first = runs.Run(world.job(), tmp_path / "first")
    second = runs.Run(world.job(), tmp_path / "second")
    world.wait_for(second, 5)
    second.signal(signal.SIGSTOP)
    try:
        reports = [first.finish()]
    finally:
        second.signal(signal.SIGCONT)  # what it was about to merge is gone
    reports.append(second.finish())
    assert [report["status"] for report in reports] == ["done", "done"]
    assert [report["outputs"]["version"] for report in reports] == [1, 1]
    world.assert_whole()


def test_server_killed_and_restarted(
    own_s3: TestServer,
    made: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(own_s3.environment, monkeypatch)
    world = World(own_s3, "restart", made)
    run = runs.Run(world.job(), tmp_path)
    world.wait_for(run, 3)
    assert run.running, run.log.read_text()
    own_s3.kill()
    time.sleep(3)
    own_s3.start()
    report = run.finish()
    assert (report["status"], report["rows_written"]) == ("done", ROWS)
    world.assert_whole()


# --- the command line -----------------------------------------------------------------------------

MINE = """
from tests.toys import Toy


class Mine(Toy):
    fingerprint = {fingerprint!r}
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and an index of it; `mine.py` there is their encoder."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "mine.py").write_text(MINE.format(fingerprint="mine-1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        encoder = {"kind": "import", "model": "mine:Mine"}
        store = indexes.embedded(folder, indexes.samples(12), encoder)
        spec = {"job": "index", "store": {"uri": store.uri}, "column": "image_embedding"}
        mmray.run(spec | {"output": str(folder / "index")}, quiet=True)
    sys.modules.pop("mine", None)
    return folder


@pytest.fixture
def search(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`mmray search` of that index, where `mine.py` can be imported."""
    monkeypatch.setenv("PYTHONPATH", f"{runs.ROOT}:{pictures}")

    def called(*words: object, code: int = 0) -> dict[str, Any]:
        return mmray_json("search", pictures / "index", *words, code=code)[1]

    return called


def test_search_finds_a_picture(search: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "query.jpg").write_bytes(shards.picture(4, (40, 32)))
    shape = shards.SHAPES[0]
    value = search("--image", tmp_path / "query.jpg", "-k", 3, "--where", f"category = '{shape}'")
    assert [hit["rank"] for hit in value["hits"]] == [1, 2, 3]
    assert value["hits"][0]["caption"] == shards.caption(4)
    assert value["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert {hit["category"] for hit in value["hits"]} == {shape}


def test_an_unknown_column_is_refused(search: Callable[..., dict[str, Any]]) -> None:
    value = search("--text", "x", "--where", "colour = 'red'", code=2)
    assert value["status"] == "refused"
    assert "colour" in value["error"]


def test_a_missing_index_is_refused(tmp_path: Path) -> None:
    _, value = mmray_json("search", tmp_path / "nothing", "--text", "x", code=2)
    assert value["status"] == "refused"
    assert f"{tmp_path}/nothing: no index is there" in value["error"]
    assert list(tmp_path.iterdir()) == []


def test_another_encoder_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pictures / "index", tmp_path / "index")
    monkeypatch.setenv("PYTHONPATH", f"{runs.ROOT}:{tmp_path}")
    (tmp_path / "mine.py").write_text(MINE.format(fingerprint="mine-2"))
    _, value = mmray_json("search", tmp_path / "index", "--text", "x", code=2)
    made = mmray.open_index(str(tmp_path / "index")).manifest.made
    assert value["status"] == "refused"
    assert value["error"].count("fingerprint") == 2, "the one that is needed, and the one found"
    assert made.fingerprint in value["error"]
