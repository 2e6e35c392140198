"""Encoders without weights: what a user's own class for `kind: import` looks like."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform


class Toy:
    """Vectors from plain arithmetic: distinct inputs get distinct vectors.

    `delay` seconds are slept for each input, so that a job lasts long enough to be killed;
    `count_to` names a folder in which each process notes the number of inputs it encoded.
    """

    fingerprint = "toy-1"
    dims = {"image": 16, "text": 16}
    image = ImageTransform(size=(32, 32), resize="exact")

    def __init__(self, delay: float = 0.0, count_to: str | None = None) -> None:
        self.delay = delay
        self.count_to = Path(count_to) if count_to else None
        self._note(0)

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """Means over a 4x4 grid: float32 [n, 16]."""
        time.sleep(self.delay * len(images))
        self._note(len(images))
        grids = [image.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3, 4)).ravel() for image in images]
        return np.asarray(grids, np.float32).reshape(-1, 16) + 1

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Bytes of a hash: float32 [n, 16]."""
        digests = [hashlib.md5(text.encode()).digest() for text in texts]
        return np.asarray([list(d) for d in digests], np.float32).reshape(-1, 16) + 1

    def _note(self, count: int) -> None:
        if self.count_to is None:
            return
        path = self.count_to / str(os.getpid())
        before = int(path.read_text()) if path.exists() else 0
        path.write_text(str(before + count))


class OtherToy(Toy):
    """The same with other weights."""

    fingerprint = "toy-2"

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        return super().encode_images(images)[:, ::-1].copy()


class Listener(Toy):
    """Hears too: bands of the spectrum, and where in the window the sound is."""

    fingerprint = "toy-listener"
    dims = {"image": 16, "text": 16, "audio": 16}
    audio = AudioTransform(rate=8000, window=2.0)

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        """Eight means of the spectrum and eight of the samples: float32 [n, 16]."""
        time.sleep(self.delay * len(waves))
        self._note(len(waves))
        rows = []
        for wave in waves:
            assert 0 < len(wave) <= 16000
            filled = np.pad(wave, (0, max(0, 16 - len(wave))))
            spectrum = np.log1p(np.abs(np.fft.rfft(filled)))
            parts = np.array_split(spectrum, 8) + np.array_split(np.abs(filled), 8)
            rows.append([part.mean() for part in parts])
        return np.asarray(rows, np.float32).reshape(-1, 16) + 1


class Watcher(Toy):
    """Takes videos as such: means of the first, the middle and the last frame."""

    fingerprint = "toy-watcher"
    dims = {"image": 16, "text": 16, "video": 12}
    video = ImageTransform(size=(16, 16), resize="exact")

    def encode_videos(self, videos: list[list[np.ndarray]]) -> np.ndarray:
        """Four means of three frames each: float32 [n, 12]."""
        self._note(len(videos))
        rows = []
        for frames in videos:
            some = np.stack([frames[0], frames[len(frames) // 2], frames[-1]])
            rows.append(some.reshape(3, 2, 8, 2, 8, 3).mean(axis=(2, 4, 5)).ravel())
        return np.asarray(rows, np.float32).reshape(-1, 12) + 1


class Broken(Toy):
    """Gives NaN for dark pictures, zeros for bright ones, and raises on red ones."""

    fingerprint = "toy-broken"

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        vectors = super().encode_images(images)
        for row, image in enumerate(images):
            red, green, blue = (float(each) for each in image.reshape(-1, 3).mean(axis=0))
            if red > 200 and green < 50 and blue < 50:
                raise RuntimeError("no red pictures, please")
            if max(red, green, blue) < 20:
                vectors[row] = np.nan
            if min(red, green, blue) > 235:
                vectors[row] = 0
        return vectors


class Deadly(Toy):
    """Ends its process: by SIGKILL on red pictures, with an exit code on the text `deadly`, or on
    `deadly unless FILE` while there is no such file. `always`: on any text.
    """

    fingerprint = "toy-deadly"

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        for image in images:
            red, green, blue = (float(each) for each in image.reshape(-1, 3).mean(axis=0))
            if red > 200 and green < 50 and blue < 50:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_images(images)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        if self.always or any(map(self._is_deadly, texts)):
            os._exit(3)
        return super().encode_texts(texts)

    def _is_deadly(self, text: str) -> bool:
        word, _, mended = text.partition(" unless ")
        return word == "deadly" and not (mended and Path(mended).exists())


class DeadlyDecoder(Deadly):
    """Its process has a decoder that ends it too, on pictures with `deadly` in their bytes."""

    fingerprint = "toy-deadly-decoder"

    def __init__(self) -> None:
        from mmray.flow import decoding

        super().__init__()
        decode = decoding.decode_image

        def decode_image(data: bytes, *arguments: Any, **options: Any) -> np.ndarray:
            if b"deadly" in data:
                os.kill(os.getpid(), signal.SIGSEGV)
            return decode(data, *arguments, **options)

        decoding.decode_image = decode_image


class Fatal(Toy):
    """Ends its process while it loads."""

    fingerprint = "toy-fatal"

    def __init__(self) -> None:
        os._exit(4)


class Unloadable(Toy):
    """A model whose weights turn out broken on the worker."""

    fingerprint = "toy-unloadable"

    def __init__(self) -> None:
        raise RuntimeError("the weights are torn")
