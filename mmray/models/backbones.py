"""Pretrained networks of the Hugging Face library, loaded from a folder.

Only `from_pretrained` on a local folder, with safetensors and the library's own code: nothing is
downloaded and nothing is unpickled here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmray.errors import RefusedError
from mmray.models.forward import Wiring

ImageForward = Callable[[torch.Tensor], torch.Tensor]
"""Normalised pixels [n, 3, h, w] to vectors [n, d]."""
TextForward = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Token ids [n, t] and their mask [n, t] to vectors [n, d]."""
AudioForward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Features of sounds [n, ...] and the samples behind each [n] to vectors [n, d]."""

# Stands for what is masked in training, and is in no checkpoint that was tuned without masks.
_TRAINING_ONLY = frozenset({"masked_spec_embed"})


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded network, float32 on the CPU, and what it does with each modality."""

    module: nn.Module
    image: ImageForward | None = None
    text: TextForward | None = None
    audio: AudioForward | None = None


def load_backbone(folder: Path, wiring: Wiring) -> Backbone:
    """The network in `folder`, with what runs it. Raises `RefusedError`."""
    module = load(folder, wiring)
    runs = {name: partial(run, module) for name, run in wiring.forwards().items()}
    return Backbone(module, **runs)


def load(folder: Path, wiring: Wiring) -> Any:
    """The network in `folder`, float32 on the CPU; of Whisper its encoder. Raises `RefusedError`
    where a tensor has no weights."""
    from transformers import AutoModel
    from transformers.utils import logging

    quiet: Any = logging  # its functions carry no types
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    try:
        model, report = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **wiring.options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError(f"no model can be loaded from {folder}: {error}") from error
    missing = sorted(set(report["missing_keys"]) - _TRAINING_ONLY)
    if missing:
        message = f"{len(missing)} tensors have no weights, such as {missing[0]}"
        raise RefusedError(f"{folder}: {message}")
    return model.encoder if wiring.family == "whisper" else model


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder, by the library's own rules."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise RefusedError(f"no tokenizer can be loaded from {folder}: {error}") from error
