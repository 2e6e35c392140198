"""Archives that are odd or bad, through the whole flow: members, metadata, torn and nested tars."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from mmray.sources.tar import MAX_EXTENDED
from tests import media, shards
from tests.ingest import ingest
from tests.unit.goodtar import GOOD, WORDS, Members, good, taken

pytestmark = pytest.mark.timeout(20)


def amid(*members: Any) -> bytes:
    """A tar of the members between the good ones."""
    return shards.tar([*GOOD[:2], *members, GOOD[2]])


def sparse(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": name}
    return info


def jpeg(name: str, seed: int = 5) -> tuple[str, bytes]:
    return name, shards.picture(seed)


def nested(depth: int) -> bytes:
    return b'{"caption": "a", "n": ' + b"[" * depth + b"]" * depth + b"}"


# Name: the members amid good ones, the keys and reasons, and words of the first reason.
MEMBERS: dict[str, tuple[Members, list[tuple[str, str]], str]] = {
    "../x": ([jpeg("../x.jpg")], [("../x.jpg", "UnsafeMember")], "leaves the archive: ../x.jpg"),
    "a/../../x": ([jpeg("a/../../x.jpg")], [("a/../../x.jpg", "UnsafeMember")], "leaves"),
    "absolute": ([jpeg("/etc/x.jpg")], [("/etc/x.jpg", "UnsafeMember")], "/etc/x.jpg"),
    "no name": ([jpeg("")], [("", "UnsafeMember")], "no name"),
    "a symbolic link": (
        [shards.link("x.jpg", "/etc/passwd")], [("x.jpg", "UnsupportedMember")], "a symbolic link"
    ),
    "a link to a member": (
        [shards.link("x.jpg", "0.jpg", hard=True)], [("x.jpg", "UnsupportedMember")], "a hard link"
    ),
    "a device": (
        [shards.special("x.jpg")], [("x.jpg", "UnsupportedMember")], "a character device"
    ),
    "a block device": (
        [shards.special("x.jpg", tarfile.BLKTYPE)], [("x.jpg", "UnsupportedMember")], "a block"
    ),
    "a pipe": (
        [shards.special("x.jpg", tarfile.FIFOTYPE)], [("x.jpg", "UnsupportedMember")], "a pipe"
    ),
    "a folder called x.jpg": ([shards.special("x.jpg", tarfile.DIRTYPE)], [], ""),
    "a type that nobody knows": (
        [shards.special("x.jpg", b"Z")], [("x.jpg", "UnsupportedMember")], "unknown type"
    ),
    "a sparse file": ([sparse("x.jpg")], [("x.jpg", "UnsupportedMember")], "a sparse file"),
    "a tar in a tar": (
        [("x.tar", shards.tar([jpeg("y.jpg")]))], [("x", "NoModality")], "extensions: tar"
    ),
    "a tar called .jpg": (
        [("x.jpg", shards.tar([jpeg("y.jpg")]))], [("x", "UnreadableImage")], "not an image"
    ),
    "gzip in a tar": ([("x.gz", gzip.compress(b"x"))], [("x", "NoModality")], "extensions: gz"),
    "an empty member": ([("x.jpg", b"")], [("x", "EmptyMember")], "no bytes"),
    "an empty text": ([("x.txt", b"")], [("x", "EmptyText")], "no characters"),
    "blanks for a text": ([("x.txt", b" \n\t")], [("x", "EmptyText")], "no characters"),
    "a text with NUL": ([("x.txt", b"a\0b")], [("x", "BadText")], "NUL character"),
    "a text that is not UTF-8": ([("x.txt", b"caf\xe9")], [("x", "BadText")], "not UTF-8"),
    "a text in UTF-16": ([("x.txt", "a".encode("utf-16"))], [("x", "BadText")], "not UTF-8"),
    "half a surrogate pair": ([("x.txt", b"\xed\xa0\x80")], [("x", "BadText")], "not UTF-8"),
    "a text of 2 MB": ([("x.txt", b"word " * 400_000)], [("x", "OversizedText")], "limits.char"),
    "a caption that is a list": (
        [("x.json", b'{"caption": ["a"]}'), jpeg("x.jpg")], [("x", "WrongType")], "'caption'"
    ),
    "torn JSON": ([jpeg("x.jpg"), ("x.json", b"{")], [("x", "BadMetadata")], "not JSON"),
    "JSON that is a list": ([jpeg("x.jpg"), ("x.json", b"[]")], [("x", "BadMetadata")], "list"),
    "empty JSON": ([jpeg("x.jpg"), ("x.json", b"")], [("x", "BadMetadata")], "not JSON"),
    "JSON in UTF-16": (
        [jpeg("x.jpg"), ("x.json", '{"n": 1}'.encode("utf-16"))], [], ""
    ),
    "JSON that is not UTF-8": (
        [jpeg("x.jpg"), ("x.json", b'{"n": "\xff"}')], [("x", "BadMetadata")], "not JSON"
    ),
    "half a pair in JSON": (
        [jpeg("x.jpg"), ("x.json", b'{"n": "\\ud800"}')], [("x", "BadMetadata")], "surrogate"
    ),
    "JSON of 100,000 brackets": (
        [("x.json", nested(100_000))], [("x", "BadMetadata")], "."
    ),
    "10,000 digits": (
        [jpeg("x.jpg"), ("x.json", b'{"n": ' + b"9" * 10_000 + b"}")], [("x", "BadMetadata")], "n"
    ),
    "metadata alone": ([("x.json", b"{}")], [("x", "NoModality")], "metadata but no image"),
    "no modality": ([("x.npy", b"1"), ("x.cls", b"2")], [("x", "NoModality")], "cls, npy"),
    "a name without extension": ([jpeg("x")], [("x", "NoModality")], "none"),
    "a script": ([("x.sh", b"#!/bin/sh\n")], [("x", "NoModality")], "extensions: sh"),
    "pickled": ([("x.pkl", b"\x80\x04."), ("x.pyd", b"1")], [("x", "NoModality")], "pkl"),
    "one name twice": ([jpeg("x.jpg"), jpeg("x.jpg", 6)], [("x", "DuplicateMember")], "twice"),
    "one name in two cases": (
        [jpeg("x.jpg"), jpeg("x.JPG", 6)], [("x", "DuplicateMember")], "x.JPG is there twice"
    ),
    "a key that comes back": (
        [jpeg("x.jpg"), jpeg("y.jpg"), jpeg("x.png", 6)], [("x", "NonContiguousKey")], "comes back"
    ),
    "a key that comes back twice": (
        [jpeg("x.jpg"), jpeg("y.jpg"), jpeg("x.png", 6), jpeg("v.jpg"), ("x.txt", b"t")],
        [("x", "NonContiguousKey"), ("x", "NonContiguousKey")], "comes back",
    ),
    "2,000 files of one key": (
        [(f"x.{i}", b"") for i in range(2_000)], [("x", "TooManyMembers")], "1000 files"
    ),
    "2,000 links": (
        [shards.link(f"{i}.jpg", "0.jpg") for i in range(2_000)],
        [(f"{i}.jpg", "UnsupportedMember") for i in range(2_000)], "a symbolic link",
    ),
    "what macOS leaves": ([jpeg("._x.jpg"), ("x/.DS_Store", b"1")], [], ""),
    "a torn sound beside a good picture": (
        [jpeg("x.jpg"), ("x.wav", media.sound(0.2)[:900])], [("x", "TruncatedAudio")], "data"
    ),
    "a torn picture beside a good text": (
        [("x.jpg", shards.picture(3)[:400]), ("x.txt", WORDS)], [("x", "UnreadableImage")], "bytes"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERS)
def test_a_bad_member_leaves_its_neighbours(name: str) -> None:
    members, reasons, words = MEMBERS[name]
    account = taken({"a.tar": amid(*members)})
    assert account.reasons == reasons
    assert {key: account.rows[key] for key in good()} == good()
    if reasons:
        assert words in account.bad[0].message or words == "."


@pytest.mark.parametrize("depth", [64, 500, *range(920, 980, 4), 2_000])
def test_metadata_of_any_depth(depth: int) -> None:
    """Python's own limit is met at another depth by each of the threads that read and keep it."""
    account = taken({"a.tar": amid(jpeg("x.jpg"), ("x.json", nested(depth)))}, keep=["n"])
    assert account.reasons == [("x", "BadMetadata")]
    assert "deep" in account.bad[0].message
    files = {"x.jpg": jpeg("")[1], "x.json": nested(depth), "0.jpg": GOOD[0][1]}
    account = ingest(files, {"kind": "files", "uri": ""}, keep=["n"])
    assert account.reasons == [("x.jpg", "BadMetadata")]
    assert [*account.rows] == ["0.jpg"]


