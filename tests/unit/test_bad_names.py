"""Names and keys of any kind, raw files and what links lead to, and what is refused before work."""

from __future__ import annotations

import json
import tarfile
import unicodedata
from functools import cache
from typing import Any

import pytest

from mmray.errors import RefusedError
from tests import shards
from tests.ingest import Account, Files, Link, ingest, refusal
from tests.unit.goodtar import GOOD, WORDS, Members, good, taken

pytestmark = pytest.mark.timeout(20)


def jpeg(name: str, seed: int = 5) -> tuple[str, bytes]:
    return name, shards.picture(seed)


TAR = shards.tar(GOOD)

NAMES = {
    "Arabic": "صورة",
    "Chinese": "图片",
    "Hindi": "तस्वीर",
    "emoji": "👩‍🚀🏳️‍🌈",
    "combining marks": "e\u0301\u0302\u0303",
    "right to left": "a\u202egpj\u200f",
    "zero width": "a\u200b\ufeffb",
    "beyond the plane": "\U0001d518\U0001d52b",
    "250 bytes": "é" * 120,
    "600 characters": "long/" * 120 + "x",
    "spaces": " a  b ",
    "quotes": 'it\'s a "b" `c` \\d',
    "newlines": "a\nb\r\tc",
    "steering": "a\x1b[31mb\x07\x7f",
    "sql": "'; DROP TABLE x; --",
    "wildcards": "a*?[b]{0,3}%20$HOME~",
    "uri": "s3://bucket?x=1&y#z",
    "markup": "<script>alert(1)</script>",
    "a dot before": ".hidden",
    "dashes": "--help",
    "windows": "CON:|<>",
    "a NUL": "a\0b",
}
ON_DISK = {
    name: text for name, text in NAMES.items() if not set("/\0") & set(text) and text[0] != "."
}


@cache
def named() -> Account:
    members = [*GOOD[:2]]
    for number, text in enumerate(NAMES.values()):
        info = tarfile.TarInfo(f"{number}/{text}.jpg")
        members += [(info.name, shards.picture(5)), (f"{number}/{text}-bad.jpg", b"no")]
    return taken({"a.tar": pax(members)})


def pax(members: Members) -> bytes:
    """A tar whose names are written as they are, a NUL too."""
    out = b""
    for name, data in members:
        record = b" path=" + name.encode() + b"\n"
        size = len(record) + 1
        while len(str(size)) + len(record) != size:
            size = len(str(size)) + len(record)
        body = str(size).encode() + record
        head = tarfile.TarInfo("pax")
        head.type, head.size = tarfile.XHDTYPE, len(body)
        info = tarfile.TarInfo("x")
        info.size = len(data)
        for each, content in ((head, body), (info, data)):
            out += each.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)
    return out + bytes(1024)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_in_any_script(name: str) -> None:
    key = f"{[*NAMES].index(name)}/{NAMES[name]}"
    account = named()
    assert account.rows["0"] == good()["0"]
    assert account.rows[key] == account.rows[f"0/{NAMES['Arabic']}"]
    assert (key + "-bad", "UnreadableImage") in account.reasons
    assert account.total == 1 + 2 * len(NAMES)


def test_names_of_files_in_any_script() -> None:
    files: dict[str, Any] = {}
    for text in ON_DISK.values():
        files[f"{text}/{text}.jpg"] = shards.picture(5)
        files[f"{text}/{text}-bad.jpg"] = b"no"
        files[f"{text}/{text}.txt"] = WORDS
    account = ingest(files, {"kind": "files", "uri": ""})
    assert {*account.rows} == {f"{text}.jpg" for text in ON_DISK.values()}
    reasons = {(f"{text}-bad.jpg", "UnreadableImage") for text in ON_DISK.values()}
    assert {*account.reasons} == reasons
    assert len({json.dumps(row) for row in account.rows.values()}) == 1


NOT_UTF8 = "b\udcff"
"""How Python shows a file name of the bytes `b\\xff`."""


@pytest.mark.parametrize("kind", ["webdataset", "files"])
def test_a_name_that_is_not_utf8(kind: str) -> None:
    files: Files = {"a.tar": TAR, f"{NOT_UTF8}.tar": TAR}
    if kind == "files":
        files = {"a.jpg": shards.picture(1), f"{NOT_UTF8}.jpg": shards.picture(2)}
    with pytest.raises(RefusedError, match="not UTF-8"):
        ingest(files, {"kind": kind, "uri": ""})


