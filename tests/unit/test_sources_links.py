"""Uris inside rows: what they may name, how they are fetched, and what is said of the others."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mmray.errors import BadSample, StorageError
from mmray.sources import Sample, Shard, links
from mmray.sources.ahead import Later, in_order
from mmray.sources.fragment import object_shard
from mmray.sources.links import Allowed, Links
from mmray.sources.rows import Row
from mmray.specs.common import Limits
from mmray.storage import Storage
from tests import shards
from tests.conftest import TestServer
from tests.unit.test_storage_web import body, serving, status


def opened(
    uri: str, limit: int = 1000, allow: tuple[str, ...] = (), private: bool = False
) -> Links:
    return Links(shard_of(uri), Storage(), Limits(bytes=limit), Allowed.of(allow, private))


def shard_of(uri: str) -> Shard:
    return object_shard(uri, "e", 100)


def row(number: int, uri: str, modality: str = "image") -> Row:
    return Row(number, str(number), links={modality: uri})


def fetched(reader: Links, *uris: str) -> list[Sample]:
    items = list(reader.items(row(i, uri) for i, uri in enumerate(uris)))
    assert [(place, s.source_key) for place, s in items] == [(i, str(i)) for i in range(len(uris))]
    return [sample for _, sample in items]


def kinds(found: list[Sample]) -> list[str | None]:
    return [s.error and s.error.type for s in found]


def resolved(reader: Links, text: str) -> str:
    try:
        return reader.resolve(text)
    except BadSample as error:
        return {"LinkRefused": "refused"}[error.error_type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `in` with files, and a file outside of it."""
    inside = tmp_path / "in" / "deep"
    inside.mkdir(parents=True)
    (inside / "a.jpg").write_bytes(b"deep")
    (tmp_path / "in" / "a b%20.jpg").write_bytes(b"odd name")
    (tmp_path / "in2").mkdir()
    (tmp_path / "in2" / "a.jpg").write_bytes(b"near")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path


def test_local_paths(folder: Path) -> None:
    reader = opened(f"{folder}/in/shard.jsonl")
    good = {
        "deep/a.jpg": b"deep",
        "./deep/../deep//a.jpg": b"deep",
        "a b%20.jpg": b"odd name",
        f"{folder}/in/deep/a.jpg": b"deep",
        f"file://{folder}/in/deep/a.jpg": b"deep",
        f"file://localhost{folder}/in/deep/%61.jpg": b"deep",
        "../in/deep/a.jpg": b"deep",
    }
    found = fetched(reader, *good)
    assert [s.members.get("image") for s in found] == list(good.values())
    for text in (
        "../secret",
        "deep/../../secret",
        "..",
        ".",
        "",
        "/etc/passwd",
        "//etc/passwd",
        f"{folder}/secret",
        f"{folder}/in2/a.jpg",
        "../in2/a.jpg",
        f"file://{folder}/in/%2e%2e/secret",
        f"file://{folder}/in/..%2fsecret",
        "file:///etc/passwd",
        "s3://bucket/key",
        "http://127.0.0.1/a",
        "https://example.org/a.jpg",
        "ftp://example.org/a",
        "gs://bucket/key",
        "gopher://x",
        "a\0b",
        "a\nb",
        "x" * 9000,
        "\ud800",
    ):
        [sample] = fetched(reader, text)
        assert kinds([sample]) == ["LinkRefused"], text
        assert sample.error is not None
        sample.error.message.encode()
    assert (
        kinds(fetched(reader, "~/a", "%2e%2e/secret", "none/a.jpg", "deep", "deep/a.jpg/b"))
        == ["LinkMissing"] * 5
    )
    assert kinds(fetched(reader, "n" * 300)) == ["LinkBroken"]


