"""What each option of a train spec does to a training: it goes red where one is read and ignored.

The options of the model alone are in test_joint_model.py, and those of losses in
test_joint_losses.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.errors import JobFailed
from mmray.jobs import train
from mmray.models.joint.batch import JointBatch
from mmray.models.joint.model import JointModel
from mmray.specs.train import TrainSpec
from mmray.storage import Storage
from mmray.train import loop as loops
from mmray.train.batches import Batches
from mmray.train.begin import begin, here
from mmray.train.checkpoints import Checkpoints
from mmray.train.samples import Samples
from mmray.train.seen import Seen
from mmray.train.task import Task
from mmray.train.worker import precision
from tests import media, shards, tinymodels, training
from tests.tinyjoint import CONV

NESTEROV = 1.9
"""The first step of SGD is so many gradients long: momentum 0.9 looks ahead."""

ONE_STEP: dict[str, Any] = {
    "train__epochs": 1,
    "train__batch_size": 64,
    "train__optimizer": "sgd",
    "train__grad_clip": None,
    "train__weight_decay": 0.0,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> str:
    return training.write_tars(tmp_path_factory.mktemp("tars"))


@dataclass
class Observed:
    """A training that was looked at."""

    before: dict[str, torch.Tensor] = field(default_factory=dict)
    after: dict[str, torch.Tensor] = field(default_factory=dict)
    told: list[dict[str, float]] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    """Numbers of the samples of each batch that was made."""
    parts: list[int] = field(default_factory=list)
    """Rows of each call of the model in training."""

    def moved(self, part: str = "") -> float:
        """How far the weights of a part went, as a length."""
        return float(
            sum(
                (self.after[name] - value).square().sum()
                for name, value in self.before.items()
                if name.startswith(part)
            )
            ** 0.5
        )


Observe = Callable[..., Observed]


@pytest.fixture
def observe(tars: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observe:
    """Trains by a tiny spec with changes, and looks on."""
    count = iter(range(100))
    run, stepped, save = loops.Loop.run, Seen.stepped, Checkpoints.save
    make, forward = Batches.__call__, JointModel.forward

    def observed(**changes: Any) -> Observed:
        found = Observed()

        def running(self: loops.Loop, *args: Any) -> Any:
            found.before = {name: each.clone() for name, each in self.model.state_dict().items()}
            ended = run(self, *args)
            found.after = self.model.state_dict()
            return ended

        def noting(self: Seen, step: int, loss: float, told: dict[str, float]) -> None:
            found.told.append(told)
            stepped(self, step, loss, told)

        def saving(self: Checkpoints, step: int, *args: Any) -> None:
            found.saved.append(step)
            save(self, step, *args)

        def making(self: Batches, rows: np.ndarray) -> JointBatch:
            found.batches.append(rows.tolist())
            return make(self, rows)

        def looking(self: JointModel, batch: JointBatch, *args: Any) -> Any:
            if self.training:
                found.parts.append(batch.rows)
            return forward(self, batch, *args)

        with monkeypatch.context() as patch:
            patch.setattr(loops.Loop, "run", running)
            patch.setattr(Seen, "stepped", noting)
            patch.setattr(Checkpoints, "save", saving)
            patch.setattr(Batches, "__call__", making)
            patch.setattr(JointModel, "forward", looking)
            spec = training.spec(tars, tmp_path / f"out-{next(count)}", **changes)
            train.run(spec, quiet=True)
        return found

    return observed


def test_epochs_and_batch_size_make_the_steps(observe: Observe) -> None:
    found = observe(train__epochs=2, train__batch_size=9, data__split={"test": 0.0})
    assert len(found.told) == 2 * (48 // 9)
    assert {len(batch) for batch in found.batches} == {9}


def test_lr_is_the_length_of_a_step(observe: Observe) -> None:
    """Plain SGD goes along the gradient, by the rate: no more and no less."""
    one, two = (observe(**ONE_STEP, train__lr=rate) for rate in (1e-3, 2e-3))
    norm = one.told[0]["grad_norm"]
    assert one.moved() == pytest.approx(NESTEROV * 1e-3 * norm, rel=1e-3)
    assert two.moved() == pytest.approx(2 * one.moved(), rel=1e-3)


def test_tower_lr_is_that_of_pretrained_weights_alone(observe: Observe, tmp_path: Path) -> None:
    bert = tinymodels.build("bert", tmp_path / "bert")
    towers = {"image": CONV, "text": {"kind": "hf", "model": str(bert), "train": "full"}}
    one, two = (
        observe(**ONE_STEP, model__towers=towers, train__tower_lr=rate) for rate in (1e-3, 2e-3)
    )
    assert two.moved("towers.text.network") == pytest.approx(
        2 * one.moved("towers.text.network"), rel=1e-2
    )
    for part in ("towers.text.projection", "towers.image", "heads"):
        assert two.moved(part) == pytest.approx(one.moved(part), rel=1e-3)
        assert one.moved(part) > 0


def test_optimizer(observe: Observe) -> None:
    """Adam's first step is as long as the rate for each weight, whatever its gradient."""
    name = "towers.image.projection.weight"
    adam = observe(**{**ONE_STEP, "train__optimizer": "adamw"}, train__lr=1e-3)
    sgd = observe(**ONE_STEP, train__lr=1e-3)
    sizes = [(each.after[name] - each.before[name]).abs() for each in (adam, sgd)]
    assert float(sizes[0].median()) == pytest.approx(1e-3, rel=1e-2)
    assert float(sizes[1].std() / sizes[1].mean()) > 0.5


