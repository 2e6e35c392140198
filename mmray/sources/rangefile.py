"""A seekable file over ranges of one object, as pyarrow reads Parquet from.

What `fetch` raises comes out of pyarrow's calls as it is; `failure` keeps the first, which tells
an error of storage from one of the file.
"""

from collections import deque
from collections.abc import Callable

LEAST = 256 * 1024
"""Bytes of a request: small reads that follow each other share one."""

KEPT = 4
"""Small requests whose bytes are kept: pages of a few columns take turns."""


class RangeFile:
    """Reads from `fetch(start, stop)`; not for several threads at once."""

    closed = False

    def __init__(self, fetch: Callable[[int, int], bytes], size: int) -> None:
        self._fetch = fetch
        self._size = size
        self._at = 0
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self.failure: Exception | None = None

    def read(self, count: int = -1) -> bytes:
        """The next `count` bytes, fewer at the end."""
        left = max(self._size - self._at, 0)
        count = left if count < 0 else min(count, left)
        data = self._range(self._at, count) if count else b""
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to `offset` from the beginning, from here (1) or from the end (2)."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        """The offset of the next byte."""
        return self._at

    def size(self) -> int:
        """Bytes of the object."""
        return self._size

    def readable(self) -> bool:
        """Always."""
        return True

    def writable(self) -> bool:
        """Never."""
        return False

    def seekable(self) -> bool:
        """Always."""
        return True

    def flush(self) -> None:
        """Nothing: pyarrow calls it."""

    def close(self) -> None:
        """Lets the kept bytes go."""
        self.closed = True
        self._kept.clear()

    def _range(self, start: int, count: int) -> bytes:
        for first, data in self._kept:
            if first <= start and start + count <= first + len(data):
                return data[start - first : start - first + count]
        try:
            data = self._fetch(start, min(start + max(count, LEAST), self._size))
        except Exception as error:
            self.failure = self.failure or error
            raise
        if count < LEAST:
            self._kept.append((start, data))
        return data[:count]
