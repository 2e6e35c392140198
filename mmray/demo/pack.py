"""Pictures and their sounds into WebDataset tars.

The same pictures give the same bytes, and a shard that is there already is left alone: packing
twice changes no etag, so a job that runs again finds nothing to do.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence

from mmray.demo.stamps import Picture
from mmray.storage import Storage, join

SHARD_BYTES = 64 * 1024 * 1024


def pack(pictures: Iterable[Picture], storage: Storage, prefix: str, shards: int = 8) -> list[str]:
    """Writes tars `00000.tar` and up under `prefix`; returns their uris.

    There are `shards` of them, or more where one would exceed 64 MiB: a shard is built in memory.
    """
    uris = []
    for number, chunk in enumerate(_cut(list(pictures), shards)):
        uri = join(prefix, f"{number:05d}.tar")
        data = tar_of(chunk)
        if not _holds(storage, uri, data):
            storage.write_bytes(uri, data)
        uris.append(uri)
    return uris


def tar_of(pictures: Iterable[Picture]) -> bytes:
    """A tar with `KEY.png`, `KEY.txt`, `KEY.json` and `KEY.ogg` of each picture, as far as it has
    them, without times or owners."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for picture in pictures:
            for name, data in _members(picture):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _members(picture: Picture) -> Iterator[tuple[str, bytes]]:
    yield f"{picture.key}.{picture.extension}", picture.read()
    if picture.caption is not None:
        yield f"{picture.key}.txt", picture.caption.encode()
    if picture.metadata:
        yield f"{picture.key}.json", picture.metadata
    if picture.sound is not None:
        yield f"{picture.key}{picture.sound.suffix.lower()}", picture.sound.read_bytes()


def _cut(pictures: Sequence[Picture], shards: int) -> Iterator[Sequence[Picture]]:
    """Runs of about equal count, in order, none much over `SHARD_BYTES`."""
    files = [each for picture in pictures for each in (picture.path, picture.sound) if each]
    total = sum(path.stat().st_size for path in files)
    count = min(max(shards, -(-total // SHARD_BYTES)), len(pictures))
    for i in range(count):
        yield pictures[len(pictures) * i // count : len(pictures) * (i + 1) // count]


def _holds(storage: Storage, uri: str, data: bytes) -> bool:
    try:
        return storage.stat(uri).size == len(data) and storage.read_bytes(uri) == data
    except FileNotFoundError:
        return False
