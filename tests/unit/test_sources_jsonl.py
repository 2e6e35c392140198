"""JSON lines as they should be, resuming in them at every place, and every kind of broken line."""

import base64
import gzip
import json
import pickle
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mmray.errors import RefusedError, ShardChanged, SpecError
from mmray.sources import Cut, Sample, open_source
from mmray.sources.jsonl import JsonlReader
from mmray.sources.stream import ByteStream
from mmray.sources.webdataset import GZIP_EXTENT
from mmray.specs.common import JsonlSource, Limits
from mmray.storage import Storage
from tests import rows, shards
from tests.conftest import TestServer


def source(
    path: Path | str,
    cut: int = 3,
    limits: Limits | None = None,
    wanted: frozenset[str] | None = None,
    **options: Any,
) -> JsonlReader:
    spec = JsonlSource(kind="jsonl", uri=str(path), **options)
    reader = open_source(spec, Storage(), limits or Limits(), Cut(rows=cut), wanted)
    assert isinstance(reader, JsonlReader)
    return reader


def write(folder: Path, data: bytes, name: str = "a.jsonl") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    return path


def of(folder: Path, data: bytes, name: str = "a.jsonl", **options: Any) -> list[Sample]:
    return rows.samples(rows.read(source(write(folder, data, name), **options)))


def message(sample: Sample) -> str:
    assert sample.error is not None
    return sample.error.message


GOOD = b'{"caption": "fine"}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.gz", "A.JSON"])
def test_a_line_is_a_sample(tmp_path: Path, name: str) -> None:
    found = of(tmp_path, rows.jsonl(rows.records(5)), name, encoding="base64")
    assert [s.source_key for s in found] == ["1", "2", "3", "4", "5"]
    assert found[3].members == {
        "image": shards.picture(3, (16, 12)),
        "text": shards.caption(3).encode(),
    }
    assert found[3].metadata == {"caption": shards.caption(3), "category": "ramp", "number": 3}
    assert found[3].source_uri == str(tmp_path / name)
    assert len(found[3].content_hash) == 32


