"""WebDataset tars as they should be, and resuming in them at every place."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest

from mmray.errors import RefusedError, ShardChanged
from mmray.sources import Cut, Fragment, open_source
from mmray.sources.stream import CHUNK
from mmray.sources.webdataset import GZIP_EXTENT, WebDatasetReader, split_name
from mmray.specs.common import Limits, WebDatasetSource
from mmray.storage import Storage
from tests import shards
from tests.conftest import TestServer
from tests.rows import assert_tiles, facts, samples


def source(path: Path | str, rows: int = 3, limits: Limits | None = None) -> WebDatasetReader:
    spec = WebDatasetSource(kind="webdataset", uri=str(path))
    reader = open_source(spec, Storage(), limits or Limits(), Cut(rows=rows))
    assert isinstance(reader, WebDatasetReader)
    return reader


def write(folder: Path, data: bytes, name: str = "a.tar") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def read(path: Path | str, rows: int = 3, limits: Limits | None = None) -> list[Fragment]:
    reader = source(path, rows, limits)
    [shard] = reader.shards()
    fragments = list(reader.read(shard, 0, shard.size, set()))
    assert_tiles(fragments, shard, 0, shard.size)
    return fragments


def test_a_sample_is_its_files(tmp_path: Path) -> None:
    found = samples(read(write(tmp_path, shards.sample_tar(10))))
    assert [s.source_key for s in found] == [f"{i:06d}" for i in range(10)]
    first = found[3]
    assert first.members == {"image": shards.picture(3), "text": shards.caption(3).encode()}
    assert first.metadata == {"caption": shards.caption(3), "category": "ramp", "number": 3}
    assert first.source_uri == str(tmp_path / "a.tar")
    assert first.error is None


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
@pytest.mark.parametrize(
    "format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=str
)
def test_resume_at_every_boundary_gives_the_same(tmp_path: Path, suffix: str, format: int) -> None:
    entries = [m for i in range(8) for m in shards.members(f"f/{i:03d}", i, size=(16, 16))]
    entries.insert(4, ("f", b""))
    data = shards.tar([shards.special("f", tarfile.DIRTYPE), *entries[:4], *entries[5:]])
    data = shards.tar([*entries[:4], *entries[5:]], format=format)
    path = write(tmp_path, data if suffix == "tar" else shards.gzipped(data), f"a.{suffix}")
    reader = source(path, rows=2)
    [shard] = reader.shards()
    whole = list(reader.read(shard, 0, shard.size, set()))
    assert_tiles(whole, shard, 0, shard.size)
    finest = list(source(path, rows=1).read(shard, 0, shard.size, set()))
    assert len(finest) == 8
    for i, fragment in enumerate(finest):
        start = fragment.span.start
        seen = {s.source_key for s in samples(finest[:i])}
        rest = list(reader.read(shard, start, shard.size, seen))
        assert_tiles(rest, shard, start, shard.size)
        assert facts(rest) == facts(finest[i:])
        assert len(seen) == i  # the caller's set is left alone
        for j in range(i, len(finest)):
            stop = finest[j].span.stop
            part = list(reader.read(shard, start, stop, seen))
            assert_tiles(part, shard, start, stop)
            assert facts(part) == facts(finest[i : j + 1])
    again = list(reader.read(shard, whole[1].span.start, shard.size, set()))
    assert [f.span for f in again] == [f.span for f in whole[1:]]


def test_names_in_every_form(tmp_path: Path) -> None:
    long = "d" * 120 + "/" + "n" * 150
    names = ["plain", "with space", "ünïcode-日本", long, "a/b/c", "./dot", ".hidden", "x"]
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        data = shards.tar([(f"{n}.Seg.JPG", b"1") for n in names], format=format)
        found = samples(read(write(tmp_path, data)))
        assert [s.source_key for s in found] == names
        assert {s.error for s in found} == {None}
    prefixed = shards.tar([(f"{'p' * 90}/{'q' * 90}.jpg", b"1")], format=tarfile.USTAR_FORMAT)
    [sample] = samples(read(write(tmp_path, prefixed)))
    assert sample.source_key == f"{'p' * 90}/{'q' * 90}"


def test_a_name_that_is_not_utf8_still_has_a_key(tmp_path: Path) -> None:
    data = bytearray(shards.tar([("k\x01.jpg", b"1")], format=tarfile.USTAR_FORMAT))
    data[1] = 0xFF
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 256)
    [sample] = samples(read(write(tmp_path, bytes(data))))
    assert sample.source_key == "k\\xff"
    sample.source_key.encode()


def test_split_name() -> None:
    assert split_name("a/b.c/d.Seg.PNG") == ("a/b.c/d", "seg.png")
    assert split_name("README") == ("README", "")
    assert split_name("a/.env.jpg") == ("a/.env", "jpg")
    assert split_name(".jpg") == (".jpg", "")


def test_exact_extension_beats_compound_and_first_beats_later(tmp_path: Path) -> None:
    entries = [("a.seg.png", b"seg"), ("a.jpg", b"exact"), ("a.png", b"later"), ("a.cls", b"1")]
    [sample] = samples(read(write(tmp_path, shards.tar(entries))))
    assert sample.members == {"image": b"exact"}
    [sample] = samples(read(write(tmp_path, shards.tar([("a.seg.png", b"s"), ("a.wav", b"w")]))))
    assert sample.members == {"image": b"s", "audio": b"w"}


def test_members_over_several_chunks(tmp_path: Path) -> None:
    large = [bytes([i]) * (CHUNK + 1000 * i + 7) for i in range(1, 4)]
    data = shards.tar([(f"{i}.mp4", piece) for i, piece in enumerate(large)])
    for name, content in (("a.tar", data), ("a.tar.gz", shards.gzipped(data))):
        found = samples(read(write(tmp_path, content, name)))
        assert [s.members["video"] for s in found] == large


def test_an_oversized_member_is_skipped_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [("a.jpg", b"1"), ("b.jpg", b"x" * (4 * CHUNK)), ("b.txt", b"t"), ("c.jpg", b"3")]
    path = write(tmp_path, shards.tar(entries))
    fetched: list[int] = []
    fetch = Storage.fetch

    def counting(self: Storage, uri: str, start: int, stop: int, etag: str) -> tuple[bytes, str]:
        data = fetch(self, uri, start, stop, etag)
        fetched.append(len(data[0]))
        return data

    monkeypatch.setattr(Storage, "fetch", counting)
    found = samples(read(path, limits=Limits(bytes=1000)))
    assert [(s.source_key, s.error and s.error.type) for s in found] == [
        ("a", None),
        ("b", "OversizedMember"),
        ("c", None),
    ]
    assert sum(fetched) < 3 * CHUNK


def test_a_folder_gives_sorted_shards_and_counts_the_rest(tmp_path: Path) -> None:
    for name, data in shards.sample_shards(3, 1).items():
        write(tmp_path, data, name)
    write(tmp_path, b"", "b.tgz")
    write(tmp_path, b"words", "README.md")
    reader = source(tmp_path)
    found = list(reader.shards())
    names = ["00000.tar", "00001.tar", "00002.tar", "b.tgz"]
    assert [os.path.basename(s.uri) for s in found] == names
    assert [s.size for s in found[2:]] == [(tmp_path / "00002.tar").stat().st_size, GZIP_EXTENT]
    assert reader.ignored == 1
    assert len({s.key for s in found}) == 4
    assert pickle.loads(pickle.dumps(reader)).ignored == 1


@pytest.mark.parametrize("name", ["a.tar.zst", "a.tbz2", "readme.md"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, b"x", name)
    with pytest.raises(RefusedError, match=r"\.tar"):
        source(tmp_path).shards()


def test_a_shard_that_changes_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, shards.sample_tar(5))
    reader = source(path)
    [shard] = reader.shards()
    path.write_bytes(shards.sample_tar(6))
    with pytest.raises(ShardChanged, match=str(path)):
        list(reader.read(shard, 0, shard.size, set()))


def test_a_shard_that_is_gone_is_one_error(tmp_path: Path) -> None:
    path = write(tmp_path, shards.sample_tar(5))
    reader = source(path)
    [shard] = reader.shards()
    path.unlink()
    [sample] = samples(list(reader.read(shard, 0, shard.size, set())))
    assert sample.error is not None
    assert (sample.source_key, sample.error.type) == ("", "UnreadableShard")


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_s3(s3: TestServer, s3_uri: str, suffix: str) -> None:
    data = shards.tar((f"{i:03d}.jpg", os.urandom(300_000)) for i in range(60))
    put = data if suffix == "tar" else shards.gzipped(data)
    shards.put(s3_uri, {f"a.{suffix}": put, f"empty.{suffix}": b""}, s3.client())
    reader = source(f"{s3_uri}/a.{suffix}", rows=7)
    [shard] = reader.shards()
    fragments = list(reader.read(shard, 0, shard.size, set()))
    assert_tiles(fragments, shard, 0, shard.size)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = [archive.extractfile(member) for member in archive]
        expected = [file.read() for file in files if file is not None]
    assert [s.members["image"] for s in samples(fragments)] == expected
    rest = list(reader.read(shard, fragments[4].span.start, shard.size, set()))
    assert facts(rest) == facts(fragments[4:])
    [empty] = samples(read(f"{s3_uri}/empty.{suffix}"))
    assert empty.error is not None
    assert empty.error.type == "EmptyShard"


def test_an_s3_shard_that_changes_or_goes(s3: TestServer, s3_uri: str) -> None:
    shards.put(s3_uri, {"a.tar": shards.sample_tar(3)}, s3.client())
    reader = source(f"{s3_uri}/a.tar")
    [shard] = reader.shards()
    shards.put(s3_uri, {"a.tar": shards.sample_tar(4)}, s3.client())
    with pytest.raises(ShardChanged):
        list(reader.read(shard, 0, shard.size, set()))
    Storage().delete(f"{s3_uri}/a.tar")
    [sample] = samples(list(reader.read(shard, 0, shard.size, set())))
    assert sample.error is not None
    assert sample.error.type == "UnreadableShard"
