"""What each option of a joint model's parts does: it goes red where one is read and ignored."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mmray.decode.audio import AudioTransform
from mmray.encoders.joint_config import image_of
from mmray.encoders.joint_inputs import JointInputs
from mmray.models.joint import adversary, augment
from mmray.models.joint.batch import JointBatch, Sound, Tokens
from mmray.models.joint.fusion import Fusion
from mmray.models.joint.losses import infonce, sigmoid
from mmray.models.joint.model import JointModel
from mmray.specs.train import Augment
from tests import tinyjoint, tinymodels
from tests.tinyjoint import CONV

torch.set_num_threads(1)
TWO = {"image": CONV, "text": CONV}
CLASSIFY = {"classify": {"label": "c"}}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tinymodels.build("bert", tmp_path_factory.mktemp("bert")))


def network(bert: str, **tower: Any) -> JointModel:
    return tinyjoint.build({"text": {"kind": "hf", "model": bert, **tower}}, CLASSIFY).eval()


def trained(model: JointModel, part: str) -> dict[str, torch.Size]:
    return {
        name: weight.shape
        for name, weight in model.named_parameters()
        if part in name and weight.requires_grad
    }


# --- towers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "part", "axis"), [("lora", "lora_A", 0), ("prefix", "prompt", 0)]
)
def test_rank(bert: str, train: str, part: str, axis: int) -> None:
    for rank in (3, 5, None):
        found = trained(network(bert, train=train, rank=rank), part)
        assert found
        assert {shape[axis] for shape in found.values()} == {rank or 8}


def test_a_prefix_leaves_fewer_places_to_the_text(bert: str) -> None:
    for rank, limit in ((3, 21), (5, 19)):
        tower = {"kind": "hf", "model": bert, "train": "prefix", "rank": rank}
        found = tinyjoint.settled({"text": tower}, CLASSIFY)
        assert found.config["towers"]["text"]["text"]["limit"] == limit


def test_pooling(bert: str) -> None:
    ids = torch.randint(1000, 3000, (2, 5), generator=torch.Generator().manual_seed(0))
    texts = Tokens(ids, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]))
    means, firsts, pooled = (
        network(bert, pooling=kind).towers["text"].look(texts) for kind in ("mean", "cls", "pooler")
    )
    model: Any = network(bert, pooling="cls").towers["text"].network.model
    with torch.no_grad():
        states = model(input_ids=ids, attention_mask=texts.mask).last_hidden_state
    assert torch.allclose(firsts, states[:, 0], atol=1e-5)
    assert torch.allclose(means[1], states[1, :3].mean(0), atol=1e-5)
    assert not torch.allclose(pooled, firsts, atol=1e-2)
    assert pooled.abs().max() <= 1


@pytest.mark.parametrize("kind", ["conv", "recurrent"])
def test_sizes_of_small_towers(kind: str) -> None:
    sizes = {"width": 24, "side": 40, "seconds": 2.5, "tokens": 9}
    towers = {name: {"kind": kind, **sizes} for name in ("image", "text", "audio", "video")}
    found = tinyjoint.settled(towers, CLASSIFY)
    inputs = JointInputs(found.config, {})
    assert image_of(found.config["towers"]["image"]).size == (40, 40)
    assert inputs.images["video"].size == (40, 40)
    assert inputs.audio == AudioTransform(rate=16_000, window=2.5)
    assert inputs.texts(["a text that is too long"]).ids.shape == (1, 9)
    model = tinyjoint.build(towers, CLASSIFY)
    pixels = inputs.pictures([np.zeros((40, 40, 3), np.uint8)])
    assert model.towers["image"].look(pixels).shape == (1, 48)
    default = tinyjoint.settled({"image": {"kind": kind}}, CLASSIFY).config["towers"]["image"]
    assert (default["features"], image_of(default).size) == (128, (64, 64))


# --- fusion and heads ---------------------------------------------------------------------------


def test_dim() -> None:
    model = tinyjoint.build(TWO, CLASSIFY, dim=24)
    out = model.encode(tinyjoint.batch())
    assert {each.shape[1] for each in (*out.vectors.values(), out.fused)} == {24}


def test_heads_of_attention() -> None:
    fused = []
    for heads in (1, 2, 4, 4):
        torch.manual_seed(0)
        fusion = Fusion(16, ("image", "text"), {"kind": "attention", "heads": heads})
        states = torch.nn.functional.normalize(torch.randn(4, 2, 16), dim=-1)
        fused.append(fusion(states, torch.ones(4, 2, dtype=torch.bool)))
    assert torch.equal(fused[2], fused[3])
    assert not torch.allclose(fused[0], fused[1], atol=1e-5)
    assert not torch.allclose(fused[1], fused[2], atol=1e-5)
    asked = tinyjoint.settled(TWO, CLASSIFY, fusion={"kind": "attention", "heads": 2})
    assert asked.config["fusion"]["heads"] == 2


@pytest.mark.parametrize(("temperature", "scale"), [(None, None), (0.5, 2.0)])
def test_each_contrastive_loss_is_its_own_formula(
    temperature: float | None, scale: float | None
) -> None:
    batch = tinyjoint.batch()
    for kind in ("infonce", "sigmoid", "moco"):
        head = {"contrastive": {"loss": kind, "temperature": temperature}}
        model = tinyjoint.build(TWO, head).eval()
        by = torch.tensor(scale or (10.0 if kind == "sigmoid" else 1 / 0.07))
        out = model(batch)
        one, other = out.vectors["image"], out.vectors["text"]
        if kind == "sigmoid":
            wanted = sigmoid(one, other, by, torch.tensor(-10.0))
        else:  # the copy is where the towers are, and its queue is empty
            wanted = infonce(one, other, by)
        found = float(out.losses["contrastive"])
        assert found == pytest.approx(float(wanted.detach()) / 6, rel=1e-4), kind


def test_smoothing() -> None:
    batch = tinyjoint.batch()
    for smoothing in (0.0, 0.3):
        head = {"classify": {"label": "c", "smoothing": smoothing}}
        model = tinyjoint.build(TWO, head).eval()
        out = model(batch)
        scores, labels = out.predictions["classify"], batch.labels["classify"]
        wanted = cross_entropy(scores, labels, label_smoothing=smoothing)
        assert float(out.losses["classify"]) == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_sizes_of_the_small_decoder() -> None:
    sizes = {"prefix": 3, "width": 48, "layers": 3, "max_length": 7}
    found = tinyjoint.settled({"image": CONV}, {"caption": sizes})
    ids, _ = JointInputs(found.config, {}).captions(["a text that is too long"])
    assert ids.shape == (1, 7)
    model: Any = tinyjoint.build({"image": CONV}, {"caption": sizes})
    head = model.heads["caption"]
    assert len(head.decoder.blocks) == 3
    assert head._prefix(torch.zeros(2, 16)).shape == (2, 3, 48)
    batch = tinyjoint.batch(("image",), 2)
    assert max(len(row) for row in model.eval().write(batch)) <= 7


# --- changes in training ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"crop": 0.4}, {"image", "video"}),
        ({"color": 0.5}, {"image", "video"}),
        ({"noise": 0.5}, {"audio"}),
        ({"words": 0.5}, {"text"}),
        ({}, set()),
    ],
)
def test_augmentation_changes_what_it_names_and_nothing_else(
    option: dict[str, float], changed: set[str]
) -> None:
    names = ("image", "text", "audio", "video")
    batch = tinyjoint.batch(names)
    torch.manual_seed(0)
    found = augment.prepare(batch, Augment.model_validate(option).model_dump(), 0.0)
    for name in names:
        before, after = batch.inputs[name], found.inputs[name]
        pairs = (
            [(before, after)]
            if isinstance(before, torch.Tensor)
            else [
                (getattr(before, each.name), getattr(after, each.name))
                for each in dataclasses.fields(before)
            ]
        )
        same = all(torch.equal(one, other) for one, other in pairs)
        assert same == (name not in changed), name


def test_augmentation_is_as_strong_as_it_is_asked_to_be() -> None:
    torch.manual_seed(0)

    def changed(value: Any, rows: int, **option: float) -> Any:
        batch = JointBatch({"image": value}, {"image": torch.ones(rows, dtype=torch.bool)})
        found = augment.prepare(batch, Augment.model_validate(option).model_dump(), 0.0)
        return found.inputs["image"]

    loud = Sound(torch.ones(400, 64), torch.full((400,), 64))
    for part in (0.1, 0.4):
        noise = changed(loud, 400, noise=part).values - loud.values
        assert float(noise.square().mean(1).sqrt().max()) == pytest.approx(part, rel=0.25)
    words = Tokens(torch.ones(300, 20).long(), torch.ones(300, 20).long())
    for part in (0.2, 0.6):
        hidden = changed(words, 300, words=part).mask == 0
        assert float(hidden.float().mean()) == pytest.approx(part * 18 / 20, abs=0.02)
    grey = torch.full((400, 4, 4, 3), 100, dtype=torch.uint8)
    for part in (0.1, 0.4):
        light = changed(grey, 400, color=part).float().mean((1, 2, 3)) / 100 - 1
        assert float(light.abs().max()) == pytest.approx(part, abs=0.02)
    tones = torch.tensor([60, 140], dtype=torch.uint8).view(1, 1, 2, 1).expand(400, 4, 2, 3)
    for part in (0.1, 0.4):
        found = changed(tones, 400, color=part).float()
        spread = (found[:, 0, 1, 0] - found[:, 0, 0, 0]) / 80 - 1
        assert float(spread.abs().max()) == pytest.approx(part, abs=0.03)
    ramp = torch.arange(200).view(1, 1, 200, 1).expand(300, 8, 200, 3).to(torch.uint8)
    for part in (0.1, 0.4):
        cut = changed(ramp, 300, crop=part).float()[:, 0, :, 0]
        width = (cut.amax(1) - cut.amin(1)) / 199
        assert float(width.min()) == pytest.approx(1 - part, abs=0.03)


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_the_adversary_is_as_strong_as_it_is_asked_to_be(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    centre = torch.randn(5, 8, generator=rng)
    before = {"image": torch.randn(5, 8, generator=rng)}
    for size, steps in ((0.05, 2), (0.2, 5)):
        calls: list[float] = []

        def loss_of(features: dict[str, torch.Tensor], seen: list[float] = calls) -> torch.Tensor:
            loss = (features["image"] @ centre.T).softmax(-1).diagonal().log().neg().sum()
            seen.append(float(loss.detach()))
            return loss

        settings = {"kind": kind, "size": size, "steps": steps}
        after = adversary.worst(loss_of, before, settings)
        assert len(calls) == (1 if kind == "fgm" else steps)
        assert calls == sorted(calls)
        moved = (after["image"] - before["image"]).norm(dim=-1) / before["image"].norm(dim=-1)
        assert float(moved.max()) == pytest.approx(size, rel=1e-4)


def test_weight_of_the_adversary() -> None:
    for weight in (0.5, 2.0):
        model = tinyjoint.build(TWO, train={"adversarial": {"weight": weight}})
        out = model(tinyjoint.batch())
        wanted = float(out.losses["contrastive"]) + weight * float(out.losses["adversarial"])
        assert float(out.loss.detach()) == pytest.approx(wanted, rel=1e-5)


def test_dropout_is_as_strong_as_it_is_asked_to_be() -> None:
    for part in (0.0, 0.3):
        model: Any = tinyjoint.build(TWO, {**CLASSIFY, "caption": {}}, dropout=part)
        found = [each.p for each in model.modules() if isinstance(each, torch.nn.Dropout)]
        assert found == [part] * 5  # of two towers, a class, and two blocks of a decoder
    assert math.isfinite(float(model(tinyjoint.batch()).loss.detach()))
