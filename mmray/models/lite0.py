"""EfficientNet-lite0 with the ImageNet weights that ship as a Python package.

Batch norms are folded into the convolutions before them. That is the same function with a third
fewer steps, and in bfloat16 it rounds once where the network as published rounds twice.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class Lite0(nn.Module):
    """Pixels [n, 3, 224, 224] to the mean over places of the last layer, [n, 1280]."""

    def __init__(self, published: Any) -> None:
        """Takes the network as it was published over."""
        super().__init__()
        _fold_norms(published)
        self.model = published

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features of images."""
        maps: torch.Tensor = self.model.extract_features(pixels)
        return maps.float().mean((2, 3))

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, 224, 224] to one score per ImageNet class, [n, 1000], before any softmax."""
        scores: torch.Tensor = self.model._fc(self(pixels))
        return scores


def build() -> Lite0:
    """The network with random values."""
    from efficientnet_lite_pytorch import EfficientNet

    return Lite0(EfficientNet.from_name("efficientnet-lite0"))


def load(weights: Path) -> Lite0:
    """The network with `weights`, a state dict; `weights_only` keeps the file from running code."""
    from efficientnet_lite_pytorch import EfficientNet

    published: Any = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    published.load_state_dict(state, strict=True)
    published.eval().requires_grad_(False)
    network = Lite0(published)
    network.model.to(memory_format=torch.channels_last)
    return network


def _fold_norms(network: Any) -> None:
    _fold(network, "_conv_stem", "_bn0")
    _fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        if hasattr(block, "_expand_conv"):
            _fold(block, "_expand_conv", "_bn0")
        _fold(block, "_depthwise_conv", "_bn1")
        _fold(block, "_project_conv", "_bn2")


def _fold(owner: Any, conv_name: str, norm_name: str) -> None:
    conv, norm = getattr(owner, conv_name), getattr(owner, norm_name)
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    setattr(owner, norm_name, nn.Identity())
