"""Decoded inputs of samples, read one by one: a file for each shard, one value after the other.

On this machine, or a disk that machines share, a file is mapped. From object storage files are
copied to the cache and mapped there as long as they are few bytes beside its size; of more, just
the bytes of a value are asked for, many at once, so that no machine needs room for all of them.
Each value is checked by itself, since nobody reads a file as a whole.
"""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from mmray.errors import RefusedError
from mmray.storage import Storage, blobs, is_s3
from mmray.storage.blobs import File

REQUESTS = 32
"""Values that are asked for at once: as many as a client has connections."""

COPIED = 0.1
"""Part of the cache that copies may take."""

SPOT = pa.struct([("start", pa.int64()), ("bytes", pa.int64()), ("crc32", pa.int64())])
"""Where a value lies in its file, as a column of rows says it."""


class Spot(NamedTuple):
    """Where a value lies."""

    file: int
    start: int
    bytes: int
    crc32: int


def append(out: BinaryIO, value: np.ndarray) -> dict[str, int]:
    """Write a value behind the others of a file; its place, as `SPOT` has it."""
    data = value.tobytes()
    spot = {"start": out.tell(), "bytes": len(data), "crc32": zlib.crc32(data)}
    out.write(data)
    return spot


class Inputs:
    """The files of a training; those that hold nothing are None."""

    def __init__(self, storage: Storage, root: str, files: Sequence[File | None]) -> None:
        self._storage, self._root, self._files = storage, root, files
        size = sum(file.bytes for file in files if file is not None)
        little = size <= COPIED * blobs.cache_limit()
        self._read = self._fetched if is_s3(root) and not little else self._mapped
        self._maps: dict[int, np.ndarray] = {}
        self._found: set[int] = set()

    def read(self, spots: Sequence[Spot | None]) -> list[np.ndarray | None]:
        """The values at some places, uint8 [bytes] each; don't change them.

        Raises:
            RefusedError: a file is missing, or isn't what it was.
            StorageError: storage stayed broken.
        """
        wanted = [spot for spot in spots if spot is not None and spot.bytes]
        values = iter(self._read(wanted))
        empty = np.zeros(0, np.uint8)
        return [None if spot is None else next(values) if spot.bytes else empty for spot in spots]

    def _mapped(self, spots: list[Spot]) -> list[np.ndarray]:
        return [
            self._checked(spot, self._map(spot)[spot.start : spot.start + spot.bytes])
            for spot in spots
        ]

    def _map(self, spot: Spot) -> np.ndarray:
        if spot.file not in self._maps:
            self._maps[spot.file] = np.memmap(self._local(spot), np.uint8, "r").view(np.ndarray)
        return self._maps[spot.file]

    def _local(self, spot: Spot) -> str:
        if is_s3(self._root):
            return str(blobs.get(self._storage, self._root, self._file(spot)))
        # `get` would read all of it, and each value has a checksum of its own.
        return blobs.require(self._storage, self._root, self._file(spot)).uri

    def _fetched(self, spots: list[Spot]) -> list[np.ndarray]:
        for spot in spots:
            if spot.file not in self._found:
                blobs.require(self._storage, self._root, self._file(spot))
                self._found.add(spot.file)
        return list(self._pool.map(self._got, spots))

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS, thread_name_prefix="inputs")

    def _got(self, spot: Spot) -> np.ndarray:
        data = self._storage.read_range(self._uri(spot), spot.start, spot.start + spot.bytes)
        return self._checked(spot, np.frombuffer(data, np.uint8))

    def _checked(self, spot: Spot, value: np.ndarray) -> np.ndarray:
        if zlib.crc32(value.data) != spot.crc32:
            raise RefusedError(
                f"{self._uri(spot)} was changed after it was written: bytes {spot.start:,} to"
                f" {spot.start + spot.bytes:,} have another checksum"
            )
        return value

    def _uri(self, spot: Spot) -> str:
        return blobs.uri_of(self._storage, self._root, self._file(spot).path)

    def _file(self, spot: Spot) -> File:
        file = self._files[spot.file]
        assert file is not None
        return file
