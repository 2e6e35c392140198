"""Pretrained networks as parts of the joint model: built without values, then filled.

They are loaded and run by what loads and runs encoders, with two differences that training asks
for: a joint model keeps only the half that is used, and nothing is random but dropout (no layer
drop, no masked spectrogram).
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmray.errors import RefusedError
from mmray.models import backbones, lite0, speech
from mmray.models.forward import Wiring
from mmray.models.joint.voice import VoiceTower, by_length
from mmray.models.lite0 import Lite0

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
    """A network of the Hugging Face library: `settings` has its `config` and what `Wiring` has."""

    def __init__(self, settings: dict[str, Any], modality: str) -> None:
        super().__init__()
        self.settings = settings
        self.part = "image" if modality == "video" else modality
        self.wiring = _wiring(settings)
        self.model: Any = _empty(settings, self.wiring, self.part)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the part takes (normalised pixels; ids and mask; features of sound and lengths) to
        vectors [n, features]."""
        run = self.wiring.forwards()[self.part]
        if self.wiring.family == "wave":
            return by_length(lambda *group: run(self.model, *group), *inputs)
        return run(self.model, *inputs)


_OWN = frozenset(
    {"lora_A", "lora_B", "lora_E", "ranknum", "ia3_l", "prompt_encoder"} | {"window", "filters"}
)
"""Parts of a name that no pretrained model has: adapters, and tables that are always the same."""


def build(settings: dict[str, Any], modality: str) -> nn.Module:
    """The network of an `hf` or `packaged` tower, with random values."""
    family = settings["family"]
    if family == "lite0":
        network = lite0.build()
        network.model._fc = nn.Identity()  # of its classes
        return network
    if family == "voice":
        return VoiceTower()
    return Pretrained(settings, modality)


def fill(network: nn.Module, source: Path) -> None:
    """Copy the values of the pretrained model in `source` (a folder, or a packaged file of weights)
    into a network that `build` made, adapters or not. Raises `RefusedError`."""
    if isinstance(network, Lite0):
        copy_values(lite0.load(source), network, str(source))
    elif isinstance(network, Pretrained):
        copy_values(backbones.load(source, network.wiring), network.model, str(source))
    else:
        copy_values(speech.load(source), network, str(source))


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


def _wiring(settings: dict[str, Any]) -> Wiring:
    return Wiring(
        settings["family"],
        settings["pooling"],
        bool(settings.get("optional_pooler", False)),
        int(settings.get("hop", 0)),
    )


def _empty(settings: dict[str, Any], wiring: Wiring, part: str) -> Any:
    import transformers

    auto: Any = transformers  # its functions carry no types
    values = dict(settings["config"])
    config: Any = auto.AutoConfig.for_model(values.pop("model_type"), **values)
    for name, value in _STILL.items():
        if hasattr(config, name):
            setattr(config, name, value)
    model: Any = auto.AutoModel.from_config(config, trust_remote_code=False, **wiring.options)
    if wiring.family == "whisper":
        return model.encoder
    if wiring.family in ("joint", "clap"):
        unused = [name for half, names in _HALVES.items() if half != part for name in names]
        for name in (*unused, *_SCALES):
            if hasattr(model, name):
                delattr(model, name)
    return model
