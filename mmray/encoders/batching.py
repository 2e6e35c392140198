"""How work is cut into forward passes: texts and sounds by length under a budget, and halves after
the device ran out of memory."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of texts, grouped so that padded tokens (rows times the longest) stay in `budget`.

    Texts of like length share a batch, the longest first, so that what runs out of memory does so
    at once. A text longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    longest = 0
    for position in order:
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = max(1, lengths[position])
        batches[-1].append(position)
    return batches


def equal_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of sounds, grouped so that a batch holds one length only and stays in `budget`.

    Unlike texts, sounds can't be padded: many models that hear have no mask, and would give other
    vectors. The longest come first; a sound longer than the budget gets a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    for position in order:
        length = lengths[position]
        last = batches[-1] if batches else []
        if not last or lengths[last[0]] != length or (len(last) + 1) * length > budget:
            batches.append([])
        batches[-1].append(position)
    return batches


def in_order(parts: Sequence["torch.Tensor"], order: Sequence[int]) -> "torch.Tensor":
    """The rows of all parts, row `i` of which belongs at `order[i]`, put there."""
    import torch

    back = torch.from_numpy(np.argsort(np.array(order)))
    return torch.cat(list(parts))[back.to(parts[0].device)]


def in_halves(
    run: Callable[[Sequence[T]], R],
    items: Sequence[T],
    halved: Callable[[int], None] = lambda fits: None,
) -> list[R]:
    """`[run(items)]`, or where the device has no memory for all, the results of parts, in order.

    `halved` hears each smaller number of items that is tried, so that a caller can ask for less
    the next time. Raises `torch.cuda.OutOfMemoryError` when a single item doesn't fit.
    """
    from torch.cuda import OutOfMemoryError, empty_cache

    try:
        return [run(items)]
    except OutOfMemoryError:
        if len(items) < 2:
            raise
    # Outside the `except`: inside, the traceback would keep the failed pass's tensors alive.
    empty_cache()
    middle = (len(items) + 1) // 2
    halved(middle)
    return in_halves(run, items[:middle], halved) + in_halves(run, items[middle:], halved)
