"""Repeats are found, the same picture in other bytes too, and nothing is taken for one wrongly."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmray.decode.image import ImageTransform, decode_image
from mmray.sources.fragment import Sample
from mmray.specs.embed import DuplicateOptions
from mmray.transforms.duplicates import Duplicates
from tests import shards

MODEL = ImageTransform((224, 224), "shortest_edge")


def exact(**options: Any) -> Duplicates:
    return Duplicates(DuplicateOptions(by="exact", **options))


def perceptual(**options: Any) -> Duplicates:
    return Duplicates(DuplicateOptions(by="perceptual", **options))


def sample(members: dict[str, bytes], **metadata: Any) -> Sample:
    return Sample("s3://b/0.tar", "0", "etag", members, metadata)


def key_of(known: Duplicates, picture: bytes, transform: ImageTransform = MODEL) -> bytes:
    pixels = decode_image(picture, transform, max_pixels=10**8)
    key = known.key(sample({"image": picture}), {"image": pixels})
    assert key is not None
    return key


def photo(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """As detailed as a photograph, and unlike that of any other seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3), np.uint8))
    smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def test_equal_bytes_are_equal_whatever_the_metadata() -> None:
    known = exact()
    members = {"image": b"jpeg", "text": b"a cat"}
    key = known.key(sample(members, score=1), {})
    assert key == known.key(sample(dict(reversed(members.items())), score=2), {})
    for other in ({"image": b"jpeg"}, {"image": b"jpegt"}, {"audio": b"jpeg", "text": b"a cat"}):
        assert known.key(sample(other), {}) != key
    assert known.key(sample({}, score=1), {}) is None


def test_the_text_that_is_encoded_counts_wherever_it_is_from() -> None:
    known = exact()
    picture = sample({"image": b"jpeg"}, alt="a cat")
    key = known.key(picture, {"text": "a cat"})
    assert key != known.key(picture, {"text": "a dog"})
    assert key == known.key(sample({"image": b"jpeg", "text": b" a cat\n"}), {"text": "a cat"})


def test_a_row_without_members_goes_by_its_inputs() -> None:
    known = exact()
    waves = [np.arange(4, dtype=np.float32), np.zeros(2, np.float32)]
    key = known.key(sample({}), {"audio": waves})
    assert key is not None
    assert key == known.key(sample({}), {"audio": [wave.copy() for wave in waves]})
    assert key != known.key(sample({}), {"audio": waves[:1]})
    assert key != known.key(sample({}), {"video": waves})
    square, line = np.zeros((2, 2, 3), np.uint8), np.zeros((1, 4, 3), np.uint8)
    assert known.key(sample({}), {"image": square}) != known.key(sample({}), {"image": line})


@pytest.mark.parametrize("by", ["exact", "perceptual"])
def test_only_what_was_added_is_found(by: str) -> None:
    known = exact() if by == "exact" else perceptual()
    key = key_of(known, shards.picture(3))
    assert known.find(key) is None
    known.add(key, "a")
    assert known.find(key) == "a"
    assert known.find(key, apart_from="a") is None
    assert known.find(key, apart_from="b") == "a"
    known.add(key, "b")
    assert known.find(key) == "a"  # the oldest, which b itself repeats


@pytest.mark.parametrize("by", ["exact", "perceptual"])
def test_the_oldest_is_forgotten(by: str) -> None:
    known = exact(remember=3) if by == "exact" else perceptual(remember=3)
    keys = [key_of(known, shards.picture(seed)) for seed in range(8)]
    for count, key in enumerate(keys):
        known.add(key, str(count))
        kept = [known.find(each) for each in keys[: count + 1]]
        first = max(0, count - 2)
        assert kept == [None] * first + [str(each) for each in range(first, count + 1)]


def test_a_model_of_the_search() -> None:
    """Against a plain list, over many rings and at every distance."""
    rng = random.Random(5)
    for distance in range(17):
        remember = rng.choice((1, 2, 7, 30))
        known = perceptual(distance=distance, remember=remember)
        rows: list[tuple[int, bytes, str]] = []
        centres = [rng.getrandbits(64) for _ in range(3)]
        for count in range(80):
            bits = rng.choice(centres)
            for place in rng.sample(range(64), rng.randint(0, 12)):
                bits ^= 1 << place
            colour = bytes(rng.choice((100, 116, 117)) for _ in range(3))
            near = [
                ((bits ^ other).bit_count(), age, id)
                for age, (other, tint, id) in enumerate(rows[-remember:])
                if (bits ^ other).bit_count() <= distance
                and max(abs(a - b) for a, b in zip(colour, tint, strict=True)) <= 16
            ]
            key = b"~" + bits.to_bytes(8) + colour
            assert known.find(key) == (min(near)[2] if near else None)
            known.add(key, str(count))
            rows.append((bits, colour, str(count)))


