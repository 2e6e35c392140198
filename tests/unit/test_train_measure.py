"""What is measured on the held-out split, and what is kept: numbers that mean what they say."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.encoders.joint_inputs import JointInputs
from mmray.errors import JobFailed
from mmray.jobs import train
from mmray.models.joint import checkpoint
from mmray.models.joint.batch import JointBatch
from mmray.models.joint.config import JointConfig
from mmray.storage import Storage
from mmray.train.begin import begin, here
from mmray.train.checkpoints import Checkpoints
from mmray.train.loop import Place, held_out_parts
from mmray.train.measure import evaluate, retrieval
from mmray.train.task import Task
from mmray.train.worker import work
from tests import tinyjoint, tinymodels, training

STORAGE = Storage()
IMAGE_TEXT = {"image": tinyjoint.CONV, "text": tinyjoint.CONV}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_mocos_queue_is_no_part_of_what_is_measured() -> None:
    """It fills as training goes on: the loss would rise though nothing was unlearned."""
    model = tinyjoint.build(IMAGE_TEXT, {"contrastive": {"loss": "moco", "learned": False}})
    found = replace(tinyjoint.batch(("image", "text"), 8), labels={})
    held_out = [(found, torch.arange(8))]
    before = evaluate(model, held_out, 0)["val/loss"]
    for step in range(5):
        with torch.no_grad():
            model(found)
        model.after_step(step, 5)
    head = model.contrastive()
    assert head is not None and int(head.get_buffer("filled").min()) == 40
    assert evaluate(model, held_out, 0)["val/loss"] == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_loss_is_by_what_counts_for_its_head(cut: int) -> None:
    """Batches without labels say nothing of the classes, and weigh nothing."""
    heads = {"classify": {"label": "x"}, "regress": {"label": "y"}}
    model = tinyjoint.build(IMAGE_TEXT, heads)
    found = tinyjoint.batch(("image", "text"), 8)
    found.labels["classify"][4:] = -100
    ids = torch.arange(8)
    whole = evaluate(model, [(found, ids)], 0)
    parts = [(found.part(0, cut), ids[:cut]), (found.part(cut, 8), ids[cut:])]
    assert evaluate(model, parts, 0) == pytest.approx(whole, rel=1e-5)
    summed = whole["val/loss_classify"] + whole["val/loss_regress"]
    assert whole["val/loss"] == pytest.approx(summed)


def test_a_modality_that_no_held_out_sample_has() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(6, 4), dim=-1)
    none, every = torch.zeros(6, dtype=torch.bool), torch.ones(6, dtype=torch.bool)
    found = {"image": (vectors, every), "text": (vectors, every), "audio": (vectors * 0, none)}
    metrics = retrieval(found, torch.arange(6))
    assert metrics["val/image_to_text_r1"] == metrics["val/retrieval_r1"] == 1.0
    assert not [name for name in metrics if "audio" in name]


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batch", [1, 2, 4, 6, 64])
def test_no_rank_is_without_held_out_rows(world: int, batch: int) -> None:
    for count in (world, world + 1, 2 * world + 1, 1001):
        parts = held_out_parts(np.arange(count), batch, world)
        assert np.concatenate(parts).tolist() == list(range(count))
        assert min(map(len, parts)) >= world
        assert max(map(len, parts)) <= 2 * max(batch, world)


@pytest.mark.parametrize("how", ["full", "lora", "last_n"])
def test_a_pretrained_towers_statistics_stay(how: str, tmp_path: Path) -> None:
    """CLAP's: a batch's are of one part on one rank, and silence stands in among its rows."""
    folder = tinymodels.build("clap", tmp_path / "clap")
    towers = {"audio": {"kind": "hf", "model": str(folder), "train": how}, "image": tinyjoint.CONV}
    settled = tinyjoint.settled(towers, {"contrastive": {}})
    model = checkpoint.create(JointConfig(**settled.config), settled.sources, 0)
    inputs = JointInputs(settled.config, settled.tokenizers)
    sounds, silence = (
        inputs.sounds(tinyjoint.waves(4)),
        inputs.sounds([np.zeros(0, np.float32)] * 4),
    )
    seen = tinyjoint.batch(("image",), 4)

    def vectors() -> torch.Tensor:
        model.eval()
        with torch.no_grad():
            found: torch.Tensor = model.towers["audio"](sounds)
        model.train()
        return found

    def batch(value: Any, there: bool) -> JointBatch:
        present = torch.full((4,), there)
        return replace(
            seen, inputs={"audio": value, **seen.inputs}, present={"audio": present, **seen.present}
        )

    before = vectors()
    with torch.no_grad():
        for _ in range(10):
            model(batch(silence, False))
            model(batch(sounds, True))
    torch.testing.assert_close(vectors(), before)


# --- checkpoints ----------------------------------------------------------------------------------


def fill(folder: Path, again: bool) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("x")


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def test_killed_before_the_last_pointer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last checkpoint is whole, and nothing names it: what is done names it then."""
    output = str(tmp_path / "out")
    killed = Checkpoints(STORAGE, output)
    killed.save(10, fill, 10)
    killed.wait()

    def die(told: dict[str, Any]) -> None:
        raise Killed

    monkeypatch.setattr(killed, "_point", die)
    killed.save(20, fill, 20)
    with pytest.raises(Killed):
        killed.wait()
    after = Checkpoints(STORAGE, output)
    newest = after.newest(print, tmp_path / "at")
    assert newest is not None and newest[0].step == 20
    after.finish(20, 20)
    pointer = after.pointer()
    assert pointer is not None
    assert (pointer["last"], pointer["best"]) == ("checkpoints/step-00000020",) * 2


def test_one_who_is_behind_takes_nothing_away(tmp_path: Path) -> None:
    ahead, behind = (Checkpoints(STORAGE, str(tmp_path / "out")) for _ in range(2))
    for step in (10, 20, 30, 40):
        ahead.save(step, fill, 30)
    ahead.wait()
    behind.save(20, fill, 10)
    behind.wait()
    assert {30, 40} <= {each.step for each in ahead.found()}


class Late:
    """Watches the second of two runs of one training, which waits until the first has ended."""

    def __init__(self) -> None:
        self.waits, self.goes = threading.Event(), threading.Event()

    def begun(self, *told: Any) -> None: ...

    def stepped(self, step: int, *told: Any) -> None:
        if step == 5:
            self.waits.set()
            self.goes.wait(60)

    def measured(self, *told: Any) -> None: ...

    def signal(self) -> int:
        return 15 if self.goes.is_set() else 0


def test_of_two_runs_the_later_leaves_what_was_learned(tmp_path: Path) -> None:
    spec = training.spec(training.write_tars(tmp_path / "tars"), tmp_path / "out", train__epochs=4)
    start = begin(spec, STORAGE, lambda _: None, here)
    late, failed = Late(), list[Exception]()

    def second() -> None:
        try:
            work(Task(spec, start.pinned), Place(), late, print)
        except JobFailed as error:
            failed.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    assert late.waits.wait(60)
    assert train.run(spec, quiet=True).status == "done"
    ended = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    late.goes.set()
    thread.join(60)
    assert "another run has ended the training" in str(failed[0])
    assert json.loads((tmp_path / "out" / "checkpoint.json").read_text()) == ended
    assert train.run(spec, quiet=True).status == "done"