def test_weight_decay_shrinks_matrices_by_rate_and_decay(observe: Observe) -> None:
    options = {**ONE_STEP, "train__optimizer": "adamw", "train__lr": 1e-2}
    none, some = (observe(**{**options, "train__weight_decay": decay}) for decay in (0.0, 0.5))
    matrix, bias = "towers.image.projection.weight", "towers.image.projection.bias"
    wanted = none.after[matrix] - 1e-2 * 0.5 * none.before[matrix]
    assert torch.allclose(some.after[matrix], wanted, atol=1e-6)
    assert torch.equal(some.after[bias], none.after[bias])


def test_warmup_is_the_part_in_which_the_rate_rises(observe: Observe) -> None:
    split = {"test": 0.0}
    rates = [
        [row["rate"] for row in observe(data__split=split, train__warmup=part).told]
        for part in (0.0, 0.5)
    ]
    assert rates[0][0] == 1
    assert rates[0] == sorted(rates[0], reverse=True)
    assert rates[1][:9] == pytest.approx([(step + 1) / 9 for step in range(9)])
    assert len(rates[1]) == 18


def test_grad_clip_is_the_longest_gradient(observe: Observe) -> None:
    options = {**ONE_STEP, "train__lr": 1e-3}
    clipped = observe(**{**options, "train__grad_clip": 0.01})
    assert clipped.told[0]["grad_norm"] > 0.1
    assert clipped.moved() == pytest.approx(NESTEROV * 1e-3 * 0.01, rel=1e-2)


def test_precision(observe: Observe, tars: str, tmp_path: Path) -> None:
    spec = training.spec(tars, tmp_path / "x")
    assert precision(spec, "cpu") is torch.float32
    spec = training.spec(tars, tmp_path / "x", train__precision="bfloat16")
    assert precision(spec, "cpu") is torch.bfloat16
    exact, near = (observe(**ONE_STEP, train__precision=kind) for kind in ("float32", "bfloat16"))
    one, other = (each.told[0]["loss"] for each in (exact, near))
    assert one != other
    assert one == pytest.approx(other, rel=0.02)


def test_grad_accumulation_runs_a_batch_in_parts(observe: Observe) -> None:
    """That the losses are those of the whole batch is in test_train.py."""
    whole, parts = (observe(train__epochs=1, train__grad_accumulation=n) for n in (1, 3))
    assert set(whole.parts) == {8}
    assert set(parts.parts) == {2, 3}
    assert len(parts.told) == len(whole.told)


