"""How the model's weights are stepped: groups with their own rates, and the rate's course."""

import math
from typing import Any

import torch
from torch import nn

from mmray.models.joint.model import JointModel

_MOMENTUM = 0.9


def parameter_groups(
    model: JointModel, lr: float, tower_lr: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Trained weights by rate and decay: pretrained ones have `tower_lr`, all else `lr`; matrices
    decay, and biases, norms and temperatures don't."""
    old = {id(weight) for weight in model.pretrained_weights()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for weight in model.parameters():
        if weight.requires_grad:
            rate = tower_lr if id(weight) in old else lr
            groups.setdefault((rate, weight_decay if weight.ndim > 1 else 0.0), []).append(weight)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]


def make_optimizer(kind: str, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW with decoupled decay (Loshchilov & Hutter, 2019), or SGD with Nesterov momentum."""
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=1e-3, momentum=_MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)


def rate(step: int, steps: int, warmup: float) -> float:
    """What rates are multiplied by at `step` of `steps`, from 0: a straight rise to 1 over the
    part `warmup`, then half a cosine to 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
