"""Fusion, heads, dropout, changes to a batch: what each option does, not that it is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mmray.errors import RefusedError
from mmray.models.joint import adversary, augment, checkpoint
from mmray.models.joint.batch import JointBatch, Sound, Tokens
from mmray.models.joint.fusion import Fusion, Weighted
from mmray.models.joint.learning import make_optimizer, parameter_groups, rate
from mmray.models.joint.model import JointModel
from tests import tinyjoint, tinymodels
from tests.tinyjoint import CAPTION, CONV, RECURRENT

torch.set_num_threads(1)
THREE = ("image", "text", "audio")
KINDS: list[dict[str, Any]] = [
    {"kind": "sum"},
    {"kind": "product"},
    {"kind": "concat"},
    {"kind": "attention", "heads": 2},
    {"kind": "weighted", "alpha": {"image": 1.0, "text": 2.0, "audio": 0.5}},
    {"kind": "weighted", "alpha": "learned"},
    {"kind": "weighted", "alpha": "gate"},
]
CLASSIFY = {"classify": {"label": "c"}}


def vectors(seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(4, 3, 16, generator=rng), dim=-1)


@pytest.mark.parametrize("settings", KINDS, ids=lambda each: f"{each['kind']}-{each.get('alpha')}")
def test_fusion(settings: dict[str, Any]) -> None:
    """Length 1; what is present matters, what is absent has no part at all; no NaN for none."""
    torch.manual_seed(0)
    fusion = Fusion(16, THREE, settings)
    states = vectors().requires_grad_()
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]).bool()
    fused = fusion(states, present)
    assert torch.allclose(fused.norm(dim=-1)[:3], torch.ones(3), atol=1e-5)
    assert not fused[3].any()
    fused.square().sum(0)[0].backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()
    assert not states.grad[~present].any()
    assert states.grad[present].abs().sum(-1).gt(0).all()
    other = vectors(1)
    absent = torch.where(present.unsqueeze(-1), states, other)
    assert torch.equal(fusion(absent, present), fused)
    for place in range(3):
        changed = states.detach().clone()
        changed[0, place] = other[0, place]
        assert (fusion(changed, present)[0] - fused[0]).abs().max() > 1e-3


def test_fixed_alpha_goes_to_those_present() -> None:
    weighted = Weighted(16, THREE, {"image": 1.0, "text": 2.0, "audio": 1.0})
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]]).bool()
    wanted = [[0.25, 0.5, 0.25], [0.5, 0, 0.5], [0, 1, 0], [1 / 3, 2 / 3, 0]]
    assert torch.allclose(weighted.alpha(vectors(), present), torch.tensor(wanted))


def test_gate_depends_on_the_sample() -> None:
    torch.manual_seed(0)
    gate, learned = Weighted(16, THREE, "gate"), Weighted(16, THREE, "learned")
    present = torch.ones(4, 3, dtype=torch.bool)
    assert gate.alpha(vectors(), present).std(0).max() > 0.01
    assert not learned.alpha(vectors(), present).std(0).any()


def test_learned_alpha_moves_to_what_tells() -> None:
    """Labels are in the pictures alone, so that their weight grows."""
    fusion = {"kind": "weighted", "alpha": "learned"}
    model = tinyjoint.build({"image": CONV, "text": CONV}, CLASSIFY, fusion=fusion)
    batch = tinyjoint.batch(rows=12)
    shade = (batch.labels["classify"] * 100).to(torch.uint8).view(-1, 1, 1, 1)
    batch = dataclasses.replace(
        batch, inputs={**batch.inputs, "image": shade.expand(-1, 16, 16, 3).contiguous()}
    )
    tinyjoint.learn(model, batch, 60, 1e-2)
    inner = model.fusion.inner
    assert isinstance(inner, Weighted)
    assert inner.logits[0] - inner.logits[1] > 0.1


@pytest.mark.parametrize(
    ("head", "bound"),
    [
        ({"contrastive": {}}, 0.05),
        ({"contrastive": {"loss": "sigmoid"}}, 0.1),
        ({"contrastive": {"loss": "moco", "queue": 1, "momentum": 0.5}}, 0.15),
        (CLASSIFY, 0.02),
        ({"regress": {"label": "r"}}, 0.02),
        ({"caption": CAPTION}, 0.1),
    ],
    ids=["infonce", "sigmoid", "moco", "classify", "regress", "caption"],
)
def test_each_head_learns_a_tiny_set(head: dict[str, Any], bound: float) -> None:
    model = tinyjoint.build({"image": CONV, "text": RECURRENT}, head)
    batch = tinyjoint.batch()
    first = tinyjoint.learn(model, batch, 1)
    assert first > 5 * bound
    assert tinyjoint.learn(model, batch, 150, 1e-2) < bound
    model.eval()
    out = model(batch)
    if "classify" in head:
        assert torch.equal(out.predictions["classify"].argmax(-1), batch.labels["classify"])
    if "regress" in head:
        assert (out.predictions["regress"] - batch.labels["regress"]).abs().max() < 0.1
    if "caption" in head:
        assert batch.text_ids is not None
        assert model.write(batch) == batch.text_ids[:, :-1].tolist()
        assert [len(row) for row in model.write(batch, 3)] == [3] * 6


def test_caption_is_not_fed_the_text() -> None:
    """It would learn to copy what it won't have."""
    model = tinyjoint.build({"image": CONV, "text": CONV}, {"caption": CAPTION})
    batch = tinyjoint.batch()
    words = batch.inputs["text"]
    assert isinstance(words, Tokens)
    other = dataclasses.replace(
        batch, inputs={**batch.inputs, "text": Tokens(words.ids.flip(0), words.mask.flip(0))}
    )
    assert torch.equal(model(other).losses["caption"], model(batch).losses["caption"])


