"""More ways to end a worker, each with Ray as a job starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

import mmray
from mmray.errors import JobFailed
from mmray.jobs.replay import replay
from tests import runs, shards
from tests.deadly import RED, assert_whole, quarantined, spec_of, write_tars


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(runs.ROOT))


def test_a_decoder_that_ends_its_process(tmp_path: Path) -> None:
    deadly = shards.picture(100) + b"deadly"
    places = write_tars(tmp_path / "tars", {"000100.jpg": deadly})
    spec = spec_of(tmp_path, "DeadlyDecoder")
    report = mmray.run(spec, quiet=True)
    assert report.errors == {"WorkerDied": 1}
    assert quarantined(spec["store"]["uri"]) == {"000100": ("decode", "WorkerDied")}
    assert_whole(spec["store"]["uri"], places)


def test_an_encoder_that_ends_its_process_as_it_loads(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", {}, count=1)  # no other worker is busy when this one ends it
    with pytest.raises(JobFailed, match="ended with exit code 4 while it loaded the encoder"):
        mmray.run(spec_of(tmp_path, "Fatal"), quiet=True)


def test_a_limited_run_is_careful_from_the_start(tmp_path: Path) -> None:
    places = write_tars(tmp_path / "tars", {"000030.jpg": RED})
    spec = spec_of(tmp_path, "Deadly")
    report = mmray.run(spec, limit=50, quiet=True)
    assert (report.rows_read, report.errors) == (50, {"WorkerDied": 1})
    assert mmray.run(spec, quiet=True).rows_read == len(places) - 50
    assert_whole(spec["store"]["uri"], places)


def test_a_model_mended_takes_them_in(tmp_path: Path) -> None:
    """What an encoder dies of is no part of its fingerprint."""
    mended = tmp_path / "mended"
    places = write_tars(tmp_path / "tars", {"000100.txt": f"deadly unless {mended}".encode()})
    spec = spec_of(tmp_path, "Deadly")
    uri = spec["store"]["uri"]
    assert mmray.run(spec, quiet=True).errors == {"WorkerDied": 1}
    mended.touch()
    report = replay(uri, spec, reasons=["WorkerDied"], quiet=True)
    assert (report.rows_written, report.rows_quarantined) == (1, 0)
    assert quarantined(uri) == {}
    assert_whole(uri, places)


def test_when_all_are_deadly_the_job_ends(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", {})
    encoder = {"kind": "import", "model": "tests.toys:Deadly", "options": {"always": True}}
    report = runs.run(spec_of(tmp_path, "Deadly", encoder=encoder), tmp_path, code=1)
    assert report["status"] == "failed" and report["rows_read"] == 0
    assert "8 samples in a row ended their process" in report["message"]
    assert "exit code 3" in report["message"] and ".tar 0000" in report["message"]
