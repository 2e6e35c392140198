"""Tars gone wrong: every sample comes whole or as an error, and nothing goes without a word."""

import gzip
import io
import random
import tarfile
from pathlib import Path

import pytest

from mmray.sources import Sample
from mmray.specs.common import Limits
from tests import shards
from tests.unit.test_sources_webdataset import read, samples, write

Result = list[tuple[str, str | None]]


def result(found: list[Sample]) -> Result:
    return [(s.source_key, s.error and s.error.type) for s in found]


def of(folder: Path, data: bytes, name: str = "a.tar") -> Result:
    return result(samples(read(write(folder, data, name))))


def small(count: int = 4) -> bytes:
    return shards.tar(
        m for i in range(count) for m in ((f"{i}.jpg", bytes([i]) * 700), (f"{i}.txt", b"t%d" % i))
    )


def assert_prefix(found: list[Sample], whole: list[Sample]) -> list[Sample]:
    """Good samples equal the undamaged ones, in order; returns the errors."""
    good = [s for s in found if s.error is None]
    assert [(s.id, s.content_hash) for s in good] == [
        (s.id, s.content_hash) for s in whole[: len(good)]
    ]
    return [s for s in found if s.error is not None]


def test_truncated_anywhere(tmp_path: Path) -> None:
    data = small()
    whole = samples(read(write(tmp_path, data)))
    end = 4 * 2 * 512 + 4 * 1024 + 4 * 512  # of the last member
    for size in [*range(0, end, 97), *range(0, end + 1, 512)]:
        found = samples(read(write(tmp_path, data[:size])))
        [error] = assert_prefix(found, whole)
        assert found[-1] is error
        assert error.error is not None
        assert error.error.type == ("TruncatedShard" if size else "EmptyShard")
        # All samples whose last file lies wholly before the cut, but for one at the very cut.
        assert len(found) - 1 >= size // 2560 - 1
    for size in (end + 512, end + 513, end + 1024, len(data)):
        assert assert_prefix(samples(read(write(tmp_path, data[:size]))), whole) == []


def test_gzip_truncated_anywhere(tmp_path: Path) -> None:
    parts = [(f"{i}.jpg", random.Random(i).randbytes(700)) for i in range(4)]
    data = shards.gzipped(shards.tar(parts))
    whole = samples(read(write(tmp_path, data, "a.tgz")))
    for size in range(0, len(data), 31):
        found = samples(read(write(tmp_path, data[:size], "a.tgz")))
        [error] = assert_prefix(found, whole)
        assert error.error is not None
        assert error.error.type == ("TruncatedShard" if size else "EmptyShard")


