"""Pretrained networks of the Hugging Face library as plain functions on tensors.

Only `from_pretrained` on a local folder, with safetensors and the library's own code: nothing is
downloaded and nothing is unpickled here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmray.errors import RefusedError
from mmray.models.pooling import first_token, mean_of_patches, mean_of_tokens

ImageForward = Callable[[torch.Tensor], torch.Tensor]
"""Normalised pixels [n, 3, h, w] to vectors [n, d]."""
TextForward = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Token ids [n, t] and their mask [n, t] to vectors [n, d]."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded network, float32 on the CPU, and what it does with each modality."""

    module: nn.Module
    image: ImageForward | None = None
    text: TextForward | None = None


def load_joint(folder: Path) -> Backbone:
    """A model with an image and a text tower in one space (CLIP, SigLIP)."""
    model = _load(folder)
    return Backbone(
        model,
        image=lambda pixels: _vector(model.get_image_features(pixel_values=pixels)),
        text=lambda ids, mask: _vector(model.get_text_features(input_ids=ids, attention_mask=mask)),
    )


def load_image_only(folder: Path, pooling: str, *, optional_pooler: bool) -> Backbone:
    """A vision transformer, pooled `cls`, `mean` (over patches) or `pooler`."""
    model = _load(folder, **_pooler(pooling, optional_pooler))
    special = 1 + int(getattr(model.config, "num_register_tokens", 0))

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        out = model(pixel_values=pixels)
        if pooling == "pooler":
            return _vector(out)
        states: torch.Tensor = out.last_hidden_state
        return first_token(states) if pooling == "cls" else mean_of_patches(states, special)

    return Backbone(model, image=forward)


def load_text_only(folder: Path, pooling: str, *, optional_pooler: bool) -> Backbone:
    """A text transformer, pooled `cls`, `mean` (over tokens) or `pooler`."""
    model = _load(folder, **_pooler(pooling, optional_pooler))

    def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        seen = torch.ones_like(ids) if mask is None else mask
        out = model(input_ids=ids, attention_mask=seen)
        if pooling == "pooler":
            return _vector(out)
        states: torch.Tensor = out.last_hidden_state
        return first_token(states) if pooling == "cls" else mean_of_tokens(states, seen)

    return Backbone(model, text=forward)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the folder, by the library's own rules."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise RefusedError(f"no tokenizer can be loaded from {folder}: {error}") from error


def _pooler(pooling: str, optional: bool) -> dict[str, bool]:
    # Left to itself the library adds a pooler of random weights where a checkpoint has none.
    return {"add_pooling_layer": pooling == "pooler"} if optional else {}


def _load(folder: Path, **options: Any) -> Any:
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
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise RefusedError(f"no model can be loaded from {folder}: {error}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        message = f"{len(missing)} tensors have no weights, such as {missing[0]}"
        raise RefusedError(f"{folder}: {message}")
    return model


def _vector(out: Any) -> torch.Tensor:
    """The pooled vector: transformers 5 returns an output object, 4 the tensor itself."""
    vector = out if isinstance(out, torch.Tensor) else out.pooler_output
    assert isinstance(vector, torch.Tensor)
    return vector
