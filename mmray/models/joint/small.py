"""Small networks that are trained from nothing: convolutional and recurrent, for each modality.

Padding never counts: what is masked is zero before each convolution, norms are per place, and the
recurrence runs forward only. So a sound or text has the same vector alone as in a batch.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mmray.models.speech import mel_tables

_FFT, _HOP, _MELS = 400, 160, 64
RATE = 16_000
PAD, END, FIRST = 0, 1, 2
"""Bytes as tokens: padding, the end of a text, and the first of the 256 bytes."""
BYTES = FIRST + 256


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the places where `mask` [b, t] is set: [b, t, d] to [b, d], zeros for none."""
    weight = mask.to(states.dtype).unsqueeze(-1)
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


def at_least_float(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32, or in float64 where it was."""
    return tensor if tensor.dtype is torch.float64 else tensor.float()


class LogMel(nn.Module):
    """Waves at 16 kHz to a log-mel spectrogram: a column each 10 ms."""

    def __init__(self) -> None:
        super().__init__()
        window, filters = mel_tables(_FFT, _MELS)
        # Kept in the checkpoint: transformers builds models without values and fills what is there.
        self.register_buffer("window", window)
        self.register_buffer("filters", filters)

    def forward(
        self, waves: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, n] and [b] to [b, frames, 64] and the mask [b, frames]."""
        window, filters = self.get_buffer("window"), self.get_buffer("filters")
        heard = torch.arange(waves.shape[1], device=waves.device) < lengths.unsqueeze(1)
        # The spectrum's range is too wide for 16 bits.
        with torch.autocast(waves.device.type, enabled=False):
            spectrum = torch.stft(
                waves.to(window.dtype) * heard,
                _FFT,
                _HOP,
                window=window,
                pad_mode="constant",
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            mel = (power.transpose(1, 2) @ filters + 1e-6).log()
        frames = torch.arange(mel.shape[1], device=waves.device)
        return (mel + 6) / 4, frames < 1 + lengths.unsqueeze(1) // _HOP


class Convolutions(nn.Module):
    """Convolutions along a sequence, each of which halves it."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        pairs = list(pairwise(sizes))
        self.layers = nn.ModuleList(nn.Conv1d(a, b, 5, stride=2, padding=2) for a, b in pairs)
        self.norms = nn.ModuleList(nn.LayerNorm(b) for _, b in pairs)

    def forward(
        self, states: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, t, d] and [b, t] to a shorter sequence and its mask."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            filled = (states * mask.unsqueeze(-1)).transpose(1, 2)
            states = nn.functional.gelu(norm(layer(filled).transpose(1, 2)))
            mask = mask[:, ::2]
        return states, mask


class Recurrence(nn.Module):
    """A gated recurrent unit along a sequence: the mean over its places."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.unit = nn.GRU(size, out, batch_first=True)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[b, t, d] and [b, t] to [b, out]."""
        # Its steps add up what 16 bits lose.
        with torch.autocast(states.device.type, enabled=False):
            outputs, _ = self.unit(at_least_float(states))
            return masked_mean(outputs, mask)


class Picture(nn.Module):
    """Convolutions over a picture: normalised pixels [n, 3, h, w] to [n, 2 * width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [3, max(8, width // 2), width, 2 * width, 2 * width]
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(1, b), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The mean over places of the last layer."""
        maps: torch.Tensor = self.layers(pixels)
        return maps.mean((2, 3))


class Patches(nn.Module):
    """A recurrent look at a picture: patches of 8 pixels, in reading order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.recurrence = Recurrence(width, 2 * width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [n, 3, h, w] to [n, 2 * width]."""
        states = nn.functional.gelu(self.patches(pixels)).flatten(2).transpose(1, 2)
        mask = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        vectors: torch.Tensor = self.recurrence(states, mask)
        return vectors


class Sequence(nn.Module):
    """A text's bytes or a sound's columns: convolutions, then their mean or a recurrence."""

    def __init__(self, size: int, width: int, *, recurrent: bool) -> None:
        super().__init__()
        sizes = [size, width, width] if recurrent else [size, width, width, 2 * width]
        self.convolutions = Convolutions(sizes)
        self.recurrence = Recurrence(width, 2 * width) if recurrent else None

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[b, t, size] and [b, t] to [b, 2 * width]."""
        states, mask = self.convolutions(states, mask)
        if self.recurrence is None:
            return masked_mean(states, mask)
        vectors: torch.Tensor = self.recurrence(states, mask)
        return vectors


class SmallText(nn.Module):
    """Bytes [b, t] and their mask to vectors."""

    def __init__(self, width: int, *, recurrent: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BYTES, width)
        self.sequence = Sequence(width, width, recurrent=recurrent)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[b, t] and [b, t] to [b, 2 * width]."""
        vectors: torch.Tensor = self.sequence(self.embedding(ids), mask.bool())
        return vectors


class SmallSound(nn.Module):
    """Waves [b, n] at 16 kHz and their lengths to vectors."""

    def __init__(self, width: int, *, recurrent: bool) -> None:
        super().__init__()
        self.spectrogram = LogMel()
        self.sequence = Sequence(_MELS, width, recurrent=recurrent)

    def forward(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[b, n] and [b] to [b, 2 * width]."""
        vectors: torch.Tensor = self.sequence(*self.spectrogram(waves, lengths))
        return vectors


def build(settings: dict[str, Any], modality: str) -> nn.Module:
    """The network of a `conv` or `recurrent` tower; a video's is that of one frame."""
    width, recurrent = int(settings["width"]), settings["kind"] == "recurrent"
    if modality == "text":
        return SmallText(width, recurrent=recurrent)
    if modality == "audio":
        return SmallSound(width, recurrent=recurrent)
    if modality == "image" and recurrent:
        return Patches(width)
    return Picture(width)
