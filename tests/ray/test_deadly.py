"""Samples that end their worker, on a real Ray session: they alone go to quarantine. Other ways to
end one are in the soak tier: each costs a session's start or two of a worker.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import mmray
from mmray.jobs.replay import replay
from tests.deadly import RED, assert_whole, quarantined, spec_of, write_tars

LAYOUTS = {"fused": {}, "split": {"gpus": 0.5, "cpus": 0.5, "decode_cpus": 0.5, "pool": [1, 2]}}


@pytest.mark.parametrize("layout", ["fused", pytest.param("split", marks=pytest.mark.soak)])
def test_deadly_samples_end_in_quarantine(layout: str, tmp_path: Path) -> None:
    places = write_tars(tmp_path / "tars", {"000030.jpg": RED, "000231.txt": b"deadly"})
    spec = spec_of(tmp_path, "Deadly", resources=LAYOUTS[layout])
    uri = spec["store"]["uri"]
    report = mmray.run(spec, quiet=True)
    assert report.status == "done" and report.errors == {"WorkerDied": 2}
    assert (report.rows_read, report.rows_written) == (len(places), len(places) - 2)
    assert quarantined(uri) == {
        "000030": ("encode", "WorkerDied"),
        "000231": ("encode", "WorkerDied"),
    }
    messages = {each.source_key: each.message for each in report.examples}
    assert "SIGKILL" in messages["000030"] and "exit code 3" in messages["000231"]
    assert_whole(uri, places)
    again = mmray.run(spec, quiet=True)
    assert (again.rows_read, again.rows_skipped) == (0, len(places))

    tried = replay(uri, spec, quiet=True)
    assert (tried.status, tried.rows_read, tried.rows_written) == ("done", 2, 0)
    assert tried.errors == {"WorkerDied": 2}
    assert_whole(uri, places)
