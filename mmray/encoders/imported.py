"""An encoder class of the user's own, named `package.module:ClassName`.

Its class attributes say what it is, so that the driver never builds one; workers build it with the
options of the spec.
"""

import importlib
from typing import Any

import numpy as np

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import fingerprint
from mmray.errors import RefusedError, SpecError
from mmray.specs.common import ImportEncoder

_METHODS = {
    "image": "encode_images",
    "text": "encode_texts",
    "audio": "encode_audios",
    "video": "encode_videos",
}


def describe(spec: ImportEncoder, options: EncodeOptions) -> EncoderCard:
    """Import the module and read `fingerprint`, `dims`, `image`, `audio` and `video` off the class.

    The options are part of the identity: they may choose weights. Raises `SpecError` when the
    class can't be found, `RefusedError` when it doesn't say what an encoder must.
    """
    del options  # precision and batches are the class's own business
    kind = find_class(spec.model)
    identity: Any = getattr(kind, "fingerprint", None)
    dims: Any = getattr(kind, "dims", None)
    image: Any = getattr(kind, "image", None)
    audio: Any = getattr(kind, "audio", None)
    video: Any = getattr(kind, "video", None)
    if not isinstance(identity, str) or not identity:
        raise RefusedError(f"{spec.model} needs a class attribute `fingerprint`: a string")
    if not _is_dims(dims):
        raise RefusedError(f"{spec.model} needs a class attribute `dims`: such as {{'image': 512}}")
    if ("image" in dims) != isinstance(image, ImageTransform):
        raise RefusedError(f"{spec.model} needs `image`, an ImageTransform, if it takes images")
    if ("audio" in dims) != isinstance(audio, AudioTransform):
        raise RefusedError(f"{spec.model} needs `audio`, an AudioTransform, if it takes sound")
    if ("video" in dims) != isinstance(video, ImageTransform):
        raise RefusedError(f"{spec.model} needs `video`, an ImageTransform, if it takes videos")
    for modality in dims:
        if not callable(getattr(kind, _METHODS[modality], None)):
            raise RefusedError(f"{spec.model} has no method {_METHODS[modality]}")
    details: dict[str, Any] = {
        "format": 1,
        "declared": identity,
        "options": dict(spec.options),
        "dims": dict(dims),
        "image": None if image is None else image.to_json(),
    }
    if "audio" in dims:  # not a null for others, whose fingerprints are older than sound
        details["audio"] = audio.to_json()
    if "video" in dims:
        details["video"] = video.to_json()
    return EncoderCard(
        fingerprint=fingerprint(details),
        dims=dict(dims),
        image=image,
        max_tokens=None,
        name=spec.model,
        details=details,
        audio=audio if "audio" in dims else None,
        video=video if "video" in dims else None,
    )


def load(
    spec: ImportEncoder, card: EncoderCard, device: str, options: EncodeOptions
) -> "ImportedEncoder":
    """Build the class with the options of the spec; it finds its device itself."""
    del device, options
    return ImportedEncoder(card, find_class(spec.model)(**spec.options))


def find_class(model: str) -> Any:
    """The class that `package.module:ClassName` names. Raises `SpecError`."""
    module, _, name = model.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise SpecError("encoder.model", f"can't import {module}: {error}") from error
    if not isinstance(found, type):
        raise SpecError("encoder.model", f"{module} has no class {name}")
    return found


class ImportedEncoder:
    """Holds the user's object to the shape that its class declares."""

    def __init__(self, card: EncoderCard, inner: Any) -> None:
        self.card = card
        self._inner = inner

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] each to float32 [n, d]."""
        return self._checked("image", images)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Texts to float32 [n, d]."""
        return self._checked("text", texts)

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        """float32 [samples] each to float32 [n, d]."""
        return self._checked("audio", waves)

    def encode_videos(self, videos: list[list[np.ndarray]]) -> np.ndarray:
        """uint8 [h, w, 3] frames of each to float32 [n, d]."""
        return self._checked("video", videos)

    def _checked(self, modality: str, items: list[Any]) -> np.ndarray:
        if modality not in self.card.dims:
            raise ValueError(f"{self.card.name} takes no {modality}s")
        wanted = (len(items), self.card.dims[modality])
        if not items:
            return np.zeros(wanted, np.float32)
        rows = np.asarray(getattr(self._inner, _METHODS[modality])(items), np.float32)
        if rows.shape != wanted:
            raise ValueError(f"{self.card.name} returned {rows.shape}, not {wanted}")
        return rows


def _is_dims(dims: object) -> bool:
    return (
        isinstance(dims, dict)
        and bool(dims)
        and all(name in _METHODS and isinstance(dim, int) and dim > 0 for name, dim in dims.items())
    )
