"""Tiny trainings: tars of pictures with captions, and specs whose towers are small."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from mmray.encoders.joint_folder import open_checkpoint
from mmray.encoders.joint_inputs import JointInputs
from mmray.models.joint.model import JointModel
from mmray.specs.train import TrainSpec
from mmray.storage import Storage
from mmray.train.batches import Batches
from mmray.train.begin import begin, here
from mmray.train.checkpoints import MODEL, Checkpoints
from mmray.train.course import Course
from mmray.train.samples import Samples
from mmray.train.task import Task
from tests import shards
from tests.tinyjoint import CONV

TOWERS: dict[str, Any] = {"image": CONV, "text": {"kind": "conv", "width": 8, "tokens": 32}}


def write_tars(folder: Path, count: int = 2, per_shard: int = 24, **options: Any) -> str:
    """Tars of distinct samples; the glob that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in shards.sample_shards(count, per_shard, size=(20, 16), **options).items():
        (folder / name).write_bytes(data)
    return str(folder / "*.tar")


def fields(uri: str, output: Path | str, **changes: Any) -> dict[str, Any]:
    """The fields of a tiny spec with `a__b=value` set."""
    data: dict[str, Any] = {
        "job": "train",
        "data": {
            "source": {"kind": "webdataset", "uri": uri},
            "split": {"group": "caption", "test": 0.25},
        },
        "model": {
            "dim": 16,
            "towers": deepcopy(TOWERS),
            "heads": {"contrastive": {}},
            "dropout": 0.0,
        },
        "train": {"epochs": 3, "batch_size": 8, "lr": 3e-3, "precision": "float32"},
        "output": str(output),
    }
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        place = data
        for name in parents:
            place = place.setdefault(name, {})
        place[leaf] = deepcopy(value)  # a later change isn't one of another test's
    return data


def spec(uri: str, output: Path | str, **changes: Any) -> TrainSpec:
    """A tiny spec."""
    return TrainSpec.model_validate(fields(uri, output, **changes))


def batches_of(spec: TrainSpec) -> Batches:
    """Batches as a worker makes them, from the newest checkpoint."""
    start = begin(spec, Storage(), lambda _: None, here)
    samples = Samples(Task(spec, start.pinned), Storage())
    known = open_checkpoint(spec.output)
    return Batches(samples, known.config, JointInputs(known.config, known.tokenizers))


def course(output: Path | str, into: Path) -> Course:
    """The history that the newest checkpoint keeps."""
    from mmray.train import packing

    found = Checkpoints(Storage(), str(output)).newest(_fail, into)
    assert found is not None
    kept = dict(packing.read(found[1], "course")["course"])
    return Course(**{**kept, "losses": kept["losses"].tolist()})


def weights(output: Path | str, into: Path) -> dict[str, torch.Tensor]:
    """The model of the newest checkpoint."""
    from mmray.models.joint import checkpoint

    found = Checkpoints(Storage(), str(output)).newest(_fail, into)
    assert found is not None
    model: JointModel = checkpoint.load(found[1] / MODEL)
    return model.state_dict()


def _fail(words: str) -> None:
    raise AssertionError(words)
