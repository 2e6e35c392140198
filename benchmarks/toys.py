"""Encoders that cost next to nothing, so that all the rest is what is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform


class MeanPool:
    """The means over a 7x7 grid of a picture of the usual 224 pixels."""

    fingerprint = "mean-pool-1"
    dims = {"image": 147}
    image = ImageTransform(size=(224, 224), resize="shortest_edge", resize_to=224)

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [224, 224, 3] each to float32 [n, 147]."""
        pixels = np.stack(images)[:, ::4, ::4].reshape(-1, 7, 8, 7, 8, 3)
        return pixels.mean(axis=(2, 4), dtype=np.float32).reshape(-1, 147) + 1


class Loudness:
    """The mean loudness of 64 stretches of a window of at most 10 seconds."""

    fingerprint = "loudness-1"
    dims = {"audio": 64}
    audio = AudioTransform(rate=16_000, window=10.0)

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        """float32 [n] each to float32 [len(waves), 64]."""
        padded = [np.pad(np.abs(wave), (0, -len(wave) % 64)) for wave in waves]
        return np.stack([wave.reshape(64, -1).mean(axis=1) for wave in padded]) + 1e-3


class Counting:
    """Sleeps `delay` seconds a picture, and notes in `folder` how many this process encoded."""

    fingerprint = "counting-1"
    dims = {"image": 12}
    image = ImageTransform(size=(32, 32), resize="exact")

    def __init__(self, delay: float, folder: str) -> None:
        self.delay = delay
        self.file = Path(folder) / str(os.getpid())
        self.count = 0

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [32, 32, 3] each to float32 [n, 12]."""
        self.count += len(images)
        self.file.write_text(str(self.count))
        time.sleep(self.delay * len(images))
        return np.stack(images).reshape(-1, 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(-1, 12) + 1
