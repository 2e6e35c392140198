"""How each modality of a spec is kept in pieces, and the frozen towers that make vectors of it.

Imports torch only where a frozen tower looks.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mmray.encoders.fingerprint import digest, essential, fingerprint
from mmray.encoders.joint_config import Labels, Settled, audio_of, image_of, settle
from mmray.specs.train import TrainSpec
from mmray.train.decoded import Decoder
from mmray.train.inputs import SPOT
from mmray.train.pieces import PieceWriter

if TYPE_CHECKING:
    from mmray.encoders.joint_inputs import JointInputs
    from mmray.models.joint.model import JointModel

FORMAT = 2
NO_LABELS = Labels(("",))
"""Stands in until the samples are read: heads have to have a shape."""


def writer(spec: TrainSpec, precision: str) -> PieceWriter:
    """What writes this spec's pieces, in any process that has its models."""
    settled = settle(spec.model, spec.train, NO_LABELS)
    towers = settled.config["towers"]
    audio = audio_of(towers["audio"]) if "audio" in towers else None
    decoder = Decoder(spec, _images(towers), audio)
    device = "cuda" if spec.resources.gpus_per_worker else "cpu"
    return PieceWriter(decoder, columns(spec, towers), _Look(settled, precision, device))


def columns(spec: TrainSpec, towers: Mapping[str, Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """Modality to the type of its column. Texts are kept as texts unless as vectors."""
    found: dict[str, pa.DataType] = {}
    for name, settings in towers.items():
        if spec.train.cache and settings.get("train") == "frozen":
            found[name] = pa.list_(pa.float32(), int(settings["features"]))
        elif name != "text":
            found[name] = SPOT
    return found


def data_key(spec: TrainSpec, settled: Settled, precision: str) -> str:
    """Hash of all that a piece's content depends on beside its shard."""
    towers = settled.config["towers"]
    kept = columns(spec, towers)
    vectors = [name for name, kind in kept.items() if pa.types.is_fixed_size_list(kind)]
    heads = spec.model.heads
    details = {
        "format": FORMAT,
        "text": spec.data.text,
        "frames": spec.data.frames,
        "group": spec.data.split.group,
        "class": None if heads.classify is None else heads.classify.label,
        "number": None if heads.regress is None else heads.regress.label,
        "caption": heads.caption is not None,
        "limits": spec.limits.model_dump(),
        "columns": {name: str(kind) for name, kind in kept.items()},
        "towers": {name: essential(towers[name]) for name in vectors},
        "inputs": {
            name: [settings.get(part) for part in ("image", "audio")]
            for name, settings in towers.items()
        },
        "weights": {name: _digests(settled.sources[name]) for name in vectors},
        "precision": precision if vectors else None,
        "towers_of": sorted(towers),
    }
    return fingerprint(details)


def _digests(source: Path) -> list[str]:
    from mmray.encoders.folder import weight_files

    return [digest(path) for path in (weight_files(source) if source.is_dir() else [source])]


def _images(towers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: image_of(towers[name]) for name in ("image", "video") if name in towers}


class _Look:
    """Frozen towers, loaded when the first of them has something to look at."""

    def __init__(self, settled: Settled, precision: str, device: str) -> None:
        self._settled, self._precision, self._device = settled, precision, device
        self._loaded: tuple[JointModel, JointInputs] | None = None

    def __call__(self, modality: str, values: list[Any]) -> np.ndarray:
        import torch

        model, inputs = self._load()
        value: Any
        if modality == "text":
            value = inputs.texts([each or "" for each in values])
        elif modality == "image":
            value = inputs.pictures(values)
        elif modality == "audio":
            empty = np.zeros(0, np.float32)
            value = inputs.sounds([empty if each is None else each for each in values])
        else:
            value = inputs.videos([[] if each is None else list(each) for each in values])
        tower: Any = model.towers[modality]
        there = torch.tensor([each is not None for each in values])
        from mmray.models.joint.batch import changed, take

        rows = there.nonzero().flatten()
        device = model.device
        taken = changed(take(value, rows), lambda tensor: tensor.to(device))
        with torch.inference_mode(), model._precision():
            seen = tower.look(taken).float().cpu()
        vectors = torch.zeros(len(values), tower.features)
        vectors[rows] = seen
        return vectors.numpy()

    def _load(self) -> "tuple[JointModel, JointInputs]":
        if self._loaded is None:
            import torch

            from mmray.encoders.joint_inputs import JointInputs
            from mmray.models.joint import checkpoint
            from mmray.models.joint.config import JointConfig

            config = self._settled.config
            model: Any = checkpoint.create(JointConfig(**config), self._settled.sources, 0)
            model.train(False)
            model.compute = getattr(torch, self._precision)
            model.to(self._device)
            self._loaded = model, JointInputs(config, self._settled.tokenizers)
        return self._loaded
