"""Opens a picture without trusting it, and turns any pixel mode into 8-bit grey or RGB.

The header is checked before a pixel is decoded; whatever Pillow raises becomes a `BadSample` here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
    features,
)

from mmray.errors import BadSample

# Imported here, not on first use: Pillow's own lazy registration isn't safe between threads.
_PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Only formats that hold pictures and nothing that runs: no EPS (Ghostscript), no PDF.
FORMATS = tuple(
    name
    for name, codec in (
        ("JPEG", "jpg"),
        ("PNG", "zlib"),
        ("WEBP", "webp"),
        ("AVIF", "avif"),
        ("GIF", None),
        ("BMP", None),
        ("TIFF", None),
        ("PPM", None),
    )
    if codec is None or features.check(codec)
)

# The limit of the spec is checked below, per call; Pillow's is one number for the whole process.
Image.MAX_IMAGE_PIXELS = None

_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106
# Orientation: how Pillow undoes it, and whether that mirrors the x and the y axis of the result.
_UPRIGHT: dict[int, tuple[Image.Transpose, bool, bool]] = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, True, False),
    3: (Image.Transpose.ROTATE_180, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, False, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, False, True),
}
_TURNED = (5, 6, 7, 8)

Box = tuple[float, float, float, float]


class Picture:
    """One opened picture. `size` is that of the upright full-size picture, however much of it the
    decoder will deliver."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self._orientation = _orientation(image)
        self._turned = self._orientation in _TURNED
        self.size = image.size[::-1] if self._turned else image.size
        self._loaded = self.size
        self._content: tuple[float, float] = self.size

    def draft(self, at_least: tuple[int, int]) -> None:
        """Let a JPEG decode at a fraction of its size, no smaller than `at_least`."""
        wanted = at_least[::-1] if self._turned else at_least
        done = self._image.draft(None, wanted) if self._image.format in ("JPEG", "MPO") else None
        if done is not None:
            _, (_, _, width, height) = done
            self._content = (height, width) if self._turned else (width, height)

    def load(self) -> Image.Image:
        """Decode the pixels and turn them upright."""
        image = self._image
        image.load()
        if image.mode.startswith("I;16") and _is_negative(image):
            image = Image.fromarray((65535 - np.asarray(image)).astype(np.uint16))
        if self._orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[self._orientation][0])
        self._loaded = image.size
        return image

    def place(self, box: Box) -> Box:
        """Where `box` of the full-size picture lies in what `load` returned.

        The last row and column of a reduced JPEG are only partly covered; which side they are on
        depends on the orientation.
        """
        _, mirror_x, mirror_y = _UPRIGHT.get(self._orientation, (None, False, False))
        scale_x, scale_y = self._content[0] / self.size[0], self._content[1] / self.size[1]
        left = self._loaded[0] - self._content[0] if mirror_x else 0.0
        top = self._loaded[1] - self._content[1] if mirror_y else 0.0
        # Pillow refuses a box that leaves the picture by as little as a rounding error.
        return (
            max(0.0, left + box[0] * scale_x),
            max(0.0, top + box[1] * scale_y),
            min(float(self._loaded[0]), left + box[2] * scale_x),
            min(float(self._loaded[1]), top + box[3] * scale_y),
        )


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns it itself, and gives its size as turned already
        return 1
    if image.format == "PNG" and "exif" not in image.info:
        image.load()  # it may come last
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (of bad bytes, as in `opened`: the pixels may be good)
        return 1
    return found if found in _UPRIGHT else 1


def _is_negative(image: Image.Image) -> bool:
    """Whether white is 0. Pillow turns such a TIFF over itself, but not of 16 bits."""
    return image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[Picture]:
    """Open `data`, check its declared size and turn every failure inside into a `BadSample`."""
    if not data:
        raise BadSample("EmptyMember", "the image has no bytes")
    try:
        _check_webp(data, max_pixels)
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_pixels(*image.size, getattr(image, "n_frames", 1), max_pixels)
            image.seek(0)
            yield Picture(image)
    except BadSample:
        raise
    except MemoryError:
        raise BadSample("OutOfMemory", f"no memory to decode {len(data)} bytes") from None
    except UnidentifiedImageError:
        message = (
            f"not an image of a known format ({', '.join(FORMATS)}): starts with {data[:16]!r}"
        )
        raise BadSample("UnreadableImage", message) from None
    except Exception as error:  # Pillow's plugins raise nearly every built-in type on bad bytes
        # Pillow caps text chunks and profiles of PNG itself, and says so with a bare ValueError.
        bomb = "too large for" in str(error) or "Too much memory" in str(error)
        kind = "DecompressionBomb" if bomb else "UnreadableImage"
        raise BadSample(kind, f"{error or type(error).__name__} ({_looks_like(data)})") from error


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Any mode to `L` or `RGB`; transparent pixels are pasted on `background`.

    16-bit grey is scaled, not clipped. Integer and float pictures have no declared range: values
    within 0..1 (float), 0..255 or 0..65535 are taken as such, others are stretched over 0..255.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bit(np.asarray(image), 65535.0))
    if image.mode in ("I", "F"):
        return Image.fromarray(_ranged(np.asarray(image, np.float64), image.mode == "F"))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, background)
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _ranged(values: np.ndarray, is_float: bool) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadSample("UnreadableImage", "the picture has pixels that are not finite")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 65535:
        return _eight_bit(values - low, max(high - low, 1e-12))
    if is_float and high <= 1:
        return _eight_bit(values, 1.0)
    # 32-bit integers come from 16-bit files (PGM, some TIFF), so a dark one stays dark.
    return _eight_bit(values, 255.0 if is_float and high <= 255 else 65535.0)


def _eight_bit(values: np.ndarray, top: float) -> np.ndarray:
    return (values * (255.0 / top) + 0.5).astype(np.uint8)


def _check_pixels(width: int, height: int, frames: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadSample("UnreadableImage", f"declares {width}x{height} pixels")
    if width * height * frames > max_pixels:
        many = f" in {frames} frames" if frames > 1 else ""
        message = f"declares {width}x{height} pixels{many}, more than limits.pixels={max_pixels}"
        raise BadSample("DecompressionBomb", message)


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Check an extended WebP's canvas by hand: opening one allocates two whole canvases.

    Layout: 24-bit little-endian width and height less one, WebP container specification, VP8X.
    """
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
        _check_pixels(width, height, 1, max_pixels)


def _looks_like(data: bytes) -> str:
    return f"{len(data)} bytes, starts with {data[:16]!r}"