@pytest.mark.parametrize("head", ["classify", "regress"])
def test_a_head_is_fed_what_it_names(head: str) -> None:
    batch = tinyjoint.batch()
    words = batch.inputs["text"]
    assert isinstance(words, Tokens)
    other = dataclasses.replace(
        batch, inputs={**batch.inputs, "text": Tokens(words.ids.flip(0), words.mask.flip(0))}
    )
    for of, same in ((["image"], True), (["text"], False), (None, False)):
        model = tinyjoint.build({"image": CONV, "text": CONV}, {head: {"label": "c", "of": of}})
        losses = [model(each).losses[head] for each in (batch, other)]
        assert torch.equal(*losses) == same, of


def test_rows_without_a_label_count_nowhere() -> None:
    heads = {**CLASSIFY, "regress": {"label": "r"}, "caption": CAPTION}
    model = tinyjoint.build({"image": CONV, "text": CONV}, heads).eval()
    batch = tinyjoint.batch(rows=6)
    batch.labels["classify"][:3] = -100
    batch.labels["regress"][:3] = float("nan")
    assert batch.text_mask is not None
    batch.text_mask[:3] = 0
    found, wanted = model(batch).losses, model(batch.part(3, 6)).losses
    for name, loss in wanted.items():
        assert torch.allclose(found[name], loss, atol=1e-6), name
    bare = dataclasses.replace(batch.part(0, 3), labels={}, text_ids=None, text_mask=None)
    out = model(bare)
    out.loss.backward()
    assert {name: float(loss) for name, loss in out.losses.items()} == dict.fromkeys(heads, 0.0)
    assert all(bool(each.isfinite().all()) for each in tinyjoint.gradients(model).values())


def test_weights_and_turns() -> None:
    heads = {"contrastive": {"weight": 2.0}, "classify": {"label": "c", "weight": 0.5}}
    model = tinyjoint.build({"image": CONV, "text": CONV}, heads)
    out = model(tinyjoint.batch())
    wanted = 2 * out.losses["contrastive"] + 0.5 * out.losses["classify"]
    assert torch.allclose(out.loss, wanted)
    turn = model(tinyjoint.batch(), "classify")
    assert set(turn.losses) == {"classify"}
    turn.loss.backward()
    assert not model.contrastive().log_scale.grad.any()  # type: ignore[union-attr]
    assert model.heads["classify"].scores.weight.grad.any()


