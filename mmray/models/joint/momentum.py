"""A copy of the towers that moves slowly after them, for MoCo's keys.

Only trained weights are copied: the frozen ones are the towers' own.
"""

import torch
from torch import nn
from torch.func import functional_call

from mmray.models.joint.batch import Input


class MomentumCopy(nn.Module):
    """The trained weights of the towers as they were, a moving mean."""

    def __init__(self, towers: nn.ModuleDict, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.weights = nn.ParameterDict(
            {
                _key(name): nn.Parameter(weight.detach().clone(), requires_grad=False)
                for name, weight in towers.named_parameters()
                if weight.requires_grad
            }
        )

    @torch.no_grad()
    def encode(self, towers: nn.ModuleDict, modality: str, value: Input) -> torch.Tensor:
        """Keys [n, dim] of inputs of one modality, without dropout."""
        tower = towers[modality]
        names = {_key(f"{modality}.{name}"): name for name, _ in tower.named_parameters()}
        weights = {names[key]: each for key, each in self.weights.items() if key in names}
        training = tower.training
        tower.eval()
        try:
            keys: torch.Tensor = functional_call(tower, weights, (value,))
        finally:
            tower.train(training)
        return keys

    @torch.no_grad()
    def follow(self, towers: nn.ModuleDict) -> None:
        """One step towards the towers."""
        for name, weight in towers.named_parameters():
            if _key(name) in self.weights:
                self.weights[_key(name)].lerp_(weight, 1 - self.momentum)

    @torch.no_grad()
    def restart(self, towers: nn.ModuleDict) -> None:
        """Be where the towers are."""
        for name, weight in towers.named_parameters():
            if _key(name) in self.weights:
                self.weights[_key(name)].copy_(weight)


def _key(name: str) -> str:
    return name.replace(".", "/")  # a dot would be a step into a module
