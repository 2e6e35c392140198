"""Real files damaged from a seed, through the whole flow.

Each is in the store or in quarantine; there is no third way. Each damage is one of five: bits
flipped, cut off, bytes put in, bytes taken out, pieces swapped.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

from tests import media, rows, shards
from tests.badpictures import animated
from tests.ingest import Account, ingest

# Pillow warns of what it can read all the same.
pytestmark = [
    pytest.mark.timeout(20),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

Random = np.random.Generator
SEEDS = range(3)
LIMITS = {"bytes": 4_000_000, "pixels": 4_000_000, "seconds": 60}


def flipped(data: bytes, random: Random) -> bytes:
    bad = bytearray(data)
    for place in random.integers(0, len(data), int(random.integers(1, 9))):
        bad[place] ^= 1 << int(random.integers(8))
    return bytes(bad)


def cut_off(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(1, len(data)))]


def put_in(data: bytes, random: Random) -> bytes:
    place, size = int(random.integers(len(data))), int(random.integers(1, 300))
    return data[:place] + random.bytes(size) + data[place:]


def taken_out(data: bytes, random: Random) -> bytes:
    place, size = int(random.integers(len(data))), int(random.integers(1, 300))
    return data[:place] + data[place + size :]


def swapped(data: bytes, random: Random) -> bytes:
    size = max(1, len(data) // 10)
    one, two = sorted(random.integers(0, max(1, len(data) - size), 2).tolist())
    two = max(two, one + size)
    piece, other = data[one : one + size], data[two : two + size]
    return data[:one] + other + data[one + size : two] + piece + data[two + size :]


WAYS = {each.__name__: each for each in (flipped, cut_off, put_in, taken_out, swapped)}

# Extension to a real file of it.
MEDIA: dict[str, Callable[[], bytes]] = {
    "jpg": lambda: shards.picture(1),
    "png": lambda: shards.picture(1, format="PNG"),
    "webp": lambda: shards.picture(1, format="WEBP"),
    "gif": lambda: animated("GIF"),
    "tif": lambda: shards.picture(1, format="TIFF", compression="tiff_lzw"),
    "wav": lambda: media.sound(0.3),
    "flac": lambda: media.sound(0.3, format="flac"),
    "ogg": lambda: media.sound(0.3, 44_100, 2, "ogg"),
    "mp3": lambda: media.sound(0.3, 44_100, 2, "mp3"),
    "m4a": lambda: media.sound(0.3, 44_100, format="m4a"),
    "mp4": lambda: media.film(6, sound=True),
    "webm": lambda: media.film(6, format="webm", codec="libvpx", sound=True),
    "avi": lambda: media.film(6, format="avi", sound=True),
}
MODALITIES = {"image": ("jpg", "png", "webp", "gif", "tif"), "video": ("mp4", "webm", "avi")}


@cache
def real(ext: str) -> bytes:
    return MEDIA[ext]()


@cache
def whole(ext: str) -> Any:
    """The vectors of the undamaged file."""
    return of_tar([(f"a.{ext}", real(ext))]).rows["a"]


def of_tar(members: list[Any]) -> Account:
    source = {"kind": "webdataset", "uri": "*"}
    return ingest({"a.tar": shards.tar(members)}, source, limits=LIMITS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ext", MEDIA)
def test_damaged_media(ext: str, seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng([seed, *map(ord, ext)])
    members: list[Any] = [(f"0.{ext}", real(ext))]
    for name, damage in WAYS.items():
        members.append((f"{name}.{ext}", damage(real(ext), random)))
        members.append((f"after-{name}.{ext}", real(ext)))
    account = of_tar(members)
    assert account.total == 2 * len(WAYS) + 1
    for key in ("0", *(f"after-{name}" for name in WAYS)):
        assert account.rows[key] == whole(ext)
    bad = [key for key, _ in account.reasons]
    modality = next((m for m, every in MODALITIES.items() if ext in every), "audio")
    for name in WAYS:
        assert (name in account.rows) is not (name in bad)
        assert name in bad or account.rows[name][modality]
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "" or ext == "tif", "libtiff alone speaks for itself"


RECORDS = rows.records(8)
MEMBERS = [member for seed in range(8) for member in shards.members(f"{seed}", seed, size=(16, 12))]

# Kind of source, name, and a real file of it.
SHARDS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a.jsonl": ("jsonl", lambda: rows.jsonl(RECORDS)),
    "a.jsonl.gz": ("jsonl", lambda: gzip.compress(rows.jsonl(RECORDS), mtime=0)),
    "a.parquet": ("parquet", lambda: rows.parquet(RECORDS)),
    "a.tar": ("webdataset", lambda: shards.tar(MEMBERS)),
    "a.tar.gz": ("webdataset", lambda: gzip.compress(shards.tar(MEMBERS), mtime=0)),
}


@cache
def shard(name: str) -> bytes:
    return SHARDS[name][1]()


def of_shards(name: str, files: dict[str, bytes]) -> Account:
    kind = SHARDS[name][0]
    encoding = {"encoding": "base64"} if kind == "jsonl" else {}
    return ingest(files, {"kind": kind, "uri": "", **encoding}, limits=LIMITS)


@cache
def vectors(name: str) -> list[Any]:
    return [*of_shards(name, {name: shard(name)}).rows.values()]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SHARDS)
def test_damaged_shards(name: str, way: str, seed: int) -> None:
    data = shard(name)
    damaged = WAYS[way](data, np.random.default_rng([seed, len(data)]))
    other = name.replace("a.", "z.", 1)
    account = of_shards(name, {name: damaged, other: data})
    found = [row for key, row in account.rows.items() if key.startswith(name)]
    beside = [row for key, row in account.rows.items() if key.startswith(other)]
    assert beside == vectors(name)
    assert all(key.startswith(name) for key, _ in account.reasons)
    assert len(vectors(name)) == 8
    stands = before(name, data, damaged)
    assert found[:stands] == vectors(name)[:stands]
    if len(found) < 8:
        assert account.bad
    if name == "a.jsonl":  # a line stands for itself
        assert len(found) + len(account.bad) == len(damaged.rstrip(b"\n").split(b"\n"))


def before(name: str, data: bytes, damaged: bytes) -> int:
    """Samples that lie wholly before the damage; of a tar one less, which may lack files."""
    pairs = enumerate(zip(data, damaged, strict=False))
    place = next((at for at, (one, two) in pairs if one != two), min(len(data), len(damaged)))
    if name == "a.jsonl":
        return data[:place].count(b"\n")
    if name == "a.tar":
        starts = [data.index(f"{seed}.jpg\0".encode()) for seed in range(8)]
        return max(0, sum(start < place for start in starts) - 1)
    return 0
