"""Every kind of picture that a web crawl holds, and every way to be none."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from mmray.decode.image import ImageTransform, decode_image, thumbnail
from mmray.decode.pixels import FORMATS
from mmray.errors import BadSample

CLIP = ImageTransform((224, 224), "shortest_edge")
SMALL = ImageTransform((32, 32), "exact")
LIMIT = 178_956_970


def photo(width: int = 640, height: int = 427, seed: int = 0) -> Image.Image:
    """Smooth with some noise, as a photograph is to a decoder."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 13, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(data: bytes, transform: ImageTransform = SMALL, limit: int = LIMIT) -> np.ndarray:
    return decode_image(data, transform, max_pixels=limit)


def refusal(data: bytes, limit: int = LIMIT) -> BadSample:
    with pytest.raises(BadSample) as caught:
        decode(data, limit=limit)
    return caught.value


def hf_pixels(image: Image.Image) -> np.ndarray:
    """What transformers' own CLIP processor makes of an upright RGB picture, as uint8."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    pixels: np.ndarray = np.asarray(processor(image)["pixel_values"][0])
    return pixels.transpose(1, 2, 0)


def differ(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(one.astype(int) - other.astype(int)))


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (333, 517), (225, 224), (50, 31), (1, 1)])
def test_geometry_is_the_processors_own(size: tuple[int, int]) -> None:
    image = photo(*size)
    ours = decode(encoded(image), CLIP)
    assert ours.shape == (224, 224, 3)
    assert ours.dtype == np.uint8
    gap = differ(ours, hf_pixels(image))
    # Pillow chooses which axis goes first by cost, so its 8-bit rounding between them differs.
    assert gap.mean() < 0.3
    assert gap.max() <= 2


@pytest.mark.parametrize("size", [(1000, 701), (1501, 999), (3001, 2003)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_jpeg_keeps_the_crop(size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(*size), "JPEG", quality=92, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    gap = differ(decode(data, CLIP), hf_pixels(upright.convert("RGB")))
    assert gap.mean() < 0.8
    assert gap.max() <= 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(90, 60), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as raw:
        raw.load()
        reference = (ImageOps.exif_transpose(raw) or raw).convert("RGB")
    wanted = np.asarray(reference.resize((32, 32), Image.Resampling.BICUBIC))
    assert differ(decode(data), wanted).max() <= 1


def test_one_by_twenty_thousand_gives_a_crop() -> None:
    line = Image.fromarray(np.arange(20_000, dtype=np.uint16).astype(np.uint8).reshape(-1, 1))
    assert decode(encoded(line), CLIP).shape == (224, 224, 3)
    assert decode(encoded(line.rotate(90, expand=True)), CLIP).shape == (224, 224, 3)
    square = ImageTransform((224, 224), "pad_square")
    assert decode(encoded(line), square).shape == (224, 224, 3)
    assert Image.open(io.BytesIO(thumbnail(encoded(line), 64, LIMIT))).size == (1, 64)


def test_pad_square_keeps_the_whole_picture_on_white() -> None:
    pixels = decode(encoded(Image.new("RGB", (100, 50))), ImageTransform((40, 40), "pad_square"))
    assert pixels[:10].min() == 255
    assert pixels[30:].min() == 255
    assert pixels[10:30].max() == 0


MODES = {
    "grey": (Image.new("L", (8, 8), 100), (100,) * 3),
    "bits": (Image.new("1", (8, 8), 1), (255,) * 3),
    "cut-out": (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), (255,) * 3),
    "half transparent": (Image.new("RGBA", (8, 8), (0, 0, 0, 128)), (127,) * 3),
    "grey with alpha": (Image.new("LA", (8, 8), (0, 0)), (255,) * 3),
    "palette": (Image.new("RGB", (8, 8), (10, 20, 30)).quantize(4), (10, 20, 30)),
    "16-bit grey": (Image.fromarray(np.full((8, 8), 257 * 80, np.uint16)), (80,) * 3),
    "dark 16-bit grey": (Image.fromarray(np.full((8, 8), 257, np.uint16)), (1,) * 3),
}


@pytest.mark.parametrize("name", MODES)
def test_pixel_modes(name: str) -> None:
    image, wanted = MODES[name]
    assert differ(decode(encoded(image)), np.array(wanted)).max() <= 1


def test_palette_with_transparency() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert decode(encoded(image, transparency=1)).min() == 255
    assert decode(encoded(image, "GIF", transparency=1)).min() == 255


def test_cmyk_jpeg_and_ycbcr_tiff() -> None:
    blue = Image.new("CMYK", (16, 16), (255, 255, 0, 0))
    assert differ(decode(encoded(blue, "JPEG", quality=95)), np.array((0, 0, 255))).max() <= 3
    assert decode(encoded(photo(16, 16).convert("YCbCr"), "TIFF")).shape == (32, 32, 3)


@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
def test_a_tiff_whose_white_is_0(deep: bool) -> None:
    values = np.full((8, 8), 80 * (257 if deep else 1), np.uint16 if deep else np.uint8)
    data = bytearray(encoded(Image.fromarray(values), "TIFF"))
    tag = struct.pack("<HHI", 262, 3, 1)
    struct.pack_into("<H", data, data.index(tag) + len(tag), 0)
    assert differ(decode(bytes(data)), np.array(255 - 80)).max() <= 1


@pytest.mark.parametrize("value", [0.5, 128.0, 128 * 257.0])
def test_float_tiff(value: float) -> None:
    image = Image.fromarray(np.full((8, 8), value, np.float32))
    assert differ(decode(encoded(image, "TIFF")), np.array(128)).max() <= 1


def test_16_bit_rgb_png() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 257 * 10, 257 * 20, 257 * 30) * 4 for _ in range(4))
    assert differ(decode(png(4, 4, rows, depth=16)), np.array((10, 20, 30))).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert differ(decode(data), np.array((255, 0, 0))).max() <= 1
    assert refusal(data, limit=16 * 16 * 2).error_type == "DecompressionBomb"


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "PPM"])
def test_truncated_is_an_error(kind: str) -> None:
    data = encoded(photo(200, 150), kind)
    assert decode(data).shape == (32, 32, 3)
    assert refusal(data[: len(data) // 2]).error_type == "UnreadableImage"


def test_what_is_no_image() -> None:
    assert refusal(b"").error_type == "EmptyMember"
    html = refusal(b"<html><body>404</body></html>")
    assert html.error_type == "UnreadableImage"
    assert "<html>" in html.message
    assert refusal(b"\xff\xd8\xff").error_type == "UnreadableImage"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    assert refusal(postscript).error_type == "UnreadableImage"


def test_declared_size_is_checked_before_decoding() -> None:
    assert refusal(png(60_000, 60_000, b"")).error_type == "DecompressionBomb"
    canvas = (59_999).to_bytes(3, "little")
    webp = b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas + canvas
    assert refusal(webp).error_type == "DecompressionBomb"
    assert refusal(encoded(photo(20, 20)), limit=399).error_type == "DecompressionBomb"
    assert decode(encoded(photo(20, 20)), limit=400).shape == (32, 32, 3)


def test_text_chunk_bomb() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "a" * (64 << 20), zip=True)
    data = encoded(photo(8, 8), pnginfo=info)
    assert len(data) < 200_000
    assert refusal(data).error_type == "DecompressionBomb"


def test_a_wrong_name_is_no_matter() -> None:
    """A PNG that a tar calls .jpg: bytes decide."""
    assert decode(encoded(photo(20, 20), "WEBP")).shape == (32, 32, 3)


def test_many_threads_decode_alike() -> None:
    data = [encoded(photo(500, 400, seed), "JPEG") for seed in range(4)]
    alone = [decode(item, CLIP) for item in data]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda item: decode(item, CLIP), data * 8))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 8, together, strict=True))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_thumbnail_fits_and_never_grows() -> None:
    big = Image.open(io.BytesIO(thumbnail(encoded(photo(900, 600), "JPEG"), 96, LIMIT)))
    assert (big.format, big.size) == ("JPEG", (96, 64))
    assert Image.open(io.BytesIO(thumbnail(encoded(photo(20, 10)), 96, LIMIT))).size == (20, 10)
    with pytest.raises(BadSample):
        thumbnail(b"no", 96, LIMIT)


def test_transform_json_says_only_what_changes_pixels() -> None:
    spelled = ImageTransform((224, 224), "shortest_edge", resize_to=224)
    assert spelled.to_json() == CLIP.to_json()
    assert "pad_color" not in CLIP.to_json()


def png(width: int, height: int, rows: bytes, depth: int = 8) -> bytes:
    """A hand-made RGB PNG: Pillow writes neither 16-bit RGB nor lies."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
