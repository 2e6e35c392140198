"""Raw files: groups, slices that stay put, and reading them."""

from pathlib import Path

import pytest

from mmray.errors import RefusedError, ShardChanged
from mmray.sources import Cut, Sample, open_source
from mmray.sources.files import SLICE_ROWS, FilesReader, slices
from mmray.sources.fragment import Member
from mmray.specs.common import FilesSource, Limits
from mmray.storage import Storage
from tests import shards
from tests.conftest import TestServer


def reader_of(uri: Path | str, rows: int = 256, limits: Limits | None = None) -> FilesReader:
    spec = FilesSource(kind="files", uri=str(uri))
    reader = open_source(spec, Storage(), limits or Limits(), Cut(rows=rows))
    assert isinstance(reader, FilesReader)
    return reader


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def samples(reader: FilesReader) -> list[Sample]:
    found: list[Sample] = []
    for shard in reader.shards():
        place = 0
        for fragment in reader.read(shard, 0, shard.size, set()):
            assert fragment.span.start == place
            place = fragment.span.stop
            found += fragment.samples
        assert place == shard.size
    assert [s.source_uri for s in found] == sorted({s.source_uri for s in found})
    return found


def test_a_picture_with_its_sidecars_is_one_sample(tmp_path: Path) -> None:
    found = samples(reader_of(fill(tmp_path, shards.sample_files(7)), rows=2))
    assert len(found) == 7
    first = found[0]
    assert first.source_uri == str(tmp_path / "a/000000.jpg")
    assert first.source_key == "000000.jpg"
    assert first.members == {"image": shards.picture(0), "text": shards.caption(0).encode()}
    assert first.metadata["number"] == 0
    assert len(first.source_etag) == 32
    assert len({s.id for s in found}) == len({s.content_hash for s in found}) == 7


def test_primaries_sidecars_and_ignored_files(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "a.txt",
        "a.caption",
        "b.wav",
        "b.mp4",
        "c.txt",
        "d.json",
        "e.png",
        "e.jpg",
        "e.ogg",
        "f.bin",
        "g",
        ".h.jpg",
        "i.v2.JPG",
    ]
    fill(tmp_path, {name: b"{}" if name == "d.json" else name.encode() for name in names})
    reader = reader_of(tmp_path)
    found = {s.source_key: s.members for s in samples(reader)}
    assert found == {
        "a.jpg": {"image": b"a.jpg", "text": b"a.caption"},
        "b.wav": {"audio": b"b.wav", "video": b"b.mp4"},
        "c.txt": {"text": b"c.txt"},
        "e.jpg": {"image": b"e.jpg", "audio": b"e.ogg"},
        "e.png": {"image": b"e.png", "audio": b"e.ogg"},
        "i.v2.JPG": {"image": b"i.v2.JPG"},
    }
    assert reader.ignored == 5  # a.txt beside a.caption, d.json, f.bin, g and .h.jpg


def test_etags_follow_the_sidecars(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": b"1", "b.jpg": b"2", "b.txt": b"text"})
    before = {s.source_key: s.source_etag for s in samples(reader_of(tmp_path))}
    assert before["a.jpg"].startswith("1-")
    fill(tmp_path, {"b.txt": b"other"})
    after = {s.source_key: s.source_etag for s in samples(reader_of(tmp_path))}
    assert before["a.jpg"] == after["a.jpg"]
    assert before["b.jpg"] != after["b.jpg"]


def members(count: int) -> list[Member]:
    return [Member(f"/d/{i:06d}.jpg", f"{i:06d}.jpg", "e", 1) for i in range(count)]


def test_a_file_that_comes_changes_its_own_slice_alone() -> None:
    every = members(5000)
    cut = list(slices(every))
    assert [m for part in cut for m in part] == every
    assert max(map(len, cut)) <= SLICE_ROWS
    assert len(cut) > 20
    gone = list(slices(every[:2500] + every[2501:]))
    same = set(cut) & set(gone)
    assert len(cut) - len(same) <= 3


def test_slice_keys_follow_their_members(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jpg": b"1", "b.jpg": b"2"})
    [one] = reader_of(tmp_path).shards()
    [same] = reader_of(tmp_path).shards()
    assert one == same
    assert (one.uri, one.size) == (str(tmp_path / "a.jpg"), 2)
    fill(tmp_path, {"b.jpg": b"22"})
    [other] = reader_of(tmp_path).shards()
    assert other.key != one.key


def test_resume_in_the_middle(tmp_path: Path) -> None:
    reader = reader_of(fill(tmp_path, shards.sample_files(9)), rows=2)
    shard = max(reader.shards(), key=lambda shard: shard.size)
    whole = list(reader.read(shard, 0, shard.size, set()))
    rest = list(reader.read(shard, whole[1].span.start, shard.size, set()))
    assert [f.span for f in rest] == [f.span for f in whole[1:]]
    assert [s.id for f in rest for s in f.samples] == [s.id for f in whole[1:] for s in f.samples]


def test_bad_files_are_errors_of_their_own(tmp_path: Path) -> None:
    files = {
        "a.jpg": b"1",
        "b.jpg": b"x" * 101,
        "c.jpg": b"1",
        "c.json": b"[",
        "d.jpg": b"1",
        "d.txt": b"x" * 101,
        "e.jpg": b"1",
        "f.jpg": b"1",
    }
    reader = reader_of(fill(tmp_path, files), limits=Limits(bytes=100))
    listed = list(reader.shards())
    (tmp_path / "e.jpg").unlink()
    found = [
        (s.source_key, s.error and s.error.type)
        for shard in listed
        for f in reader.read(shard, 0, shard.size, set())
        for s in f.samples
    ]
    assert found == [
        ("a.jpg", None),
        ("b.jpg", "OversizedMember"),
        ("c.jpg", "BadMetadata"),
        ("d.jpg", "OversizedMember"),
        ("e.jpg", "UnreadableShard"),
        ("f.jpg", None),
    ]


@pytest.mark.parametrize("changed", ["a.jpg", "a.txt"])
def test_a_file_that_changes_is_noticed(tmp_path: Path, changed: str) -> None:
    reader = reader_of(fill(tmp_path, {"a.jpg": b"1", "a.txt": b"t"}))
    [shard] = reader.shards()
    fill(tmp_path, {changed: b"other"})
    with pytest.raises(ShardChanged, match=r"a\.jpg"):
        list(reader.read(shard, 0, 1, set()))


def test_a_folder_without_samples_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, {"a.bin": b"1"})
    with pytest.raises(RefusedError, match="holds no image"):
        reader_of(tmp_path).shards()


def test_s3(s3: TestServer, s3_uri: str) -> None:
    files = shards.sample_files(6)
    shards.put(s3_uri, {**files, "z.jpg": b"", "z.txt": b""}, s3.client())
    found = samples(reader_of(s3_uri))
    assert [s.source_key for s in found][-1] == "z.jpg"
    assert found[-1].members == {"image": b"", "text": b""}
    assert all(s.error is None for s in found)
    assert found[0].source_uri == f"{s3_uri}/a/000000.jpg"
    only = samples(reader_of(f"{s3_uri}/b/*.jpg"))
    assert [s.members.keys() for s in only] == [{"image"}] * 3
