"""Uris inside rows that lead nowhere, outside, or where nobody should go."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pytest

from tests import rows, shards
from tests.ingest import Account, Files, Link, ingest

pytestmark = pytest.mark.timeout(20)

PICTURE = shards.picture(1)
ENCODED = base64.b64encode(PICTURE).decode()
LONG = "n" * 250 + ".jpg"

# What lies beside the lines, in `rows/`, and what lies outside of it.
FILES: Files = {
    "secret.jpg": PICTURE,
    "outside/a.jpg": PICTURE,
    "rows/images/1.jpg": PICTURE,
    'rows/images/a b\'s "c".jpg': PICTURE,
    "rows/images/100%.jpg": PICTURE,
    "rows/images/صورة-图-é-👩‍🚀.jpg": PICTURE,
    f"rows/images/{LONG}": PICTURE,
    "rows/images/empty.jpg": b"",
    "rows/images/words.jpg": b"just words",
    "rows/images/large.jpg": bytes(300_000),
    "rows/folder/": b"",
    "rows/to-inside.jpg": Link("images/1.jpg"),
    "rows/to-outside.jpg": Link("../secret.jpg"),
    "rows/to-folder": Link("../outside"),
    "rows/to-itself.jpg": Link("to-itself.jpg"),
    "rows/to-nothing.jpg": Link("images/none.jpg"),
    "rows/to-etc": Link("/etc/passwd"),
}

# Uri: the reason, empty where it is fetched, and words of it.
CASES: dict[str, tuple[str, str]] = {
    "images/1.jpg": ("", ""),
    "./images/../images/1.jpg": ("", ""),
    "images//1.jpg": ("", ""),
    "{folder}/rows/images/1.jpg": ("", ""),
    "file://{folder}/rows/images/1.jpg": ("", ""),
    'images/a b\'s "c".jpg': ("", ""),
    "images/100%.jpg": ("", ""),
    "images/صورة-图-é-👩‍🚀.jpg": ("", ""),
    f"images/{LONG}": ("", ""),
    "to-inside.jpg": ("", ""),
    f"data:image/jpeg;base64,{ENCODED}": ("", ""),
    f"DATA:;BASE64,{quote(ENCODED)}": ("", ""),
    f"data:image/jpeg,{quote(PICTURE)}": ("", ""),
    "../secret.jpg": ("LinkRefused", "source.allow"),
    "images/../../secret.jpg": ("LinkRefused", "source.allow"),
    "{folder}/secret.jpg": ("LinkRefused", "source.allow"),
    "file://{folder}/secret.jpg": ("LinkRefused", "source.allow"),
    "file://localhost{folder}/rows/%2e%2e/secret.jpg": ("LinkRefused", "source.allow"),
    "FILE:///etc/passwd": ("LinkRefused", "source.allow"),
    "/etc/passwd": ("LinkRefused", "source.allow"),
    "/proc/self/environ": ("LinkRefused", "source.allow"),
    "/dev/zero": ("LinkRefused", "source.allow"),
    "to-outside.jpg": ("LinkRefused", "source.allow"),
    "to-folder/a.jpg": ("LinkRefused", "source.allow"),
    "to-etc": ("LinkRefused", "source.allow"),
    "%2e%2e/secret.jpg": ("LinkMissing", "no such object"),
    "~/secret.jpg": ("LinkMissing", "no such object"),
    "images/none.jpg": ("LinkMissing", "no such object"),
    "images/1.jpg/x.jpg": ("LinkMissing", "no such object"),
    "to-nothing.jpg": ("LinkMissing", "no such object"),
    "folder": ("LinkMissing", "no such object"),
    "folder/": ("LinkMissing", "no such object"),
    "images/1.JPG": ("LinkMissing", "no such object"),
    "javascript:alert(1)": ("LinkMissing", "no such object"),
    "C:\\images\\1.jpg": ("LinkMissing", "no such object"),
    "to-itself.jpg": ("LinkBroken", "to-itself.jpg"),
    "n" * 300: ("LinkBroken", "too long"),
    "": ("LinkRefused", "empty"),
    "x" * 9_000: ("LinkRefused", "too long"),
    "images/1.jpg\n": ("LinkRefused", "control characters"),
    "images/1.jpg\x00.png": ("LinkRefused", "control characters"),
    "\x1b[2Jimages/1.jpg": ("LinkRefused", "control characters"),
    "ftp://example.org/1.jpg": ("LinkRefused", "ftp://"),
    "gopher://127.0.0.1:25/_": ("LinkRefused", "gopher://"),
    "s3://": ("LinkRefused", "names no bucket"),
    "s3://other-bucket/1.jpg": ("LinkRefused", "source.allow"),
    "http://127.0.0.1:9/1.jpg": ("LinkRefused", "source.allow"),
    "https://images.example.org/1.jpg": ("LinkRefused", "source.allow"),
    "http://": ("LinkRefused", "host"),
    "http://[::1/1.jpg": ("LinkRefused", "is no url"),
    "http://a:99999/1.jpg": ("LinkRefused", "is no url"),
    "http://name:secret@a.example/1.jpg": ("LinkRefused", "user name or password"),
    "images/empty.jpg": ("EmptyMember", "no bytes"),
    "images/words.jpg": ("UnreadableImage", "just words"),
    "images/large.jpg": ("OversizedMember", "200,000"),
    "data:image/jpeg;base64": ("BadDataUri", "comma"),
    "data:image/jpeg;base64,YQ": ("BadBase64", "padding"),
    "data:image/jpeg;base64,not base64": ("BadBase64", "not base64"),
    "data:,": ("EmptyMember", "no bytes"),
    "data:text/html,<html></html>": ("UnreadableImage", "<html>"),
}

# With these prefixes allowed.
WEB_CASES: dict[str, str] = {
    "http://127.0.0.1:9/1.jpg": "private",
    "http://[::1]:9/1.jpg": "private",
    "http://localhost:9/1.jpg": "private",
    "http://169.254.169.254/latest/meta-data": "private",
    "http://10.1.2.3/1.jpg": "private",
    "http://[::ffff:10.0.0.1]/1.jpg": "private",
    "http://127.0.0.1:9/../x": "'..'",
    "http://127.0.0.1:9/%2e%2e/x": "'..'",
    "http://127.0.0.1:10/1.jpg": "source.allow",
    "http://127.0.0.1:9.example.org/1.jpg": "is no url",
}


def taken(kind: str, uris: list[str], **source: Any) -> Account:
    """Every uri between two good rows."""
    values: list[str] = ["images/1.jpg"]
    for uri in uris:
        values += [uri, "images/1.jpg"]

    def data(folder: str) -> bytes:
        said = [value.replace("{folder}", folder) for value in values]
        if kind == "parquet":
            return rows.parquet(pa.table({"image": pa.array(said)}))
        return b"".join(json.dumps({"image": value}).encode() + b"\n" for value in said)

    files: Files = {**FILES, f"rows/a.{kind}": data}
    where = {"kind": kind, "uri": f"rows/a.{kind}", **source}
    return ingest(files, where, limits={"bytes": 200_000})


@cache
def all_links(kind: str) -> Account:
    return taken(kind, [*CASES])


@pytest.mark.parametrize("uri", CASES, ids=lambda uri: ascii(uri[:40])[1:-1])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_uri_in_a_row(kind: str, uri: str) -> None:
    account = all_links(kind)
    check(account, kind, [*CASES].index(uri), *CASES[uri])
    assert account.total == 2 * len(CASES) + 1


def check(account: Account, kind: str, number: int, reason: str, words: str) -> None:
    row = 2 * number + (2 if kind == "jsonl" else 1)
    vector = account.rows["1" if kind == "jsonl" else "0"]
    assert vector["image"]
    assert account.rows[str(row - 1)] == account.rows[str(row + 1)] == vector
    found = [bad for bad in account.bad if bad.key == str(row)]
    if not reason:
        assert found == []
        assert account.rows[str(row)] == vector
        return
    [bad] = found
    assert bad.type == reason
    assert words in bad.message
    assert "secret@" not in bad.message


@cache
def all_addresses() -> Account:
    allow = [uri.rpartition("/")[0].partition("/..")[0] + "/" for uri in WEB_CASES]
    allow = [each for each in allow if ":10/" not in each and ".example" not in each]
    return taken("jsonl", [*WEB_CASES], allow=[each for each in allow if "%" not in each])


@pytest.mark.parametrize("uri", WEB_CASES)
def test_an_address_that_is_allowed_and_yet_refused(uri: str) -> None:
    check(all_addresses(), "jsonl", [*WEB_CASES].index(uri), "LinkRefused", WEB_CASES[uri])
