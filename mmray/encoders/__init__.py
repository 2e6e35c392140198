"""Encoders: what turns pictures, texts and sounds into vectors, from one table of kinds.

Importing this room and calling `describe` loads neither torch nor transformers; `load_encoder`
does, in the worker that encodes.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mmray.encoders import combined, hf, imported, joint, packaged
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.errors import RefusedError
from mmray.specs.common import (
    CombinedEncoder,
    HfEncoder,
    ImportEncoder,
    JointEncoder,
    PackagedEncoder,
)

__all__ = ["KINDS", "EncodeOptions", "Encoder", "EncoderCard", "describe", "load_encoder"]

EncoderSpec = HfEncoder | PackagedEncoder | ImportEncoder | JointEncoder | CombinedEncoder


class Encoder(Protocol):
    """What runs in a worker. Rows come in the order of the inputs and aren't normalised."""

    card: EncoderCard

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] each, of `card.image.size`, to float32 [n, d]."""

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Texts to float32 [n, d]."""

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        """Windows of sound, float32 [samples] each, mono at `card.audio.rate` and no longer than
        `card.audio.window`, to float32 [n, d]."""

    def encode_videos(self, videos: list[list[np.ndarray]]) -> np.ndarray:
        """Frames of each video in order, uint8 [h, w, 3] of `card.video.size`, to float32 [n, d].
        Asked only where there is a `card.video`: else frames go through `encode_images`."""


Describe = Callable[[Any, EncodeOptions], EncoderCard]
Load = Callable[[Any, EncoderCard, str, EncodeOptions], Encoder]

# A kind of encoder: what describes it without torch, and what loads it.
KINDS: dict[str, tuple[Describe, Load]] = {
    "hf": (hf.describe, hf.load),
    "packaged": (packaged.describe, packaged.load),
    "import": (imported.describe, imported.load),
    "joint": (joint.describe, joint.load),
    "combined": (combined.describe, combined.load),
}


def describe(spec: EncoderSpec, options: EncodeOptions | None = None) -> EncoderCard:
    """What the driver needs to know of an encoder: hashes its files, loads nothing.

    Raises `SpecError` for a field that can't be right, `RefusedError` for missing files, weights
    that only load by running code, or a model mmray can't run.
    """
    return KINDS[spec.kind][0](spec, options or EncodeOptions())


def load_encoder(
    spec: EncoderSpec, card: EncoderCard, device: str, options: EncodeOptions
) -> Encoder:
    """Load the encoder that `card` describes on `device` (`cpu`, `cuda`, `cuda:0`).

    Hashes the files again: raises `RefusedError` when this machine has other ones than the driver.
    """
    found = describe(spec, options)
    if found.fingerprint != card.fingerprint:
        parts = ", ".join(differing(card, found))
        raise RefusedError(f"this worker's {found.name} isn't the driver's: {parts} differ")
    if options.threads is not None and spec.kind in ("hf", "packaged", "joint"):
        import torch

        torch.set_num_threads(options.threads)
    return KINDS[spec.kind][1](spec, found, device, options)


def differing(one: EncoderCard, other: EncoderCard) -> list[str]:
    """Names of the ingredients in which two cards' fingerprints differ, sorted."""
    keys = one.details.keys() | other.details.keys()
    return sorted(key for key in keys if one.details.get(key) != other.details.get(key))