def test_any_modalities_may_be_missing() -> None:
    """A model of four serves each alone, with the vector that it has beside the others."""
    towers = {"image": CONV, "text": CONV, "audio": RECURRENT, "video": RECURRENT}
    model = tinyjoint.build(towers).eval()
    batch = tinyjoint.batch(tuple(towers), 3)
    whole = model.encode(batch)
    for name in towers:
        alone = JointBatch({name: batch.inputs[name]}, {name: batch.present[name]})
        out = model.encode(alone)
        assert torch.allclose(out.vectors[name], whole.vectors[name], atol=1e-6)
        assert torch.allclose(out.vectors[name].norm(dim=-1), torch.ones(3), atol=1e-5)
        others = [each for other, each in out.vectors.items() if other != name]
        assert not any(bool(each.any()) for each in others)


@pytest.mark.parametrize("tower", [CONV, RECURRENT], ids=["conv", "recurrent"])
@pytest.mark.parametrize("modality", ["text", "audio", "video"])
def test_padding_changes_nothing(tower: dict[str, Any], modality: str) -> None:
    model = tinyjoint.build({modality: tower}, CLASSIFY).eval()
    value = tinyjoint.batch((modality,), 5).inputs[modality]
    rows = model.towers[modality](value)
    for place in range(5):
        one: Any = value
        if isinstance(one, Tokens):
            kept = int(one.mask[place].sum())
            alone: Any = Tokens(
                one.ids[place : place + 1, :kept], one.mask[place : place + 1, :kept]
            )
        elif isinstance(one, Sound):
            kept = int(one.lengths[place])
            alone = Sound(one.values[place : place + 1, :kept], one.lengths[place : place + 1])
        else:
            kept = int(one.mask[place].sum())
            alone = type(one)(
                one.pixels[place : place + 1, :kept], one.mask[place : place + 1, :kept]
            )
        assert torch.allclose(model.towers[modality](alone)[0], rows[place], atol=1e-5)


def test_cached_vectors_stand_for_inputs(tmp_path: Path) -> None:
    folder = tinymodels.build("vit", tmp_path / "vit")
    towers = {"image": {"kind": "hf", "model": str(folder)}, "text": CONV}
    model = tinyjoint.build(towers)
    assert [name for name, tower in model.towers.items() if tower.frozen] == ["image"]
    batch = tinyjoint.batch()
    pixels = torch.randint(0, 256, (6, 32, 32, 3)).to(torch.uint8)
    batch = dataclasses.replace(batch, inputs={**batch.inputs, "image": pixels})
    kept = model.towers["image"].look(pixels)
    cached = dataclasses.replace(batch, inputs={**batch.inputs, "image": kept})
    assert torch.equal(model(cached).loss, model(batch).loss)


def test_dropout_is_for_training_alone() -> None:
    model = tinyjoint.build({"image": CONV, "text": CONV}, CLASSIFY, dropout=0.5)
    batch = tinyjoint.batch()
    assert not torch.equal(model(batch).loss, model(batch).loss)
    model.eval()
    assert torch.equal(model(batch).loss, model(batch).loss)


def test_modality_dropout_leaves_one() -> None:
    present = {"image": torch.ones(200).bool(), "text": torch.arange(200) % 2 == 0}
    dropped = augment.drop_modalities(present, 0.5, chances(200))
    assert (dropped["image"] | dropped["text"]).all()
    assert 60 < int(dropped["text"].sum()) < 95
    assert not (dropped["text"] & ~present["text"]).any()
    both = {"image": torch.ones(2000).bool(), "text": torch.ones(2000).bool()}
    for chance in (0.1, 0.5):
        kept = augment.drop_modalities(both, chance, chances(2000))["text"].float().mean()
        # Where both were to go, both stay.
        assert float(kept) == pytest.approx(1 - chance + chance**2, abs=0.03)
    model = tinyjoint.build({"image": CONV, "text": CONV}, train={"modality_dropout": 0.9})
    batch = tinyjoint.batch(rows=8)
    rows = {name: each.any(1) for name, each in model(batch).vectors.items()}
    assert not (rows["image"] & rows["text"]).all()
    model.eval()
    assert all(bool(each.any(1).all()) for each in model(batch).vectors.values())


def chances(count: int) -> augment.Chances:
    seeds = torch.arange(count)
    return augment.chances_of(JointBatch({}, {"image": seeds > -1}, seeds=seeds))


