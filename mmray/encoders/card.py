"""What the driver knows of an encoder without loading it, and how a worker is asked to run one.

A card is computed without torch, so that planning or refusing a job costs no model load.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform
from mmray.storage import Storage

DeclaredDtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How to run an encoder. `dtype` and `max_tokens` change vectors, so they are in the
    fingerprint; the others only change speed."""

    dtype: DeclaredDtype = "auto"
    batch_images: int | None = None
    """Images in one forward pass; `None` fits the device."""
    batch_tokens: int | None = None
    """Padded tokens in one forward pass; `None` fits the device."""
    batch_audios: int | None = None
    """Windows of full length in one forward pass, or more that are shorter; `None` fits the
    device."""
    max_tokens: int | None = None
    """Tokens kept of a text; `None`: the model's own limit."""
    threads: int | None = None
    """CPU threads of this process's torch; `None` leaves them as they are."""
    storage: Storage = field(default_factory=Storage)
    """Reaches weights in object storage."""


@dataclass(frozen=True, slots=True)
class EncoderCard:
    """An encoder's identity and shape. `details` holds what was hashed, for showing how two
    fingerprints differ."""

    fingerprint: str
    """32 hex digits: weights, preprocessing, pooling and the declared dtype."""
    dims: dict[str, int]
    """Modality to vector length, such as `{"image": 512, "text": 512}`. `video` is among them only
    where the encoder takes videos as such."""
    image: ImageTransform | None
    max_tokens: int | None
    name: str
    """For people: `clip (/models/clip-vit-b-32)`."""
    details: Mapping[str, Any]
    audio: AudioTransform | None = None
    video: ImageTransform | None = None
    """How it wants the frames of a video that it takes as a whole; `None`: a video is its frames,
    which are pictures."""

    def through(self, modality: str) -> str:
        """The modality of `dims` that `modality` goes through: a video may go as pictures."""
        return "image" if modality == "video" and "video" not in self.dims else modality

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it takes, sorted by name."""
        return tuple(sorted(self.dims))
