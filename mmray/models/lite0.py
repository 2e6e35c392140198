"""EfficientNet-lite0 with the ImageNet weights that ship as a Python package.

Batch norms are folded into the convolutions before them. That is the same function with a third
fewer steps, and in bfloat16 it rounds once where the network as published rounds twice.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


class Lite0:
    """The network in two steps: features of an image, and scores of the 1,000 classes."""

    def __init__(self, weights: Path) -> None:
        """Read `weights`, a state dict; `weights_only` keeps the file from running code."""
        from efficientnet_lite_pytorch import EfficientNet

        self.module: Any = EfficientNet.from_name("efficientnet-lite0")
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state, strict=True)
        self.module.eval().requires_grad_(False)
        _fold_norms(self.module)
        self.module.to(memory_format=torch.channels_last)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, 224, 224] to the mean over places of the last layer, [n, 1280]."""
        maps: torch.Tensor = self.module.extract_features(pixels)
        return maps.float().mean((2, 3))

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, 224, 224] to one score per ImageNet class, [n, 1000], before any softmax."""
        scores: torch.Tensor = self.module._fc(self.features(pixels))
        return scores


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
