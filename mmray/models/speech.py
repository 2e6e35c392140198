"""The speaker encoder of resemblyzer 0.1.4, with the weights that ship in its package.

Network, spectrogram and the cutting into partials follow its `voice_encoder.py`, `audio.py` and
`hparams.py` (https://github.com/resemble-ai/Resemblyzer), with torch in place of librosa. The
network is that of Generalized End-to-End Loss (Wan et al., 2018).
"""

import math
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize, pad

RATE = 16_000
_FFT, _HOP, _MELS = 400, 160, 40
_HIDDEN = 256
_PARTIAL = 160
"""Frames of a partial: 1.6 seconds."""
_STEP = _PARTIAL // 2
_COVERED = 0.75
"""The least of a last partial that must be sound, the rest being filled with silence."""
_LOUDNESS = 10 ** (-30 / 20)
"""Root mean square that a quieter sound is raised to: -30 dBFS."""


def mel_tables(fft: int, bands: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The window [fft] and the mel filters [fft / 2 + 1, bands] of sound at 16 kHz, float32."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=fft // 2 + 1,
        num_mel_filters=bands,
        min_frequency=0.0,
        max_frequency=RATE / 2,
        sampling_rate=RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.hann_window(fft), torch.from_numpy(filters).float()


class Voice(nn.Module):
    """Waves [n, samples] of one length at 16 kHz to vectors [n, 256]: the mean over partials."""

    def __init__(self) -> None:
        """With random values; `load` brings the package's."""
        super().__init__()
        self.lstm = nn.LSTM(_MELS, _HIDDEN, num_layers=3, batch_first=True)
        self.linear = nn.Linear(_HIDDEN, _HIDDEN)
        window, filters = mel_tables(_FFT, _MELS)
        self.register_buffer("window", window)
        self.register_buffer("filters", filters)

    def forward(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """`lengths` isn't used: a batch holds one length."""
        del lengths
        starts = partial_starts(waves.shape[1])
        missing = (starts[-1] + _PARTIAL) * _HOP - waves.shape[1]
        # The spectrum's range is too wide for 16 bits.
        with torch.autocast(waves.device.type, enabled=False):
            mel = self.mel(pad(louder(waves), (0, max(0, missing))))
        partials = torch.stack([mel[:, start : start + _PARTIAL] for start in starts], 1)
        _, (hidden, _) = self.lstm(partials.flatten(0, 1))
        vectors = normalize(torch.relu(self.linear(hidden[-1])).float(), dim=-1)
        return vectors.reshape(len(waves), len(starts), _HIDDEN).mean(1)

    def mel(self, waves: torch.Tensor) -> torch.Tensor:
        """Power mel spectrogram, without a logarithm: [n, samples] to [n, frames, 40]."""
        spectrum = torch.stft(
            waves,
            _FFT,
            _HOP,
            window=self.get_buffer("window"),
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.abs().square().transpose(1, 2) @ self.get_buffer("filters")


def load(weights: Path) -> Voice:
    """The network with `weights`, a checkpoint; `weights_only` keeps the file from running code."""
    state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
    for name in ("similarity_weight", "similarity_bias"):  # of its loss
        state.pop(name)
    voice = Voice()
    tables = dict(voice.named_buffers())  # in no checkpoint of theirs
    voice.load_state_dict({**state, **tables}, strict=True)
    return voice


def louder(waves: torch.Tensor) -> torch.Tensor:
    """Quiet waves [n, samples] raised to -30 dBFS; loud ones stay."""
    rms = waves.square().mean(1, keepdim=True).sqrt()
    return waves * (_LOUDNESS / rms.clamp(min=1e-12)).clamp(min=1.0)


def partial_starts(samples: int) -> list[int]:
    """First frame of each partial of a sound of so many samples; at least one.

    A last partial that sound fills by less than three quarters is left out.
    """
    frames = math.ceil((samples + 1) / _HOP)
    starts = list(range(0, max(1, frames - _PARTIAL + _STEP + 1), _STEP))
    covered = (samples / _HOP - starts[-1]) / _PARTIAL
    return starts[:-1] if covered < _COVERED and len(starts) > 1 else starts
