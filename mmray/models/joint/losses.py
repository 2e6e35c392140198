"""Contrastive losses on vectors of length 1, and how a batch larger than memory has the same one.

Sums over rows, not means: rows are counted over all ranks, so that a global batch has one loss
however it is spread. A batch of one pair has a loss of zero and no NaN.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch.nn.functional import cross_entropy, logsigmoid

from mmray.models.joint.batch import JointBatch, JointOutput


def infonce(
    one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor, groups: torch.Tensor | None = None
) -> torch.Tensor:
    """Each row against all others, both ways (van den Oord et al., 2018; CLIP): [n, d] twice to
    the sum over rows of the mean of both ways.

    Rows of one of `groups` [n] are no negatives of each other.
    """
    if len(one) == 0:
        return (one * other).sum()
    scores = scale * one @ other.T
    if groups is not None:
        scores = scores.masked_fill(_same(groups), float("-inf"))
    target = torch.arange(len(one), device=one.device)
    there = cross_entropy(scores, target, reduction="sum")
    back = cross_entropy(scores.T, target, reduction="sum")
    return (there + back) / 2


def sigmoid(
    one: torch.Tensor,
    other: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Each of n x n pairs by itself, alike or not (SigLIP, Zhai et al., 2023): the sum."""
    scores = scale * one @ other.T + bias
    signs = 2 * torch.eye(len(one), device=one.device, dtype=one.dtype) - 1
    each = -logsigmoid(signs * scores)
    if groups is not None:
        each = each.masked_fill(_same(groups), 0.0)
    return each.sum()


@dataclass(frozen=True, slots=True)
class Keys:
    """What queries are compared with: rows of the batch [n, d], then of a queue [k, d]."""

    batch: torch.Tensor
    queue: torch.Tensor
    groups: torch.Tensor
    """Of both, int64 [n + k]; -1 is no group."""


def with_queue(
    queries: torch.Tensor, keys: Keys, scale: torch.Tensor, groups: torch.Tensor
) -> torch.Tensor:
    """Each query [n, d] against its own key, all others of the batch and a queue of older ones
    (MoCo, He et al., 2020): the sum over rows."""
    if len(queries) == 0:
        return queries.sum()
    scores = scale * queries @ torch.cat([keys.batch, keys.queue]).T
    target = torch.arange(len(queries), device=queries.device)
    same = (groups.unsqueeze(1) == keys.groups) & (groups.unsqueeze(1) >= 0)
    same[target, target] = False
    return cross_entropy(scores.masked_fill(same, float("-inf")), target, reduction="sum")


def _same(groups: torch.Tensor) -> torch.Tensor:
    same = groups.unsqueeze(0) == groups.unsqueeze(1)
    return same & ~torch.eye(len(groups), dtype=torch.bool, device=groups.device)


@dataclass(frozen=True, slots=True)
class Contrasted:
    """What a contrastive loss takes of a batch."""

    vectors: torch.Tensor
    """[b, m, d], zeros where absent."""
    present: torch.Tensor
    """bool [b, m]."""
    groups: torch.Tensor
    """int64 [b]; -1 is no group."""
    keys: torch.Tensor | None = None
    """What a slowly moving copy gives for the same samples, [b, m, d]."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a part of a batch is told of the whole one."""

    counts: dict[str, torch.Tensor]
    """Head to what its sum is divided by: rows or tokens of all parts on all ranks."""
    vectors: torch.Tensor | None = None
    """Gradient of the whole batch's contrastive loss in this part's vectors, [b, m, d]."""
    weights: Sequence[torch.Tensor] = ()
    """Gradients in the loss's own weights; in the first part only."""
    first: bool = True


class Learner(Protocol):
    """What a batch in parts asks of the model."""

    def prepare(self, batch: JointBatch) -> JointBatch:
        """Augmentation and modality dropout, once."""

    def contrast(self, batch: JointBatch) -> Contrasted:
        """Encodes a batch."""

    def counts(self, batches: Sequence[JointBatch]) -> dict[str, torch.Tensor]:
        """Rows or tokens of each head, over all batches and ranks."""

    def contrastive(self, only: str | None) -> Any:
        """The contrastive head, where it is wanted."""

    def weighted(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum."""


def cached_contrastive(
    model: Learner,
    parts: Sequence[JointBatch],
    run: Callable[[JointBatch, str | None, Upstream], JointOutput],
    only: str | None = None,
    skip: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> JointOutput:
    """Backward for a batch in parts, with the negatives of the whole (GradCache, Gao et al., 2021).

    Encodes all parts without a graph, takes the loss and its gradient in the vectors, then encodes
    part by part again, with the same random numbers, and passes the gradient on. Gradients are
    added to `.grad`, as `backward` on the whole batch would. `run` is what is differentiated: the
    model, or DDP around it, whose `no_sync` is then `skip`: it is entered for all parts but the
    last. Every rank needs the same number of parts.

    Returns the losses of the whole batch, detached, with the vectors of the last part.
    """
    parts = [model.prepare(part) for part in parts]
    states: list[_RandomState] = []
    found: list[Contrasted] = []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            found.append(model.contrast(part))
    upstreams, losses = _upstreams(model, parts, found, only)
    output: JointOutput | None = None
    for place, (part, upstream) in enumerate(zip(parts, upstreams, strict=True)):
        _set_random_state(states[place])
        with nullcontext() if place == len(parts) - 1 else skip():
            output = run(part, only, upstream)
            assert output.loss is not None
            output.loss.backward()  # type: ignore[no-untyped-call]
        for name, loss in output.losses.items():
            losses[name] = losses.get(name, torch.zeros_like(loss)) + loss.detach()
    assert output is not None
    vectors = {name: each.detach() for name, each in output.vectors.items()}
    return JointOutput(vectors, output.fused.detach(), losses, model.weighted(losses))


def _upstreams(
    model: Learner, parts: Sequence[JointBatch], found: Sequence[Contrasted], only: str | None
) -> tuple[list[Upstream], dict[str, torch.Tensor]]:
    counts = model.counts(parts)
    head = model.contrastive(only)
    if head is None:
        return [Upstream(counts, first=place == 0) for place in range(len(parts))], {}
    with torch.enable_grad():
        leaf = torch.cat([each.vectors for each in found]).requires_grad_()
        keys = [each.keys for each in found if each.keys is not None]
        whole = Contrasted(
            leaf,
            torch.cat([each.present for each in found]),
            torch.cat([each.groups for each in found]),
            torch.cat(keys) if keys else None,
        )
        loss: torch.Tensor = head(whole)
    if whole.keys is not None:
        head.remember(replace(whole, vectors=whole.keys))
    with torch.enable_grad():
        weights = [weight for weight in head.parameters() if weight.requires_grad]
        gradient, *others = torch.autograd.grad(loss, [leaf, *weights], materialize_grads=True)
    pieces = torch.split(gradient, [len(each.vectors) for each in found])
    upstreams = [
        Upstream(counts, piece, others if place == 0 else (), first=place == 0)
        for place, piece in enumerate(pieces)
    ]
    return upstreams, {"contrastive": loss.detach()}


_RandomState = tuple[torch.Tensor, list[torch.Tensor]]


def _random_state() -> _RandomState:
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return torch.get_rng_state(), devices


def _set_random_state(state: _RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
