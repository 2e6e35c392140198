"""From encoded rows to losses: what each head is fed, what counts for it, and the weighted sum."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmray.models.joint.batch import JointBatch
from mmray.models.joint.decoder import CaptionHead
from mmray.models.joint.fusion import Fusion
from mmray.models.joint.gather import total
from mmray.models.joint.heads import NO_LABEL, ClassifyHead, RegressHead

Losses = dict[str, torch.Tensor]


class Objective:
    """The heads on fused vectors, as functions of a batch. Owns no weights."""

    def __init__(
        self,
        modalities: tuple[str, ...],
        settings: Mapping[str, Mapping[str, Any]],
        fusion: Fusion,
        heads: nn.ModuleDict,
    ) -> None:
        self.modalities = modalities
        self.settings = settings
        self.weights = {name: float(each.get("weight", 1.0)) for name, each in settings.items()}
        self._fusion = fusion
        self._heads = heads

    def weighted(self, losses: Losses) -> torch.Tensor:
        """The sum of losses by weight; one that is no head's has its weight in it."""
        return torch.stack(
            [self.weights.get(name, 1.0) * each for name, each in losses.items()]
        ).sum()

    def counts(self, batches: Sequence[JointBatch]) -> Losses:
        """Rows of each head on all ranks, or tokens of captions."""
        names = [name for name in self.settings if name != "contrastive"]
        if not names:
            return {}
        device = next(iter(batches[0].present.values())).device
        local = torch.zeros(len(names), dtype=torch.int64, device=device)
        for batch in batches:
            for place, name in enumerate(names):
                local[place] += self._count(name, batch)
        return dict(zip(names, total(local).unbind(), strict=True))

    def fed(self, name: str, present: torch.Tensor) -> torch.Tensor:
        """`present` [b, m] without the modalities that a head isn't fed."""
        of = self.settings[name].get("of") or self.modalities
        columns = torch.tensor([each in of for each in self.modalities], device=present.device)
        return present & columns

    def fuse(self, name: str, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """What a head is fed, [b, dim]."""
        return self._fused(vectors, self.fed(name, present))

    def predict(self, vectors: torch.Tensor, present: torch.Tensor) -> Losses:
        """Scores of classes and numbers, where there are such heads."""
        found = [name for name in ("classify", "regress") if name in self._heads]
        return {name: self._heads[name](self.fuse(name, vectors, present)) for name in found}

    def loss(
        self,
        name: str,
        batch: JointBatch,
        encoded: tuple[torch.Tensor, torch.Tensor],
        predictions: Losses,
    ) -> torch.Tensor:
        """The sum of a head's loss over this rank's rows, from vectors and their presence."""
        vectors, present = encoded
        head = self._heads[name]
        if isinstance(head, CaptionHead):
            return self._captions(head, batch, vectors, present)
        assert isinstance(head, ClassifyHead | RegressHead)
        counted = self._counted(name, batch, self.fed(name, present))
        missing = NO_LABEL if name == "classify" else float("nan")
        labels = batch.labels.get(name)
        if labels is None:
            labels = torch.full((batch.rows,), missing, device=vectors.device)
        return head.loss(predictions[name], labels.masked_fill(~counted, missing))

    def untouched(self, active: Sequence[str]) -> torch.Tensor | None:
        """A zero in which the weights of the other heads have a part: DDP waits for each weight."""
        idle = [head for name, head in self._heads.items() if name not in active]
        zeros = [
            weight.reshape(-1)[0] * 0
            for head in idle
            for weight in head.parameters()
            if weight.requires_grad
        ]
        return torch.stack(zeros).sum() if zeros else None

    def _captions(
        self, head: CaptionHead, batch: JointBatch, vectors: torch.Tensor, present: torch.Tensor
    ) -> torch.Tensor:
        fed = self.fed("caption", present)
        counted = self._counted("caption", batch, fed)
        rows = counted.nonzero().flatten()
        if len(rows) == 0:
            rows = torch.zeros(1, dtype=torch.int64, device=vectors.device)
        if batch.text_ids is None or batch.text_mask is None:
            ids = torch.zeros(len(rows), 1, dtype=torch.int64, device=vectors.device)
            mask = ids
        else:
            ids, mask = batch.text_ids[rows], batch.text_mask[rows]
        longest = max(1, int(mask.sum(1).max()))
        mask = (mask * counted[rows].unsqueeze(1))[:, :longest]
        return head.loss(self._fused(vectors[rows], fed[rows]), ids[:, :longest], mask)

    def _fused(self, vectors: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        fused: torch.Tensor = self._fusion(vectors * present.unsqueeze(-1), present)
        return fused

    def _counted(self, name: str, batch: JointBatch, fed: torch.Tensor) -> torch.Tensor:
        """Rows that have what a head is fed, and what it is to learn."""
        if name == "caption":
            there = None if batch.text_mask is None else batch.text_mask.any(1)
        else:
            labels = batch.labels.get(name)
            there = (
                labels
                if labels is None
                else (labels != NO_LABEL if name == "classify" else ~labels.isnan())
            )
        return torch.zeros_like(fed[:, 0]) if there is None else fed.any(1) & there

    def _count(self, name: str, batch: JointBatch) -> torch.Tensor:
        counted = self._counted(name, batch, self.fed(name, stacked(batch, self.modalities)))
        if name == "caption" and batch.text_mask is not None:
            return (batch.text_mask * counted.unsqueeze(1)).sum()
        return counted.sum()


def stacked(batch: JointBatch, modalities: tuple[str, ...]) -> torch.Tensor:
    """Which modalities each sample has, bool [b, m]."""
    one = next(iter(batch.present.values()))
    return torch.stack([batch.present.get(each, torch.zeros_like(one)) for each in modalities], 1)
