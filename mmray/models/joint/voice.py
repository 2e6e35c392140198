"""Sounds of several lengths through networks without a mask; the packaged speaker encoder so."""

from collections.abc import Callable

import torch
from torch import nn

from mmray.models.speech import Voice, mel_tables

_FFT, _MELS, _HIDDEN = 400, 40, 256


def by_length(
    run: Callable[[torch.Tensor], torch.Tensor], waves: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """`run` on the sounds of each length by themselves, without what fills them up, as when they
    are embedded: waves [b, n] and lengths [b] to [b, d]."""
    parts, order = [], []
    for length in sorted(set(lengths.tolist())):
        rows = (lengths == length).nonzero().flatten()
        parts.append(run(waves[rows, : max(1, length)]))
        order.append(rows)
    return torch.cat(parts)[torch.cat(order).argsort()]


class VoiceTower(Voice):
    """`mmray.models.speech.Voice` without its file of weights: they come from a checkpoint, or are
    copied from a `Voice`. Its tables are in the checkpoint too."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.lstm = nn.LSTM(_MELS, _HIDDEN, num_layers=3, batch_first=True)
        self.linear = nn.Linear(_HIDDEN, _HIDDEN)
        window, filters = mel_tables(_FFT, _MELS)
        self.register_buffer("window", window)
        self.register_buffer("filters", filters)

    def forward(self, waves: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[b, n] and [b] to [b, 256]."""
        # Its recurrence adds up what 16 bits lose.
        with torch.autocast(waves.device.type, enabled=False):
            alone = super().forward
            return by_length(lambda group: alone(group.float(), lengths), waves, lengths)
