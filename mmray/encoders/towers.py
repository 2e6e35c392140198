"""Batches of pixels, texts or sounds through a network, in the order they came. Needs torch.

Rows stay on the device until the last batch is queued, so that on a GPU the copy of one batch runs
beside the computing of another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform
from mmray.encoders.batching import equal_batches, in_halves, in_order, token_batches
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.extractors import Extract
from mmray.models.backbones import AudioForward, ImageForward, TextForward
from mmray.models.devices import Placement

FramesForward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Vectors of frames, [n, f, d], and which are there, bool [n, f], to vectors of videos."""

# Measured on one CPU core: flat from 16 images up for a ViT-B/32, and a small convolutional
# network loses a quarter from 8 to 32, when its maps leave the cache.
_CPU_IMAGES, _GPU_IMAGES = 16, 256
# Tokens of each thread. A matrix product is at full speed from 128 rows up, and the more texts
# share a batch, the more of it is padding: 26 % of captions' tokens at 4096, 6 % at 1024.
_CPU_TOKENS, _GPU_TOKENS = 1024, 16384
_CPU_SECONDS, _GPU_SECONDS = 60, 480


class ImageTower:
    """uint8 pictures to vectors; pixels are normalised on the device, after the small copy."""

    def __init__(
        self,
        forward: ImageForward,
        transform: ImageTransform,
        placement: Placement,
        options: EncodeOptions,
    ) -> None:
        self._forward = forward
        self._placement = placement
        self._size = (*transform.size, 3)
        self.batch = options.batch_images or (_GPU_IMAGES if placement.on_gpu else _CPU_IMAGES)
        mean, std = torch.tensor(transform.mean), torch.tensor(transform.std)
        self._scale = (1 / (255 * std)).view(3, 1, 1).to(placement.device)
        self._shift = (-mean / std).view(3, 1, 1).to(placement.device)

    def encode(self, images: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Vectors on the device, float32, in parts. Raises `ValueError` on a wrong shape."""
        parts: list[torch.Tensor] = []
        done = 0
        while done < len(images):
            chunk = images[done : done + self.batch]
            parts += in_halves(self._run, chunk, self._shrink)
            done += len(chunk)
        return parts

    def _shrink(self, fits: int) -> None:
        self.batch = min(self.batch, fits)

    def _run(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        for image in images:
            if image.shape != self._size or image.dtype != np.uint8:
                raise ValueError(f"expected uint8 {self._size}, got {image.dtype} {image.shape}")
        pixels = self._placement.upload(np.stack(images))
        # The permuted view is channels_last in memory, which is what convolutions like best.
        pixels = pixels.permute(0, 3, 1, 2) * self._scale + self._shift
        with self._placement.precision():
            return self._forward(pixels).float()


@dataclass(frozen=True, slots=True)
class TextRules:
    """How a model wants its texts."""

    limit: int
    """Tokens kept of a text."""
    pad_to: int | None = None
    """Pad every text to so many tokens; `None`: to the longest of its batch."""
    lower_case: bool = False


class TextTower:
    """Texts to vectors, in batches of like length under a budget of padded tokens."""

    def __init__(
        self,
        forward: TextForward,
        tokenizer: Any,
        placement: Placement,
        options: EncodeOptions,
        rules: TextRules,
    ) -> None:
        self._forward = forward
        self._tokenizer = tokenizer
        self._placement = placement
        self._rules = rules
        # A model trained on padding as text says so by not naming a mask.
        self._masked = rules.pad_to is None or "attention_mask" in tokenizer.model_input_names
        fits = _GPU_TOKENS if placement.on_gpu else _CPU_TOKENS * (options.threads or 1)
        self.budget = options.batch_tokens or fits

    def encode(self, texts: Sequence[str]) -> list[torch.Tensor]:
        """Vectors on the device, float32, in parts, in the order of `texts`."""
        rows = self._tokens(texts)
        order: list[int] = []
        parts: list[torch.Tensor] = []
        lengths = [self._rules.pad_to or len(row) for row in rows]
        for batch in token_batches(lengths, self.budget):
            shrink = partial(self._shrink, lengths[batch[0]])
            parts += in_halves(self._run, [rows[position] for position in batch], shrink)
            order += batch
        if not parts:
            return []
        return [in_order(parts, order)]

    def _shrink(self, longest: int, fits: int) -> None:
        self.budget = min(self.budget, max(1, longest) * fits)

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        clean = [text.strip() for text in texts]
        if self._rules.lower_case:
            clean = [text.lower() for text in clean]
        encoded = self._tokenizer(
            clean,
            truncation=True,
            max_length=self._rules.limit,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows: list[list[int]] = encoded["input_ids"]
        return rows

    def _run(self, rows: Sequence[list[int]]) -> torch.Tensor:
        longest = self._rules.pad_to or max(len(row) for row in rows) or 1
        ids = np.full((len(rows), longest), self._tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros((len(rows), longest), np.int64)
        for place, row in enumerate(rows):
            where = slice(0, len(row))
            if self._tokenizer.padding_side == "left":
                where = slice(longest - len(row), longest)
            ids[place, where] = row
            mask[place, where] = 1
        seen = self._placement.upload(mask) if self._masked else None
        with self._placement.precision():
            return self._forward(self._placement.upload(ids), seen).float()


@dataclass(frozen=True, slots=True)
class AudioRules:
    """How a model wants its sound."""

    transform: AudioTransform
    extract: Extract
    """From windows of one batch to what the network takes."""
    one_length: bool
    """Features have one length whatever the sound's, so that sounds of any length share a batch."""


class AudioTower:
    """Windows of sound to vectors, in batches of equal length under a budget of samples."""

    def __init__(
        self,
        forward: AudioForward,
        rules: AudioRules,
        placement: Placement,
        options: EncodeOptions,
    ) -> None:
        self._forward = forward
        self._rules = rules
        self._placement = placement
        rate = rules.transform.rate
        self._longest = round(rate * rules.transform.window)
        fits = rate * (_GPU_SECONDS if placement.on_gpu else _CPU_SECONDS)
        self.budget = self._longest * options.batch_audios if options.batch_audios else fits

    def encode(self, waves: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Vectors on the device, float32, in parts, in the order of `waves`.

        Raises `ValueError` for a wave that isn't float32 [n], is empty or longer than a window.
        """
        for wave in waves:
            if wave.ndim != 1 or wave.dtype != np.float32 or not 0 < len(wave) <= self._longest:
                wanted = f"float32 [1 to {self._longest}]"
                raise ValueError(f"expected {wanted}, got {wave.dtype} {list(wave.shape)}")
        order: list[int] = []
        parts: list[torch.Tensor] = []
        one_length = self._rules.one_length
        lengths = [self._longest if one_length else len(wave) for wave in waves]
        for batch in equal_batches(lengths, self.budget):
            shrink = partial(self._shrink, lengths[batch[0]])
            parts += in_halves(self._run, [waves[position] for position in batch], shrink)
            order += batch
        return [in_order(parts, order)] if parts else []

    def _shrink(self, length: int, fits: int) -> None:
        self.budget = min(self.budget, length * fits)

    def _run(self, waves: Sequence[np.ndarray]) -> torch.Tensor:
        features = self._placement.upload(self._rules.extract(waves))
        lengths = self._placement.upload(np.array([len(wave) for wave in waves]))
        with self._placement.precision():
            return self._forward(features, lengths).float()


class VideoTower:
    """Videos to vectors: all frames through the network as pictures, then those of each as one."""

    def __init__(self, frames: ImageTower, over: FramesForward, placement: Placement) -> None:
        self._frames = frames
        self._over = over
        self._placement = placement

    def encode(self, videos: Sequence[Sequence[np.ndarray]]) -> list[torch.Tensor]:
        """Vectors on the device, float32, in one part. Raises `ValueError` for a video without
        frames, or frames of a wrong shape."""
        lengths = [len(frames) for frames in videos]
        if not all(lengths):
            raise ValueError("a video has no frames")
        if not lengths:
            return []
        states = torch.cat(self._frames.encode([each for frames in videos for each in frames]))
        padded = pad_sequence([*torch.split(states, lengths)], batch_first=True)
        places = torch.arange(max(lengths), device=states.device)
        mask = places < torch.tensor(lengths, device=states.device).unsqueeze(1)
        with self._placement.precision():
            return [self._over(padded, mask).float()]


class TowerEncoder:
    """An encoder of one tower or several."""

    def __init__(
        self,
        card: EncoderCard,
        image: ImageTower | None = None,
        text: TextTower | None = None,
        audio: AudioTower | None = None,
        video: VideoTower | None = None,
    ) -> None:
        self.card = card
        self._image = image
        self._text = text
        self._audio = audio
        self._video = video

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] each, of `card.image.size`, to float32 [n, d], not normalised."""
        if self._image is None:
            raise ValueError(f"{self.card.name} takes no images")
        with torch.inference_mode():
            return _rows(self._image.encode(images), self.card.dims["image"])

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Texts to float32 [n, d], not normalised."""
        if self._text is None:
            raise ValueError(f"{self.card.name} takes no texts")
        with torch.inference_mode():
            return _rows(self._text.encode(texts), self.card.dims["text"])

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        """float32 [samples] each, mono at `card.audio.rate`, to float32 [n, d], not normalised."""
        if self._audio is None:
            raise ValueError(f"{self.card.name} takes no audios")
        with torch.inference_mode():
            return _rows(self._audio.encode(waves), self.card.dims["audio"])

    def encode_videos(self, videos: list[list[np.ndarray]]) -> np.ndarray:
        """Frames of each video, uint8 [h, w, 3] of `card.video.size`, to float32 [n, d], not
        normalised."""
        if self._video is None:
            raise ValueError(f"{self.card.name} takes no videos")
        with torch.inference_mode():
            return _rows(self._video.encode(videos), self.card.dims["video"])


def _rows(parts: list[torch.Tensor], dim: int) -> np.ndarray:
    if not parts:
        return np.zeros((0, dim), np.float32)
    return np.ascontiguousarray(torch.cat(parts).cpu().numpy())
