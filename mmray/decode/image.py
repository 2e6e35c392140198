"""Image bytes to the exact pixels a model was trained on.

Geometry is a model's own: the sizes and the whole-pixel crop are computed on the full-size picture,
as Hugging Face processors do, and only then mapped onto whatever the decoder delivered. So a JPEG
that was decoded at a fraction of its size gives the same crop. Every function is pure and safe to
call from many threads; nothing here sets `LOAD_TRUNCATED_IMAGES`.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmray.decode.pixels import opened, to_rgb

Resample = Literal["bilinear", "bicubic", "lanczos"]
Color = tuple[int, int, int]
Box = tuple[float, float, float, float]

WHITE: Color = (255, 255, 255)

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A JPEG is decoded at 1/2, 1/4 or 1/8 while it stays this many times larger than the model wants:
# at 2 vectors keep a cosine above 0.999 to the full decode, at 1 they do not.
_DRAFT_MARGIN = 2


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """How a model wants its pixels: part of its fingerprint.

    `shortest_edge` resizes until the shorter side is `resize_to`, then crops the centre to `size`;
    `exact` resizes to `size` and ignores the aspect; `pad_square` fits the whole picture into
    `size` and fills the rest with `pad_color`.
    """

    size: tuple[int, int]
    """Height and width of what the model sees."""
    resize: Literal["shortest_edge", "exact", "pad_square"] = "exact"
    resize_to: int | None = None
    """Pixels of the shorter side before the crop; `None`: the shorter side of `size`."""
    resample: Resample = "bicubic"
    pad_color: Color = WHITE
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted after scaling to 0..1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def short_edge(self) -> int:
        """Pixels of the shorter side before the crop."""
        return self.resize_to or min(self.size)

    def to_json(self) -> dict[str, Any]:
        """Only what changes pixels, so that two spellings of one transform hash alike."""
        parts: dict[str, Any] = {
            "size": list(self.size),
            "resize": self.resize,
            "resample": self.resample,
            "mean": [round(value, 8) for value in self.mean],
            "std": [round(value, 8) for value in self.std],
        }
        if self.resize == "shortest_edge":
            parts["resize_to"] = self.short_edge
        if self.resize == "pad_square":
            parts["pad_color"] = list(self.pad_color)
        return parts


def decode_image(
    data: bytes,
    transform: ImageTransform,
    *,
    max_pixels: int,
    background: Color = WHITE,
) -> np.ndarray:
    """Decode one picture to uint8 RGB of shape `transform.size + (3,)`.

    Takes the first frame of an animation, applies the EXIF orientation and pastes transparent
    pixels on `background`. Raises `BadSample` (`EmptyMember`, `UnreadableImage`,
    `DecompressionBomb`) and nothing else for bad bytes. `max_pixels` counts all frames and is
    checked against the header, before any pixel is decoded.
    """
    with opened(data, max_pixels) as picture:
        resized, window = _geometry(picture.size, transform)
        picture.draft((resized[0] * _DRAFT_MARGIN, resized[1] * _DRAFT_MARGIN))
        image = to_rgb(picture.load(), background)
        scale = (picture.size[0] / resized[0], picture.size[1] / resized[1])
        box = picture.place(
            (window[0] * scale[0], window[1] * scale[1], window[2] * scale[0], window[3] * scale[1])
        )
        return _cut(image, transform, window, box)


def transformed(image: Image.Image, transform: ImageTransform) -> np.ndarray:
    """The uint8 RGB pixels, of shape `transform.size + (3,)`, of an upright `L` or `RGB` image.

    What `decode_image` does after decoding: so a frame of a video has the model's own geometry.
    """
    resized, window = _geometry(image.size, transform)
    width, height = image.size[0] / resized[0], image.size[1] / resized[1]
    box = (
        max(0.0, window[0] * width),
        max(0.0, window[1] * height),
        min(float(image.size[0]), window[2] * width),
        min(float(image.size[1]), window[3] * height),
    )
    return _cut(image, transform, window, box)


def thumbnail(data: bytes, size: int, max_pixels: int) -> bytes:
    """A JPEG whose longer side is at most `size` pixels. Raises `BadSample` as `decode_image`."""
    with opened(data, max_pixels) as picture:
        width, height = _fitted(picture.size, (min(size, max(picture.size)),) * 2)
        picture.draft((width * _DRAFT_MARGIN, height * _DRAFT_MARGIN))
        image = to_rgb(picture.load(), WHITE)
        box = picture.place((0, 0, *picture.size))
        image = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        out = BytesIO()
        image.convert("RGB").save(out, "JPEG", quality=85)
        return out.getvalue()


def _geometry(
    size: tuple[int, int], transform: ImageTransform
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Width and height after the resize, and the window of whole pixels cut out of it.

    Truncation of the longer side and floor of the crop offset are those of
    `get_resize_output_image_size` and `center_crop` in transformers' `image_transforms`.
    """
    width, height = size
    out_height, out_width = transform.size
    if transform.resize == "exact":
        return (out_width, out_height), (0, 0, out_width, out_height)
    if transform.resize == "pad_square":
        fitted = _fitted(size, (out_width, out_height))
        return fitted, (0, 0, *fitted)
    edge = transform.short_edge
    if width <= height:
        resized = (edge, int(edge * height / width))
    else:
        resized = (int(edge * width / height), edge)
    left, top = (resized[0] - out_width) // 2, (resized[1] - out_height) // 2
    return resized, (left, top, left + out_width, top + out_height)


def _cut(
    image: Image.Image, transform: ImageTransform, window: tuple[int, int, int, int], box: Box
) -> np.ndarray:
    """The pixels of `window`, which is at `box` of `image`."""
    shape = (window[2] - window[0], window[3] - window[1])
    image = image.resize(shape, _FILTERS[transform.resample], box=box).convert("RGB")
    if transform.resize == "pad_square":
        image = _padded(image, transform)
    return np.array(image)


def _fitted(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """The largest width and height of the same aspect inside `limit`, at least one pixel each."""
    scale = min(limit[0] / size[0], limit[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _padded(image: Image.Image, transform: ImageTransform) -> Image.Image:
    height, width = transform.size
    canvas = Image.new("RGB", (width, height), transform.pad_color)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas
