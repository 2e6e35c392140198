"""A joint model in a folder: made from the towers' own models, saved, loaded and refused.

Weights are safetensors only. A folder that lacks a tensor, has one too many, is torn, or holds
another architecture is refused in words, never half loaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mmray.errors import RefusedError
from mmray.models.joint import FROZEN
from mmray.models.joint.config import JointConfig
from mmray.models.joint.decoder import CaptionHead, HfDecoder
from mmray.models.joint.model import JointModel
from mmray.models.joint.pretrained import copy_values, fill
from mmray.models.joint.towers import Tower

_TRAINED = "model-trained.safetensors"


def create(config: JointConfig, sources: Mapping[str, Path], seed: int) -> JointModel:
    """A new model: random values from `seed`, then those of the pretrained parts.

    `sources` names a folder (or a packaged file of weights) for each `hf` and `packaged` tower by
    modality, and for a `caption` decoder. Raises `RefusedError` where one lacks a weight.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = JointModel(config)
    for modality, tower in model.towers.items():
        assert isinstance(tower, Tower)
        if not tower.new:
            fill(tower.network, sources[modality])
    if "caption" in model.heads:
        head = model.heads["caption"]
        assert isinstance(head, CaptionHead)
        if isinstance(head.decoder, HfDecoder):
            folder = sources["caption"]
            copy_values(_language_model(folder), head.decoder.model, str(folder))
    if model.momentum is not None:
        model.momentum.restart(model.towers)
    return model


def save(
    model: JointModel,
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
    *,
    frozen: bool = True,
) -> None:
    """Write `config.json` and the weights: in `model.safetensors`, or where training leaves some
    as they are, those in a file of their own (`FROZEN`), which all checkpoints have alike.

    Args:
        model: whose they are.
        folder: where to.
        weights: `moving` ones to write; left out: the model's own, as they are now.
        frozen: whether to write `FROZEN` too, or only what goes with them.
    """
    _quiet()
    state = dict(moving(model) if weights is None else weights)
    still = _still(model)
    if not still:
        model.save_pretrained(folder, state_dict=state)
        return
    where = _write(model, folder, _TRAINED, state)
    if frozen:
        every = model.state_dict()
        where |= _write(model, folder, FROZEN[0], {name: every[name] for name in still})
        size = sum((folder / name).stat().st_size for name in set(where.values()))
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / FROZEN[1]).write_text(json.dumps(index))


def moving(model: JointModel) -> dict[str, torch.Tensor]:
    """The weights that training may change, and all buffers: name to tensor."""
    still = _still(model)
    return {name: each for name, each in model.state_dict().items() if name not in still}


def _write(
    model: JointModel, folder: Path, name: str, state: dict[str, torch.Tensor]
) -> dict[str, str]:
    """Some of the weights, as one file; each tensor's name to the file's."""
    model.save_pretrained(folder, state_dict=state)
    (folder / "model.safetensors").rename(folder / name)
    with safe_open(folder / name, "pt") as file:
        return dict.fromkeys(file.keys(), name)


def _still(model: JointModel) -> frozenset[str]:
    """Names of the weights that nothing in training changes: those of frozen networks and those
    beside adapters. A slowly moving copy isn't trained, but moves; so do an adapter's ranks."""
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(
        name
        for name, weight in named
        if not weight.requires_grad and not name.startswith("momentum.") and "lora_" not in name
    )


def load(folder: Path) -> JointModel:
    """The model of a checkpoint folder, in eval mode. Raises `RefusedError`."""
    _quiet()
    options: Any = {"use_safetensors": True, "local_files_only": True, "dtype": "auto"}
    try:
        model, report = JointModel.from_pretrained(folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise RefusedError(f"no joint model can be loaded from {folder}: {error}") from error
    for problem, names in (("lacks", "missing_keys"), ("has unknown", "unexpected_keys")):
        if report[names]:
            found = sorted(report[names])
            raise RefusedError(f"{folder} {problem} {len(found)} tensors, such as {found[0]}")
    assert isinstance(model, JointModel)
    model.train(False)
    return model


def _language_model(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    try:
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError(f"no language model can be loaded from {folder}: {error}") from error
    return model


def _quiet() -> None:
    from transformers.utils import logging

    quiet: Any = logging  # its functions carry no types
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