def test_links_of_the_file_system_stay_inside(folder: Path) -> None:
    os.symlink(folder / "secret", folder / "in" / "out.jpg")
    os.symlink(folder, folder / "in" / "up")
    os.symlink("deep/a.jpg", folder / "in" / "fine.jpg")
    os.symlink("loop", folder / "in" / "loop")
    os.mkfifo(folder / "in" / "pipe")
    reader = opened(f"{folder}/in/shard.jsonl")
    found = fetched(reader, "out.jpg", "up/secret", "up/in/deep/a.jpg", "fine.jpg", "loop", "pipe")
    assert kinds(found) == ["LinkRefused", "LinkRefused", None, None, "LinkBroken", "LinkBroken"]
    os.symlink(folder / "in", folder / "door")
    through = opened(f"{folder}/door/shard.jsonl")
    assert fetched(through, "deep/a.jpg")[0].members == {"image": b"deep"}


def test_allowed_folders(folder: Path) -> None:
    reader = opened(f"{folder}/in/deep/shard.jsonl", allow=(f"{folder}/in2", "s3://b/images/"))
    found = fetched(reader, "../../in2/a.jpg", f"{folder}/in2/a.jpg", "a.jpg", "../a b%20.jpg")
    assert kinds(found) == [None, None, None, "LinkRefused"]
    assert resolved(reader, "s3://b/images/a.jpg") == "s3://b/images/a.jpg"
    for text in ("s3://b/imagesX/a", "s3://b/a", "s3://b/images/../a", "s3://b2/images/a"):
        assert resolved(reader, text) == "refused"


def test_s3_uris_in_their_normal_form() -> None:
    reader = opened("s3://my-bucket/data/x/shard.parquet")
    for text, expected in {
        "a.jpg": "s3://my-bucket/data/x/a.jpg",
        "./a/../b.jpg": "s3://my-bucket/data/x/b.jpg",
        "../y/b.jpg": "s3://my-bucket/data/y/b.jpg",
        "s3://my-bucket/other/a//b%2e.jpg": "s3://my-bucket/other/a//b%2e.jpg",
        "S3A://my-bucket/a": "s3://my-bucket/a",
        "../../../a.jpg": "refused",
        "s3://my-bucket/../other/a": "refused",
        "s3://other/a": "refused",
        "s3://my-bucket": "refused",
        "s3://my-bucket/a/..": "refused",
        "s3:///a": "refused",
        "s3://my-bucket-2/a": "refused",
        "s3://my bucket/a": "refused",
        "s3://my-bucket/" + "ä" * 600: "refused",
        "/etc/passwd": "refused",
        "file:///etc/passwd": "refused",
    }.items():
        assert resolved(reader, text) == expected, text
    narrow = opened("s3://my-bucket/data/x/shard.parquet", allow=("s3://other/",))
    assert resolved(narrow, "a.jpg") == "s3://my-bucket/data/x/a.jpg"
    assert resolved(narrow, "s3://other/a.jpg") == "s3://other/a.jpg"
    assert resolved(narrow, "../a.jpg") == "refused"


def test_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, 9, 10, 11, 20, 21, 30):
        (folder / "in" / f"{size}").write_bytes(b"x" * size)
    for first in (10, 50):
        monkeypatch.setattr(links, "FIRST_BYTES", first)
        found = fetched(opened(f"{folder}/in/s", 20), "0", "9", "10", "11", "20", "21", "30")
        assert kinds(found) == [None] * 5 + ["OversizedMember"] * 2
        assert [len(s.members["image"]) for s in found[:5]] == [0, 9, 10, 11, 20]


def test_several_at_once_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(40):
        (folder / "in" / f"{i}").write_bytes(b"%d" % i)
    running = most = 0
    lock = threading.Lock()
    fetch = Storage.fetch

    def slow(self: Storage, uri: str, *args: Any) -> tuple[bytes, str]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (int(uri[-1]) % 3))
        with lock:
            running -= 1
        return fetch(self, uri, *args)

    monkeypatch.setattr(Storage, "fetch", slow)
    found = fetched(opened(f"{folder}/in/s"), *map(str, range(40)))
    assert [s.members["image"] for s in found] == [b"%d" % i for i in range(40)]
    assert 4 <= most <= 8


