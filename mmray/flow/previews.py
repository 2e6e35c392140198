"""Small pictures and short sounds of a few samples, which the report shows and plays."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from mmray.decode.image import thumbnail
from mmray.decode.video import poster
from mmray.errors import BadSample
from mmray.flow.batch import Preview
from mmray.report.vectors import SOUND_BYTES
from mmray.sources.fragment import Sample
from mmray.specs.embed import EmbedSpec

SIDE = 96

_MIME = (
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"RIFF", "audio/wav"),
    (b"ID3", "audio/mpeg"),
    (b"\xff", "audio/mpeg"),
)


def preview(sample: Sample, spec: EmbedSpec, mask: Callable[[str], str]) -> list[Preview]:
    """What there is to show of a sample, or nothing; `mask` goes over its caption."""
    members = sample.members
    picture = sound = None
    if "image" in members:
        picture = thumbnail(members["image"], SIDE, max_pixels=spec.limits.pixels)
    elif "video" in members:
        picture = _poster(members["video"], spec)
    if len(members.get("audio", b"")) in range(1, SOUND_BYTES + 1):
        sound = members["audio"]
    if picture is None and sound is None:
        return []
    caption = mask(str(sample.metadata.get(spec.text.column) or "")[:200])
    return [Preview(sample.id, sample.source_key, caption, picture, sound, mime_of(sound or b""))]


def jpeg(pixels: np.ndarray, side: int) -> bytes:
    """uint8 [h, w, 3] as a JPEG whose longer side is at most `side` pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC)
    out = BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def mime_of(sound: bytes) -> str:
    """The media type by its first bytes; empty for no sound."""
    if not sound:
        return ""
    return next((mime for magic, mime in _MIME if sound.startswith(magic)), "audio/mp4")


def _poster(film: bytes, spec: EmbedSpec) -> bytes | None:
    try:
        return poster(film, SIDE, spec.limits)
    except BadSample:  # decoding says what is wrong with it, where its frames are wanted
        return None
