"""Bad rows: broken JSON lines, through the whole flow. Each leaves its neighbours as they were."""

from __future__ import annotations

import gzip
import json
from functools import cache
from typing import Any

import pytest

from tests import rows, shards
from tests.ingest import Account, Data, ingest, made

pytestmark = pytest.mark.timeout(20)

SMALL = {"bytes": 500_000, "characters": 2_000}
GOOD = rows.records(4)
LINES = [rows.line(record) for record in GOOD]


def lines_of(files: dict[str, bytes], **changes: Any) -> Account:
    source = {"kind": "jsonl", "uri": "*.jsonl*", "encoding": "base64"}
    return ingest(files, source, **{"limits": SMALL, **changes})


@cache
def good() -> list[Any]:
    """The vectors of `GOOD` with nothing bad among them."""
    return [*lines_of({"a.jsonl": b"".join(LINES)}).rows.values()]


def picture_line(data: bytes) -> bytes:
    return rows.line({"image": data, "caption": "a picture"})


# Name: the line, the reason, and words of it.
LINE_CASES: dict[str, tuple[Data, str, tuple[str, ...]]] = {
    "torn": (b"{", "BadJson", ("not JSON",)),
    "torn in a text": (b'{"caption": "a', "BadJson", ("character",)),
    "one brace too many": (b'{"caption": "a"}}', "BadJson", ("character 17",)),
    "two objects": (b'{"caption": "a"} {"caption": "b"}', "BadJson", ("Extra data",)),
    "python's quotes": (b"{'caption': 'a'}", "BadJson", ("double quotes",)),
    "a comma at the end": (b'{"caption": "a",}', "BadJson", ("not JSON",)),
    "a comment": (b'// {"caption": "a"}', "BadJson", ("character 1",)),
    "yaml": (b"caption: a", "BadJson", ("not JSON",)),
    "csv": (b"a.jpg,a caption,1", "BadJson", ("not JSON",)),
    "html": (b"<html><body>404 Not Found</body></html>", "BadJson", ("not JSON",)),
    "NUL in a text": (b'{"caption": "a\x00"}', "BadJson", ("control character",)),
    "an escaped NUL": (b'{"caption": "a\\u0000b"}', "BadText", ("NUL character",)),
    "only NUL": (b"\x00" * 50, "BadJson", ("not JSON",)),
    "a raw tab": (b'{"caption": "a\tb"}', "BadJson", ("control character",)),
    "NaN": (b'{"caption": NaN}', "BadJson", ("NaN",)),
    "infinity": (b'{"caption": "a", "x": -Infinity}', "BadJson", ("-Infinity",)),
    "1e400": (b'{"caption": "a", "x": 1e400}', "BadJson", ("too large",)),
    "5,000 digits": (
        b'{"caption": "a", "x": ' + b"9" * 5000 + b"}", "BadJson", ("5,000 digits",)
    ),
    "100,000 brackets": (
        b'{"caption": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "BadJson",
        ("nested too deep",),
    ),
    "900 brackets for a text": (
        b'{"caption": ' + b"[" * 900 + b"]" * 900 + b"}", "WrongType", ("no text",)
    ),
    "a field twice": (b'{"caption": "a", "caption": "b"}', "DuplicateKey", ("'caption'",)),
    "not UTF-8": (b'{"caption": "\xff\xfe"}', "BadText", ("not UTF-8",)),
    "Latin-1": ('{"caption": "café"}'.encode("latin-1"), "BadText", ("not UTF-8",)),
    "UTF-16": ('{"caption": "a"}'.encode("utf-16"), "BadText", ("not UTF-8",)),
    "a surrogate as bytes": (b'{"caption": "\xed\xa0\x80"}', "BadText", ("not UTF-8",)),
    "half a surrogate pair": (b'{"caption": "\\ud800"}', "BadText", ("surrogate",)),
    "half a pair in a name": (b'{"caption": "a", "\\ud800": 1}', "BadText", ("surrogate",)),
    "a list": (b"[1, 2]", "NotAnObject", ("object is needed", "list")),
    "a text": (b'"a text"', "NotAnObject", ("object is needed", "str")),
    "null": (b"null", "NotAnObject", ("object is needed",)),
    "no field": (b"{}", "NoModality", ("no image, text",)),
    "other fields": (b'{"title": "a"}', "NoModality", ("no image, text",)),
    "all null": (b'{"image": null, "caption": null}', "NoModality", ("image",)),
    "a blank text": (b'{"caption": " \\n "}', "NoModality", ("no image, text",)),
    "an object for a text": (b'{"caption": {"de": "a"}}', "WrongType", ("'de'",)),
    "a number for a text": (b'{"caption": 12}', "WrongType", ("12",)),
    "a number for a picture": (b'{"image": 3}', "WrongType", ("image", "3")),
    "a list of numbers for a picture": (b'{"image": [255, 216]}', "WrongType", ("image",)),
    "true for a sound": (b'{"audio": true}', "WrongType", ("audio",)),
    "no base64": (b'{"image": "!!!"}', "BadBase64", ("not base64",)),
    "base64 without padding": (b'{"image": "YQ"}', "BadBase64", ("padding",)),
    "padding amid base64": (b'{"image": "YQ==YQ=="}', "BadBase64", ("padding",)),
    "a line break in base64": (b'{"image": "YWFh\\nYWFh"}', "BadBase64", ("not base64",)),
    "base64 of urls": (b'{"image": "-_8="}', "BadBase64", ("not base64",)),
    "base64 of hex": (b'{"image": "ffd8ffe000104a464"}', "BadBase64", ("not base64",)),
    "base64 of nothing": (b'{"image": ""}', "EmptyMember", ("image", "no bytes")),
    "base64 of a torn picture": (
        lambda: picture_line(shards.picture(1)[:300]), "UnreadableImage", ("bytes",)
    ),
    "base64 of a bomb": (
        lambda: picture_line(shards.bomb()), "DecompressionBomb", ("14000x14000",)
    ),
    "base64 of text": (lambda: picture_line(b"just words"), "UnreadableImage", ("just words",)),
    "a text over the limit": (
        b'{"caption": "' + b"x" * 3_000 + b'"}', "OversizedText", ("3000", "limits.characters")
    ),
    "a line over the limit": (
        b'{"caption": "' + b"x" * 600_000 + b'"}', "OversizedLine", ("500,000",)
    ),
    "a text for a float": (
        b'{"caption": "a", "n": "1.5"}', "WrongType", ("'n'", "float")
    ),
    "a list for a float": (b'{"caption": "a", "n": [1]}', "WrongType", ("'n'", "float")),
    "308 digits for a float": (
        b'{"caption": "a", "n": ' + b"9" * 308 + b"}", "", ()
    ),
}  # fmt: skip


