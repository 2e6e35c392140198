"""Bytes in order from a place on, with bounded memory: ranges of an object, or gzip in them.

`ByteStream` is what a parser reads. It copies each byte once, out of the chunk it came in.
"""

import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

CHUNK = 8 * 1024 * 1024
_GZIP_IN = 64 * 1024
_GZIP_OUT = 1024 * 1024


class Broken(Exception):
    """A shard can't be read any further: error type, words, and the member where known."""

    def __init__(self, error_type: str, message: str, name: str = "") -> None:
        self.error_type = error_type
        self.message = message
        self.name = name
        super().__init__(f"{error_type}: {message}")


class Chunks(Protocol):
    """Where a `ByteStream` gets its bytes."""

    def next(self) -> bytes:
        """The next bytes, empty at the end."""
        ...

    def skip(self, count: int) -> int:
        """Passes over up to `count` bytes without reading; how many it did (0 is fine)."""
        ...


class RangeChunks:
    """Ranges of one object, one ahead of its reader in a thread. Close it."""

    def __init__(self, fetch: Callable[[int, int], bytes], start: int, stop: int) -> None:
        self._fetch = fetch
        self._place = start
        self._stop = stop
        self._ahead: Future[bytes] | None = None
        self._thread = ThreadPoolExecutor(1, "mmray-read-ahead")

    def next(self) -> bytes:
        """Up to `CHUNK` bytes, while the following ones are being fetched."""
        wanted = min(CHUNK, self._stop - self._place)
        if wanted <= 0:
            return b""
        if self._ahead is None:
            data = self._fetch(self._place, self._place + wanted)
        else:
            data = self._ahead.result()
        self._ahead = None
        self._place += len(data)
        if len(data) < wanted:  # the object ends here
            self._stop = self._place
        elif self._place < self._stop:
            end = min(self._place + CHUNK, self._stop)
            self._ahead = self._thread.submit(self._fetch, self._place, end)
        return data

    def skip(self, count: int) -> int:
        """Passes over what would be whole chunks."""
        if count < CHUNK:  # what is on its way would be fetched twice
            return 0
        if self._ahead is not None:
            self._ahead.cancel()
            self._ahead = None
        count = min(count, self._stop - self._place)
        self._place += count
        return count

    def close(self) -> None:
        """Stops reading ahead."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class GzipChunks:
    """What gzip `chunks` decompress to; streams written one after another are one."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0
        self._fed = b""  # what the decompressor was given and has not used
        self._zip: zlib._Decompress | None = None

    def next(self) -> bytes:
        """Raises Broken where the data is torn or damaged."""
        while self._fed or self._feed():
            if self._zip is None:
                self._fed = self._fed.lstrip(b"\0")  # padding between streams is allowed
                if not self._fed:
                    continue
                self._zip = zlib.decompressobj(wbits=31)
            try:
                data = self._zip.decompress(self._fed, _GZIP_OUT)
            except zlib.error as error:
                raise Broken("CorruptShard", f"bad gzip data: {error}") from error
            if self._zip.eof:
                self._fed, self._zip = self._zip.unused_data, None
            else:
                self._fed = self._zip.unconsumed_tail
            if data:
                return data
        # All input may be used while output is still held back; none is when the stream has ended.
        if self._zip is not None:
            raise Broken("TruncatedShard", "the gzip data breaks off")
        return b""

    def skip(self, count: int) -> int:
        """Nothing: what isn't decompressed has no length."""
        del count
        return 0

    def _feed(self) -> bool:
        # Small pieces: zlib copies what it leaves over each time its output is full.
        if self._at >= len(self._chunk):
            self._chunk, self._at = self._chunks.next(), 0
        self._fed = self._chunk[self._at : self._at + _GZIP_IN]
        self._at += len(self._fed)
        return bool(self._fed)


class ByteStream:
    """Reads and skips; `pos` is the offset of the next byte."""

    def __init__(self, chunks: Chunks, pos: int) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._at = 0
        self.pos = pos

    def read(self, count: int) -> bytes:
        """The next `count` bytes; fewer at the end."""
        end = self._at + count
        if end <= len(self._chunk):
            data = self._chunk[self._at : end]
            self._at = end
            self.pos += count
            return data
        pieces: list[bytes] = []
        left = count
        while left > 0:
            if self._at == len(self._chunk) and not self._more():
                break
            piece = self._chunk[self._at : self._at + left]
            pieces.append(piece)
            self._at += len(piece)
            left -= len(piece)
        self.pos += count - left
        return b"".join(pieces)

    def skip(self, count: int) -> bool:
        """Passes over `count` bytes; False when the end comes first."""
        end = self._at + count
        if end <= len(self._chunk):
            self._at = end
            self.pos += count
            return True
        left = count - (len(self._chunk) - self._at)
        self._chunk, self._at = b"", 0
        left -= self._chunks.skip(left)
        while left > 0 and self._more():
            self._at = min(left, len(self._chunk))
            left -= self._at
        self.pos += count - left
        return left == 0

    def line(self, limit: int) -> bytes | None:
        """Up to and with the next newline; without one at the end, and empty after it.

        None for a line of more than `limit` bytes: it is passed over in bounded memory.
        """
        end = self._chunk.find(b"\n", self._at)
        if end >= 0:
            return self._line(end + 1 - self._at, limit)
        pieces: list[bytes] = []
        size = 0
        while True:
            # Each byte is looked at once: what has no newline goes to the pieces.
            end = self._chunk.find(b"\n", self._at)
            piece = self._chunk[self._at : end + 1 if end >= 0 else None]
            size += len(piece)
            pieces.append(piece)
            self._at += len(piece)
            if size > limit + 1:
                pieces.clear()
            if end >= 0 or not self._more():
                break
        self.pos += size
        whole = size - (end >= 0) <= limit
        return b"".join(pieces) if whole else None

    def _line(self, count: int, limit: int) -> bytes | None:
        data = self._chunk[self._at : self._at + count] if count <= limit + 1 else None
        self._at += count
        self.pos += count
        return data

    def rest(self) -> bytes:
        """Some of what is left, empty at the end."""
        if self._at == len(self._chunk) and not self._more():
            return b""
        data = self._chunk[self._at :]
        self._at = len(self._chunk)
        self.pos += len(data)
        return data

    def _more(self) -> bool:
        self._chunk, self._at = self._chunks.next(), 0
        return bool(self._chunk)
