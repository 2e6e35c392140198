"""Sounds of several lengths through networks without a mask; the packaged speaker encoder so."""

from collections.abc import Callable

import torch

from mmray.models.speech import Voice


def by_length(
    run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    waves: torch.Tensor,
    lengths: torch.Tensor,
) -> torch.Tensor:
    """`run` on the sounds of each length by themselves, without what fills them up, as when they
    are embedded: waves [b, n] and lengths [b] to [b, d]."""
    parts, order = [], []
    for length in sorted(set(lengths.tolist())):
        rows = (lengths == length).nonzero().flatten()
        parts.append(run(waves[rows, : max(1, length)], lengths[rows]))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort()]


class VoiceTower(Voice):
    """`mmray.models.speech.Voice` for batches of several lengths."""

    def forward(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[b, n] and [b] to [b, 256]."""
        # Its recurrence adds up what 16 bits lose.
        with torch.autocast(waves.device.type, enabled=False):
            return by_length(super().forward, waves.float(), lengths)
