"""How good the model is on the held-out split: losses, retrieval, accuracy.

Every rank has its share of each batch, as in training, so the numbers are the same for any number
of workers. Retrieval counts a candidate of the query's group as right: captions repeat.
"""

from collections.abc import Iterable
from itertools import permutations

import torch

from mmray.models.joint.batch import JointBatch
from mmray.models.joint.gather import all_rows, total, world
from mmray.models.joint.heads import NO_LABEL
from mmray.models.joint.model import JointModel
from mmray.models.joint.objective import stacked

KS = (1, 5, 10)
QUERIES = 512
"""Queries that are scored at once."""

Found = tuple[JointBatch, torch.Tensor]
"""A batch, and int64 [b]: equal where a sample counts as the other one."""


def better(metric: str, one: float, other: float | None) -> bool:
    """Whether `one` is better than `other`: losses fall, all else rises."""
    if other is None:
        return True
    return one < other if "loss" in metric else one > other


@torch.no_grad()
def evaluate(model: JointModel, batches: Iterable[Found], rank: int) -> dict[str, float]:
    """Metrics by name, `val/...`; the same on every rank. Leaves the model in training mode."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, float] = {}
    vectors: dict[str, list[torch.Tensor]] = {name: [] for name in model.modalities}
    present: dict[str, list[torch.Tensor]] = {name: [] for name in model.modalities}
    matches: list[torch.Tensor] = []
    right = torch.zeros(2, dtype=torch.float64, device=model.device)
    model.train(False)
    for batch, match in batches:
        output = model(batch)
        here = {"contrastive": _pairs(model, batch), **model.counts([batch])}
        for name, loss in output.losses.items():
            count = float(here[name])
            mean = total(loss.detach().double()) / world()
            sums[name] = sums.get(name, torch.zeros_like(mean)) + mean * count
            counts[name] = counts.get(name, 0.0) + count
        if "contrastive" in model.heads:
            for name in model.modalities:
                vectors[name].append(all_rows(output.vectors[name]).cpu())
                present[name].append(all_rows(batch.present[name]).cpu())
            matches.append(all_rows(match).cpu())
        if "classify" in batch.labels:
            labels = batch.labels["classify"]
            known = labels != NO_LABEL
            hits = (output.predictions["classify"].argmax(1) == labels) & known
            right += torch.stack([hits.sum(), known.sum()]).double()
    model.train(True)
    # By what counts for a head: a batch without its labels says nothing of it.
    losses = {name: each / max(counts[name], 1.0) for name, each in sums.items()}
    found = {f"val/loss_{name}": float(each) for name, each in losses.items()}
    found["val/loss"] = float(model.weighted(losses))
    if "classify" in model.heads:
        hits_, known_ = total(right).tolist()
        found["val/accuracy"] = hits_ / known_ if known_ else 0.0
    if matches:
        whole = {name: (torch.cat(vectors[name]), torch.cat(present[name])) for name in vectors}
        found |= retrieval(whole, torch.cat(matches), rank)
    return found


def _pairs(model: JointModel, batch: JointBatch) -> torch.Tensor:
    """Pairs of modalities that the rows of all ranks have."""
    have = stacked(batch, model.modalities).sum(1)
    return total((have * (have - 1) // 2).sum())


def retrieval(
    found: dict[str, tuple[torch.Tensor, torch.Tensor]], match: torch.Tensor, rank: int = 0
) -> dict[str, float]:
    """R@k and MRR of each direction and their means, from vectors [n, d] and presence [n].

    Ranks score their part of the queries. Of equal scores the wrong ones stand first.
    """
    metrics: dict[str, float] = {}
    directions = []
    for one, other in permutations(found, 2):
        there, candidates = found[one][1], found[other][1]
        queries = there.nonzero().flatten()[rank :: world()]
        sums = _score(found[one][0][queries], match[queries], found[other][0], match, candidates)
        # Collectives of nccl want the device that the model is on; sums are few.
        device = "cuda" if torch.cuda.is_available() and world() > 1 else "cpu"
        *hits, ranks, count = total(sums.to(device)).tolist()
        if not count:
            continue
        name = f"val/{one}_to_{other}"
        own = {f"{name}_r{k}": hit / count for k, hit in zip(KS, hits, strict=True)}
        own[f"{name}_mrr"] = ranks / count
        metrics |= own
        directions.append(list(own.values()))
    names = [*(f"val/retrieval_r{k}" for k in KS), "val/mrr"]
    means = [sum(each) / len(directions) for each in zip(*directions, strict=True)]
    return dict(zip(names, means or [0.0] * len(names), strict=True)) | metrics


def _score(
    queries: torch.Tensor,
    match: torch.Tensor,
    vectors: torch.Tensor,
    of_vectors: torch.Tensor,
    candidates: torch.Tensor,
) -> torch.Tensor:
    """Hits at each k, the sum of reciprocal ranks, and queries that had anything to find."""
    sums = torch.zeros(len(KS) + 2, dtype=torch.float64)
    vectors, of_vectors = vectors[candidates], of_vectors[candidates]
    if not len(vectors):
        return sums
    for start in range(0, len(queries), QUERIES):
        part = slice(start, start + QUERIES)
        scores = queries[part] @ vectors.T
        right = match[part].unsqueeze(1) == of_vectors
        some = right.any(1)
        best = scores.masked_fill(~right, float("-inf")).amax(1, keepdim=True)
        place = 1 + ((scores >= best) & ~right).sum(1)[some]
        hits = [(place <= k).sum() for k in KS]
        sums += torch.stack([*hits, (1 / place).sum(), some.sum()]).double()
    return sums
