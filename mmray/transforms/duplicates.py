"""Which row a sample repeats, as far as one worker remembers.

`exact` goes by the bytes of all members, without metadata. `perceptual` goes by what the model is
shown, so by the picture after its own resize and crop: the same picture saved at another quality or
size is a repeat. A perceptual hash sees shapes in grey only, so pictures must have about the same
mean colour too; and a picture with next to no shapes (one colour, a ramp, fine stripes), whose hash
would be noise, repeats only pictures of equal bytes.
"""

from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from PIL import Image

from mmray.sources.assemble import content_hash
from mmray.sources.fragment import Sample
from mmray.specs.embed import DuplicateOptions

_EQUAL, _ALIKE = b"=", b"~"
# imagehash.phash takes the 8 x 8 lowest of 32 x 32 cosines. One of at least a quarter of a grey
# level says something; a flat picture, a ramp and stripes have at most 7 such, photographs over 50.
_SIDE, _LOWEST = 32, 8
_COSINES = 2 * np.cos(np.pi * np.outer(np.arange(_LOWEST), np.arange(_SIDE) + 0.5) / _SIDE)
_QUARTER_LEVEL = 256.0
_LEAST_SHAPES = 16
_COLOUR_LEVELS = 16
# What fits a core's own cache is scanned fastest.
_SCANNED_AT_ONCE = 65_536


class Duplicates:
    """The rows that one worker has made, the last `options.remember` of them.

    `key` looks at nothing remembered: a worker that only decodes may make the keys that another
    one looks up.
    """

    def __init__(self, options: DuplicateOptions) -> None:
        self._perceptual = options.by == "perceptual"
        self._equal = _Equal(options.remember)
        self._alike = _Alike(options.remember, options.distance)

    def key(self, sample: Sample, inputs: Mapping[str, Any]) -> bytes | None:
        """What the sample is known by; `None` where it can't be compared.

        `inputs` are the decoded inputs by modality: uint8 [h, w, 3], texts, and lists of arrays. A
        sample without members (a window or a frame that is a row of its own) goes by its inputs.
        """
        if self._perceptual:
            picture = inputs.get("image")
            return None if picture is None else _picture_key(picture, sample)
        members = dict(sample.members) or {name: _bytes(value) for name, value in inputs.items()}
        # The text that is encoded may be another field than the caption.
        if isinstance(text := inputs.get("text"), str):
            members["text"] = _bytes(text)
        return _EQUAL + bytes.fromhex(content_hash(members, {})) if members else None

    def find(self, key: bytes, apart_from: str | None = None) -> str | None:
        """The id of the remembered row that has the key or, of pictures, the most alike one.

        A row of the id `apart_from` is passed over: it was made before, and is no repeat of itself.
        """
        found = (self._alike if key.startswith(_ALIKE) else self._equal).find(key)
        return None if found == apart_from else found

    def add(self, key: bytes, id: str) -> None:  # noqa: A002 (a row's id is called so)
        """Remember a row that is known to be good; the oldest one is forgotten for it."""
        (self._alike if key.startswith(_ALIKE) else self._equal).add(key, id)


class _Equal:
    """Ids by key: about 250 bytes a row."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._ids: OrderedDict[bytes, str] = OrderedDict()

    def find(self, key: bytes) -> str | None:
        return self._ids.get(key)

    def add(self, key: bytes, id: str) -> None:  # noqa: A002
        self._ids.setdefault(key, id)
        if len(self._ids) > self._capacity:
            self._ids.popitem(last=False)


class _Alike:
    """Ids by perceptual hash and mean colour: about 100 bytes a row.

    A search reads every hash, in 0.5 ms for a million whatever the distance and the pictures. An
    index of bands of bits does it in 0.07 ms at 4 bits and even hashes, but in 0.7 ms where some
    bits are set more often than others and in 15 ms at 10 bits, and takes 150 bytes a row more.
    """

    def __init__(self, capacity: int, distance: int) -> None:
        self._capacity, self._distance = capacity, distance
        self._hashes = np.empty(0, np.uint64)
        self._colours = np.empty((0, 3), np.uint8)
        self._ids: list[str] = []
        self._next = 0

    def find(self, key: bytes) -> str | None:
        wanted, colour = _unpacked(key)
        best: tuple[int, int] | None = None
        for start in range(0, len(self._ids), _SCANNED_AT_ONCE):
            hashes = self._hashes[start : min(start + _SCANNED_AT_ONCE, len(self._ids))]
            bits = np.bitwise_count(hashes ^ wanted)
            for place in np.flatnonzero(bits <= self._distance):
                slot = start + int(place)
                if np.abs(self._colours[slot] - colour).max() > _COLOUR_LEVELS:
                    continue
                # Of several as near the oldest one, which the others repeat.
                nearness = (int(bits[place]), (slot - self._next) % self._capacity)
                best = nearness if best is None else min(best, nearness)
        return None if best is None else self._ids[(best[1] + self._next) % self._capacity]

    def add(self, key: bytes, id: str) -> None:  # noqa: A002
        if self._next == len(self._ids):
            self._grow()
            self._ids.append(id)
        self._hashes[self._next], self._colours[self._next] = _unpacked(key)
        self._ids[self._next] = id
        self._next = (self._next + 1) % self._capacity

    def _grow(self) -> None:
        if len(self._ids) == len(self._hashes):
            size = min(self._capacity, max(1024, 2 * len(self._hashes)))
            self._hashes = np.resize(self._hashes, size)
            self._colours = np.resize(self._colours, (size, 3))


def _picture_key(pixels: np.ndarray, sample: Sample) -> bytes:
    from imagehash import phash

    picture = Image.fromarray(pixels)
    small = picture.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    shapes = np.abs(_COSINES @ np.asarray(small, np.float64) @ _COSINES.T)
    if np.count_nonzero(shapes.ravel()[1:] > _QUARTER_LEVEL) < _LEAST_SHAPES:
        data = sample.members.get("image") or _bytes(pixels)
        return _EQUAL + blake2b(data, digest_size=16).digest()
    # `small` is what phash itself would make of the picture.
    bits = np.packbits(phash(small, _LOWEST, _SIDE // _LOWEST).hash.ravel())
    colour = np.asarray(picture.resize((1, 1), Image.Resampling.BOX)).ravel()
    return _ALIKE + bits.tobytes() + colour.tobytes()


def _unpacked(key: bytes) -> tuple[np.uint64, np.ndarray]:
    """The hash, and the colour in a type that differences fit in."""
    return np.uint64(int.from_bytes(key[1:9])), np.frombuffer(key[9:12], np.uint8).astype(np.int16)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if isinstance(value, list):
        return b"".join(map(_bytes, value))
    # The same numbers laid out otherwise are another picture.
    return f"{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
