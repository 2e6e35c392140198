"""From the vectors of a sample's modalities to one; absent ones have no part in it.

Every kind takes vectors [b, m, d], zeros where absent, and `present` [b, m], and gives [b, d] of
length 1, or zeros for a sample without any.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize


class Weighted(nn.Module):
    """The mean by weights alpha: fixed, learned, or from the vectors themselves by a gate."""

    def __init__(self, dim: int, modalities: tuple[str, ...], alpha: Any) -> None:
        super().__init__()
        count = len(modalities)
        self.gate = nn.ModuleList(nn.Linear(dim, 1) for _ in range(count * (alpha == "gate")))
        if isinstance(alpha, dict):
            fixed = torch.tensor([float(alpha[each]) for each in modalities])
            self.register_buffer("fixed", fixed)
        elif alpha != "gate":
            self.logits = nn.Parameter(torch.zeros(count))

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See the module."""
        alpha = self.alpha(vectors, present)
        return (vectors * alpha.unsqueeze(-1)).sum(1)

    def alpha(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """Weights [b, m]: they add up to 1, and absent modalities have 0."""
        if len(self.gate):
            gates = [gate(vectors[:, place]) for place, gate in enumerate(self.gate)]
            scores = torch.cat(gates, 1)
        elif hasattr(self, "logits"):
            scores = self.logits.expand(len(vectors), -1)
        else:
            weights = self.get_buffer("fixed").to(vectors.dtype) * present
            return weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        return scores.masked_fill(~present, -1e9).softmax(-1) * present


class Sum(nn.Module):
    """The sum."""

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See the module."""
        return (vectors * present.unsqueeze(-1)).sum(1)


class Product(nn.Module):
    """The product, number by number."""

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See the module."""
        # Numbers of a vector of length 1 are small: brought to about 1, so that products stay so.
        large = vectors * vectors.shape[-1] ** 0.5
        return torch.where(present.unsqueeze(-1), large, torch.ones_like(large)).prod(1)


class Concat(nn.Module):
    """A small network on all vectors side by side, and on which are there."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.first = nn.Linear(count * dim + count, 2 * dim)
        self.second = nn.Linear(2 * dim, dim)

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See the module."""
        there = present.to(vectors.dtype)
        flat = torch.cat([(vectors * there.unsqueeze(-1)).flatten(1), there], 1)
        fused: torch.Tensor = self.second(nn.functional.gelu(self.first(flat)))
        return fused


class Attention(nn.Module):
    """Each modality looks at those present, softmax(QK^T / sqrt(d)) V, and their mean is taken."""

    def __init__(self, dim: int, count: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.place = nn.Parameter(torch.randn(count, dim) * dim**-0.5)
        self.projections = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See the module."""
        count, modalities, dim = vectors.shape
        states = vectors + self.place
        parts = self.projections(states).view(count, modalities, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        # A number and not infinity: a sample without any modality would become NaN.
        weights = scores.masked_fill(~present[:, None, None, :], -1e9).softmax(-1)
        seen = (weights @ value).transpose(1, 2).reshape(count, modalities, dim)
        states = states + self.out(seen)
        there = present.unsqueeze(-1)
        fused: torch.Tensor = (states * there).sum(1) / there.sum(1).clamp(min=1)
        return fused


class Fusion(nn.Module):
    """Any kind of fusion, with a result of length 1."""

    def __init__(self, dim: int, modalities: tuple[str, ...], settings: dict[str, Any]) -> None:
        super().__init__()
        self.inner = build(dim, modalities, settings)

    def forward(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """See the module."""
        fused: torch.Tensor = self.inner(vectors, present)
        return normalize(fused, dim=-1) * present.any(1, keepdim=True)


def build(dim: int, modalities: tuple[str, ...], settings: dict[str, Any]) -> nn.Module:
    """The fusion that `settings` ask for."""
    kind = settings["kind"]
    if kind == "weighted":
        return Weighted(dim, modalities, settings.get("alpha") or "learned")
    if kind == "concat":
        return Concat(dim, len(modalities))
    if kind == "attention":
        return Attention(dim, len(modalities), int(settings.get("heads", 4)))
    return Sum() if kind == "sum" else Product()
