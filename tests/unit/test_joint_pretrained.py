"""Pretrained towers: every family gives the encoder's own vectors, trains, saves and loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.decode.image import ImageTransform
from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.encoders.families import FAMILIES
from mmray.encoders.joint_config import image_of
from mmray.encoders.joint_inputs import JointInputs
from mmray.models.joint import checkpoint
from mmray.models.joint.batch import Input
from mmray.models.joint.config import JointConfig
from mmray.models.joint.model import JointModel
from mmray.specs.common import HfEncoder, PackagedEncoder
from tests import tinyjoint, tinymodels

torch.set_num_threads(1)
PARTS = [(family, part) for family, row in FAMILIES.items() for part in sorted(row.dims)]
TEXTS = ["a red cat", "the large house in the tree", "dog"]


def made(tower: dict[str, Any], part: str) -> tuple[JointModel, JointInputs]:
    found = tinyjoint.settled({part: tower}, {"classify": {"label": "x"}})
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0)
    return model.eval(), JointInputs(found.config, found.tokenizers)


def inputs_of(part: str, inputs: JointInputs) -> tuple[Input, list[Any]]:
    if part == "text":
        return inputs.texts(TEXTS), TEXTS
    if part == "audio":
        waves = tinyjoint.waves(3)
        return inputs.sounds(waves), waves
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*inputs.images["image"].size, 3), np.uint8) for _ in range(3)]
    return inputs.pictures(images), images


def encoded(spec: HfEncoder | PackagedEncoder, part: str, raw: list[Any]) -> np.ndarray:
    """What the encoder of the same weights gives."""
    options = EncodeOptions(dtype="float32")
    encoder = load_encoder(spec, describe(spec, options), "cpu", options)
    encode = {
        "text": encoder.encode_texts,
        "image": encoder.encode_images,
        "audio": encoder.encode_audios,
    }[part]
    return encode(raw)


@pytest.mark.parametrize(("family", "part"), PARTS)
def test_family(family: str, part: str, tmp_path: Path) -> None:
    """One tiny model goes all the way: as an encoder, tuned as a whole, saved and loaded."""
    folder = tinymodels.build(family, tmp_path / "source")
    model, inputs = made({"kind": "hf", "model": str(folder), "train": "full"}, part)
    value, raw = inputs_of(part, inputs)
    tower = model.towers[part]
    with torch.no_grad():
        found = tower.look(value).numpy()

    spec = HfEncoder(kind="hf", model=str(folder))
    assert np.allclose(found, encoded(spec, part, raw), atol=1e-5)

    model.train()
    tower(value).square().sum(0)[0].backward()
    idle = [
        name
        for name, weight in tower.named_parameters()
        if weight.requires_grad and weight.grad is None
    ]
    assert idle == []

    model.eval()
    checkpoint.save(model, tmp_path / "saved")
    loaded = checkpoint.load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded.towers[part](value), tower(value))
    assert [each.requires_grad for each in loaded.parameters()] == [
        each.requires_grad for each in model.parameters()
    ]


@pytest.mark.parametrize(
    ("part", "name"), [("image", "efficientnet-lite0"), ("audio", "speech"), ("text", "minilm")]
)
def test_packaged(part: str, name: str, tmp_path: Path) -> None:
    model, inputs = made({"kind": "packaged", "model": name}, part)
    value, raw = inputs_of(part, inputs)
    with torch.no_grad():
        found = model.towers[part].look(value).numpy()
    spec = PackagedEncoder.model_validate({"kind": "packaged", "model": name})
    assert np.allclose(found, encoded(spec, part, raw), atol=1e-4)
    assert not any(each.requires_grad for each in model.towers[part].network.parameters())

    checkpoint.save(model, tmp_path / "saved")
    loaded = checkpoint.load(tmp_path / "saved")
    with torch.no_grad():
        # An LSTM's weights lie in memory as one block, or not, and the last bit depends on it.
        before, after = model.towers[part](value), loaded.towers[part](value)
        assert torch.allclose(before, after, atol=1e-6)


def test_transform_is_kept(tmp_path: Path) -> None:
    """The pixels that a tower was trained with are those that its checkpoint asks for."""
    folder = tinymodels.build("dinov2", tmp_path / "source")
    found = tinyjoint.settled(
        {"image": {"kind": "hf", "model": str(folder)}}, {"classify": {"label": "x"}}
    )
    again = JointConfig(**found.config).to_dict()["towers"]["image"]
    assert image_of(again).resize_to == 40
    assert image_of(again) == image_of(found.config["towers"]["image"])
    assert isinstance(image_of(again), ImageTransform)
