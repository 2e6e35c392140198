"""From a network's outputs, one per token or patch, to one vector per sample."""

import torch


def mean_of_tokens(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the tokens that aren't padding: [n, t, d] and [n, t] to [n, d], in float32."""
    weight = mask.unsqueeze(-1).float()
    return (states.float() * weight).sum(1) / weight.sum(1).clamp(min=1e-9)


def mean_of_patches(states: torch.Tensor, special: int) -> torch.Tensor:
    """Mean over the patches of [n, t, d], without the `special` tokens in front, in float32."""
    return states[:, special:].float().mean(1)


def first_token(states: torch.Tensor) -> torch.Tensor:
    """The class token's state: [n, t, d] to [n, d]."""
    return states[:, 0]
