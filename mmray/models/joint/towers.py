"""A tower: a network for one modality, and the projection of its vectors into the joint space."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.modules.batchnorm import _BatchNorm

from mmray.models.joint import pretrained, small
from mmray.models.joint.adapters import Tuning
from mmray.models.joint.batch import Frames, Input, Sound, Tokens

_NEW = ("conv", "recurrent")


class Tower(nn.Module):
    """Inputs of one modality to vectors of length 1 in the joint space."""

    def __init__(self, modality: str, settings: dict[str, Any], dim: int, dropout: float) -> None:
        super().__init__()
        self.modality = modality
        self.settings = settings
        self.new = settings["kind"] in _NEW
        self.features = int(settings["features"])
        build = small.build if self.new else pretrained.build
        self.network = build(settings, modality)
        recurrent = settings["kind"] == "recurrent" and modality == "video"
        self.over_time = small.Recurrence(self.features, self.features) if recurrent else None
        self.norm = nn.LayerNorm(self.features)
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(self.features, dim)
        self.tuning = Tuning(
            self.network, settings.get("train", "full"), int(settings.get("size", 0))
        )
        if modality in ("image", "video"):
            transform = settings["image"]
            mean, std = torch.tensor(transform["mean"]), torch.tensor(transform["std"])
            # Persistent, as all tables: transformers fills only what a checkpoint holds.
            self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1))
            self.register_buffer("shift", (-mean / std).view(3, 1, 1))

    @property
    def frozen(self) -> bool:
        """Whether its network gives the same vectors throughout training, so that they can be
        kept. Its projection is trained all the same."""
        return self.tuning.train == "frozen"

    def train(self, mode: bool = True) -> "Tower":
        """A frozen network stays as it is when it's embedded: without dropout. So do the statistics
        of a pretrained one: a batch's are of one part on one rank, stand-ins among its rows."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        for module in self.network.modules():
            if not self.new and isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, value: Input) -> torch.Tensor:
        """An input [n, ...] to vectors [n, dim] of length 1."""
        return self.project(self.look(value))

    def look(self, value: Input) -> torch.Tensor:
        """An input [n, ...] to the network's own vectors, [n, features]. Vectors stay."""
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._run(value)

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """The network's vectors [n, features] to the joint space."""
        vectors: torch.Tensor = self.projection(self.dropout(self.norm(features)))
        return normalize(small.at_least_float(vectors), dim=-1)

    def see(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [n, 3, h, w], a picture each, to vectors [n, dim]. To a tower of videos
        a picture is one of one frame."""
        features = self.network(pixels)
        if self.modality == "image":
            return self.project(features)
        once = torch.ones(len(features), 1, dtype=torch.bool, device=features.device)
        return self.watch(features.unsqueeze(1), once)

    def watch(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The network's vectors of frames, [n, f, features], and which are there, bool [n, f], to
        vectors of videos, [n, dim]."""
        return self.project(self._over(states, mask))

    def _run(self, value: Input) -> torch.Tensor:
        if isinstance(value, Tokens):
            return self._network(value.ids, value.mask)
        if isinstance(value, Sound):
            return self._network(value.values, value.lengths)
        if isinstance(value, Frames):
            count, frames = value.mask.shape
            states = self._network(self._normalised(value.pixels.flatten(0, 1)))
            return self._over(states.view(count, frames, -1), value.mask)
        return self._network(self._normalised(value))

    def _over(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self.over_time is None:
            return small.masked_mean(states, mask)
        vectors: torch.Tensor = self.over_time(states, mask)
        return vectors

    def _network(self, *inputs: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network(*inputs)
        return small.at_least_float(features)

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.permute(0, 3, 1, 2) * self.get_buffer("scale") + self.get_buffer("shift")