def test_rows_with_and_without_links_keep_their_order(folder: Path) -> None:
    def mixed() -> Iterator[Row]:
        for i in range(60):
            if i % 3:
                yield Row(i, str(i), members={"text": b"t"})
            else:
                yield row(i, "deep/a.jpg")

    found = list(opened(f"{folder}/in/s").items(mixed()))
    assert [place for place, _ in found] == list(range(60))
    assert sum("image" in s.members for _, s in found) == 20


def test_storage_that_stays_broken_ends_the_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Storage, uri: str, *args: Any) -> tuple[bytes, str]:
        raise StorageError(uri, "down")

    monkeypatch.setattr(Storage, "fetch", broken)
    with pytest.raises(StorageError, match="down"):
        fetched(opened(f"{folder}/in/s"), "deep/a.jpg")


def test_an_object_that_changes_between_its_halves(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "in" / "deep" / "a.jpg"
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(links, "FIRST_BYTES", 10)
    fetch = Storage.fetch

    def changing(self: Storage, uri: str, *args: Any) -> tuple[bytes, str]:
        data = fetch(self, uri, *args)
        path.write_bytes(b"y" * 99)
        return data

    monkeypatch.setattr(Storage, "fetch", changing)
    assert kinds(fetched(opened(f"{folder}/in/s"), "deep/a.jpg")) == ["LinkBroken"]


def test_http(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmray.storage.web.FIRST_PAUSE", 0.001)
    with serving() as server:
        server.replies = {
            "/i/a": body(b"data"),
            "/i/large": body(b"x" * 100),
            "/i/huge": body(b"x" * 1001),
            "/i/bad": status(500),
        }
        reader = opened(f"{folder}/in/s", allow=(f"{server.url}/i",), private=True)
        names = ("a", "large", "huge", "bad", "none", "../x")
        for first in (10, 1 << 20):
            monkeypatch.setattr(links, "FIRST_BYTES", first)
            found = fetched(reader, *(f"{server.url}/i/{name}" for name in names))
            assert kinds(found) == [
                None,
                None,
                "OversizedMember",
                "LinkBroken",
                "LinkMissing",
                "LinkRefused",
            ]
            assert [len(s.members["image"]) for s in found[:2]] == [4, 100]
        public = opened(f"{folder}/in/s", allow=(f"{server.url}/i",))
        assert kinds(fetched(public, f"{server.url}/i/a")) == ["LinkRefused"]


def test_a_job_that_fails_stops_those_after_it() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        return number

    jobs = ((1, Later(partial(work, i))) for i in range(1000))
    with pytest.raises(ValueError, match="three"):
        list(in_order(jobs))
    assert len(begun) < 50


def test_bytes_on_their_way_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmray.sources.ahead.AHEAD_BYTES", 30)
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        return number

    jobs = ((10, Later(partial(work, i))) for i in range(20))
    for number in in_order(jobs):
        assert len(begun) <= number + 4


def test_s3(s3: TestServer, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"in/a.jpg": b"a", "in/ü b%20+.jpg": b"odd", "b.jpg": b"x" * 50, "empty": b""}
    shards.put(s3_uri, files, s3.client())
    monkeypatch.setattr(links, "FIRST_BYTES", 10)
    reader = opened(f"{s3_uri}/in/shard.parquet")
    texts = ["a.jpg", "ü b%20+.jpg", "../b.jpg", f"{s3_uri}/empty", "none", f"{s3_uri}/in"]
    found = fetched(reader, *texts)
    assert [s.members.get("image") for s in found[:4]] == [b"a", b"odd", b"x" * 50, b""]
    assert kinds(found[4:]) == ["LinkMissing", "LinkMissing"]
    elsewhere = opened("/data/s", allow=(f"{s3_uri}/in", "s3://no-such-bucket-here"))
    found = fetched(
        elsewhere, f"{s3_uri}/in/a.jpg", f"{s3_uri}/b.jpg", "s3://no-such-bucket-here/a"
    )
    assert kinds(found) == [None, "LinkRefused", "LinkMissing"]
