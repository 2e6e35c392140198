"""Contrastive losses: their values, what may be missing, and that a batch in parts is the batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import logsigmoid, normalize

from mmray.models.joint.losses import Contrasted, cached_contrastive, infonce, sigmoid
from mmray.models.joint.model import JointModel
from tests import tinyjoint
from tests.tinyjoint import CAPTION, CONV, RECURRENT

torch.set_num_threads(1)
ALL_HEADS = {
    "contrastive": {},
    "classify": {"label": "c", "weight": 0.3},
    "regress": {"label": "r", "weight": 0.5},
    "caption": CAPTION,
}
TOWERS = {"image": CONV, "text": CONV, "audio": RECURRENT}
HOLES = {
    "image": [1, 1, 0, 1, 0, 1, 1],
    "text": [1, 0, 1, 1, 0, 1, 0],
    "audio": [0, 1, 1, 0, 1, 1, 0],
}


def unit(rows: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, 5, generator=rng, dtype=torch.float64), dim=-1)


def test_infonce_is_its_formula() -> None:
    a, b = unit(4, 0), unit(4, 1)
    scores = (3 * a @ b.T).exp()
    wanted = sum(
        -math.log(scores[i, i] / scores[i].sum()) - math.log(scores[i, i] / scores[:, i].sum())
        for i in range(4)
    )
    found = infonce(a, b, torch.tensor(3.0, dtype=torch.float64))
    assert float(found) == pytest.approx(wanted / 2, abs=1e-12)


def test_sigmoid_is_its_formula() -> None:
    a, b, scale, bias = unit(3, 0), unit(3, 1), torch.tensor(4.0), torch.tensor(-2.0)
    wanted = 0.0
    for i in range(3):
        for j in range(3):
            sign = 1 if i == j else -1
            wanted -= float(logsigmoid(sign * (scale * a[i] @ b[j] + bias)))
    assert float(sigmoid(a, b, scale, bias)) == pytest.approx(wanted, abs=1e-9)


def test_a_group_has_no_negatives_in_itself() -> None:
    """Two rows of one group lose as two batches would, but for rows of other groups."""
    a, b, scale = unit(4, 0), unit(4, 1), torch.tensor(5.0, dtype=torch.float64)
    alike = torch.tensor([7, 7, 7, 7])
    assert float(infonce(a, b, scale, alike)) == pytest.approx(0, abs=1e-12)
    some = infonce(a, b, scale, torch.tensor([0, 0, 1, 2]))
    assert 0 < float(some) < float(infonce(a, b, scale))
    assert torch.equal(infonce(a, b, scale, torch.arange(4)), infonce(a, b, scale))


@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "moco"])
def test_rows_without_a_pair_count_nowhere(loss: str) -> None:
    """A row with one modality alone, and what stands in an absent place, change nothing."""
    heads = {"contrastive": {"loss": loss, "queue": 8}}
    model = tinyjoint.build(TOWERS, heads)
    batch = tinyjoint.batch(tuple(TOWERS), 7, present=HOLES)
    whole = model(batch)
    pixels = batch.inputs["image"].clone()
    pixels[2], pixels[4] = 255, 77  # rows without an image
    other = dataclasses.replace(batch, inputs={**batch.inputs, "image": pixels})
    assert torch.equal(model(other).loss, whole.loss)
    assert float(model(batch.part(0, 6)).loss.detach()) == pytest.approx(
        float(whole.loss.detach()), abs=1e-5
    )


@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "moco"])
@pytest.mark.parametrize("rows", [1, 2])
def test_no_pair_is_no_nan(loss: str, rows: int) -> None:
    """A batch of one, and one in which no sample has two modalities."""
    model = tinyjoint.build({"image": CONV, "text": CONV}, {"contrastive": {"loss": loss}})
    alone = tinyjoint.batch(rows=rows, present={"image": [1] * rows, "text": [0] * rows})
    out = model(alone)
    out.loss.backward()
    assert float(out.losses["contrastive"]) == 0
    found = tinyjoint.gradients(model)
    assert all(bool((each == 0).all()) for each in found.values())
    model.zero_grad()
    one = model(tinyjoint.batch(rows=1))
    one.loss.backward()
    assert all(bool(each.isfinite().all()) for each in tinyjoint.gradients(model).values())


def test_temperature_is_learned_and_bounded() -> None:
    model = tinyjoint.build({"image": CONV, "text": CONV})
    head = model.contrastive()
    assert head is not None
    assert head.scale.item() == pytest.approx(1 / 0.07)
    before = head.log_scale.item()
    tinyjoint.learn(model, tinyjoint.batch(), 3)
    assert head.log_scale.item() != before
    with torch.no_grad():
        head.log_scale.fill_(50.0)
    assert head.scale.item() == pytest.approx(100)
    fixed = tinyjoint.build(
        {"image": CONV, "text": CONV}, {"contrastive": {"temperature": 0.5, "learned": False}}
    )
    tinyjoint.learn(fixed, tinyjoint.batch(), 3)
    head = fixed.contrastive()
    assert head is not None
    assert head.scale.item() == pytest.approx(2)


def grown(loss: str, heads: dict[str, object], parts: int) -> tuple[JointModel, float]:
    """Losses and gradients of one batch of eleven, as a whole or in parts, in float64."""
    heads = {**heads, "contrastive": {"loss": loss, "queue": 8}}
    model = tinyjoint.build(TOWERS, heads).double()
    holes = {name: [*there, 1, 0, 1, 1] for name, there in HOLES.items()}
    batch = tinyjoint.as_double(tinyjoint.batch(tuple(TOWERS), 11, present=holes))
    if loss == "moco":
        model(batch).loss.backward()
        model.after_step(0, 2)
        model.zero_grad()
    if parts == 1:
        out = model(batch)
        out.loss.backward()
        return model, float(out.loss.detach())
    return model, float(cached_contrastive(model, batch.parts(parts), model).loss)


@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "moco"])
@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(loss: str, parts: int) -> None:
    whole, wanted = grown(loss, ALL_HEADS, 1)
    split, found = grown(loss, ALL_HEADS, parts)
    assert found == pytest.approx(wanted, rel=1e-9)
    there, here = tinyjoint.gradients(whole), tinyjoint.gradients(split)
    for name, gradient in there.items():
        assert torch.allclose(here[name], gradient, atol=1e-9, rtol=1e-7), name
    if loss == "moco":
        whole.after_step(1, 2)
        split.after_step(1, 2)
        queues = [each.contrastive().get_buffer("queue") for each in (whole, split)]
        assert torch.allclose(*queues, atol=1e-12)


def test_parts_use_the_same_random_numbers_twice() -> None:
    """With dropout, the second pass must see what the first saw: the gradient of that very loss."""
    model = tinyjoint.build({"image": CONV, "text": CONV}, dropout=0.5).double()
    parts = tinyjoint.as_double(tinyjoint.batch(rows=8)).parts(2)
    torch.manual_seed(3)
    cached_contrastive(model, parts, model)
    found = tinyjoint.gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    vectors = [model.contrast(part) for part in parts]
    head = model.contrastive()
    assert head is not None
    whole = Contrasted(
        torch.cat([each.vectors for each in vectors]),
        torch.cat([each.present for each in vectors]),
        torch.cat([each.groups for each in vectors]),
    )
    head(whole).backward()
    for name, weight in model.towers.named_parameters():
        assert weight.grad is not None
        assert torch.allclose(found[f"towers.{name}"], weight.grad, atol=1e-9), name


def test_in_parts_one_head_alone() -> None:
    model = tinyjoint.build({"image": CONV, "text": CONV}, ALL_HEADS).double()
    batch = tinyjoint.as_double(tinyjoint.batch(rows=6))
    model(batch, "classify").loss.backward()
    wanted = tinyjoint.gradients(model)
    model.zero_grad()
    out = cached_contrastive(model, batch.parts(3), model, "classify")
    assert set(out.losses) == {"classify"}
    for name, gradient in tinyjoint.gradients(model).items():
        assert torch.allclose(gradient, wanted[name], atol=1e-12), name


def test_queue_keeps_the_newest_keys_and_is_saved(tmp_path: object) -> None:
    heads = {"contrastive": {"loss": "moco", "queue": 8, "momentum": 0.5}}
    model = tinyjoint.build({"image": CONV, "text": CONV}, heads)
    head = model.contrastive()
    assert head is not None
    first, second = tinyjoint.batch(rows=6, seed=1), tinyjoint.batch(rows=6, seed=2)
    alone = float(model(second).losses["contrastive"])
    model.after_step(0, 9)  # the second batch is in the queue now
    assert int(head.get_buffer("filled")[0]) == 6
    keys = model.contrast(first).keys
    assert keys is not None
    model(first)
    model.after_step(1, 9)
    queue = head.get_buffer("queue")
    assert torch.allclose(queue[0, [6, 7, 0, 1, 2, 3]], keys[:, 0], atol=1e-6)
    # With negatives of the queue the same batch is harder.
    assert float(model(second).losses["contrastive"]) > alone
    model.eval()
    model(first)
    model.after_step(2, 9)
    assert int(head.get_buffer("filled")[0]) == 18 - 6 + 6  # the second batch, but none of eval


def test_momentum_copy_follows_slowly() -> None:
    heads = {"contrastive": {"loss": "moco", "queue": 8, "momentum": 0.75}}
    model = tinyjoint.build({"image": CONV, "text": CONV}, heads)
    assert model.momentum is not None
    name = "image.projection.weight"
    weight = dict(model.towers.named_parameters())[name]
    copy = model.momentum.weights[name.replace(".", "/")]
    assert torch.equal(copy, weight)
    start = copy.clone()
    with torch.no_grad():
        weight.add_(1.0)
    model.after_step(0, 1)
    assert torch.allclose(copy, start + 0.25)
    assert not copy.requires_grad