def test_a_samples_changes_are_its_own() -> None:
    """The same alone, beside others and beside longer ones; others with another seed."""
    whole = dataclasses.replace(
        tinyjoint.batch(("image", "text", "audio", "video"), rows=5), seeds=torch.arange(5) + 7
    )
    changes = {"crop": 0.4, "color": 0.3, "noise": 0.5, "words": 0.5}
    together = augment.prepare(whole, changes, 0.4)
    for row in range(5):
        part = whole.part(row, row + 1)
        tokens, sound = part.inputs["text"], part.inputs["audio"]
        assert isinstance(tokens, Tokens)
        assert isinstance(sound, Sound)
        shorter = {
            "text": Tokens(
                *(each[:, : int(tokens.mask.sum())] for each in (tokens.ids, tokens.mask))
            ),
            "audio": Sound(sound.values[:, : int(sound.lengths)], sound.lengths),
        }
        part = dataclasses.replace(part, inputs={**part.inputs, **shorter})
        alone = augment.prepare(part, changes, 0.4)
        wanted = together.part(row, row + 1)
        for name, value in alone.inputs.items():
            assert alone.present[name] == wanted.present[name]
            for one, other in zip(tensors(value), tensors(wanted.inputs[name]), strict=True):
                same = other[:, : one.shape[1]] if one.ndim > 1 else other
                assert torch.allclose(one.float(), same.float(), atol=1e-6), name
        again = augment.prepare(dataclasses.replace(part, seeds=part.seeds + 100), changes, 0.4)
        assert not torch.equal(again.inputs["image"], alone.inputs["image"])


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [getattr(value, each.name) for each in dataclasses.fields(value)]


def test_augmentation_changes_what_it_names() -> None:
    pixels = torch.arange(256).repeat(3, 16, 1)[:, :, :48].unsqueeze(-1).expand(-1, -1, -1, 3)
    pixels = pixels.to(torch.uint8).contiguous()
    cut = augment.change_pixels(pixels, {"crop": 0.4}, chances(3))
    assert cut.shape == pixels.shape
    assert not torch.equal(cut, pixels)
    assert int(cut.max()) <= 47  # nothing new: a part, enlarged
    four = pixels[:1].repeat(4, 1, 1, 1)
    twins = augment.change_pixels(four, {"crop": 0.4, "color": 0.5}, chances(2))
    assert torch.equal(twins[0], twins[1])
    assert not torch.equal(twins[1], twins[2])
    sound = Sound(
        torch.ones(2, 50) * (torch.arange(50) < torch.tensor([[50], [20]])), torch.tensor([50, 20])
    )
    noisy = augment.add_noise(sound, 0.5, chances(2))
    assert not torch.equal(noisy.values, sound.values)
    assert not noisy.values[1, 20:].any()
    words = Tokens(torch.ones(2, 9).long(), torch.tensor([[1] * 9, [1] * 4 + [0] * 5]))
    hidden = augment.hide_tokens(words, 0.99, chances(2))
    assert hidden.mask[:, 0].all()
    assert hidden.mask[0, 8] == 1
    assert hidden.mask[1, 3] == 1
    assert hidden.mask.sum() < words.mask.sum()
    batch = tinyjoint.batch()
    changed = augment.prepare(batch, {"crop": 0.4}, 0.0)
    assert changed.prepared
    assert augment.prepare(changed, {"crop": 0.4}, 0.0) is changed
    model = tinyjoint.build({"image": CONV, "text": CONV}, train={"augment": {"crop": 0.4}})
    assert not torch.equal(model(batch).loss, model(batch).loss)
    model.eval()
    assert torch.equal(model(batch).loss, model(batch).loss)


@pytest.mark.parametrize("kind", ["fgm", "pgd"])
def test_adversary_raises_the_loss_within_its_size(kind: str) -> None:
    rng = torch.Generator().manual_seed(0)
    centre = torch.randn(5, 8, generator=rng)

    def loss_of(features: dict[str, torch.Tensor]) -> torch.Tensor:
        return (features["image"] @ centre.T).softmax(-1).diagonal().log().neg().sum()

    before = {"image": torch.randn(5, 8, generator=rng)}
    settings = {"kind": kind, "size": 0.2, "steps": 4}
    after = adversary.worst(loss_of, before, settings)
    assert loss_of(after) > loss_of(before) + 0.1
    moved = (after["image"] - before["image"]).norm(dim=-1) / before["image"].norm(dim=-1)
    assert moved.max() <= 0.2 + 1e-5
    model = tinyjoint.build({"image": CONV, "text": CONV}, train={"adversarial": {"kind": kind}})
    out = model(tinyjoint.batch())
    assert out.losses["adversarial"] > out.losses["contrastive"]
    assert torch.allclose(out.loss, out.losses["contrastive"] + out.losses["adversarial"])