def test_checkpoint_steps(observe: Observe) -> None:
    split = {"test": 0.0}
    assert observe(data__split=split, train__epochs=2).saved == [0, 6, 12]
    every = observe(data__split=split, train__epochs=2, train__checkpoint_steps=4)
    assert every.saved == [0, 4, 6, 8, 12]


def test_seed_is_that_of_weights_order_and_chance(observe: Observe) -> None:
    options: dict[str, Any] = {"model__dropout": 0.5, "train__epochs": 1}
    one, same, other = (observe(**options, train__seed=seed) for seed in (1, 1, 2))
    weight = "towers.image.projection.weight"
    assert torch.equal(one.before[weight], same.before[weight])
    assert not torch.equal(one.before[weight], other.before[weight])
    assert one.batches == same.batches != other.batches
    assert [row["loss"] for row in one.told] == [row["loss"] for row in same.told]


def test_modality_dropout_and_augmentation_reach_the_model(observe: Observe) -> None:
    plain = observe(**ONE_STEP).told[0]["loss"]
    for changes in (
        {"train__modality_dropout": 0.5},
        {"train__augment": {"crop": 0.4}},
        {"train__augment": {"words": 0.9}},
        {"model__dropout": 0.5},
    ):
        assert observe(**ONE_STEP, **changes).told[0]["loss"] != plain, changes


def test_adversarial_adds_a_loss(observe: Observe) -> None:
    assert "adversarial" not in observe(**ONE_STEP).told[0]
    row = observe(**ONE_STEP, train__adversarial={"weight": 0.5}).told[0]
    assert row["loss"] == pytest.approx(row["contrastive"] + 0.5 * row["adversarial"], rel=1e-5)


def test_alternate_takes_heads_in_turn(observe: Observe) -> None:
    """And leaves out one that weighs nothing."""
    heads = {
        "contrastive": {},
        "classify": {"label": "category", "weight": 0.5},
        "regress": {"label": "number", "weight": 0.0},
    }
    both = observe(model__heads=heads, train__epochs=1)
    assert all({"contrastive", "classify", "regress"} <= set(row) for row in both.told)
    turns = observe(model__heads=heads, model__losses="alternate", train__epochs=1)
    names = [sorted(set(row) & set(heads)) for row in turns.told]
    assert names == [["contrastive"], ["classify"]] * (len(names) // 2) + [["contrastive"]] * (
        len(names) % 2
    )