def test_gzip_with_a_flipped_byte(tmp_path: Path) -> None:
    data = shards.gzipped(shards.tar([(f"{i}.jpg", random.randbytes(700)) for i in range(4)]))
    for place in (0, 5, len(data) // 2, len(data) - 6):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        errors = [kind for _, kind in of(tmp_path, bytes(broken), "a.tgz") if kind]
        if place != 5:  # the time stamp: nobody reads it
            assert len(errors) == 1


def test_gzip_streams_in_a_row_are_one_and_garbage_after_them_is_told(tmp_path: Path) -> None:
    data = small()
    split = gzip.compress(data[:3000]) + gzip.compress(data[3000:])
    assert [kind for _, kind in of(tmp_path, split, "a.tgz")] == [None] * 4
    assert [kind for _, kind in of(tmp_path, split + bytes(100), "a.tgz")] == [None] * 4
    found = of(tmp_path, split + b"garbage", "a.tgz")
    assert [kind for _, kind in found] == [None] * 4 + ["CorruptShard"]


@pytest.mark.parametrize("member", ["0.jpg", "1.jpg", "2.txt"])
def test_garbage_for_a_header(tmp_path: Path, member: str) -> None:
    data = small()
    whole = samples(read(write(tmp_path, data)))
    found = samples(read(write(tmp_path, shards.with_garbage_header(data, member))))
    [error] = assert_prefix(found, whole)
    assert error.error is not None
    assert error.error.type == "CorruptShard"
    # The sample before the hole may have lost a file in it, so it is the error.
    assert (
        result(found)[-1]
        == {
            "0.jpg": ("", "CorruptShard"),
            "1.jpg": ("0", "CorruptShard"),
            "2.txt": ("2", "CorruptShard"),
        }[member]
    )


def test_random_damage_never_ends_reading_or_changes_a_sample(tmp_path: Path) -> None:
    data = small(6)
    whole = {s.id: s for s in samples(read(write(tmp_path, data)))}
    chance = random.Random(1)
    for _ in range(300):
        broken = bytearray(data[: chance.choice([len(data), chance.randrange(len(data))])])
        hit = chance.randrange(max(len(broken) // 512, 1)) * 512
        for _ in range(chance.choice([1, 3, 200])):
            if hit < len(broken):  # within headers and data alike
                broken[min(hit + chance.randrange(512), len(broken) - 1)] ^= 1 << chance.randrange(
                    8
                )
        found = samples(read(write(tmp_path, bytes(broken))))
        lost = whole.keys() - {s.id for s in found}
        if lost:
            assert any(s.error is not None for s in found) or len(found) >= len(whole)


def test_not_a_tar(tmp_path: Path) -> None:
    assert of(tmp_path, b"<html>not found</html>" * 100) == [("", "CorruptShard")]
    assert of(tmp_path, b"x") == [("", "TruncatedShard")]
    assert of(tmp_path, small(), "a.tar.gz") == [("", "CorruptShard")]
    [gzipped] = samples(read(write(tmp_path, shards.gzipped(small()) + bytes(400))))
    assert gzipped.error is not None
    assert ".tar.gz" in gzipped.error.message


def test_empty_tars(tmp_path: Path) -> None:
    folder = shards.special("a", tarfile.DIRTYPE)
    for data in (b"", bytes(1024), bytes(10240), shards.tar([folder])):
        assert of(tmp_path, data) == [("", "EmptyShard")]
        if data:
            assert of(tmp_path, shards.gzipped(data), "a.tgz") == [("", "EmptyShard")]


def test_links_devices_and_names_that_leave(tmp_path: Path) -> None:
    entries = [
        ("a.jpg", b"1"),
        shards.link("a.png", "/etc/passwd"),
        ("a.txt", b"text"),
        shards.link("b.jpg", "a.jpg", hard=True),
        shards.special("c.jpg", tarfile.CHRTYPE),
        shards.special("d.jpg", tarfile.BLKTYPE),
        shards.special("e.jpg", tarfile.FIFOTYPE),
        shards.special("folder", tarfile.DIRTYPE),
        ("../x.jpg", b"1"),
        ("f/../../x.jpg", b"1"),
        ("f/..x.jpg", b"1"),
        ("._g.jpg", b"resource fork"),
        ("h.jpg", b"8"),
        ("../x.jpg", b"again"),
    ]
    data = bytearray(shards.tar([*entries, ("Xabs.jpg", b"1"), ("i.jpg", b"9")]))
    at = data.index(b"Xabs.jpg")
    data[at] = ord("/")
    data[at + 148 : at + 156] = b"%06o\0 " % (
        sum(data[at : at + 148]) + sum(data[at + 156 : at + 512]) + 256
    )
    found = samples(read(write(tmp_path, bytes(data))))
    assert result(found) == [
        ("a", None),
        ("a.png", "UnsupportedMember"),
        ("b.jpg", "UnsupportedMember"),
        ("c.jpg", "UnsupportedMember"),
        ("d.jpg", "UnsupportedMember"),
        ("e.jpg", "UnsupportedMember"),
        ("../x.jpg", "UnsafeMember"),
        ("f/../../x.jpg", "UnsafeMember"),
        ("f/.", None),
        ("h", None),
        ("../x.jpg", "UnsafeMember"),
        ("/abs.jpg", "UnsafeMember"),
        ("i", None),
    ]
    assert found[0].members["text"] == b"text"


def test_strange_members_without_end_stay_in_bounds(tmp_path: Path) -> None:
    entries = [("a.jpg", b"1"), *(shards.link(f"l{i}", "x") for i in range(2500)), ("b.jpg", b"2")]
    fragments = read(write(tmp_path, shards.tar(entries)), rows=100)
    assert max(len(f.samples) for f in fragments) <= 1100
    assert len(samples(fragments)) == 2502


def test_keys_that_come_back(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "a.txt", "b.txt", "b.json", "c.jpg", "a.txt"]
    found = samples(read(write(tmp_path, shards.tar([(n, b"{}") for n in names])), rows=1))
    assert result(found) == [
        ("a", None),
        ("b", None),
        ("a", "NonContiguousKey"),
        ("b", "NonContiguousKey"),
        ("c", None),
        ("a", "NonContiguousKey"),
    ]


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ([("a.jpg", b"1"), ("a.JPG", b"2")], "DuplicateMember"),
        ([("a.jpg", b"1"), ("a.json", b"[]")], "BadMetadata"),
        ([("a.jpg", b"1"), ("a.txt", b"\xff")], "BadText"),
        ([("a.cls", b"1"), ("a.npy", b"2")], "NoModality"),
        ([("a.json", b"{}")], "NoModality"),
        ([("a", b"1")], "NoModality"),
        ([(f"a.{i}", b"") for i in range(1100)], "TooManyMembers"),
    ],
)
def test_bad_samples_leave_their_neighbours(
    tmp_path: Path, entries: list[tuple[str, bytes]], kind: str
) -> None:
    data = shards.tar([("0.jpg", b"0"), *entries, ("z.jpg", b"z")])
    assert of(tmp_path, data) == [("0", None), ("a", kind), ("z", None)]


def test_data_after_the_end_is_told(tmp_path: Path) -> None:
    one, two = small(2), shards.tar([("x.jpg", b"1")])
    assert of(tmp_path, one + two) == [("0", None), ("1", None), ("", "TrailingData")]
    assert of(tmp_path, one + bytes(100_000)) == [("0", None), ("1", None)]
    assert of(tmp_path, bytes(1024) + two) == [("", "TrailingData")]
    assert of(tmp_path, shards.gzipped(one + two), "a.tgz")[-1] == ("", "TrailingData")


def test_sparse_files_are_refused_and_passed_over(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("s.jpg").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[124:136] = b"%011o\0" % 512
    header[482] = 1
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 256)
    more = bytes(504) + b"\1" + bytes(7)
    sparse = bytes(header) + more + bytes(512) + b"d" * 512
    assert of(tmp_path, sparse + small(1)) == [("s.jpg", "UnsupportedMember"), ("0", None)]
    info = tarfile.TarInfo("p.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "p.jpg"}
    data = shards.tar([info], format=tarfile.PAX_FORMAT)[:-10240]
    data = info.tobuf(tarfile.PAX_FORMAT)
    assert of(tmp_path, data + small(1)) == [("p.jpg", "UnsupportedMember"), ("0", None)]


def pax(records: bytes, size: int | None = None) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(records) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)


def test_pax_sizes_and_damage(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.jpg")  # its own size field says 0
    member = pax(b"10 size=3\n") + info.tobuf(tarfile.USTAR_FORMAT) + b"abc" + bytes(509)
    [first, _] = samples(read(write(tmp_path, member + small(1))))
    assert first.members == {"image": b"abc"}
    for records in (b"99 path=x\n", b"x path=a\n", b"11 size=-3\n", b"9 size=x\n", b"0 a=b\n"):
        bad = pax(records) + info.tobuf(tarfile.USTAR_FORMAT)
        assert of(tmp_path, small(1)[: 4 * 512 + 512] + bad)[-1][1] == "CorruptShard"
    assert of(tmp_path, pax(b"10 size=3\n"))[-1][1] == "TruncatedShard"
    assert of(tmp_path, pax(b"10 size=3\n") + bytes(1024)) == [("", "CorruptShard")]
    assert of(tmp_path, pax(b"", size=1 << 32)) == [("", "CorruptShard")]


def test_global_headers_change_nothing(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "made by a tool"}) as archive:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.jpg")
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
    assert of(tmp_path, out.getvalue()) == [("0", None), ("1", None), ("2", None)]


def test_an_oversized_member_in_a_torn_tar(tmp_path: Path) -> None:
    data = shards.tar([("a.jpg", b"1"), ("b.jpg", b"x" * 5000), ("c.jpg", b"1")])
    found = samples(read(write(tmp_path, data[:4000]), limits=Limits(bytes=100)))
    assert result(found) == [("a", None), ("b", "TruncatedShard")]
