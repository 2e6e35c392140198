"""What networks of the Hugging Face library make of tensors, as functions of the network too.

Encoders run what they loaded by them, and the joint model its towers: both give the same vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mmray.models.pooling import first_token, mean_of_patches, mean_of_tokens

Forward = Callable[..., torch.Tensor]
"""Takes the network, then pixels, token ids and mask, or sounds and lengths, to vectors [n, d]."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What decides how a network is built and run, beside its own config."""

    family: str
    """`joint` (CLIP, SigLIP), `clap`, `whisper`, `wave` (wav2vec2, HuBERT, WavLM), `image` or
    `text`."""
    pooling: str | None = None
    """`cls`, `mean` (over patches or tokens) or `pooler`, of `image` and `text`."""
    optional_pooler: bool = False
    """Left to itself the library adds a pooler of random weights where a checkpoint has none."""
    hop: int = 0
    """Samples between two columns of `whisper`'s spectrogram."""

    @property
    def options(self) -> dict[str, bool]:
        """Of the library's constructor."""
        return {"add_pooling_layer": self.pooling == "pooler"} if self.optional_pooler else {}

    def forwards(self) -> Mapping[str, Forward]:
        """Modality to the function that runs it."""
        families: dict[str, dict[str, Forward]] = {
            "joint": {"image": _image_features, "text": _text_features},
            "clap": {"audio": _audio_features, "text": _text_features},
            "whisper": {"audio": partial(_speech, hop=self.hop)},
            "wave": {"audio": _wave},
            "image": {"image": partial(_image, pooling=self.pooling)},
            "text": {"text": partial(_text, pooling=self.pooling)},
        }
        return families[self.family]


def _image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return _vector(model.get_image_features(pixel_values=pixels))


def _text_features(model: Any, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return _vector(model.get_text_features(input_ids=ids, attention_mask=mask))


def _audio_features(model: Any, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    del lengths  # it takes a whole window, filled up with the sound itself
    # No window is longer than the model's own; its extractor would call one of them so by lot.
    longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
    return _vector(model.get_audio_features(input_features=features, is_longer=longer))


def _speech(
    encoder: Any, features: torch.Tensor, lengths: torch.Tensor, *, hop: int
) -> torch.Tensor:
    """The mean over the frames that cover the sound, not over the silence that fills its window."""
    step = hop * encoder.conv1.stride[0] * encoder.conv2.stride[0]
    states: torch.Tensor = encoder(features).last_hidden_state
    frames = torch.arange(states.shape[1], device=states.device)
    return mean_of_tokens(states, frames * step < lengths.unsqueeze(1))


def _wave(model: Any, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The mean over the frames of waves of one length."""
    del lengths
    shortest = 1  # samples behind one frame, from the last convolution to the first
    kernels, strides = model.config.conv_kernel, model.config.conv_stride
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        shortest = (shortest - 1) * stride + kernel
    # The last window of a sound may be shorter than a frame.
    filled = nn.functional.pad(waves, (0, max(0, shortest - waves.shape[-1])))
    states: torch.Tensor = model(input_values=filled).last_hidden_state
    return states.float().mean(1)


def _image(model: Any, pixels: torch.Tensor, *, pooling: str | None) -> torch.Tensor:
    out = model(pixel_values=pixels)
    if pooling == "pooler":
        return _vector(out)
    states: torch.Tensor = out.last_hidden_state
    if pooling == "cls":
        return first_token(states)
    return mean_of_patches(states, 1 + int(getattr(model.config, "num_register_tokens", 0)))


def _text(
    model: Any, ids: torch.Tensor, mask: torch.Tensor | None, *, pooling: str | None
) -> torch.Tensor:
    seen = torch.ones_like(ids) if mask is None else mask
    out = model(input_ids=ids, attention_mask=seen)
    if pooling == "pooler":
        return _vector(out)
    states: torch.Tensor = out.last_hidden_state
    return first_token(states) if pooling == "cls" else mean_of_tokens(states, seen)


def _vector(out: Any) -> torch.Tensor:
    """The pooled vector: transformers 5 returns an output object, 4 the tensor itself."""
    vector = out if isinstance(out, torch.Tensor) else out.pooler_output
    assert isinstance(vector, torch.Tensor)
    return vector
