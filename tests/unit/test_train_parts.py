"""The small parts of training: measures, states without pickles, checkpoint folders, curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmray.errors import RefusedError
from mmray.models.joint import FROZEN
from mmray.report.curves import curve
from mmray.storage import Storage
from mmray.train import packing
from mmray.train.checkpoints import Checkpoints
from mmray.train.measure import better, retrieval


def test_retrieval_counts_a_candidate_of_the_same_group_as_right() -> None:
    one = torch.eye(4)
    other = torch.eye(4)[[1, 0, 2, 3]]
    present = torch.ones(4, dtype=torch.bool)
    alone = retrieval({"a": (one, present), "b": (other, present)}, torch.arange(4))
    assert alone["val/a_to_b_r1"] == 0.5
    assert alone["val/retrieval_r5"] == 1.0
    assert 0.5 < alone["val/mrr"] < 1
    grouped = retrieval({"a": (one, present), "b": (other, present)}, torch.tensor([7, 7, 1, 2]))
    assert grouped["val/retrieval_r1"] == 1.0


def test_retrieval_does_not_reward_vectors_that_are_all_alike() -> None:
    same, present = torch.ones(30, 4) / 2, torch.ones(30, dtype=torch.bool)
    found = retrieval({"a": (same, present), "b": (same, present)}, torch.arange(30))
    assert found["val/retrieval_r10"] == 0.0


def test_retrieval_leaves_out_what_is_absent() -> None:
    vectors = torch.eye(3)
    here = torch.tensor([True, True, False])
    found = retrieval({"a": (vectors, here), "b": (vectors, here.roll(1))}, torch.arange(3))
    # Only sample 1 has both; sample 0 has nothing to find, and sample 2 is no query of a.
    assert found["val/a_to_b_r1"] == 1.0
    nothing = retrieval({"a": (vectors, here), "b": (vectors, ~here)}, torch.arange(3))
    assert nothing == dict.fromkeys(nothing, 0.0)


def test_losses_fall_and_all_else_rises() -> None:
    assert better("val/loss_caption", 1.0, 2.0)
    assert better("val/retrieval_r10", 0.2, 0.1)
    assert not better("val/mrr", 0.1, 0.1)
    assert better("val/accuracy", 0.0, None)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    state = {
        "optimizer": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(2, 3)}, 7: {}},
        "tunings": [{"rank_pattern": {"a.b": [True, False]}, "ipt": {"a.b": torch.ones(2)}}],
        "none": None,
    }
    packing.write(state, tmp_path, "course")
    found = packing.read(tmp_path, "course")
    assert list(found["optimizer"]) == [0, 7]
    assert torch.equal(found["optimizer"][0]["exp_avg"], state["optimizer"][0]["exp_avg"])  # type: ignore[index]
    assert found["tunings"][0]["rank_pattern"] == {"a.b": [True, False]}
    assert found["none"] is None
    (tmp_path / "course.safetensors").write_bytes(b"torn")
    with pytest.raises(RefusedError, match="isn't a whole state"):
        packing.read(tmp_path, "course")


def test_a_copy_stays_and_shares_what_was_shared() -> None:
    weight = torch.zeros(3)
    found = packing.copied({"a": weight, "b": weight, "c": [torch.ones(1)]})
    weight += 1
    assert found["a"] is found["b"]
    assert found["a"].tolist() == [0, 0, 0]


def test_checkpoints_keep_the_best_and_the_last_two(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage(), str(tmp_path))
    for step in range(6):
        checkpoints.save(step, _fill, best=min(step, 1))
    checkpoints.wait()
    assert [each.step for each in checkpoints.found()] == [5, 4, 1]
    assert sorted(each.name[-1] for each in (tmp_path / "checkpoints").iterdir()) == list("145")
    assert checkpoints.pointer() == {
        "format": 1,
        "last": "checkpoints/step-00000005",
        "best": "checkpoints/step-00000001",
        "done": False,
    }


def test_a_checkpoint_without_its_manifest_is_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage(), str(tmp_path / "out"))
    for step in (1, 2):
        checkpoints.save(step, _fill, best=None)
    checkpoints.wait()
    said: list[str] = []
    newest = tmp_path / "out" / "checkpoints" / "step-00000002"
    (newest / "model" / "weights").write_text("torn")
    found = checkpoints.newest(said.append, tmp_path / "at")
    assert found is not None
    assert found[0].step == 1
    assert (found[1] / "model" / "weights").read_text() == "whole"
    assert said[0].startswith("passing over checkpoints/step-00000002")
    (newest / "manifest.json").unlink()
    assert [each.step for each in checkpoints.found()] == [1]
    (newest.parent / "step-00000001" / "manifest.json").write_text(json.dumps({"files": 3}))
    assert checkpoints.newest(said.append, tmp_path / "at") is None


def test_frozen_weights_are_written_once(tmp_path: Path) -> None:
    told: list[bool] = []

    def write(folder: Path, again: bool) -> None:
        _fill(folder, again)
        told.append(again)
        for name in () if again else FROZEN:
            (folder / "model" / name).write_text(f"written {len(told)}")

    output = tmp_path / "out"
    for step in range(3):  # each by a process of its own, as after a kill
        checkpoints = Checkpoints(Storage(), str(output))
        checkpoints.save(step, write, best=None)
        checkpoints.save(step + 10, write, best=None)
        checkpoints.wait()
        if step == 1:
            (output / "checkpoints" / "step-00000011" / "model" / FROZEN[0]).write_text("torn")
    assert told == [False, True, True, True, False, True]
    found = checkpoints.newest(lambda words: None, tmp_path / "at")
    assert found is not None
    listed = [each.path.rpartition("/")[2] for each in found[0].files]
    assert sorted(listed) == sorted([*FROZEN, "weights"])
    assert (found[1] / "model" / FROZEN[0]).read_text() == "written 5"


def test_what_went_wrong_in_the_background_is_raised(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage(), str(tmp_path))

    def fails(folder: Path, again: bool) -> None:
        raise RuntimeError("no room")

    checkpoints.save(1, fails, None)
    with pytest.raises(RuntimeError, match="no room"):
        checkpoints.wait()
    assert checkpoints.found() == []


def _fill(folder: Path, again: bool) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("whole")


def test_a_curve_is_drawn_from_what_is_finite() -> None:
    assert curve([(1.0, 2.0)], "Loss") == ""
    assert curve([(1.0, 2.0), (2.0, float("nan"))], "Loss") == ""
    chart = curve([(float(x), 1 / x) for x in range(1, 2000)], "Loss <b>")
    assert "Loss &lt;b&gt;" in chart
    line = chart.partition('points="')[2].partition('"')[0].split()
    assert 100 < len(line) <= 400
    assert all(0 <= float(part) <= 1000 for pair in line for part in pair.split(","))
