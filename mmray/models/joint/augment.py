"""Random changes to a batch before it is encoded: augmentation and modality dropout.

Each sample draws from a generator of its own, of the batch's `seeds`: its changes are the same on
any device and any worker, in a whole batch and in a part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from mmray.models.joint.batch import Frames, Input, JointBatch, Sound, Tokens

Chances = Sequence[np.random.Generator]
"""The generator of each sample."""


def prepare(batch: JointBatch, changes: Mapping[str, float], modality_dropout: float) -> JointBatch:
    """The batch as it is to be encoded in training. A batch that was prepared stays."""
    if batch.prepared:
        return batch
    chances = chances_of(batch) if modality_dropout > 0 or any(changes.values()) else ()
    present = dict(batch.present)
    if modality_dropout > 0:
        present = drop_modalities(present, modality_dropout, chances)
    inputs = dict(batch.inputs)
    if any(changes.values()):
        inputs = {name: _changed(value, changes, chances) for name, value in inputs.items()}
    return replace(batch, inputs=inputs, present=present, prepared=True)


def chances_of(batch: JointBatch) -> Chances:
    """Generators by the batch's seeds."""
    seeds = torch.randint(2**62, (batch.rows,)) if batch.seeds is None else batch.seeds
    return [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds.tolist()]


def _drawn(chances: Chances, count: int) -> torch.Tensor:
    """Numbers from 0 to 1, [b, count]."""
    return torch.from_numpy(np.stack([each.random(count, np.float32) for each in chances]))


def drop_modalities(
    present: Mapping[str, torch.Tensor], chance: float, chances: Chances
) -> dict[str, torch.Tensor]:
    """Each modality of each sample is left out with `chance`, but never all that it has."""
    names = list(present)
    there = torch.stack([present[name] for name in names], 1)
    kept = there & (_drawn(chances, len(names)) >= chance).to(there.device)
    kept = torch.where(kept.any(1, keepdim=True), kept, there)
    return {name: kept[:, place] for place, name in enumerate(names)}


def _changed(value: Input, changes: Mapping[str, float], chances: Chances) -> Input:
    if isinstance(value, Tokens):
        return hide_tokens(value, changes.get("words", 0.0), chances)
    if isinstance(value, Sound):
        return add_noise(value, changes.get("noise", 0.0), chances)
    if isinstance(value, Frames):
        count, frames = value.pixels.shape[:2]
        changed = change_pixels(value.pixels.flatten(0, 1), changes, chances)
        return Frames(changed.view(count, frames, *changed.shape[1:]), value.mask)
    return value if value.is_floating_point() else change_pixels(value, changes, chances)


def change_pixels(
    pixels: torch.Tensor, changes: Mapping[str, float], chances: Chances
) -> torch.Tensor:
    """Cut and recolour pictures, uint8 [n, h, w, 3]; those of a sample in the same way."""
    crop, color = changes.get("crop", 0.0), changes.get("color", 0.0)
    if not crop and not color:
        return pixels
    drawn = _drawn(chances, 5).repeat_interleave(len(pixels) // len(chances), 0)
    cut, left, top, light, contrast = drawn.to(pixels.device).unbind(1)
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


def add_noise(sound: Sound, size: float, chances: Chances) -> Sound:
    """White noise, up to `size` of a wave's own loudness. What an extractor made stays."""
    waves = sound.values
    if not size or waves.ndim != 2:
        return sound
    loud = (waves.square().sum(1) / sound.lengths.clamp(min=1)).sqrt()
    by = size * _drawn(chances, 1).to(waves.device) * loud.unsqueeze(1)
    noise = torch.zeros(waves.shape)
    for row, (each, length) in enumerate(zip(chances, sound.lengths.tolist(), strict=True)):
        noise[row, :length] = torch.from_numpy(each.standard_normal(length, np.float32))
    return Sound(waves + noise.to(waves.device) * by, sound.lengths)


def hide_tokens(tokens: Tokens, chance: float, chances: Chances) -> Tokens:
    """Hide tokens of each text, but not its first and last: models mark a text's ends by them."""
    if not chance:
        return tokens
    lengths = tokens.mask.sum(1, keepdim=True)
    order = tokens.mask.cumsum(1)  # from 1, wherever the padding is
    inner = (order > 1) & (order < lengths) & (tokens.mask > 0)
    drawn = torch.ones(tokens.mask.shape)
    pairs = zip(chances, lengths.flatten().tolist(), strict=True)
    numbers = [each.random(length, np.float32) for each, length in pairs]
    drawn[tokens.mask.cpu() > 0] = torch.from_numpy(np.concatenate(numbers))
    hidden = inner & (drawn < chance).to(inner.device)
    return Tokens(tokens.ids, tokens.mask.masked_fill(hidden, 0))
