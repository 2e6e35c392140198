"""`mmray search` and `mmray index`: what is asked, what is told, what is refused and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import mmray
from mmray.index import manifest, upkeep
from mmray.store import Store
from tests import indexes, media, shards
from tests.indexes import STORAGE, TOY
from tests.unit.command import call


def asked(*words: object) -> dict[str, Any]:
    """The JSON line of a search that ends well."""
    result = call("search", *words, "--json")
    assert result.exit_code == 0, result.output
    [line] = result.stdout.splitlines()
    value = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert isinstance(value, dict)
    return value


def refused(*words: object) -> str:
    result = call(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return indexes.embedded(tmp_path_factory.mktemp("store"), indexes.samples(12), TOY)


@pytest.fixture(scope="module")
def root(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A flat index of the store's pictures."""
    root = str(tmp_path_factory.mktemp("search") / "pictures")
    indexes.index_of(store, "image_embedding", root)
    return root


def ids(store: Store) -> dict[str, str]:
    """Caption to id."""
    rows = store.to_arrow(["id", "caption"]).to_pylist()
    return {row["caption"]: row["id"] for row in rows}


# --- search ---------------------------------------------------------------------------------------


def test_a_picture_finds_itself(root: str, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "query.jpg"
    file.write_bytes(shards.picture(4, (40, 32)))
    value = asked(root, "--image", file, "-k", 3)
    assert list(value) == ["query", "hits", "index", "seconds"]
    assert value["query"]["image"] == [str(file)]
    assert value["query"]["k"] == 3
    first, *others = value["hits"]
    assert len(others) == 2
    assert [each["rank"] for each in value["hits"]] == [1, 2, 3]
    assert first["id"] == ids(store)[shards.caption(4)]
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert first["source_key"] == "000004.jpg"
    assert first["category"] == shards.SHAPES[0]
    assert first["caption"] == shards.caption(4)
    assert value["index"]["uri"] == root
    assert value["index"]["version"] == 1
    assert value["index"]["fingerprint"] == store.meta.fingerprint
    assert value["seconds"] > 0


def test_words_are_a_query(root: str) -> None:
    value = asked(root, "--text", "a red disc", "--where", "category = 'disc'")
    assert {hit["category"] for hit in value["hits"]} == {"disc"}
    assert len(value["hits"]) == 3
    index = mmray.open_index(root)
    vector = index.encoder().text("a red disc")
    found = index.search(vector, 10, where="category = 'disc'")
    assert [hit["id"] for hit in value["hits"]] == index.ids(found.numbers[0, :3])


def test_likes_and_unlikes_add_up(root: str, store: Store, tmp_path: Path) -> None:
    one, two, three = sorted(ids(store).values())[:3]
    value = asked(root, "--like", one, "--like", two, "--unlike", three, "--text", "x", "-k", 12)
    index = mmray.open_index(root)
    vectors = index.vectors(index.numbers([one, two, three])).astype(np.float64)
    mean = (vectors[:2].sum(0) + index.encoder().text("x")) / 3 - vectors[2] / 2
    found = index.search(mean, 12)
    assert [hit["id"] for hit in value["hits"]] == index.ids(found.numbers[0])
    assert {one, two, three} <= {hit["id"] for hit in value["hits"]}


def test_a_row_is_left_out_only_when_asked(root: str, store: Store) -> None:
    one = min(ids(store).values())
    assert asked(root, "--like", one, "-k", 1)["hits"][0]["id"] == one
    left = asked(root, "--like", one, "-k", 50, "--exclude-self")["hits"]
    assert len(left) == 11
    assert one not in {hit["id"] for hit in left}


def test_a_table_for_people(root: str, store: Store) -> None:
    result = call("search", root, "--like", ids(store)[shards.caption(2)], "-k", 2)
    assert result.exit_code == 0
    assert "1.0000" in result.stdout
    assert "blue disc" in result.stdout.replace("\n", " ")
    nothing = call("search", root, "--text", "x", "--where", "category = 'nothing'")
    assert nothing.exit_code == 0
    assert "no row answers" in nothing.stdout


def test_a_page_with_pictures(root: str, store: Store, tmp_path: Path) -> None:
    page, file = tmp_path / "hits.html", tmp_path / "query.png"
    file.write_bytes(shards.picture(4, (40, 32), "PNG"))
    one = ids(store)[shards.caption(1)]
    value = asked(root, "--image", file, "--like", one, "--text", "red & round", "--html", page)
    assert len(value["hits"]) == 10
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg;base64,") >= 12
    for words in ("red &amp; round", shards.caption(4), one, "pictures version 1"):
        assert words in text
    told = call("search", root, "--text", "x", "--html", page)
    assert told.stdout.strip() == str(page)


def test_columns_by_our_own_names_and_odd_values(tmp_path: Path) -> None:
    table = indexes.rows_of(3)
    for name, values in {
        "score": pa.array([0.5, float("nan"), None]),
        "rank": pa.array(["a", "b", "c"]),
        "taken": pa.array([0, 1, 2], pa.timestamp("us")),
    }.items():
        table = table.append_column(name, values)
    root = str(tmp_path / "i")
    indexes.index(root, indexes.unit(3), table, cuts=())
    hits = asked(root, "--like", indexes.name(1), "--html", tmp_path / "x.html")["hits"]
    assert hits[0]["id"] == indexes.name(1)
    assert (hits[0]["rank"], hits[0]["kept_rank"], hits[0]["kept_score"]) == (1, "b", None)
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert hits[0]["taken"].startswith("1970-01-01")


def test_the_version_that_is_asked_for(tmp_path: Path) -> None:
    root = str(tmp_path / "i")
    indexes.index(root)
    indexes.index(root, indexes.unit(30), version=2)
    assert len(asked(root, "--like", indexes.name(1), "-k", 100)["hits"]) == 30
    value = asked(root, "--like", indexes.name(1), "-k", 100, "--version", 1)
    assert len(value["hits"]) == 60
    assert value["index"]["version"] == 1


def test_on_s3(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    indexes.index(s3_uri)
    indexes.index(str(tmp_path / "i"))
    words = ("--like", indexes.name(5), "--where", "number > 3")
    assert asked(s3_uri, *words)["hits"] == asked(tmp_path / "i", *words)["hits"]


def test_what_is_refused(root: str, tmp_path: Path) -> None:
    assert "--text, --image, --audio or --like" in refused("search", root)
    assert "what to look for too" in refused("search", root, "--unlike", "x")
    assert "no row with the id 'nothing'" in refused("search", root, "--like", "nothing")
    assert "no column 'food'" in refused("search", root, "--text", "x", "--where", "food")
    assert "takes no audio" in refused("search", root, "--audio", tmp_path / "x.wav")
    assert "nothing.jpg" in refused("search", root, "--image", tmp_path / "nothing.jpg")
    assert "no file can be" in refused(
        "search", root, "--text", "x", "--html", tmp_path / "a/b.html"
    )
    assert "no file can be written" in refused("search", root, "--text", "x", "--html", tmp_path)
    assert "no index is there" in refused("search", tmp_path, "--text", "x")
    assert "no version 7" in refused("search", root, "--text", "x", "--version", 7)
    assert "leave --model out" in refused("search", root, "--text", "x", "--model", tmp_path)
    for words in (["--like", "x"], ["--like", "x", "--unlike", "y"]):
        assert "need no encoder" in refused("search", root, *words, "--model", tmp_path)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(media.sound(0.2))
    assert "UnreadableImage" in refused("search", root, "--image", bad)
    refused("search", root, "--text", "x", "-k", 0)


def test_a_condition_has_its_time(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def matching(rows: Any, where: str, seconds: float) -> np.ndarray:
        given.append(seconds)
        return np.arange(3)

    monkeypatch.setattr("mmray.index.searching.where.matching", matching)
    for words in ([], ["--where-seconds", 2.5]):
        assert len(asked(root, "--text", "x", "--where", "true", *words)["hits"]) == 3
    assert given == [30, 2.5]


def test_a_refusal_as_json(root: str) -> None:
    result = call("search", root, "--like", "nothing", "--json")
    assert result.exit_code == 2
    value = json.loads(result.stdout)
    assert value["status"] == "refused"
    assert "nothing" in value["error"]


def test_help_of_these_commands_imports_nothing_heavy() -> None:
    code = """
import sys
from mmray.cli import app
for words in (["search", "--help"], ["index"], ["index", "gc", "--help"]):
    try:
        app(words, prog_name="mmray")
    except SystemExit as end:
        assert end.code in (0, None), end.code
heavy = {"ray", "torch", "faiss", "duckdb", "pyarrow", "numpy", "deltalake", "PIL", "botocore"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


# --- index ----------------------------------------------------------------------------------------


@pytest.fixture
def aged(tmp_path: Path) -> str:
    """Five versions, a piece of a build under way and what two builds left long ago."""
    root = str(tmp_path / "aged")
    for version in range(1, 6):
        indexes.index(root, indexes.unit(10 * version), cuts=(), dead=[0], version=version)
    for name in ("segments/new/index.faiss", "segments/old/index.faiss", "shared/old.truth.npz",
                 "_mmray/building/old/0/done.json", "_mmray/building/new/0/done.json",
                 "_mmray/runs/old/report.json"):  # fmt: skip
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        if "old" in name:
            os.utime(path, (time.time() - 90_000,) * 2)
    return root


def files_of(root: str) -> set[str]:
    return {str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file()}


def test_info(aged: str) -> None:
    result = call("index", "info", aged)
    assert result.exit_code == 0
    for words in ("flat (Flat)", "49 in 1 segment, 1 more", "image_embedding, 16", "1.0000 at 10"):
        assert words in result.stdout
    assert "f" * 32 in result.stdout
    value = json.loads(call("index", "info", aged, "--version", 2, "--json").stdout)
    assert value["version"] == 2
    assert value["rows"] == 19
    assert value["made"]["fingerprint"] == "f" * 32
    assert value["bytes"] > 0


def test_history(aged: str) -> None:
    lines = call("index", "history", aged).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["5", "4", "3", "2", "1"]
    value = json.loads(call("index", "history", aged, "--limit", 2, "--json").stdout)
    assert [each["version"] for each in value["history"]] == [5, 4]
    assert value["history"][0]["rows"] == 49


def test_gc_keeps_what_the_newest_versions_need(aged: str) -> None:
    before = files_of(aged)
    planned = json.loads(call("index", "gc", aged, "--dry-run", "--json").stdout)
    assert files_of(aged) == before
    result = call("index", "gc", aged, "--json")
    value = json.loads(result.stdout)
    assert value == {**planned, "dry_run": False}
    assert value["versions"] == [1, 2]
    assert files_of(aged) == before - {path.removeprefix(aged + "/") for path in value["removed"]}
    gone = before - files_of(aged)
    assert {"segments/old/index.faiss", "shared/old.truth.npz", "shared/1.dead"} <= gone
    assert "_mmray/building/old/0/done.json" in gone
    kept = {"segments/new/index.faiss", "_mmray/runs/old/report.json", "shared/3.dead"}
    assert kept | {"_mmray/building/new/0/done.json"} <= files_of(aged)
    for version in (3, 4, 5):
        assert upkeep.verify(aged, STORAGE, version).ok
    assert json.loads(call("index", "gc", aged, "--json").stdout)["removed"] == []
    assert "0 files" in call("index", "gc", aged).stdout


def test_gc_of_versions_that_share_files(tmp_path: Path) -> None:
    root = str(tmp_path / "i")
    first = indexes.index(root)
    for version in (2, 3):
        assert manifest.publish(root, STORAGE, replace(first, version=version))
    upkeep.gc(root, STORAGE, keep=1)
    assert manifest.versions(root, STORAGE) == [3]
    assert upkeep.verify(root, STORAGE).ok


def test_gc_touches_nothing_while_a_kept_manifest_is_torn(aged: str) -> None:
    torn = Path(aged) / "versions" / "00000004.json"
    torn.write_bytes(torn.read_bytes()[:100])
    before = files_of(aged)
    assert "torn" in refused("index", "gc", aged)
    assert files_of(aged) == before


def test_gc_where_there_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "x").write_text("x")
    assert "no index is there" in refused("index", "gc", tmp_path)
    assert (tmp_path / "segments" / "x").exists()


def test_verify_finds_what_is_wrong(aged: str) -> None:
    assert call("index", "verify", aged).exit_code == 0
    found = mmray.open_index(aged).manifest
    STORAGE.write_bytes(f"{aged}/{found.segments[0].index.path}", b"x")
    STORAGE.delete(f"{aged}/shared/5.dead")
    result = call("index", "verify", aged)
    assert result.exit_code == 1
    assert "index.faiss is torn" in result.stdout
    assert "5.dead is missing" in result.stdout
    assert "2 problems" in result.stdout
    value = json.loads(call("index", "verify", aged, "--json").stdout)
    assert value["ok"] is False
    assert len(value["problems"]) == 2


def test_verify_counts_rows(tmp_path: Path) -> None:
    root = str(tmp_path / "i")
    table = indexes.rows_of(6)
    names = table["id"].to_pylist()
    table = table.set_column(0, "id", pa.array([*names[:5], names[1]]))
    found = indexes.index(root, indexes.unit(6), table, cuts=())
    assert upkeep.verify(root, STORAGE).problems == (
        f"1 ids answer twice, such as {indexes.name(1)}",
    )
    assert manifest.publish(root, STORAGE, replace(found, version=2, rows=5))
    [counted, _] = upkeep.verify(root, STORAGE).problems
    assert counted == "6 rows answer and 0 don't, the manifest says 5 and 0"