# Name: a value in JSON, the type to keep it as, and what is kept or the reason.
KEPT: dict[str, tuple[str, str, Any]] = {
    "401 digits as a float": ("1" + "0" * 400, "float", "WrongType"),
    "401 digits as a text": ("1" + "0" * 400, "string", "1" + "0" * 400),
    "401 digits as an int": ("1" + "0" * 400, "int", "WrongType"),
    "2**63 as an int": (str(2**63), "int", "WrongType"),
    "-2**63 as an int": (str(-(2**63)), "int", "WrongType|kept"),
    "1.0 as an int": ("1.0", "int", "WrongType"),
    "true as an int": ("true", "int", "WrongType"),
    "1e400 as a float": ("1e400", "float", float("inf")),
    "a text as a bool": ('"yes"', "bool", "WrongType"),
    "a list as a float": ("[1]", "float", "WrongType"),
    "NUL in a text": ('"a\\u0000b"', "string", "a\0b"),
    "an object as a text": ('{"a": [1, null]}', "string", '{"a": [1, null]}'),
    "null": ("null", "int", None),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept_metadata(name: str) -> None:
    value, kind, expected = KEPT[name]
    sidecar = f'{{"n": {value}}}'.encode()
    account = taken({"a.tar": amid(jpeg("x.jpg"), ("x.json", sidecar))}, keep={"n": kind})
    assert account.total == len(good()) + 1
    if account.bad:
        assert account.reasons == [("x", "WrongType")]
        assert expected in ("WrongType", "WrongType|kept")
        assert "'n'" in account.bad[0].message
    elif expected == "WrongType|kept":
        assert account.kept["x"]["n"] == int(value)
    else:
        assert account.kept["x"]["n"] == expected


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", shards.picture(1))
    return out.getvalue()


def huge_member() -> bytes:
    """A header that declares 8 EB in base 256."""
    info = tarfile.TarInfo("x.jpg")
    info.size = 2**63
    first = shards.tar(GOOD[:2]).rstrip(b"\0")
    return first + bytes(-len(first) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(2_000)


def long_header(size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4_000)


TAR = shards.tar(GOOD)
BIG = shards.tar([*GOOD[:2], ("x.txt", b"w" * 9_000), GOOD[2]])

# Name of the file, its bytes, the good keys that stand, its one reason and words of it.
SHARDS: dict[str, tuple[str, bytes | Callable[[], bytes], list[str], tuple[str, str], str]] = {
    "empty": ("a.tar", b"", [], ("", "EmptyShard"), "no sample"),
    "zeros": ("a.tar", bytes(10_240), [], ("", "EmptyShard"), "no sample"),
    "folders alone": (
        "a.tar", lambda: shards.tar([shards.special("a", tarfile.DIRTYPE)]),
        [], ("", "EmptyShard"), "no sample",
    ),
    "gzip named .tar": (
        "a.tar", lambda: gzip.compress(TAR), [], ("", "CorruptShard"), "should end in .tar.gz"
    ),
    "tar named .tar.gz": ("a.tar.gz", TAR, [], ("", "CorruptShard"), "gzip"),
    "zip named .tar": ("a.tar", zipped, [], ("", "TruncatedShard|CorruptShard"), "header"),
    "a picture named .tar": ("a.tar", shards.picture(1), [], ("", "CorruptShard"), "no tar header"),
    "html named .tar": (
        "a.tar", b"<html>404 Not Found</html>".ljust(600), [], ("", "CorruptShard"), "tar header"
    ),
    "gzip in gzip": (
        "a.tgz", lambda: gzip.compress(gzip.compress(TAR)), [], ("", "CorruptShard"), "gzip data"
    ),
    "gzip of nothing": ("a.tgz", gzip.compress(b""), [], ("", "EmptyShard"), "no sample"),
    "torn in a member": (
        "a.tar", lambda: shards.cut_in_member(TAR, "zz.jpg"), ["0"], ("zz", "TruncatedShard"),
        "ends within a member",
    ),
    "torn in a header": (
        "a.tar", lambda: TAR[: TAR.index(b"0.txt") + 200], [], ("0", "TruncatedShard"), "header"
    ),
    "torn gzip": (
        "a.tgz", lambda: gzip.compress(TAR, 0)[:1_200], [], ("0", "TruncatedShard"), "breaks off"
    ),
    "gzip with a false checksum": (
        "a.tgz", lambda: gzip.compress(TAR)[:-8] + bytes(8), [], ("", "CorruptShard"), "gzip"
    ),
    "a garbage header": (
        "a.tar", lambda: shards.with_garbage_header(TAR, "zz.jpg"), [], ("0", "CorruptShard"),
        "no tar header at",
    ),
    "a size of 8 EB": ("a.tar", huge_member, ["0"], ("x", "TruncatedShard"), "ends within"),
    "a name of 2 GB": (
        "a.tar", lambda: long_header(2**31), [], ("", "CorruptShard"), "2147483648 bytes"
    ),
    "a name of 1 MB and nothing": (
        "a.tar", lambda: long_header(MAX_EXTENDED), [], ("", "TruncatedShard"), "header"
    ),
    "two tars in a row": ("a.tar", TAR + TAR, ["0", "zz"], ("", "TrailingData"), "end-of-archive"),
    "a tail": ("a.tar", TAR + b"tail", ["0", "zz"], ("", "TrailingData"), "end-of-archive"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_a_bad_archive_leaves_the_others(name: str) -> None:
    file, data, stands, (key, kind), words = SHARDS[name]
    content = data if isinstance(data, bytes) else data()
    account = taken({file: content, "z.tar": TAR})
    expected = {f"{file}:{each}": good()[each] for each in stands}
    assert account.rows == expected | {f"z.tar:{each}": row for each, row in good().items()}
    [bad] = account.bad
    assert bad.key == f"{file}:{key}"
    assert bad.type in kind.split("|")
    assert words in bad.message


def test_a_bomb_of_gzip_in_bounded_memory() -> None:
    """A member of 256 MB, packed in 250 kB."""
    data = gzip.compress(amid(("x.jpg", bytes(256 << 20)), ("y.jpg", bytes(3 << 20))), 1)
    account = taken({"a.tar.gz": data}, measured=True, limits={"bytes": 1 << 20})
    assert account.reasons == [("x", "OversizedMember"), ("y", "OversizedMember")]
    assert "268,435,456 bytes, over 1,048,576" in account.bad[0].message
    assert account.rows == good()
    assert account.peak < 16_000_000
