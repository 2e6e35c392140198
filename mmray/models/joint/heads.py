"""Heads: what is learned from vectors and their fusion, each as a sum over rows and its gradient.

A head for fused vectors gives a sum; the model divides it by the rows of all ranks.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from mmray.models.joint.gather import all_rows
from mmray.models.joint.losses import Contrasted, Keys, infonce, sigmoid, with_queue

NO_LABEL = -100
_LEAST_TEMPERATURE = 0.01


class ContrastiveHead(nn.Module):
    """The contrastive loss over every pair of modalities that samples have, of all ranks' rows."""

    def __init__(self, modalities: tuple[str, ...], dim: int, settings: dict[str, Any]) -> None:
        super().__init__()
        self.kind = settings["loss"]
        self.pairs = list(combinations(range(len(modalities)), 2))
        start = settings.get("temperature") or (0.1 if self.kind == "sigmoid" else 0.07)
        learned = bool(settings.get("learned", True))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / start)), requires_grad=learned)
        if self.kind == "sigmoid":
            self.bias = nn.Parameter(torch.tensor(-10.0))
        if self.kind == "moco":
            size = int(settings["queue"])
            self.register_buffer("queue", torch.zeros(len(modalities), size, dim))
            self.register_buffer("queue_groups", torch.full((len(modalities), size), -1))
            self.register_buffer("filled", torch.zeros(len(modalities), dtype=torch.int64))
        self._pending: list[Contrasted] = []

    @property
    def scale(self) -> torch.Tensor:
        """One over the temperature, which never falls below 0.01."""
        return self.log_scale.clamp(max=math.log(1 / _LEAST_TEMPERATURE)).exp()

    def forward(self, local: Contrasted) -> torch.Tensor:
        """The mean over the pairs of all rows on all ranks: the same number on each rank."""
        vectors, present, groups = map(all_rows, (local.vectors, local.present, local.groups))
        keys = None if local.keys is None else all_rows(local.keys)
        # A zero that every weight has a part in: DDP waits for each of them.
        loss = vectors.sum() * 0 + sum(weight * 0 for weight in self.parameters())
        rows = torch.zeros((), device=vectors.device, dtype=torch.int64)
        with torch.autocast(vectors.device.type, enabled=False):
            for one, other in self.pairs:
                both = (present[:, one] & present[:, other]).nonzero().flatten()
                loss = loss + self._pair(vectors[both], groups[both], keys, (one, other, both))
                rows = rows + len(both)
        return loss / rows.clamp(min=1)

    def _pair(
        self,
        vectors: torch.Tensor,
        groups: torch.Tensor,
        keys: torch.Tensor | None,
        place: tuple[int, int, torch.Tensor],
    ) -> torch.Tensor:
        one, other, both = place
        known = None if bool((groups < 0).all()) else _apart(groups)
        if self.kind == "sigmoid":
            bias = self.bias
            return sigmoid(vectors[:, one], vectors[:, other], self.scale, bias, known)
        if keys is None:
            return infonce(vectors[:, one], vectors[:, other], self.scale, known)
        ways = [
            with_queue(vectors[:, a], self._keys(keys[both, b], groups, b), self.scale, groups)
            for a, b in ((one, other), (other, one))
        ]
        return (ways[0] + ways[1]) / 2

    def _keys(self, batch: torch.Tensor, groups: torch.Tensor, place: int) -> Keys:
        # Held-out losses would rise as the queue fills: there a batch is only held against itself.
        filled = self.get_buffer("filled")[place] * self.training
        size = int(filled.clamp(max=self.get_buffer("queue").shape[1]))
        queue = self.get_buffer("queue")[place, :size].to(batch.dtype)
        older = self.get_buffer("queue_groups")[place, :size]
        return Keys(batch, queue, torch.cat([groups, older]))

    def passed_on(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """A number whose gradients in this head's own weights are these, or zero without any."""
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        zero = torch.stack([weight.sum() * 0 for weight in self.parameters()]).sum()
        pairs = zip(weights, gradients, strict=False)
        return zero + sum((weight * gradient).sum() for weight, gradient in pairs)

    def remember(self, keys: Contrasted) -> None:
        """Keep keys of a step, of all ranks, until `after_step`."""
        parts = map(all_rows, (keys.vectors.detach(), keys.present, keys.groups))
        self._pending.append(Contrasted(*parts))

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the keys of the step into the queues, over the oldest."""
        for found in self._pending:
            for place in range(found.vectors.shape[1]):
                rows = found.present[:, place].nonzero().flatten()
                self._push(place, found.vectors[rows, place], found.groups[rows])
        self._pending.clear()

    def _push(self, place: int, keys: torch.Tensor, groups: torch.Tensor) -> None:
        queue, filled = self.get_buffer("queue"), self.get_buffer("filled")
        size = queue.shape[1]
        keys, groups = keys[-size:], groups[-size:]
        where = (int(filled[place]) + torch.arange(len(keys), device=keys.device)) % size
        queue[place, where] = keys.to(queue.dtype)
        self.get_buffer("queue_groups")[place, where] = groups
        filled[place] += len(keys)


def _apart(groups: torch.Tensor) -> torch.Tensor:
    """Groups in which each row without one is by itself."""
    alone = -2 - torch.arange(len(groups), device=groups.device)
    return torch.where(groups < 0, alone, groups)


class ClassifyHead(nn.Module):
    """Scores of classes."""

    def __init__(self, dim: int, settings: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.smoothing = float(settings.get("smoothing", 0.0))
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.Linear(dim, len(settings["classes"]))

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """[b, dim] to [b, classes]."""
        scores: torch.Tensor = self.scores(self.dropout(self.norm(fused)))
        return scores

    def loss(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of cross entropies, int64 labels [b]; -100 counts as nothing."""
        return cross_entropy(
            scores,
            labels,
            ignore_index=NO_LABEL,
            reduction="sum",
            label_smoothing=self.smoothing,
        )


class RegressHead(nn.Module):
    """A number, learned in units of its spread over the training split."""

    def __init__(self, dim: int, settings: dict[str, Any], dropout: float) -> None:
        super().__init__()
        self.mean, self.spread = float(settings["mean"]), float(settings["spread"])
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, 1)

    def forward(self, fused: torch.Tensor) -> torch.Tensor:
        """[b, dim] to [b], in the label's own unit."""
        states = nn.functional.gelu(self.hidden(self.dropout(self.norm(fused))))
        units: torch.Tensor = self.out(states).squeeze(-1)
        return units * self.spread + self.mean

    def loss(self, numbers: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum of squared errors in units of the spread; NaN counts as nothing."""
        there = ~labels.isnan()
        wanted = torch.where(there, labels, numbers.detach()).to(numbers.dtype)
        return ((numbers - wanted) / self.spread).square().sum()
