"""What goes into the joint model and what comes out of it.

A row that lacks a modality holds zeros there, `present` says so, and it counts nowhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts: `ids` and `mask`, int64 [b, t]; the mask is 0 over padding."""

    ids: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class Sound:
    """Sounds, filled up with zeros: waves, float32 [b, n], or what the tower's extractor made of
    them, [b, ...]; and the samples behind each, int64 [b]."""

    values: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True, slots=True)
class Frames:
    """Videos: frames, uint8 [b, f, h, w, 3], and which are there, bool [b, f]."""

    pixels: torch.Tensor
    mask: torch.Tensor


Input = torch.Tensor | Tokens | Sound | Frames
"""Of one modality. A tensor is pixels, uint8 [b, h, w, 3], or the vectors that a frozen tower gave
before, float [b, features]."""


@dataclass(frozen=True, slots=True)
class JointBatch:
    """Samples side by side: every tensor has `rows` rows."""

    inputs: Mapping[str, Input]
    """Modality to what its tower takes."""
    present: Mapping[str, torch.Tensor]
    """Modality to bool [b]."""
    labels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """`classify`: int64 [b], -100 where there is none; `regress`: float [b], NaN where there is
    none."""
    text_ids: torch.Tensor | None = None
    """The caption head's own tokens, int64 [b, t]."""
    text_mask: torch.Tensor | None = None
    """int64 [b, t]; all zeros for a sample without a caption."""
    groups: torch.Tensor | None = None
    """int64 [b]: samples of one group are no negatives of each other."""
    seeds: torch.Tensor | None = None
    """int64 [b], at least 0: each decides a sample's random changes. Left out: torch's generator
    does."""
    prepared: bool = False
    """Augmentation and modality dropout are done."""

    @property
    def rows(self) -> int:
        """Samples."""
        return len(next(iter(self.present.values())))

    def to(self, device: torch.device | str) -> "JointBatch":
        """The batch on a device."""
        return changed(self, lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, start: int, stop: int) -> "JointBatch":
        """Rows `start` to `stop`."""
        return changed(self, lambda tensor: tensor[start:stop])

    def parts(self, count: int) -> list["JointBatch"]:
        """The batch in `count` parts of nearly one size, fewer where there are fewer rows."""
        count = max(1, min(count, self.rows))
        edges = [self.rows * place // count for place in range(count + 1)]
        return [self.part(start, stop) for start, stop in pairwise(edges)]


@dataclass(frozen=True, slots=True)
class JointOutput:
    """What the model makes of a batch."""

    vectors: dict[str, torch.Tensor]
    """Modality to float32 [b, dim] of length 1; zeros where it is absent."""
    fused: torch.Tensor
    """float32 [b, dim] of length 1; zeros where nothing is present."""
    losses: dict[str, torch.Tensor] = field(default_factory=dict)
    """Head to its loss, without its weight. The mean over ranks is that of the global batch."""
    loss: torch.Tensor | None = None
    """Their weighted sum: what is to be differentiated."""
    predictions: dict[str, torch.Tensor] = field(default_factory=dict)
    """`classify`: scores [b, classes]; `regress`: numbers [b]."""


T = TypeVar("T")


def take(value: Input, rows: torch.Tensor) -> Input:
    """Some rows of an input."""
    return changed(value, lambda tensor: tensor[rows])


def changed(value: T, change: Callable[[torch.Tensor], torch.Tensor]) -> T:
    """`value` with `change` done to every tensor in it."""
    result: Any = value
    if isinstance(value, torch.Tensor):
        result = change(value)
    elif isinstance(value, Mapping):
        result = {key: changed(each, change) for key, each in value.items()}
    elif isinstance(value, Tokens | Sound | Frames | JointBatch):
        found = {each.name: getattr(value, each.name) for each in fields(value)}
        parts: dict[str, Any] = {name: changed(each, change) for name, each in found.items()}
        result = replace(value, **parts)
    kept: T = result
    return kept
