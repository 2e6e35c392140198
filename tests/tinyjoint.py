"""Tiny joint models and batches from a seed, through the real settling code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmray.encoders.joint_config import Labels, Settled, settle
from mmray.models.joint import checkpoint
from mmray.models.joint.batch import Frames, Input, JointBatch, Sound, Tokens, changed
from mmray.models.joint.config import JointConfig
from mmray.models.joint.model import JointModel
from mmray.specs.joint import ModelSpec
from mmray.specs.train import TrainOptions

SMALL = {"width": 8, "side": 16, "seconds": 1.5, "tokens": 16}
CONV = {"kind": "conv", **SMALL}
RECURRENT = {"kind": "recurrent", **SMALL}
CAPTION = {"decoder": "small", "prefix": 2, "width": 32, "layers": 1, "max_length": 12}
CLASSES = ("a", "b", "c")


def settled(towers: dict[str, Any], heads: dict[str, Any] | None = None, **options: Any) -> Settled:
    """A spec's model, settled. Options of `train` stand under `train`."""
    train = TrainOptions.model_validate(options.pop("train", {}))
    spec = {"dim": 16, "towers": towers, "heads": heads or {"contrastive": {}}, "dropout": 0.0}
    model = ModelSpec.model_validate(spec | options)
    return settle(model, train, Labels(CLASSES, 2.0, 0.5))


def build(
    towers: dict[str, Any], heads: dict[str, Any] | None = None, *, seed: int = 0, **options: Any
) -> JointModel:
    """A model of these towers and heads, in training mode."""
    found = settled(towers, heads, **options)
    return checkpoint.create(JointConfig(**found.config), found.sources, seed).train()


def save(folder: Path, towers: dict[str, Any], **options: Any) -> Path:
    """A checkpoint folder, tokenizers included."""
    found = settled(towers, **options)
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0)
    checkpoint.save(model, folder)
    found.copy_tokenizers(folder)
    return folder


def batch(
    modalities: tuple[str, ...] = ("image", "text"),
    rows: int = 6,
    seed: int = 0,
    present: dict[str, list[int]] | None = None,
    **more: Any,
) -> JointBatch:
    """Random inputs for small towers, labels and captions; all present unless told."""
    rng = torch.Generator().manual_seed(seed)
    there = {
        name: torch.tensor((present or {}).get(name, [1] * rows), dtype=torch.bool)
        for name in modalities
    }
    inputs = {name: _input(name, there[name], rng) for name in modalities}
    labels = {
        "classify": torch.randint(0, len(CLASSES), (rows,), generator=rng),
        "regress": 2 + torch.randn(rows, generator=rng) / 2,
    }
    ids = torch.randint(2, 200, (rows, 6), generator=rng)
    ids[:, -1] = 1
    return JointBatch(
        inputs,
        there,
        **({"labels": labels, "text_ids": ids, "text_mask": torch.ones_like(ids)} | more),
    )


def _input(name: str, there: torch.Tensor, rng: torch.Generator) -> Input:
    rows = len(there)
    if name == "text":
        lengths = torch.randint(3, 12, (rows, 1), generator=rng) * there.unsqueeze(1)
        mask = (torch.arange(12) < lengths).long()
        return Tokens(torch.randint(2, 200, (rows, 12), generator=rng) * mask, mask)
    if name == "audio":
        lengths = torch.randint(500, 3200, (rows,), generator=rng) * there
        heard = torch.arange(3200) < lengths.unsqueeze(1)
        return Sound(torch.randn(rows, 3200, generator=rng) * 0.1 * heard, lengths)
    shape = (rows, 3, 16, 16, 3) if name == "video" else (rows, 16, 16, 3)
    pixels = torch.randint(0, 256, shape, generator=rng).to(torch.uint8)
    if name == "image":
        return pixels * there.view(-1, 1, 1, 1)
    mask = torch.arange(3) < torch.randint(1, 4, (rows, 1), generator=rng)
    return Frames(pixels * there.view(-1, 1, 1, 1, 1), mask & there.unsqueeze(1))


def as_double(found: JointBatch) -> JointBatch:
    """The batch's floating numbers in float64."""
    return changed(found, lambda each: each.double() if each.is_floating_point() else each)


def learn(model: JointModel, found: JointBatch, steps: int, lr: float = 3e-3) -> float:
    """Adam on one batch; the last loss."""
    weights = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=lr)
    loss = torch.zeros(())
    for step in range(steps):
        out = model(found).loss
        assert out is not None
        loss = out
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step, steps)
    return float(loss.detach())


def gradients(model: JointModel) -> dict[str, torch.Tensor]:
    """Of every trained weight."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            found[name] = weight.grad.clone()
    return found


def waves(count: int, seed: int = 0) -> list[np.ndarray]:
    """Sounds of several lengths."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=400 + 300 * i) / 10).astype(np.float32) for i in range(count)]
