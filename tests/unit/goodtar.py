"""A tar of good samples, which bad ones are put into."""

from __future__ import annotations

from functools import cache
from typing import Any

from tests import shards
from tests.ingest import Account, Files, Vectors, ingest

Members = list[Any]

WORDS = b"a good one"
GOOD: Members = [("0.jpg", shards.picture(0)), ("0.txt", WORDS), ("zz.jpg", shards.picture(1))]


def taken(files: Files, uri: str = "*", **changes: Any) -> Account:
    """What came of the tars in `files`."""
    return ingest(files, {"kind": "webdataset", "uri": uri}, **changes)


@cache
def good() -> dict[str, Vectors]:
    """The rows of the good samples alone."""
    return taken({"a.tar": shards.tar(GOOD)}).rows
