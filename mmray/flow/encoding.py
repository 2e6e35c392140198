"""Batches get their vectors here; a sample that the model can't take never ends a job.

When a forward pass raises, the batch is halved until the culprits stand alone; vectors that are not
finite or have no length are refused. `Remembered` saves encoding exact duplicates again: it holds a
bounded number of vectors, so a far duplicate is encoded twice, and no row is ever dropped.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from mmray.encoders import Encoder
from mmray.errors import BadSample, SampleError
from mmray.flow.batch import Batch

REMEMBERED = 16_384


class Remembered:
    """The vectors of the last distinct inputs, by content."""

    def __init__(self, capacity: int = REMEMBERED) -> None:
        self._capacity = capacity
        self._vectors: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def get(self, key: bytes) -> np.ndarray | None:
        """The vector of this content, if it is still known."""
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def put(self, key: bytes, vector: np.ndarray) -> None:
        """Remember a vector; the one unused for longest is forgotten."""
        self._vectors[key] = vector
        if len(self._vectors) > self._capacity:
            self._vectors.popitem(last=False)


def encode(
    batch: Batch, encoder: Encoder, *, normalize: bool, remembered: Remembered | None = None
) -> int:
    """Fill `batch.vectors` in place, mark samples that failed, and drop the inputs.

    Returns how many samples went through the encoder.
    """
    calls: dict[str, Callable[[list[Any]], np.ndarray]] = {
        "image": encoder.encode_images,
        "text": encoder.encode_texts,
        "audio": lambda sounds: pooled(encoder.encode_audios, sounds, normalize),
        "video": lambda films: _watched(encoder, films, normalize),
    }
    encoded: set[int] = set()
    for modality, inputs in batch.inputs.items():
        vectors: list[np.ndarray | None] = [None] * len(inputs)
        batch.vectors[modality] = vectors
        rows = [
            row
            for row, value in enumerate(inputs)
            if value is not None and batch.samples[row].error is None
        ]
        encoded |= _encode_rows(batch, rows, inputs, vectors, calls[modality], remembered)
        for row in rows:
            try:
                vectors[row] = _checked(vectors[row], normalize)
            except BadSample as error:
                sample = batch.samples[row]
                sample.error = sample.error or SampleError.of("encode", error)
    batch.inputs = {}
    return len(encoded)


def _watched(encoder: Encoder, films: list[list[np.ndarray]], normalize: bool) -> np.ndarray:
    """As a whole, by an encoder that takes videos; else its frames are pictures."""
    if encoder.card.video is not None:
        return encoder.encode_videos(films)
    return pooled(encoder.encode_images, films, normalize)


def pooled(
    encode: Callable[[list[np.ndarray]], np.ndarray],
    samples: list[list[np.ndarray]],
    normalize: bool,
) -> np.ndarray:
    """One vector for each list of windows or frames, float32 [n, d]: the mean of theirs, which are
    brought to length 1 before where `normalize` says so.

    Windows count by their length, so that each second of a sound counts the same; frames all have
    the same height.
    """
    pieces = [piece for sample in samples for piece in sample]
    vectors = np.asarray(encode(pieces), dtype=np.float32)
    if len(vectors) != len(pieces):
        raise BadSample("WrongShape", f"{len(pieces)} inputs gave {len(vectors)} vectors")
    if normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths != 0)
    means, start = [], 0
    for sample in samples:
        stop = start + len(sample)
        weights = [len(piece) for piece in sample]
        means.append(np.average(vectors[start:stop], axis=0, weights=weights))
        start = stop
    return np.asarray(means, dtype=np.float32)


def _encode_rows(
    batch: Batch,
    rows: list[int],
    inputs: list[Any],
    vectors: list[np.ndarray | None],
    call: Callable[[list[Any]], np.ndarray],
    remembered: Remembered | None,
) -> set[int]:
    """Encode the inputs of `rows` into `vectors`; with `remembered`, equal inputs only once."""
    if remembered is None:
        _halving(batch, rows, inputs, vectors, call)
        return set(rows)
    groups: dict[bytes, list[int]] = {}
    for row in rows:
        groups.setdefault(_content(inputs[row]), []).append(row)
    known = {key: remembered.get(key) for key in groups}
    fresh = [same[0] for key, same in groups.items() if known[key] is None]
    _halving(batch, fresh, inputs, vectors, call)
    for key, (first, *others) in groups.items():
        vector = vectors[first] if known[key] is None else known[key]
        if vector is not None and known[key] is None:
            remembered.put(key, vector)
        for row in (first, *others):
            vectors[row] = vector
            batch.samples[row].error = batch.samples[row].error or batch.samples[first].error
    return set(fresh)


def _halving(
    batch: Batch,
    rows: Sequence[int],
    inputs: list[Any],
    vectors: list[np.ndarray | None],
    call: Callable[[list[Any]], np.ndarray],
) -> None:
    if not rows:
        return
    try:
        result = call([inputs[row] for row in rows])
        if len(result) != len(rows):
            raise BadSample("WrongShape", f"{len(rows)} inputs gave {len(result)} vectors")
    except Exception as error:  # noqa: BLE001 (a user's model may raise anything)
        if len(rows) == 1:
            batch.samples[rows[0]].error = SampleError.of("encode", error)
            return
        middle = len(rows) // 2
        _halving(batch, rows[:middle], inputs, vectors, call)
        _halving(batch, rows[middle:], inputs, vectors, call)
        return
    for row, vector in zip(rows, np.asarray(result, dtype=np.float32), strict=True):
        vectors[row] = vector


def _checked(vector: np.ndarray | None, normalize: bool) -> np.ndarray | None:
    if vector is None:
        return None
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not np.isfinite(length):
        raise BadSample("NonFiniteVector", "the encoder gave NaN or infinity")
    if length == 0.0:
        raise BadSample("ZeroVector", "the encoder gave a vector of length zero")
    return (vector / length).astype(np.float32) if normalize else vector


def _content(value: Any) -> bytes:
    if isinstance(value, str):
        return blake2b(value.encode(), digest_size=16).digest()
    if isinstance(value, list):
        return blake2b(b"".join(map(_content, value)), digest_size=16).digest()
    # The shape is part of the content: the same bytes laid out otherwise are another picture.
    return blake2b(value.tobytes(), digest_size=16, salt=str(value.shape).encode()[:16]).digest()
