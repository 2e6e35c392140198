"""Random changes to a batch before it is encoded: augmentation and modality dropout.

Draws from torch's own generator on the CPU, so that a seed and a step give the same changes on any
device.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.nn.functional import affine_grid, grid_sample

from mmray.models.joint.batch import Frames, Input, JointBatch, Sound, Tokens


def prepare(batch: JointBatch, changes: Mapping[str, float], modality_dropout: float) -> JointBatch:
    """The batch as it is to be encoded in training. A batch that was prepared stays."""
    if batch.prepared:
        return batch
    inputs = dict(batch.inputs)
    if any(changes.values()):
        inputs = {name: _changed(value, changes) for name, value in inputs.items()}
    present = dict(batch.present)
    if modality_dropout > 0:
        present = drop_modalities(present, modality_dropout)
    return replace(batch, inputs=inputs, present=present, prepared=True)


def drop_modalities(present: Mapping[str, torch.Tensor], chance: float) -> dict[str, torch.Tensor]:
    """Each modality of each sample is left out with `chance`, but never all that it has."""
    names = list(present)
    there = torch.stack([present[name] for name in names], 1)
    kept = there & (torch.rand(there.shape) >= chance).to(there.device)
    kept = torch.where(kept.any(1, keepdim=True), kept, there)
    return {name: kept[:, place] for place, name in enumerate(names)}


def _changed(value: Input, changes: Mapping[str, float]) -> Input:
    if isinstance(value, Tokens):
        return hide_tokens(value, changes.get("words", 0.0))
    if isinstance(value, Sound):
        return add_noise(value, changes.get("noise", 0.0))
    if isinstance(value, Frames):
        count, frames = value.pixels.shape[:2]
        changed = change_pixels(value.pixels.flatten(0, 1), changes, frames)
        return Frames(changed.view(count, frames, *changed.shape[1:]), value.mask)
    return value if value.is_floating_point() else change_pixels(value, changes, 1)


def change_pixels(
    pixels: torch.Tensor, changes: Mapping[str, float], together: int
) -> torch.Tensor:
    """Cut and recolour pictures, uint8 [n, h, w, 3]; each `together` of them in the same way."""
    crop, color = changes.get("crop", 0.0), changes.get("color", 0.0)
    if not crop and not color:
        return pixels
    count = len(pixels) // together
    cut, left, top, light, contrast = (
        torch.rand(count).repeat_interleave(together).to(pixels.device) for _ in range(5)
    )
    images = pixels.permute(0, 3, 1, 2).float()
    if crop:
        size = 1 - crop * cut
        theta = torch.zeros(len(images), 2, 3, device=pixels.device)
        theta[:, 0, 0] = theta[:, 1, 1] = size
        theta[:, 0, 2] = (1 - size) * (2 * left - 1)
        theta[:, 1, 2] = (1 - size) * (2 * top - 1)
        grid = affine_grid(theta, list(images.shape), align_corners=False)
        images = grid_sample(images, grid, padding_mode="border", align_corners=False)
    if color:
        mean = images.mean((1, 2, 3), keepdim=True)
        by = (1 + color * (2 * contrast - 1)).view(-1, 1, 1, 1)
        images = (images - mean) * by + mean * (1 + color * (2 * light - 1)).view(-1, 1, 1, 1)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def add_noise(sound: Sound, size: float) -> Sound:
    """White noise, up to `size` of a wave's own loudness. What an extractor made stays."""
    waves = sound.values
    if not size or waves.ndim != 2:
        return sound
    heard = torch.arange(waves.shape[1], device=waves.device) < sound.lengths.unsqueeze(1)
    loud = (waves.square().sum(1) / sound.lengths.clamp(min=1)).sqrt()
    by = size * torch.rand(len(waves)).to(waves.device) * loud
    noise = torch.randn(waves.shape).to(waves.device) * by.unsqueeze(1)
    return Sound(waves + noise * heard, sound.lengths)


def hide_tokens(tokens: Tokens, chance: float) -> Tokens:
    """Hide tokens of each text, but not its first and last: models mark a text's ends by them."""
    if not chance:
        return tokens
    lengths = tokens.mask.sum(1, keepdim=True)
    order = tokens.mask.cumsum(1)  # from 1, wherever the padding is
    inner = (order > 1) & (order < lengths) & (tokens.mask > 0)
    hidden = inner & (torch.rand(tokens.mask.shape) < chance).to(inner.device)
    return Tokens(tokens.ids, tokens.mask.masked_fill(hidden, 0))