@cache
def all_lines() -> Account:
    """Every bad line between two good ones."""
    data = [LINES[0]]
    for number, (bad, _, _) in enumerate(LINE_CASES.values()):
        data += [made(bad).replace(b"\n", b" ").strip() + b"\n", LINES[(number + 1) % 4]]
    limits = SMALL | {"pixels": 1_000_000}
    return lines_of({"a.jsonl": b"".join(data)}, keep={"n": "float"}, limits=limits)


@pytest.mark.parametrize("name", LINE_CASES)
def test_a_bad_line_leaves_its_neighbours(name: str) -> None:
    number = [*LINE_CASES].index(name)
    _, kind, words = LINE_CASES[name]
    account, line = all_lines(), 2 * number + 2
    assert account.total == 2 * len(LINE_CASES) + 1
    assert account.rows[str(line - 1)] == good()[number % 4]
    assert account.rows[str(line + 1)] == good()[(number + 1) % 4]
    found = [bad for bad in account.bad if bad.key == str(line)]
    assert [bad.type for bad in found] == ([kind] if kind else [])
    assert (str(line) in account.rows) is not bool(kind)
    if found and found[0].stage == "read":
        assert found[0].message.startswith(f"line {line}")
    assert all(each in found[0].message for each in words)


# Name: the file, how many of the four good lines at its beginning stand, the key and the reason.
LINE_FILES: dict[str, tuple[str, Data, int, tuple[str, str], str]] = {
    "empty": ("a.jsonl", b"", 0, ("", "EmptyShard"), "no sample"),
    "blank lines": ("a.jsonl", b"\n \n\t\r\n", 0, ("", "EmptyShard"), "no sample"),
    "only a byte-order mark": ("a.jsonl", b"\xef\xbb\xbf", 0, ("", "EmptyShard"), "no sample"),
    "an end torn off": (
        "a.jsonl", b"".join(LINES)[:-9], 3, ("4", "BadJson"), "the file ends within this line"
    ),
    "one array over many lines": (
        "a.jsonl", b'[{"caption": "a"}]', 0, ("1", "NotAnObject"), "not list"
    ),
    "returns for newlines": (
        "a.jsonl", b'{"caption": "a"}\r{"caption": "b"}\r', 0, ("1", "BadJson"), "Extra data"
    ),
    "no gzip though its name says so": (
        "a.jsonl.gz", b"".join(LINES), 0, ("1", "CorruptShard"), "gzip"
    ),
    "gzip though its name does not say so": (
        "a.jsonl", lambda: gzip.compress(b"".join(LINES), mtime=0)[:200].replace(b"\n", b" "),
        0, ("1", "BadText"), "line 1",
    ),
    "gzip torn": (
        "a.jsonl.gz", lambda: gzip.compress(b"".join(LINES), 0, mtime=0)[:-60],
        3, ("4", "TruncatedShard"), "from line 4 on",
    ),
    "gzip with a false checksum": (
        "a.jsonl.gz", lambda: gzip.compress(b"".join(LINES), mtime=0)[:-8] + bytes(8),
        0, ("1", "CorruptShard"), "from line 1 on",
    ),
    "gzip with a tail": (
        "a.jsonl.gz", lambda: gzip.compress(b"".join(LINES), mtime=0) + b"tail",
        4, ("5", "CorruptShard"), "from line 5 on",
    ),
    "gzip of nothing": ("a.jsonl.gz", gzip.compress(b""), 0, ("", "EmptyShard"), "no sample"),
    "gzip in gzip": (
        "a.jsonl.gz",
        lambda: gzip.compress(gzip.compress(b"".join(LINES), mtime=0)[:200].replace(b"\n", b" ")),
        0, ("1", "BadText"), "line 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINE_FILES)
def test_a_bad_file_of_lines(name: str) -> None:
    file, data, whole, reason, words = LINE_FILES[name]
    account = lines_of({file: made(data), "z.jsonl": b"".join(LINES)})
    assert [*account.rows.values()] == good()[:whole] + good()
    key, kind = reason
    assert account.reasons == [(f"{file}:{key}", kind)]
    assert words in account.bad[0].message


def test_a_line_of_gigabytes_is_passed_over_in_bounded_memory() -> None:
    """64 MB of one line, 64 kB packed."""
    line = b'{"caption": "' + b"x" * 64_000_000 + b'"}\n'
    data = gzip.compress(LINES[0] + line + LINES[1], mtime=0)
    del line
    account = ingest(
        {"a.jsonl.gz": data},
        {"kind": "jsonl", "uri": "*.gz", "encoding": "base64"},
        measured=True,
        limits=SMALL,
    )
    assert account.reasons == [("2", "OversizedLine")]
    assert [*account.rows.values()] == good()[:2]
    assert account.peak < 12_000_000


def test_json_kept_of_any_kind() -> None:
    values = [None, True, 2**70, 1.5, "x", [1, None], {"a": "ü"}]
    data = b"".join(
        json.dumps({"caption": f"number {i}", "n": value}).encode() + b"\n"
        for i, value in enumerate(values)
    )
    account = lines_of({"a.jsonl": data}, keep=["n"])
    kept = [None, "true", str(2**70), "1.5", "x", "[1, null]", '{"a": "ü"}']
    assert [row["n"] for row in account.kept.values()] == kept
