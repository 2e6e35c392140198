"""Pretrained networks of the Hugging Face library as plain functions on tensors.

Only `from_pretrained` on a local folder, with safetensors and the library's own code: nothing is
downloaded and nothing is unpickled here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmray.errors import RefusedError
from mmray.models.pooling import first_token, mean_of_patches, mean_of_tokens

ImageForward = Callable[[torch.Tensor], torch.Tensor]
"""Normalised pixels [n, 3, h, w] to vectors [n, d]."""
TextForward = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Token ids [n, t] and their mask [n, t] to vectors [n, d]."""
AudioForward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Features of sounds [n, ...] and the samples behind each [n] to vectors [n, d]."""

# Stands for what is masked in training, and is in no checkpoint that was tuned without masks.
_TRAINING_ONLY = frozenset({"masked_spec_embed"})


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded network, float32 on the CPU, and what it does with each modality."""

    module: nn.Module
    image: ImageForward | None = None
    text: TextForward | None = None
    audio: AudioForward | None = None


def load_joint(folder: Path) -> Backbone:
    """A model with an image and a text tower in one space (CLIP, SigLIP)."""
    model = _load(folder)
    return Backbone(
        model,
        image=lambda pixels: _vector(model.get_image_features(pixel_values=pixels)),
        text=lambda ids, mask: _vector(model.get_text_features(input_ids=ids, attention_mask=mask)),
    )


def load_audio_joint(folder: Path) -> Backbone:
    """A model with an audio and a text tower in one space (CLAP)."""
    model = _load(folder)

    def audio(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        del lengths  # it takes a whole window, filled up with the sound itself
        # No window is longer than the model's own; its extractor would call one of them so by lot.
        longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        return _vector(model.get_audio_features(input_features=features, is_longer=longer))

    return Backbone(
        model,
        audio=audio,
        text=lambda ids, mask: _vector(model.get_text_features(input_ids=ids, attention_mask=mask)),
    )


def load_speech_encoder(folder: Path, hop: int) -> Backbone:
    """Whisper's encoder: the mean over the frames that cover the sound, not over the silence that
    fills its window. `hop`: samples between two columns of its spectrogram."""
    encoder = _load(folder).encoder
    step = hop * encoder.conv1.stride[0] * encoder.conv2.stride[0]

    def audio(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = encoder(features).last_hidden_state
        frames = torch.arange(states.shape[1], device=states.device)
        return mean_of_tokens(states, frames * step < lengths.unsqueeze(1))

    return Backbone(encoder, audio=audio)


def load_wave_encoder(folder: Path) -> Backbone:
    """A transformer on the wave itself (wav2vec2, HuBERT, WavLM): the mean over its frames."""
    model = _load(folder)
    shortest = 1  # samples behind one frame, from the last convolution to the first
    for kernel, stride in zip(
        reversed(model.config.conv_kernel), reversed(model.config.conv_stride), strict=True
    ):
        shortest = (shortest - 1) * stride + kernel

    def audio(waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        del lengths  # a batch holds one length
        # The last window of a sound may be shorter than a frame.
        missing = max(0, shortest - waves.shape[-1])
        filled = nn.functional.pad(waves, (0, missing))
        states: torch.Tensor = model(input_values=filled).last_hidden_state
        return states.float().mean(1)

    return Backbone(model, audio=audio)


def load_image_only(folder: Path, pooling: str, *, optional_pooler: bool) -> Backbone:
    """A vision transformer, pooled `cls`, `mean` (over patches) or `pooler`."""
    model = _load(folder, **_pooler(pooling, optional_pooler))
    special = 1 + int(getattr(model.config, "num_register_tokens", 0))

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        out = model(pixel_values=pixels)
        if pooling == "pooler":
            return _vector(out)
        states: torch.Tensor = out.last_hidden_state
        return first_token(states) if pooling == "cls" else mean_of_patches(states, special)

    return Backbone(model, image=forward)


def load_text_only(folder: Path, pooling: str, *, optional_pooler: bool) -> Backbone:
    """A text transformer, pooled `cls`, `mean` (over tokens) or `pooler`."""
    model = _load(folder, **_pooler(pooling, optional_pooler))

    def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen = torch.ones_like(ids) if mask is None else mask
        out = model(input_ids=ids, attention_mask=seen)
        if pooling == "pooler":
            return _vector(out)
        states: torch.Tensor = out.last_hidden_state
        return first_token(states) if pooling == "cls" else mean_of_tokens(states, seen)

    return Backbone(model, text=forward)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder, by the library's own rules."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise RefusedError(f"no tokenizer can be loaded from {folder}: {error}") from error


def _pooler(pooling: str, optional: bool) -> dict[str, bool]:
    # Left to itself the library adds a pooler of random weights where a checkpoint has none.
    return {"add_pooling_layer": pooling == "pooler"} if optional else {}


def _load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    quiet: Any = logging  # its functions carry no types
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError(f"no model can be loaded from {folder}: {error}") from error
    missing = sorted(set(report["missing_keys"]) - _TRAINING_ONLY)
    if missing:
        message = f"{len(missing)} tensors have no weights, such as {missing[0]}"
        raise RefusedError(f"{folder}: {message}")
    return model


def _vector(out: Any) -> torch.Tensor:
    """The pooled vector: transformers 5 returns an output object, 4 the tensor itself."""
    vector = out if isinstance(out, torch.Tensor) else out.pooler_output
    assert isinstance(vector, torch.Tensor)
    return vector
