"""The worst small change of the towers' vectors: one step along the gradient, or several.

Each row is changed in proportion to its own length, so that the size means the same for any tower.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

Vectors = dict[str, torch.Tensor]


def worst(
    loss_of: Callable[[Vectors], torch.Tensor], features: Vectors, settings: Mapping[str, Any]
) -> Vectors:
    """`features` [n, d] by modality, changed so that the loss rises: by `size` of their length.

    FGM (Miyato et al., 2017) is one step to the edge; PGD (Madry et al., 2018) is `steps` smaller
    ones, each brought back into the ball. The changes themselves carry no gradient.
    """
    size = float(settings["size"])
    steps = int(settings["steps"]) if settings["kind"] == "pgd" else 1
    stride = size if steps == 1 else 1.5 * size / steps
    still = {name: each.detach() for name, each in features.items()}
    radius = {name: size * each.norm(dim=-1, keepdim=True) for name, each in still.items()}
    change = {name: torch.zeros_like(each) for name, each in still.items()}
    for _ in range(steps):
        moved = {name: (still[name] + change[name]).requires_grad_() for name in still}
        with torch.enable_grad():
            loss = loss_of(moved)
        gradients = torch.autograd.grad(loss, list(moved.values()), materialize_grads=True)
        for name, gradient in zip(moved, gradients, strict=True):
            along = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            step = change[name] + along * radius[name] * (stride / size)
            length = step.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            change[name] = step * (radius[name] / length).clamp(max=1)
    return {name: each + change[name] for name, each in features.items()}
