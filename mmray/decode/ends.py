"""Whether the end of a container is there, by the sizes that its own structure declares.

Only the outermost level is read, so nothing is decoded and a huge file costs next to nothing.
"""

from mmray.decode.sniff import Kind

# Writers that can't seek back leave such a size, or a larger one: the data go on to the end.
_UNKNOWN_SIZE = 0x7FFFF000
_END_OF_STREAM = 4
_BOXES = frozenset(
    (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"uuid", b"meta", b"sidx")
)


def missing_end(data: bytes, kind: Kind) -> str | None:
    """What is missing, in words for a person; `None`: nothing that the structure tells of."""
    if kind in ("wav", "avi"):
        return _riff(data)
    if kind == "ogg":
        return _ogg(data)
    if kind == "mov":
        return _boxes(data)
    return _ebml(data) if kind == "matroska" else None


def _short(name: str, end: int, data: bytes) -> str:
    return f"{name} ends at byte {end}, and there are {len(data)}"


def _riff(data: bytes) -> str | None:
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        media = name == b"data" or data[at + 8 : at + 12] == b"movi"
        if name == b"data" and data[:4] != b"RIFF":
            # RF64 keeps the real size in its first chunk, ds64 (EBU Tech 3306).
            size = int.from_bytes(data[28:36], "little")
        elif media and (size == 0 or size >= _UNKNOWN_SIZE):
            return None
        if at + 8 + size > len(data):
            return _short(f"its chunk {name.decode('latin-1')!a}", at + 8 + size, data)
        if media:
            return None
        at += 8 + size + size % 2
    return None


def _ogg(data: bytes) -> str | None:
    """Pages of RFC 3533: 27 bytes, a table of segment sizes, the segments."""
    at, flags = 0, 0
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        table = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + data[at + 26] + sum(table)
        if end > len(data):
            return _short("its last page", end, data)
        flags, at = data[at + 5], end
        if data[at : at + 4] != b"OggS" and data.find(b"OggS", at) >= 0:
            return f"no page begins at byte {at}, where one should"
    if not flags & _END_OF_STREAM:
        return f"its last page, before byte {at}, does not end the stream"
    return None


def _boxes(data: bytes) -> str | None:
    """Boxes of ISO/IEC 14496-12: 32-bit size and name, or size 1 and 64 bits after the name."""
    at, seen = 0, set()
    while at + 8 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name not in _BOXES:  # another may follow it: ffmpeg will see
            return None
        seen.add(name)
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8:  # 0: on to the end
            break
        if at + size > len(data):
            return _short(f"its box {name.decode()!r}", at + size, data)
        at += size
    if b"mdat" in seen and not seen & {b"moov", b"moof"}:
        return "it has no 'moov' box, which often comes last"
    return None


def _ebml(data: bytes) -> str | None:
    """The segment that follows the EBML header (RFC 8794, RFC 9559)."""
    header, at = _vint(data, 4)
    at += header or 0
    if header is None or data[at : at + 4] != b"\x18\x53\x80\x67":
        return None
    size, at = _vint(data, at + 4)
    if size is not None and at + size > len(data):
        return _short("its segment", at + size, data)
    return None


def _vint(data: bytes, at: int) -> tuple[int | None, int]:
    """An EBML size, and where it ends; `None` where it is unknown: all its bits are ones."""
    length = 9 - data[at].bit_length() if at < len(data) else 1
    mask = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & mask
    return None if value == mask else value, at + length
