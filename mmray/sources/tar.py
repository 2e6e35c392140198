"""Tar headers from a stream, one after another, strictly: what is wrong is said, never passed over.

`tarfile` stops without a word at a bad header that isn't the first, and at a file that ends without
its end marker; here both raise `Broken`. Reading may start at the header of any member.
Format: POSIX.1-2017, pax, "Extended description"; GNU tar manual, "Basic Tar Format".
"""

import tarfile
import zlib
from dataclasses import dataclass
from typing import Literal

from mmray.sources.stream import Broken, ByteStream

BLOCK = 512
MAX_EXTENDED = 1024 * 1024
"""Bytes of a pax or long-name header: names are kilobytes at most."""

Kind = Literal["file", "folder", "other"]

_ZERO = bytes(BLOCK)
_WITHOUT_DATA = {b"1": "a hard link", b"2": "a symbolic link"} | {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
}


@dataclass(slots=True)
class Entry:
    """One member: `offset` is where its first header starts, extended ones included.

    `kind` "other" is what is no file and no folder; `what` says it in words.
    """

    offset: int
    name: str
    size: int
    kind: Kind
    what: str = ""


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the member after them."""

    name: bytes | None = None
    size: int | None = None
    sparse: bool = False


class TarReader:
    """The members of a tar in order. `whole`: the stream goes on to the end of the tar."""

    def __init__(self, stream: ByteStream, stop: int, whole: bool) -> None:
        self._stream = stream
        self._stop = stop
        self._whole = whole
        self._left = 0  # bytes of the member and its padding that nobody has read
        self._name = ""

    def next(self) -> Entry | None:
        """The next member, None at the end. Raises Broken."""
        stream = self._stream
        if self._left and not stream.skip(self._left):
            raise Broken("TruncatedShard", f"it ends within a member, at {stream.pos}", self._name)
        self._left, self._name = 0, ""
        offset = stream.pos
        if offset > self._stop:
            raise Broken("CorruptShard", f"a member crosses {self._stop}, where reading ends")
        extended: _Extended | None = None
        while True:
            if offset == stream.pos == self._stop and not self._whole:
                return None
            block = stream.read(BLOCK)
            if len(block) < BLOCK:
                self._check_end(block)
                return None
            entry = _plain(block, offset)
            if entry is None:
                if block == _ZERO:
                    if extended is None:
                        return None
                    raise Broken("CorruptShard", f"a header at {offset} belongs to no member")
                info = _parse(block, stream.pos - BLOCK)
                if info.type in (b"x", b"X", b"L", b"K", b"g"):
                    extended = self._extend(info, extended or _Extended())
                    continue
                entry = self._special(info, block, offset)
            if extended is not None:
                _apply(extended, entry)
            self._left = -(-entry.size // BLOCK) * BLOCK
            self._name = entry.name
            return entry

    def data(self, entry: Entry) -> bytes:
        """The bytes of `entry`, which `next` has just given. Raises Broken."""
        found = self._stream.read(entry.size)
        self._left -= len(found)
        if len(found) < entry.size:
            words = f"it ends within a member, at {self._stream.pos}"
            raise Broken("TruncatedShard", words, entry.name)
        return found

    def trailing(self) -> int | None:
        """After the end: offset of the piece that holds something else than zeros, or None."""
        while self._whole:
            offset = self._stream.pos
            data = self._stream.rest()
            if not data:
                break
            if data.count(0) != len(data):
                return offset + len(data) - len(data.lstrip(b"\0"))
        return None

    def _check_end(self, block: bytes) -> None:
        """Raises Broken where the tar ends in `block`, unless the object is empty."""
        if self._stream.pos == 0:
            return
        if block:
            raise Broken("TruncatedShard", f"it ends within a header, at {self._stream.pos}")
        words = "it has no end-of-archive marker: what follows may be missing"
        raise Broken("TruncatedShard", words)

    def _extend(self, info: tarfile.TarInfo, known: _Extended) -> _Extended:
        """What the extended header says, whose data comes now, joined with what is `known`."""
        place = self._stream.pos - BLOCK
        if not 0 <= info.size <= MAX_EXTENDED:
            raise Broken("CorruptShard", f"the extended header at {place} has {info.size} bytes")
        data = self._stream.read(info.size)
        padding = -info.size % BLOCK
        if len(data) < info.size or not self._stream.skip(padding):
            raise Broken("TruncatedShard", f"it ends within a header, at {self._stream.pos}")
        if info.type == b"L":
            known.name = data.split(b"\0", 1)[0]
        elif info.type in (b"x", b"X"):
            _read_pax(data, known, place)
        # A global header ("g") can't be seen by a reader that starts after it, and what it may
        # say, a comment or defaults of times and owners, matters to no sample.
        return known

    def _special(self, info: tarfile.TarInfo, block: bytes, offset: int) -> Entry:
        """The member of a header that isn't a plain file's."""
        name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        kind = info.type
        if info.size < 0:
            raise Broken("CorruptShard", f"the header at {offset} has a negative size", name)
        if kind == b"5":
            return Entry(offset, name, 0, "folder")
        if kind in (b"D", b"V"):  # GNU: a folder's list of names, a label of the archive
            return Entry(offset, name, info.size, "folder")
        if kind in (b"0", b"\0", b"7"):
            return Entry(offset, name, info.size, "file")
        if kind in _WITHOUT_DATA:
            return Entry(offset, name, 0, "other", _WITHOUT_DATA[kind])
        if kind == b"S":
            more = block[482]
            while more:  # the map of a sparse file goes on in blocks of its own
                extra = self._stream.read(BLOCK)
                if len(extra) < BLOCK:
                    raise Broken("TruncatedShard", "it ends within a header", name)
                more = extra[504]
            return Entry(offset, name, info.size, "other", "a sparse file")
        return Entry(offset, name, info.size, "other", f"of unknown type {kind!r}")


def _plain(block: bytes, offset: int) -> Entry | None:
    """The member of a plain file's header, None for any other block: the fast path.

    `tarfile` takes 25 microseconds for a header and this 2. The lower half of Adler-32 is the sum
    of all bytes plus 1 modulo 65521, so C code does the adding.
    """
    if block[156] != 0x30 or block[257:262] != b"ustar":
        return None
    field, size = block[148:156], block[124:136].rstrip(b"\0 ")
    try:
        total = int(field.rstrip(b"\0 "), 8) - 256 + sum(field)
        if not size.isdigit() or (zlib.adler32(block) & 0xFFFF) != (total + 1) % 65521:
            return None
        name = block[:100].split(b"\0", 1)[0]
        if block[345] and block[262] == 0:  # GNU's own format keeps times there
            name = block[345:500].split(b"\0", 1)[0] + b"/" + name
        return Entry(offset, name.decode("utf-8", "backslashreplace"), int(size, 8), "file")
    except ValueError:
        return None


def _parse(block: bytes, place: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        words = f"no tar header at {place}: {error}"
        if place == 0 and block[:2] == b"\x1f\x8b":
            words = "it is gzip data; its name should end in .tar.gz"
        raise Broken("CorruptShard", words) from error


def _read_pax(data: bytes, into: _Extended, place: int) -> None:
    """Reads records `LENGTH KEY=VALUE\\n` of a pax header."""
    at = 0
    try:
        while at < len(data) and data[at]:
            space = data.index(b" ", at, at + 20)
            end = at + int(data[at:space])
            if not space < end <= len(data) or data[end - 1] != 0x0A:
                raise ValueError("a record is torn")
            key, _, value = data[space + 1 : end - 1].partition(b"=")
            if key == b"path":
                into.name = value
            elif key == b"size":
                into.size = int(value)
                if into.size < 0:
                    raise ValueError("negative size")
            elif key.startswith(b"GNU.sparse."):
                into.sparse = True
            at = end
    except ValueError as error:
        raise Broken("CorruptShard", f"a bad pax header at {place}: {error}") from error


def _apply(extended: _Extended, entry: Entry) -> None:
    if extended.name is not None:
        entry.name = extended.name.decode("utf-8", "backslashreplace")
    if extended.size is not None and entry.what not in _WITHOUT_DATA.values():
        entry.size = extended.size if entry.kind != "folder" else 0
    if extended.sparse:
        entry.kind, entry.what = "other", "a sparse file"
