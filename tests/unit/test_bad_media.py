"""Pictures, sounds and films that are odd or bad, through the whole flow.

Each leaves its neighbours. Every case is a member of a tar, between two good ones.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from tests import media, shards
from tests.badmedia import FILMS, SOUNDS
from tests.badpictures import IMAGES, JPEG, OTHERS, PIXELS, SECONDS, Case, zipped
from tests.ingest import Account, ingest, made

# Pillow warns of EXIF that it can't read, and gives the picture all the same.
pytestmark = [
    pytest.mark.timeout(20),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

REASONS = {"jpg": "UnreadableImage", "wav": "UnreadableAudio", "mp4": "UnreadableVideo"}
MODALITIES = {"jpg": "image", "wav": "audio", "mp4": "video"}


def others(ext: str) -> dict[str, Case]:
    """What is no media at all, under the name of some."""
    found: dict[str, Case] = {
        name: (data, REASONS[ext] if data else "EmptyMember", "known format" if data else "bytes")
        for name, data in OTHERS.items()
    }
    return found | {"zip": (zipped, REASONS[ext], "known format")}


CASES = {
    "jpg": IMAGES | others("jpg"),
    "wav": SOUNDS | others("wav"),
    "mp4": FILMS | others("mp4"),
}
EVERY = [(ext, name) for ext, cases in CASES.items() for name in cases]


@cache
def good(ext: str) -> bytes:
    return {"jpg": JPEG, "wav": media.sound(0.2), "mp4": media.film(2)}[ext]


@cache
def every(ext: str) -> Account:
    """All cases of a kind in one tar."""
    members = [("0000.good." + ext, good(ext)), ("0000.txt", b"a good one")]
    for number, (data, _, _) in enumerate(CASES[ext].values(), 1):
        members.append((f"{number:04d}-bad.{ext}", made(data)))
        members += [(f"{number:04d}-good.{ext}", good(ext))]
    limits = {"pixels": PIXELS, "seconds": SECONDS}
    source = {"kind": "webdataset", "uri": "a.tar"}
    return ingest({"a.tar": shards.tar(members)}, source, limits=limits)


@cache
def vector(ext: str) -> Any:
    """That of the good one alone."""
    source = {"kind": "webdataset", "uri": "a.tar"}
    alone = ingest({"a.tar": shards.tar([(f"a.{ext}", good(ext))])}, source)
    return alone.rows["a"]


@pytest.mark.parametrize(("ext", "name"), EVERY, ids=[f"{ext}-{name}" for ext, name in EVERY])
def test_it_is_in_the_store_or_in_quarantine(ext: str, name: str) -> None:
    number = [*CASES[ext]].index(name) + 1
    _, reason, words = CASES[ext][name]
    account = every(ext)
    assert account.total == 2 * len(CASES[ext]) + 1
    before = "0000" if number == 1 else f"{number - 1:04d}-good"
    modality = MODALITIES[ext]
    assert account.rows[before][modality] == vector(ext)[modality]
    assert account.rows[f"{number:04d}-good"] == vector(ext)
    found = [bad for bad in account.bad if bad.key == f"{number:04d}-bad"]
    if not found:
        assert re.fullmatch(reason, ""), account.rows[f"{number:04d}-bad"]
        assert account.rows[f"{number:04d}-bad"][modality]
        return
    [bad] = found
    assert re.fullmatch(reason, bad.type), bad
    assert re.search(words, bad.message), bad
