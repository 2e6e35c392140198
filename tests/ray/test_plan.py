"""`mmray plan` on real shards: its probe, what it counts, and a run beside its estimate."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

import mmray
from mmray.errors import JobFailed
from mmray.flow.drive import _pool
from mmray.jobs.forecast import Machines, layout
from mmray.jobs.plan import plan
from mmray.jobs.planned import PlanResult
from mmray.jobs.probe import Limits
from mmray.specs import load_spec
from mmray.specs.common import Resources
from tests import media, runs, shards

SHORT = Limits(seconds=1.0, samples=200)


def planned(spec: runs.Spec, **changes: Any) -> PlanResult:
    return plan(load_spec(spec | changes), price=3.6, limits=SHORT)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Spec:
    folder = tmp_path / "tars"
    folder.mkdir()
    for name, data in shards.sample_shards(4, 150).items():
        (folder / name).write_bytes(data)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return runs.embed_spec(str(folder / "*.tar"), str(tmp_path / "store"))


def test_a_run_does_what_the_plan_says(spec: runs.Spec, tmp_path: Path) -> None:
    found = planned(spec)
    assert not (tmp_path / "store").exists()
    assert list((tmp_path / "temporary").iterdir()) == []
    assert found.status == "work"
    assert found.shards == {"total": 4, "finished": 0, "changed": 0, "removed": 0, "left": 4}
    assert found.rows.estimate and str(found.rows).startswith("~")
    assert found.rows.value == pytest.approx(600, rel=0.1)
    assert found.fragments.value == 12  # 64 + 64 + 22 of each
    assert found.layout["kind"] == "fused"
    assert found.probe is not None
    assert (found.probe.device, found.probe.quarantined) == ("cpu", 0)
    assert 0 < found.probe.samples < found.probe.read
    assert found.probe.stages.keys() == {"read", "decode", "encode", "write"}
    assert all(found.probe.stages.values())
    assert found.cost == pytest.approx(3.6 * found.seconds / 3600)
    assert PlanResult.model_validate_json(found.line()) == found

    report = mmray.run(spec, quiet=True)
    assert report.rows_read == 600
    assert report.seconds / 20 < found.seconds < report.seconds * 20

    again = planned(spec)
    assert (again.status, again.rows.value, again.rows.estimate) == ("nothing", 0, False)
    assert (again.rows_skipped, again.probe, again.shards["finished"]) == (600, None, 4)


def test_what_is_done_is_not_planned_again(spec: runs.Spec, tmp_path: Path) -> None:
    bad = [("zz.jpg", b"no picture"), ("zz.txt", b"words")]
    (tmp_path / "tars" / "00003.tar").write_bytes(shards.tar(bad))
    mmray.run(spec | {"errors": {"max_fraction": 0.5}}, quiet=True)
    (tmp_path / "tars" / "00001.tar").write_bytes(shards.sample_tar(30, first=900))
    (tmp_path / "tars" / "00002.tar").unlink()
    found = planned(spec)
    assert found.shards == {"total": 3, "finished": 2, "changed": 1, "removed": 1, "left": 1}
    assert (found.rows_skipped, found.rows_quarantined) == (151, 1)
    assert found.layout["actors"] == 1
    assert found.rows.value == pytest.approx(30, abs=3)


def test_bad_samples_of_the_probe_are_shown(spec: runs.Spec, tmp_path: Path) -> None:
    bad = [("zz.jpg", b"no picture"), ("zz.txt", b"words")]
    (tmp_path / "tars" / "00000.tar").write_bytes(shards.tar(bad))
    found = planned(spec, errors={"max_fraction": 0.0})
    assert found.probe is not None
    assert found.probe.quarantined == 1
    example = found.probe.examples[0]
    assert (example.source_key, example.stage) == ("zz", "decode") and example.message
    assert any("errors.max_fraction" in note for note in found.notes)


def test_without_a_gpu_a_split_plan_says_so(spec: runs.Spec) -> None:
    found = planned(spec, resources={"gpus": 1})
    assert found.probe is not None
    if found.probe.device == "cpu":
        assert any("no GPU here" in note for note in found.notes)
    assert found.layout["kind"] == "split"
    assert (found.layout["actors"], found.layout["decode_tasks"]) == (1, 1)


def test_a_model_that_does_not_load_fails_the_plan(spec: runs.Spec) -> None:
    broken = {"kind": "import", "model": "tests.toys:Unloadable"}
    with pytest.raises(JobFailed, match="the weights are torn"):
        planned(spec, encoder=broken)


def test_windows_make_more_rows(spec: runs.Spec, tmp_path: Path) -> None:
    sound = media.sound(5.0, rate=8000)
    for number in range(2):
        members = [(f"{seed:03d}.wav", sound) for seed in range(20)]
        (tmp_path / "tars" / f"0000{number}.tar").write_bytes(shards.tar(members))
    heard = {
        "encoder": {"kind": "import", "model": "tests.toys:Listener"},
        "source": {"kind": "webdataset", "uri": str(tmp_path / "tars" / "0000[01].tar")},
        "audio": {"windows": "rows"},
        "keep": [],
    }
    found = planned(spec, **heard)
    assert found.rows.value == pytest.approx(40, rel=0.1)
    assert found.rows_per_sample == 3  # windows of 2 seconds of 5


@pytest.mark.parametrize(
    "fields", [{}, {"cpus": 2}, {"pool": 3}, {"gpus": 1}, {"gpus": 0.5}, {"gpus": 2}]
)
@pytest.mark.parametrize("count", [1, 2, 100])
def test_the_pool_is_the_one_that_a_run_makes(fields: dict[str, Any], count: int) -> None:
    resources = Resources(**fields)
    made = layout(resources, count, Machines(1, 2.0, 2.0))
    pool = _pool(resources, count)
    assert (
        min(pool.max_size, 2) == made.actors if "pool" in fields else pool.max_size == made.actors
    )