@pytest.mark.parametrize("transform", [MODEL, ImageTransform((224, 224), "exact")])
@pytest.mark.parametrize("seed", range(4))
def test_the_same_picture_in_other_bytes_is_found(seed: int, transform: ImageTransform) -> None:
    known = perceptual()
    image = photo(seed)
    known.add(key_of(known, shards.encoded(image, "PNG"), transform), "a")
    for size in ((320, 240), (200, 150), (640, 480)):
        again = image.resize(size, Image.Resampling.BICUBIC)
        for quality in (50, 75, 95):
            data = shards.encoded(again, "JPEG", quality=quality)
            assert known.find(key_of(known, data, transform)) == "a", (size, quality)


def test_other_pictures_are_not() -> None:
    known = perceptual()
    for seed in range(60):
        key = key_of(known, shards.encoded(photo(seed, (160, 120)), "PNG"))
        assert known.find(key) is None
        known.add(key, str(seed))


def test_the_same_shapes_in_another_colour_are_another_picture() -> None:
    known = perceptual()
    grey = np.asarray(photo(1).convert("L"))
    tinted = [np.stack([grey // (1 + (c == way)) for c in range(3)], -1) for way in range(3)]
    for pixels in tinted:
        key = key_of(known, shards.encoded(Image.fromarray(pixels), "PNG"))
        assert known.find(key) is None
        known.add(key, "a")


def plain_pictures() -> dict[str, Image.Image]:
    """Pictures without shapes, in pairs that differ: their perceptual hashes are all alike."""
    ramp = np.tile(np.linspace(0, 255, 224).astype(np.uint8), (224, 1))
    stripes = np.where(np.arange(224) // 2 % 2, 255, 0).astype(np.uint8) * np.ones((224, 1), int)
    noise = np.random.default_rng(0).integers(120, 124, (2, 224, 224))
    arrays = {
        "ramp": ramp,
        "flatter ramp": ramp // 2 + 64,
        "stripes": stripes,
        "paler stripes": stripes // 2 + 64,
        "noise": noise[0],
        "other noise": noise[1],
    }
    flat = {f"grey {level}": Image.new("L", (300, 200), level) for level in (0, 127, 128, 255)}
    return flat | {name: Image.fromarray(a.astype(np.uint8)) for name, a in arrays.items()}


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_plain_pictures_repeat_those_of_equal_bytes_alone(format: str) -> None:
    known = perceptual(distance=16)
    pictures = {name: shards.encoded(image, format) for name, image in plain_pictures().items()}
    for name, picture in pictures.items():
        key = key_of(known, picture)
        assert known.find(key) is None, name
        known.add(key, name)
    for name, picture in pictures.items():
        assert known.find(key_of(known, picture)) == name
    known.add(key_of(known, shards.encoded(photo(1), format)), "photo")
    assert known.find(key_of(known, pictures["grey 0"])) == "grey 0"


def test_what_has_no_picture_cannot_look_alike() -> None:
    known = perceptual()
    assert known.key(sample({"text": b"a cat"}), {"text": "a cat"}) is None
    assert known.key(sample({"image": shards.picture(1)}), {}) is None
    assert known.key(sample({}), {"video": [np.zeros((8, 8, 3), np.uint8)]}) is None


def test_keys_are_the_same_in_another_worker() -> None:
    for one, other in ((exact(), exact()), (perceptual(), perceptual(distance=0))):
        assert key_of(one, shards.picture(5)) == key_of(other, shards.picture(5))


def test_the_hash_is_imagehashs_own() -> None:
    import imagehash

    picture = shards.encoded(photo(3), "PNG")
    pixels = decode_image(picture, MODEL, max_pixels=10**8)
    wanted = str(imagehash.phash(Image.fromarray(pixels)))
    assert key_of(perceptual(), picture)[1:9].hex() == wanted


def test_a_search_through_many_takes_well_under_a_millisecond() -> None:
    known = perceptual(remember=50_000)
    rng = np.random.default_rng(0)
    for count in range(60_000):
        known.add(b"~" + rng.bytes(11), str(count))
    keys = [b"~" + rng.bytes(11) for _ in range(200)]
    start = time.process_time()
    for key in keys:
        known.find(key)
    assert (time.process_time() - start) / len(keys) < 0.001  # 0.03 ms is usual