@pytest.mark.parametrize(("metric", "epochs"), [("val/mrr", 3), ("val/loss", 4)])
def test_the_metric_says_when_to_stop_and_which_is_best(
    tars: str, tmp_path: Path, metric: str, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss falls, and the ranks stay as they are."""
    losses = iter([4.0, 3.0, 2.0, 1.0])
    monkeypatch.setattr(loops, "evaluate", lambda *_: {"val/loss": next(losses), "val/mrr": 0.5})
    stopping = {"metric": metric, "patience": 2}
    spec = training.spec(tars, tmp_path / "out", train__epochs=4, train__early_stopping=stopping)
    report = train.run(spec, quiet=True)
    assert report.metrics["epochs"] == epochs
    best = {"val/mrr": 1, "val/loss": 4}[metric]
    assert report.metrics["best_step"] == best * report.metrics["steps"] / epochs  # type: ignore[operator]


def test_a_full_tower_does_not_diverge_by_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real pretrained network, tuned as a whole, by rates that nobody chose."""
    uri = training.write_tars(tmp_path / "tars", 1, 96)
    fields = training.fields(uri, tmp_path / "out")
    text = {"kind": "packaged", "model": "minilm", "train": "full"}
    fields["model"] = {"towers": {"image": CONV, "text": text}, "heads": {"contrastive": {}}}
    fields["data"]["split"]["test"] = 0.0
    fields["train"] = {"epochs": 5, "batch_size": 16}
    losses: list[float] = []
    save = Checkpoints.save
    monkeypatch.setattr(Seen, "stepped", lambda _, step, loss, told: losses.append(loss))
    # A checkpoint of it is 270 MB.
    monkeypatch.setattr(Checkpoints, "save", lambda *args: None if args[1] else save(*args))
    train.run(TrainSpec.model_validate(fields), quiet=True)
    epochs = np.reshape(losses, (5, 6)).mean(1)
    assert (epochs[1:] < 1.02 * epochs[:-1]).all()
    assert epochs[-1] < 0.95 * np.log(16)  # what guessing would give


# --- data ---------------------------------------------------------------------------------------


def houses(folder: Path, count: int = 60) -> str:
    """A tar of pictures, each with a title, an artist and one of nine houses."""
    entries: list[tuple[str, bytes]] = []
    for seed in range(count):
        metadata = {"house": f"house {seed % 9}", "title": f"title {seed}"}
        entries += [
            (f"{seed:04d}.jpg", shards.picture(seed, (20, 16))),
            (f"{seed:04d}.txt", f"caption {seed}".encode()),
            (f"{seed:04d}.json", json.dumps(metadata).encode()),
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.tar").write_bytes(shards.tar(entries))
    return str(folder / "a.tar")


def samples_of(spec: TrainSpec) -> Samples:
    start = begin(spec, Storage(), lambda _: None, here)
    return Samples(Task(spec, start.pinned), Storage())


def test_split(tmp_path: Path) -> None:
    uri = houses(tmp_path)

    def split(name: str, **options: Any) -> Samples:
        return samples_of(training.spec(uri, tmp_path / name, data__split=options))

    alone, other = split("0", test=0.3), split("1", test=0.3, seed=1)
    assert not np.array_equal(alone.test, other.test)
    assert set(alone.test) < set(split("2", test=0.6).test)
    assert set(alone.groups) == {-1}
    whole = split("3", test=0.3, group="house")
    sides = [set(whole.groups[rows]) for rows in (whole.train, whole.test)]
    assert len(sides[0]) + len(sides[1]) == 9
    assert not sides[0] & sides[1]
    assert np.array_equal(whole.match, whole.groups)
    assert len(set(alone.match)) == 60
    by_text = split("4", test=0.3, group="caption")
    assert len(set(by_text.groups)) == 60


def test_text_is_the_field_that_is_named(tmp_path: Path) -> None:
    uri = houses(tmp_path, 8)
    for name, wanted in (("caption", "caption 0"), ("title", "title 0"), ("house", "house 0")):
        spec = training.spec(uri, tmp_path / name, data__text=name, data__split={"test": 0.0})
        assert samples_of(spec).values("text", [(0, 0)]) == [wanted]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"pixels": 300}, "DecompressionBomb"),
        ({"characters": 5}, "OversizedText"),
        ({"seconds": 0.5}, "OversizedAudio"),
        ({"bytes": 400}, "Oversized"),
    ],
)
def test_limits(tmp_path: Path, limit: dict[str, Any], words: str) -> None:
    entries = [
        ("a.jpg", shards.picture(1, (20, 16))),
        ("a.txt", b"a caption"),
        ("a.wav", media.sound(1.0)),
    ]
    (tmp_path / "a.tar").write_bytes(shards.tar(entries))
    towers = {"image": CONV, "text": CONV, "audio": CONV}
    options: dict[str, Any] = {"model__towers": towers, "data__split": {"test": 0.0}}
    uri = str(tmp_path / "a.tar")
    assert len(samples_of(training.spec(uri, tmp_path / "one", **options))) == 1
    with pytest.raises(JobFailed, match=words):
        samples_of(training.spec(uri, tmp_path / "two", **options, limits=limit))


def test_errors_max_fraction(tmp_path: Path) -> None:
    entries = [(f"{n}.jpg", shards.picture(n, (20, 16)) if n else b"no") for n in range(4)]
    (tmp_path / "a.tar").write_bytes(shards.tar(entries))
    options: dict[str, Any] = {
        "model__towers": {"image": CONV},
        "model__heads": {"classify": {"label": "c"}},
        "data__split": {"test": 0.0},
    }
    for most, words in ((0.2, "1 of 4 samples can't be used"), (0.3, "no training sample has")):
        spec = training.spec(
            str(tmp_path / "a.tar"),
            tmp_path / str(most),
            **options,
            errors={"max_fraction": most},
        )
        with pytest.raises(Exception, match=words):
            samples_of(spec)