LINES = [
    b'{"caption": "one"}\n',
    b"\n",
    b'{"caption": "two"}\r\n',
    b"  \t\r\n\n",
    b"{broken}\n",
    b'{"caption": "\xff"}\n',
    b"\n\n",
    b'{"caption": "' + b"x" * 300 + b'"}\n',
    b'{"caption": "four", "n": 1}\n',
    b'{"caption": null}\n',
    b'{"caption": "end"}\n',
    b"\n  \n\n",
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("tail", [0, 1])
def test_resume_at_every_boundary_gives_the_same(tmp_path: Path, name: str, tail: int) -> None:
    path = write(tmp_path, b"".join(LINES[: len(LINES) - tail]), name)
    limits = Limits(bytes=200)
    count = rows.assert_resumes(source(path, 2, limits), source(path, 1, limits))
    assert count == 8
    starts = [f.span.start for f in rows.read(source(path, 1, limits))]
    ends = [sum(map(len, LINES[:i])) for i in (1, 3, 5, 6, 8, 9, 10)]
    assert starts == [0, *ends]  # right after the line before: blank ones belong to what follows
    found = rows.samples(rows.read(source(path, 2, limits)))
    assert rows.result(found) == [
        ("1", None),
        ("3", None),
        ("6", "BadJson"),
        ("7", "BadText"),
        ("10", "OversizedLine"),
        ("11", None),
        ("12", "NoModality"),
        ("13", None),
    ]
    for sample in found:
        assert sample.error is None or f"line {sample.source_key}" in sample.error.message


def test_numbers_hold_where_no_sample_before_was_kept(tmp_path: Path) -> None:
    """Samples that a filter left out are in no store, so nothing before may be known."""
    path = write(tmp_path, GOOD * 10)
    reader = source(path, 4)
    [shard] = reader.shards()
    place = len(GOOD) * 4
    for seen in ({"1", "2"}, set[str](), {"3#t=0,5"}):
        found = rows.samples(list(reader.read(shard, place, shard.size, seen)))
        assert [s.source_key for s in found] == ["5", "6", "7", "8", "9", "10"]


def test_fields_nested_and_wanted(tmp_path: Path) -> None:
    row = {"a": {"b": "text", "c": 1}, "x.y": "other", "n": 2, "m": None, "data": "aGk="}
    options: dict[str, Any] = {
        "columns": {"text": "a.b", "image": "data"},
        "encoding": "base64",
    }
    [every] = of(tmp_path, rows.line(row), **options)
    assert every.members == {"text": b"text", "image": b"hi"}
    kept = {"a": {"b": "text", "c": 1}, "x.y": "other", "n": 2, "m": None, "caption": "text"}
    assert every.metadata == kept
    wanted = frozenset({"n", "m", "x.y", "a.c", "none"})
    [some] = of(tmp_path, rows.line(row), wanted=wanted, **options)
    assert some.metadata == {"n": 2, "x.y": "other", "a.c": 1, "caption": "text"}
    [dotted] = of(tmp_path, rows.line(row), columns={"text": "x.y"})
    assert dotted.members == {"text": b"other"}


def test_texts_blank_or_with_marks(tmp_path: Path) -> None:
    lines = [
        {"caption": "\ufeff a café \n"},
        {"caption": "  "},
        {"caption": 3},
        {"caption": ["a"]},
    ]
    found = of(tmp_path, rows.jsonl(lines))
    kinds = [None, "NoModality", "WrongType", "WrongType"]
    assert [s.error and s.error.type for s in found] == kinds
    assert found[0].members["text"] == "a café".encode()
    assert found[0].metadata == {"caption": "a café"}


BAD_LINES: list[tuple[bytes, str]] = [
    (b"{", "BadJson"),
    (b'{"caption": "a"', "BadJson"),
    (b'{"caption": "a"}}', "BadJson"),
    (b'{"caption": "a"} {"caption": "b"}', "BadJson"),
    (b"{'caption': 'a'}", "BadJson"),
    (b'{"caption": "a",}', "BadJson"),
    (b'{"caption": "a\x00"}', "BadJson"),
    (b"\x00" * 50, "BadJson"),
    (b"\x0c", "BadJson"),
    (b'{"caption": "a\tb"}', "BadJson"),
    (b'{"caption": NaN}', "BadJson"),
    (b'{"caption": "a", "x": -Infinity}', "BadJson"),
    (b'{"caption": "a", "x": 1e400}', "BadJson"),
    (b'{"caption": "a", "x": ' + b"9" * 400 + b"}", "BadJson"),
    (b'{"caption": "a", "x": ' + b"9" * 5000 + b"}", "BadJson"),
    (b'{"caption": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "BadJson"),
    (b'{"caption": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "BadMetadata"),
    (b'{"caption": "a", "x": ' + b'{"y":' * 100 + b"1" + b"}" * 100 + b"}", "BadMetadata"),
    (b'{"caption": "a", "caption": "b"}', "DuplicateKey"),
    (b'{"caption": "a", "x": {"y": 1, "y": 1}}', "DuplicateKey"),
    (b'{"caption": "\xff\xfe"}', "BadText"),
    (b'{"caption": "\xed\xa0\x80"}', "BadText"),
    (b'{"caption": "\\ud800"}', "BadText"),
    (b'{"caption": "a", "x": "\\udc00\\ud800"}', "BadText"),
    (b'{"caption": "a", "\\ud800": 1}', "BadText"),
    ('{"caption": "a"}'.encode("utf-16"), "BadText"),
    (b"[1, 2]", "NotAnObject"),
    (b'"text"', "NotAnObject"),
    (b"null", "NotAnObject"),
    (b"{}", "NoModality"),
    (b'{"caption": ""}', "NoModality"),
    (b'{"title": "a"}', "NoModality"),
    (b'{"caption": {"de": "a"}}', "WrongType"),
    (b'{"image": 3}', "WrongType"),
    (b'{"image": "!!!"}', "BadBase64"),
    (b'{"image": "YQ"}', "BadBase64"),
    (b'{"image": "YQ==YQ=="}', "BadBase64"),
    (b'{"image": "Y Q=="}', "BadBase64"),
    (b'{"image": "Y\\nQ=="}', "BadBase64"),
    (b'{"image": "-_8="}', "BadBase64"),
    ('{"image": "ééé="}'.encode(), "BadBase64"),
    (b'{"caption": "' + b"x" * 600_000 + b'"}', "OversizedLine"),
]


@pytest.mark.parametrize(("bad", "kind"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_broken_line_leaves_its_neighbours(tmp_path: Path, bad: bytes, kind: str) -> None:
    bad = bad.replace(b"\n", b" ")  # UTF-16 may hold one
    limits = Limits(bytes=500_000)
    found = of(tmp_path, GOOD + bad + b"\n" + GOOD, limits=limits, encoding="base64")
    assert rows.result(found) == [("1", None), ("2", kind), ("3", None)]
    assert message(found[1]).startswith("line 2")
    message(found[1]).encode()


def test_good_lines_in_unusual_forms(tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf" + GOOD + b'{"caption": "crlf"}\r\n' + b'{"caption": "no end"}'
    found = of(tmp_path, marked)
    assert [s.members.get("text") for s in found] == [b"fine", b"crlf", b"no end"]
    pair = of(tmp_path, b'{"caption": "\\ud83d\\ude00", "x": "\\\\ud800", "y": 1e300}')
    assert pair[0].members["text"] == "\U0001f600".encode()
    assert rows.result(of(tmp_path, b"\xef\xbb\xbf\n" + GOOD)) == [("2", None)]


def test_a_torn_end_is_said(tmp_path: Path) -> None:
    found = of(tmp_path, GOOD + GOOD[:-5])
    assert rows.result(found) == [("1", None), ("2", "BadJson")]
    assert "the file ends within this line" in message(found[1])


@pytest.mark.parametrize("data", [b"", b"\n", b" \n\n\t", b"\xef\xbb\xbf"])
def test_a_file_without_lines_is_one_error(tmp_path: Path, data: bytes) -> None:
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert rows.result(of(tmp_path, data, name)) == [("", "EmptyShard")]


def test_lines_over_many_chunks_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmray.sources.stream.CHUNK", 1000)
    chance = random.Random(1)
    texts = ["x" * chance.randrange(1, 3000) for _ in range(50)]
    data = rows.jsonl({"caption": text} for text in texts)
    limits = Limits(bytes=2000)
    for name in ("a.jsonl", "a.jsonl.gz"):
        found = of(tmp_path, data, name, limits=limits)
        whole = [(s.members["text"].decode() if s.error is None else None) for s in found]
        assert whole == [text if len(text) + 15 <= 2000 else None for text in texts]


def test_a_line_without_end_is_passed_over_in_bounded_memory() -> None:
    left = [b"x" * 1_000_000] * 100 + [b"x\nnext\n"]

    class Chunks:
        def next(self) -> bytes:
            return bytes(bytearray(left.pop(0))) if left else b""

        def skip(self, count: int) -> int:
            return 0

    stream = ByteStream(Chunks(), 0)
    tracemalloc.start()
    try:
        assert stream.line(1000) is None
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert stream.pos == 100_000_002
    assert stream.line(4) == b"next\n"
    assert stream.line(4) == b""


def test_uris_and_data_uris(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.jpg").write_bytes(b"file")
    lines = [
        {"image": "p/a.jpg"},
        {"image": "data:image/png;base64," + base64.b64encode(b"\x00\xff").decode()},
        {"image": "data:;base64,Pz8%2F"},
        {"image": "DATA:,a%20b"},
        {"image": "data:nothing"},
        {"image": "data:;base64,?"},
        {"image": ""},
        {"image": "../a.jpg"},
        {"image": "p/none.jpg", "caption": "text"},
    ]
    found = of(tmp_path, rows.jsonl(lines))
    assert [s.members.get("image") for s in found[:4]] == [b"file", b"\x00\xff", b"???", b"a b"]
    kinds = ["BadDataUri", "BadBase64", "LinkRefused", "LinkRefused", "LinkMissing"]
    assert [s.error and s.error.type for s in found[4:]] == kinds
    [kept] = of(tmp_path, rows.line(lines[0]), wanted=frozenset({"image"}))
    assert kept.metadata == {"image": "p/a.jpg"}


def test_gzip_truncated_or_damaged(tmp_path: Path) -> None:
    chance = random.Random(3)
    data = rows.jsonl({"caption": f"{i} {chance.random()}"} for i in range(40))
    packed = gzip.compress(data, mtime=0)
    whole = [s.content_hash for s in of(tmp_path, data)]
    for size in range(1, len(packed), 41):
        (tmp_path / "a.jsonl.gz").write_bytes(packed[:size])
        found = rows.samples(rows.read(source(tmp_path / "a.jsonl.gz")))
        assert [s.content_hash for s in found[:-1]] == whole[: len(found) - 1]
        assert rows.result(found)[-1] == (str(len(found)), "TruncatedShard")
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip data")
    assert rows.result(of_path(tmp_path / "a.jsonl.gz")) == [("1", "CorruptShard")]


def of_path(path: Path) -> list[Sample]:
    return rows.samples(rows.read(source(path)))


def test_random_damage_never_ends_reading(tmp_path: Path) -> None:
    data = rows.jsonl(rows.records(6))
    chance = random.Random(2)
    for _ in range(200):
        broken = bytearray(data[: chance.choice([len(data), chance.randrange(1, len(data))])])
        for _ in range(chance.choice([1, 3, 50])):
            broken[chance.randrange(len(broken))] = chance.choice([0, 10, 34, 92, 125, 255])
        found = of(tmp_path, bytes(broken), encoding="base64")
        lines = [line for line in bytes(broken).split(b"\n") if line.strip(b" \t\r")]
        assert len(found) == max(len(lines), 1)


def test_listing(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.ndjson", "c.json.gz", "README.md", "d.csv"):
        (tmp_path / name).write_bytes(b"")
    reader = source(tmp_path)
    found = list(reader.shards())
    assert [s.uri.rpartition("/")[2] for s in found] == ["a.ndjson", "b.jsonl", "c.json.gz"]
    assert [s.size for s in found] == [1, 1, GZIP_EXTENT]
    assert pickle.loads(pickle.dumps(reader)).ignored == 2
    assert reader.covers(str(tmp_path / "gone.jsonl.gz"))
    assert not reader.covers(str(tmp_path / "gone.csv"))
    assert not reader.covers("/elsewhere/a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.json.bz2", "a.csv"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(RefusedError, match="JSON lines|holds no"):
        source(tmp_path).shards()


def test_a_bad_allow_names_its_field(tmp_path: Path) -> None:
    for bad in ("gs://b/", "http://", "https://user:pw@h/", "s3://"):
        with pytest.raises(SpecError, match=r"source\.allow\[1\]"):
            source(tmp_path, allow=("s3://b/", bad))


def test_a_shard_that_changes_or_goes(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    reader = source(path)
    [shard] = reader.shards()
    path.write_bytes(GOOD * 2)
    with pytest.raises(ShardChanged, match=str(path)):
        list(reader.read(shard, 0, shard.size, set()))
    path.unlink()
    found = rows.samples(list(reader.read(shard, 0, shard.size, set())))
    assert rows.result(found) == [("1", "UnreadableShard")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_s3(s3: TestServer, s3_uri: str, name: str) -> None:
    lines = [{"image": f"p/{i}.jpg", "caption": str(i)} for i in range(40)]
    data = rows.jsonl(lines)
    files = {f"p/{i}.jpg": shards.picture(i, (8, 8)) for i in range(39)}
    put = shards.gzipped(data) if name.endswith(".gz") else data
    shards.put(s3_uri, {name: put, **files}, s3.client())
    reader = source(f"{s3_uri}/{name}", 7)
    [shard] = reader.shards()
    fragments = list(reader.read(shard, 0, shard.size, set()))
    found = rows.samples(fragments)
    assert [s.members.get("image") for s in found[:-1]] == list(files.values())
    assert rows.result(found)[-1] == ("40", "LinkMissing")
    rest = list(reader.read(shard, fragments[3].span.start, shard.size, set()))
    assert rows.facts(rest) == rows.facts(fragments[3:])
    shards.put(s3_uri, {name: put + b"\n"}, s3.client())
    with pytest.raises(ShardChanged):
        list(reader.read(shard, 0, shard.size, set()))


def test_a_content_hash_follows_content(tmp_path: Path) -> None:
    data = b"".join(
        json.dumps(row).encode() + b"\n"
        for row in (
            {"caption": "a", "n": 1},
            {"n": 1, "caption": "a"},
            {"caption": "a", "n": 2},
            {"caption": "b", "n": 1},
        )
    )
    one, same, two, three = [s.content_hash for s in of(tmp_path, data)]
    assert one == same
    assert len({one, two, three}) == 3
