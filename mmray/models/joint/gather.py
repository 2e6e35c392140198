"""Rows and sums over all ranks, with gradients that are right after DDP's mean over ranks.

Each rank computes the same loss on all rows. Backward adds up what every rank's loss says of a row,
which is `world` times the gradient; DDP then divides by `world`. With one rank nothing is sent.
"""

from typing import Any

import torch
import torch.distributed as dist


def world() -> int:
    """Ranks that train together; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over ranks, without a gradient."""
    summed = tensor.detach().clone()
    if world() > 1:
        dist.all_reduce(summed)
    return summed


def all_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The rows of all ranks, in the order of ranks: [b, ...] to [sum of b, ...].

    Ranks may have different numbers of rows. The gradient flows back to each row's own rank.
    """
    if world() == 1:
        return tensor
    count = torch.tensor([len(tensor)], device=tensor.device)
    counts = [torch.zeros_like(count) for _ in range(world())]
    dist.all_gather(counts, count)
    sizes = [int(each) for each in counts]
    most = max(sizes)
    filled = tensor
    if len(tensor) < most:
        filled = torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
    if tensor.requires_grad:
        gathered: torch.Tensor = _Gather.apply(filled)  # type: ignore[no-untyped-call]
    else:
        gathered = _gathered(filled)
    if min(sizes) == most:
        return gathered
    parts = [gathered[rank * most : rank * most + size] for rank, size in enumerate(sizes)]
    return torch.cat(parts)


def _gathered(tensor: torch.Tensor) -> torch.Tensor:
    parts = [torch.empty_like(tensor) for _ in range(world())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        ctx.rows = len(tensor)
        return _gathered(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        start = dist.get_rank() * ctx.rows
        return summed[start : start + ctx.rows]
