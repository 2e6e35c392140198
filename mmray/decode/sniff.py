"""Which of ffmpeg's demuxers may read some bytes, by the first of them.

ffmpeg never guesses: it would open playlists, which name files and addresses.
"""

from typing import Literal

Kind = Literal["wav", "flac", "ogg", "mp3", "aac", "mov", "matroska", "avi"]

KNOWN = "WAV, FLAC, OGG, MP3, AAC, M4A, MP4, MOV, MKV, WEBM, AVI"

_RIFF_FORMS: dict[bytes, Kind] = {b"WAVE": "wav", b"AVI ": "avi"}
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def sniff(data: bytes) -> Kind | None:
    """The demuxer's name; `None`: the bytes are of no format that is allowed."""
    head = data[:12]
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return _RIFF_FORMS.get(head[8:12])
    if head[:4] == b"OggS":
        return "ogg"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[4:8] in _FIRST_BOXES:
        return "mov"
    start = after_id3(data)
    if data[start : start + 4] == b"fLaC":
        return "flac"
    return _mpeg(data[start : start + 4]) or ("mp3" if start else None)


def after_id3(data: bytes) -> int:
    """Where an ID3v2 tag at the beginning ends; 0 without one. Its size has 7 bits a byte."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size + (10 if data[5] & 0x10 else 0)


def _mpeg(header: bytes) -> Kind | None:
    """MP3 or raw AAC (ADTS), by one frame's header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    if header[1] & 0xF6 == 0xF0:
        return "aac"
    layer, bitrate, rate = header[1] >> 1 & 3, header[2] >> 4, header[2] >> 2 & 3
    # Layer III or II. So many bits are asked for because UTF-16 text begins with a sync, too.
    return "mp3" if layer in (1, 2) and 0 < bitrate < 15 and rate < 3 else None
