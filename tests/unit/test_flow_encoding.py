"""Encoding: culprits are found, odd vectors refused, duplicates remembered; no row is lost."""

from __future__ import annotations

import numpy as np
import pytest

from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.flow.batch import Batch
from mmray.flow.encoding import Remembered, encode
from mmray.sources.fragment import Sample, Span
from mmray.specs.common import ImportEncoder
from tests.toys import Broken, Toy, Watcher

pytestmark = pytest.mark.unit


def flat(red: int, green: int, blue: int) -> np.ndarray:
    return np.full((32, 32, 3), (red, green, blue), np.uint8)


def batch(images: list[np.ndarray | None], texts: list[str | None] | None = None) -> Batch:
    samples = [Sample("s3://b/x.tar", str(row), "etag") for row in range(len(images))]
    span = Span("0" * 16, "0" * 8, 0, len(images))
    inputs: dict[str, list[object]] = {"image": list(images)}
    if texts is not None:
        inputs["text"] = list(texts)
    return Batch(span, "s3://b/x.tar", samples, {}, inputs)


def test_vectors_are_normalised_and_absent_ones_null() -> None:
    work = batch([flat(10, 200, 30), None], ["a", None])
    assert encode(work, Toy(), normalize=True) == 1
    vector = work.vectors["image"][0]
    assert vector is not None and vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
    assert work.vectors["image"][1] is None and work.vectors["text"][1] is None
    assert work.inputs == {}


def test_unnormalised_vectors_keep_their_length() -> None:
    work = batch([flat(10, 200, 30)])
    encode(work, Toy(), normalize=False)
    vector = work.vectors["image"][0]
    assert vector is not None and np.linalg.norm(vector) > 10


def test_a_video_goes_as_a_whole_where_the_encoder_takes_videos() -> None:
    spec = ImportEncoder(kind="import", model="tests.toys:Watcher")
    encoder = load_encoder(spec, describe(spec), "cpu", EncodeOptions())
    films = [[np.full((16, 16, 3), shade, np.uint8) for shade in range(n, n + 5)] for n in (1, 90)]
    work = batch([None, None, None])
    work.inputs = {"video": [films[0], None, films[1]]}
    assert encode(work, encoder, normalize=False) == 2
    first, absent, last = work.vectors["video"]
    assert absent is None
    assert first is not None and np.array_equal(first, Watcher().encode_videos(films[:1])[0])
    assert last is not None and np.array_equal(last, Watcher().encode_videos(films[1:])[0])


def test_culprits_stand_alone_and_the_others_pass() -> None:
    images: list[np.ndarray | None] = [flat(100, 100, 100) for _ in range(20)]
    images[3], images[11], images[12] = flat(0, 0, 0), flat(255, 255, 255), flat(255, 0, 0)
    work = batch(images)
    encode(work, Broken(), normalize=True)
    errors = {row: s.error.type for row, s in enumerate(work.samples) if s.error is not None}
    assert errors == {3: "NonFiniteVector", 11: "ZeroVector", 12: "RuntimeError"}
    assert work.samples[12].error is not None
    assert work.samples[12].error.message == "no red pictures, please"
    good = [row for row in range(20) if row not in errors]
    assert all(work.vectors["image"][row] is not None for row in good)


def test_wrong_number_of_vectors_is_noticed() -> None:
    class Short(Toy):
        def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
            return super().encode_images(images)[:-1]

    work = batch([flat(1, 2, 3), flat(4, 5, 6)])
    encode(work, Short(), normalize=True)
    assert [s.error.type if s.error else "" for s in work.samples] == ["WrongShape"] * 2


def test_duplicates_are_encoded_once_and_all_rows_stay() -> None:
    calls: list[int] = []

    class Counting(Toy):
        def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
            calls.append(len(images))
            return super().encode_images(images)

    one, two = flat(10, 20, 30), flat(200, 20, 30)
    remembered, encoder = Remembered(), Counting()
    first, second = batch([one, two, one, one]), batch([two, one])
    assert encode(first, encoder, normalize=True, remembered=remembered) == 2
    assert encode(second, encoder, normalize=True, remembered=remembered) == 0
    assert calls == [2]
    vectors = first.vectors["image"] + second.vectors["image"]
    assert all(vector is not None for vector in vectors)
    for row in (2, 3, 5):
        np.testing.assert_array_equal(vectors[0], vectors[row])
    np.testing.assert_array_equal(vectors[1], vectors[4])


def test_a_duplicate_of_a_culprit_is_one_too() -> None:
    work = batch([flat(255, 0, 0), flat(9, 9, 200), flat(255, 0, 0)])
    encode(work, Broken(), normalize=True, remembered=Remembered())
    assert [s.error.type if s.error else "" for s in work.samples] == [
        "RuntimeError",
        "",
        "RuntimeError",
    ]


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    remembered = Remembered(capacity=2)
    for key in (b"a", b"b"):
        remembered.put(key, np.zeros(2))
    assert remembered.get(b"a") is not None  # now b is the one unused for longest
    remembered.put(b"c", np.zeros(2))
    assert remembered.get(b"b") is None
    assert remembered.get(b"a") is not None and remembered.get(b"c") is not None