def test_shards_of_any_name() -> None:
    files = {f"{text}.tar": TAR for text in ON_DISK.values()}
    account = taken(files, "")
    assert len(account.rows) == 2 * len(files)
    assert account.bad == []


@pytest.mark.parametrize(
    "pair",
    [
        ("a", "A"),
        (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")),
        ("\ufb01", "fi"),
        ("ß", "SS"),
        ("\u0131", "i"),
        ("a", "a "),
        ("0", "00"),
        ("a/b", "a//b"),
        ("a", "./a"),
        ("x/a", "y/a"),
    ],
    ids=ascii,
)
def test_keys_that_look_alike_are_two_samples(pair: tuple[str, str]) -> None:
    one, two = pair
    account = taken({"a.tar": shards.tar([jpeg(f"{one}.jpg", 1), jpeg(f"{two}.jpg", 2)])})
    assert [*account.rows] == [one, two]
    assert account.rows[one] != account.rows[two]


def test_raw_files_of_one_key_and_what_links_lead_to() -> None:
    """`a.jpg` and `a.png` are two samples with one text; what leads outside is no sample."""
    files: Files = {
        "in/a.jpg": shards.picture(1),
        "in/a.png": shards.picture(2, format="PNG"),
        "in/A.jpg": shards.picture(3),
        "in/a.txt": WORDS,
        "in/b/a.webp": shards.picture(4, format="WEBP"),
        "in/inside.jpg": Link("a.jpg"),
        "in/outside.jpg": Link("../outside/x.jpg"),
        "in/passwd.txt": Link("/etc/passwd"),
        "in/folder": Link("../outside"),
        "in/nothing.jpg": Link("none.jpg"),
        "in/folder.jpg/": b"",
        "in/readme.md": b"words",
        "outside/x.jpg": shards.picture(5),
    }
    account = ingest(files, {"kind": "files", "uri": "in"})
    assert {*account.rows} == {"a.jpg", "a.png", "A.jpg", "a.webp", "inside.jpg"}
    assert account.bad == []
    assert account.rows["inside.jpg"]["image"] == account.rows["a.jpg"]["image"]
    texts = [account.rows[key]["text"] for key in ("a.jpg", "a.png")]
    assert texts[0] == texts[1] is not None
    assert account.rows["A.jpg"]["text"] is None


def test_a_link_to_itself_is_no_sample() -> None:
    files: Files = {"a.jpg": shards.picture(1), "itself.jpg": Link("itself.jpg")}
    account = ingest(files, {"kind": "files", "uri": ""})
    assert [*account.rows] == ["a.jpg"]


# Kind, files, and words of the refusal, which names what was given.
REFUSED: dict[str, tuple[str, Files, tuple[str, ...]]] = {
    "an empty folder": ("webdataset", {"x/": b""}, ("does not exist or is empty",)),
    "no tar": ("webdataset", {"a.txt": b"words"}, ("holds no .tar",)),
    "a tar of zstd": ("webdataset", {"a.tar.zst": b"1"}, ("a.tar.zst", "only .tar")),
    "a tar of xz": ("webdataset", {"a.txz": b"1"}, ("a.txz", "only .tar")),
    "JSON lines of zstd": ("jsonl", {"a.jsonl.zst": b"1"}, ("a.jsonl.zst", "gzipped")),
    "CSV for JSON lines": ("jsonl", {"a.csv": b"1"}, ("holds no .jsonl",)),
    "CSV for Parquet": ("parquet", {"a.csv": b"1"}, ("holds no .parquet",)),
    "no media": ("files", {"readme.md": b"words"}, ("holds no image",)),
    "sidecars alone": ("files", {"a.json": b"{}"}, ("holds no image",)),
    "links that lead outside": ("files", {"a.jpg": Link("/etc/hostname")}, ("is empty",)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(name: str) -> None:
    kind, files, words = REFUSED[name]
    said = refusal(files, {"kind": kind, "uri": ""})
    assert "/in" in said
    for each in words:
        assert each in said