def test_seed_makes_the_same_model_and_the_same_course() -> None:
    def course(seed: int) -> tuple[JointModel, float]:
        model = tinyjoint.build({"image": CONV, "text": CONV}, seed=seed, dropout=0.3)
        torch.manual_seed(seed)
        return model, tinyjoint.learn(model, tinyjoint.batch(), 3)

    one, other = course(1), course(1)
    assert one[1] == other[1]
    for a, b in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert course(2)[1] != one[1]


def test_bfloat16_is_near_and_losses_stay_float32() -> None:
    heads = {"contrastive": {}, **CLASSIFY, "caption": CAPTION}
    model = tinyjoint.build({"image": CONV, "text": RECURRENT, "audio": RECURRENT}, heads)
    batch = tinyjoint.batch(THREE)
    exact = model(batch)
    model.compute = torch.bfloat16
    near = model(batch)
    assert near.loss.dtype is torch.float32
    assert not torch.equal(near.loss, exact.loss)
    assert abs(float(near.loss.detach()) / float(exact.loss.detach()) - 1) < 0.05
    cosine = (near.vectors["image"] * exact.vectors["image"]).sum(-1)
    assert cosine.min() > 0.999
    near.loss.backward()
    assert all(bool(each.isfinite().all()) for each in tinyjoint.gradients(model).values())


def test_rates_and_decay_by_group(tmp_path: Path) -> None:
    folder = tinymodels.build("vit", tmp_path / "vit")
    towers = {"image": {"kind": "hf", "model": str(folder), "train": "full"}, "text": CONV}
    model = tinyjoint.build(towers)
    groups = parameter_groups(model, 1e-3, 1e-5, 0.1)
    by = {id(weight): group for group in groups for weight in group["params"]}
    seen = {name: by[id(weight)] for name, weight in model.named_parameters() if id(weight) in by}
    assert len(seen) == sum(len(group["params"]) for group in groups)
    old = next(each for name, each in seen.items() if "image.network" in name and "weight" in name)
    assert old["lr"] == 1e-5
    new = seen["towers.image.projection.weight"]
    assert (new["lr"], new["weight_decay"]) == (1e-3, 0.1)
    assert seen["towers.image.projection.bias"]["weight_decay"] == 0
    assert seen["heads.contrastive.log_scale"]["weight_decay"] == 0
    # Decoupled: without a gradient a matrix still shrinks by lr * decay, and nothing else does.
    optimizer = make_optimizer("adamw", groups)
    before = model.towers["image"].projection.weight.detach().clone()
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(model.towers["image"].projection.weight, before * (1 - 1e-3 * 0.1))
    assert isinstance(make_optimizer("sgd", groups), torch.optim.SGD)


def test_rate_rises_and_falls() -> None:
    course = [rate(step, 100, 0.1) for step in range(101)]
    assert course[0] == pytest.approx(0.1)
    assert course[9] == course[10] == 1
    assert course[55] == pytest.approx(0.5)
    assert course[100] == pytest.approx(0, abs=1e-9)
    assert course[10:] == sorted(course[10:], reverse=True)
    assert rate(0, 5, 0.0) == 1


def test_a_torn_or_other_checkpoint_is_refused(tmp_path: Path) -> None:
    model = tinyjoint.build({"image": CONV, "text": CONV})
    checkpoint.save(model, tmp_path / "good")
    assert isinstance(checkpoint.load(tmp_path / "good"), JointModel)
    weights = tmp_path / "good" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(RefusedError, match="no joint model can be loaded"):
        checkpoint.load(tmp_path / "good")
    checkpoint.save(tinyjoint.build({"image": CONV, "audio": CONV}), tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(RefusedError, match=r"lacks \d+ tensors, such as towers.text"):
        checkpoint.load(tmp_path / "good")
