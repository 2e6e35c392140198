"""Nested values with tensors in them as JSON and safetensors: never a pickle.

A tensor's place in the JSON holds its name; mappings become lists of pairs, since keys of an
optimizer's state are numbers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mmray.errors import RefusedError


def write(value: Any, folder: Path, name: str) -> None:
    """Write `<name>.json` and `<name>.safetensors`."""
    tensors: dict[str, torch.Tensor] = {}
    plain = _apart(value, tensors)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(plain))


def read(folder: Path, name: str) -> Any:
    """What `write` wrote. Raises RefusedError for a file that isn't whole."""
    try:
        tensors = load_file(folder / f"{name}.safetensors")
        return _together(json.loads((folder / f"{name}.json").read_text()), tensors)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RefusedError(f"{folder}: {name} isn't a whole state: {error}") from error


def copied(value: Any, memo: dict[tuple[Any, ...], torch.Tensor] | None = None) -> Any:
    """A copy on the CPU that training doesn't change; tensors that are one stay one."""
    known = {} if memo is None else memo
    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() == 0:
            return value.detach().cpu().clone()
        if key not in known:
            known[key] = value.detach().to("cpu", copy=True)
        return known[key]
    if isinstance(value, Mapping):
        return {key: copied(each, known) for key, each in value.items()}
    return [copied(each, known) for each in value] if isinstance(value, list | tuple) else value


def _apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _apart(each, tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_apart(each, tensors) for each in value]
    return value


def _together(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _together(each, tensors) for key, each in value["pairs"]}
    return [_together(each, tensors) for each in value] if isinstance(value, list) else value
