"""Pretrained networks as parts of the joint model: built without values, then filled.

Their forward passes give what `mmray.models.backbones` gives for the same weights, with two
differences that training asks for: a joint model keeps only the half that is used, and nothing is
random but dropout (no layer drop, no masked spectrogram).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmray.errors import RefusedError
from mmray.models import backbones
from mmray.models.joint.voice import VoiceTower, by_length
from mmray.models.pooling import first_token, mean_of_patches, mean_of_tokens

# The halves of models with two, and what only their own training used.
_IMAGE_HALF = ("vision_model", "visual_projection")
_TEXT_HALF = ("text_model", "text_projection")
_AUDIO_HALF = ("audio_model", "audio_projection")
_SCALES = ("logit_scale", "logit_bias", "logit_scale_a", "logit_scale_t")
_HALVES = {"image": _IMAGE_HALF, "text": _TEXT_HALF, "audio": _AUDIO_HALF}

_STILL = {"layerdrop": 0.0, "encoder_layerdrop": 0.0, "apply_spec_augment": False}

NEVER_TRAINED = frozenset({"mask_token", "masked_spec_embed"})
"""Weights that only stand for what was masked in pretraining."""


class Pretrained(nn.Module):
    """A network of the Hugging Face library: `settings` has its `family`, `config`, `pooling`."""

    def __init__(self, settings: dict[str, Any], modality: str) -> None:
        super().__init__()
        self.settings = settings
        self.part = "image" if modality == "video" else modality
        self.model: Any = _empty(settings, self.part)
        self._forward: Callable[..., torch.Tensor] = getattr(self, f"_{settings['family']}")

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the part takes (normalised pixels; ids and mask; features of sound and lengths) to
        vectors [n, features]."""
        return self._forward(*inputs)

    def _joint(self, first: torch.Tensor, second: torch.Tensor | None = None) -> torch.Tensor:
        if self.part == "image":
            return _vector(self.model.get_image_features(pixel_values=first))
        return _vector(self.model.get_text_features(input_ids=first, attention_mask=second))

    def _clap(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if self.part == "text":
            return _vector(self.model.get_text_features(input_ids=first, attention_mask=second))
        longer = torch.zeros(len(first), 1, dtype=torch.bool, device=first.device)
        return _vector(self.model.get_audio_features(input_features=first, is_longer=longer))

    def _whisper(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        model = self.model
        step = int(self.settings["hop"]) * model.conv1.stride[0] * model.conv2.stride[0]
        states: torch.Tensor = model(features).last_hidden_state
        frames = torch.arange(states.shape[1], device=states.device)
        return mean_of_tokens(states, frames * step < lengths.unsqueeze(1))

    def _wave(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        shortest = 1  # samples behind one frame, from the last convolution to the first
        kernels, strides = self.model.config.conv_kernel, self.model.config.conv_stride
        for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
            shortest = (shortest - 1) * stride + kernel

        def alone(group: torch.Tensor) -> torch.Tensor:
            values = nn.functional.pad(group, (0, max(0, shortest - group.shape[1])))
            states: torch.Tensor = self.model(input_values=values).last_hidden_state
            return states.float().mean(1)

        return by_length(alone, waves, lengths)

    def _image(self, pixels: torch.Tensor) -> torch.Tensor:
        out = self.model(pixel_values=pixels)
        if self.settings["pooling"] == "pooler":
            return _vector(out)
        states: torch.Tensor = out.last_hidden_state
        if self.settings["pooling"] == "cls":
            return first_token(states)
        special = 1 + int(getattr(self.model.config, "num_register_tokens", 0))
        return mean_of_patches(states, special)

    def _text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        out = self.model(input_ids=ids, attention_mask=mask)
        if self.settings["pooling"] == "pooler":
            return _vector(out)
        states: torch.Tensor = out.last_hidden_state
        return (
            first_token(states)
            if self.settings["pooling"] == "cls"
            else mean_of_tokens(states, mask)
        )


class Lite0Tower(nn.Module):
    """EfficientNet-lite0, its norms folded into its convolutions as in `mmray.models.lite0`: so
    training it keeps the norms' statistics, and no row depends on another."""

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite_pytorch import EfficientNet

        from mmray.models.lite0 import _fold_norms

        self.model: Any = EfficientNet.from_name("efficientnet-lite0")
        self.model._fc = nn.Identity()
        _fold_norms(self.model)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, 224, 224] to [n, 1280]."""
        maps: torch.Tensor = self.model.extract_features(pixels)
        return maps.float().mean((2, 3))


_OWN = frozenset(
    {"lora_A", "lora_B", "lora_E", "ranknum", "ia3_l", "prompt_encoder"} | {"window", "filters"}
)
"""Parts of a name that no pretrained model has: adapters, and tables that are always the same."""


def build(settings: dict[str, Any], modality: str) -> nn.Module:
    """The network of an `hf` or `packaged` tower, with random values."""
    family = settings["family"]
    if family == "lite0":
        return Lite0Tower()
    if family == "voice":
        return VoiceTower()
    return Pretrained(settings, modality)


def fill(network: nn.Module, source: Path) -> None:
    """Copy the values of the pretrained model in `source` (a folder, or a packaged file of weights)
    into a network that `build` made, adapters or not. Raises `RefusedError`."""
    if isinstance(network, Lite0Tower):
        from mmray.models.lite0 import Lite0

        copy_values(Lite0(source).module, network.model, str(source))
    elif isinstance(network, Pretrained):
        copy_values(_loaded(source, network.settings), network.model, str(source))
    else:
        from mmray.models.speech import Voice

        copy_values(Voice(source), network, str(source))


def copy_values(source: nn.Module, target: nn.Module, where: str) -> None:
    """Copy every value of `target` that it can have from `source`, by name."""
    state = source.state_dict()
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            plain = name.removeprefix("base_model.").replace(".base_layer.", ".")
            if plain in state and state[plain].shape == tensor.shape:
                tensor.copy_(state[plain])
            elif not _OWN.isdisjoint(name.split(".")):
                continue
            else:
                raise RefusedError(f"{where}: no weights for {plain} of shape {[*tensor.shape]}")


def _loaded(folder: Path, settings: dict[str, Any]) -> nn.Module:
    family = settings["family"]
    pooling = str(settings.get("pooling"))
    optional = bool(settings.get("optional_pooler", False))
    if family == "joint":
        return backbones.load_joint(folder).module
    if family == "clap":
        return backbones.load_audio_joint(folder).module
    if family == "whisper":
        return backbones.load_speech_encoder(folder, int(settings["hop"])).module
    if family == "wave":
        return backbones.load_wave_encoder(folder).module
    load = backbones.load_image_only if family == "image" else backbones.load_text_only
    return load(folder, pooling, optional_pooler=optional).module


def _empty(settings: dict[str, Any], part: str) -> Any:
    import transformers

    auto: Any = transformers  # its functions carry no types
    values = dict(settings["config"])
    config: Any = auto.AutoConfig.for_model(values.pop("model_type"), **values)
    for name, value in _STILL.items():
        if hasattr(config, name):
            setattr(config, name, value)
    pooler = {"add_pooling_layer": settings["pooling"] == "pooler"}
    options = pooler if settings.get("optional_pooler") else {}
    model: Any = auto.AutoModel.from_config(config, trust_remote_code=False, **options)
    if settings["family"] == "whisper":
        return model.encoder
    if settings["family"] in ("joint", "clap"):
        unused = [name for half, names in _HALVES.items() if half != part for name in names]
        for name in (*unused, *_SCALES):
            if hasattr(model, name):
                delattr(model, name)
    return model


def _vector(out: Any) -> torch.Tensor:
    vector = out if isinstance(out, torch.Tensor) else out.pooler_output
    assert isinstance(vector, torch.Tensor)
    return vector
