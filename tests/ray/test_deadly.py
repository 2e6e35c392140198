"""Samples that end their worker, on a real Ray session: they alone go to quarantine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmray
from mmray.errors import JobFailed
from mmray.jobs.replay import replay
from mmray.store.verify import verify
from tests import runs, shards

SHARDS, PER_SHARD = 3, 80
RED = shards.encoded(Image.new("RGB", (40, 40), (255, 0, 0)), "JPEG")


def write_tars(folder: Path, other: dict[str, bytes], count: int = SHARDS) -> list[tuple[str, str]]:
    """Tars in which some members are others; the places that must be accounted for."""
    folder.mkdir()
    places = []
    for shard in range(count):
        entries: list[Any] = []
        for seed in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            entries += shards.members(f"{seed:06d}", seed)
            places.append((str(folder / f"{shard}.tar"), f"{seed:06d}"))
        entries = [(name, other.get(name, data)) for name, data in entries]
        (folder / f"{shard}.tar").write_bytes(shards.tar(entries))
    return sorted(places)


def spec_of(folder: Path, model: str, **changes: Any) -> runs.Spec:
    encoder = {"kind": "import", "model": f"tests.toys:{model}"}
    spec = runs.embed_spec(str(folder / "tars"), str(folder / "store"), encoder=encoder)
    return spec | {"errors": {"max_fraction": 0.05}} | changes


def quarantined(uri: str) -> dict[str, tuple[str, str]]:
    """Key to stage and error type."""
    rows = mmray.open_store(uri).quarantine.live().to_pylist()
    found = {row["source_key"]: (row["stage"], row["error_type"]) for row in rows}
    assert len(found) == len(rows)
    return found


def assert_whole(uri: str, places: list[tuple[str, str]]) -> None:
    assert runs.places(uri) == places
    assert verify(mmray.open_store(uri)).problems == []


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


@pytest.mark.soak
def test_a_decoder_that_ends_its_process(tmp_path: Path) -> None:
    deadly = shards.picture(100) + b"deadly"
    places = write_tars(tmp_path / "tars", {"000100.jpg": deadly})
    spec = spec_of(tmp_path, "DeadlyDecoder")
    report = mmray.run(spec, quiet=True)
    assert report.errors == {"WorkerDied": 1}
    assert quarantined(spec["store"]["uri"]) == {"000100": ("decode", "WorkerDied")}
    assert_whole(spec["store"]["uri"], places)


@pytest.mark.soak
def test_an_encoder_that_ends_its_process_as_it_loads(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", {}, count=1)  # no other worker is busy when this one ends it
    with pytest.raises(JobFailed, match="ended with exit code 4 while it loaded the encoder"):
        mmray.run(spec_of(tmp_path, "Fatal"), quiet=True)


@pytest.mark.soak
def test_a_limited_run_is_careful_from_the_start(tmp_path: Path) -> None:
    places = write_tars(tmp_path / "tars", {"000030.jpg": RED})
    spec = spec_of(tmp_path, "Deadly")
    report = mmray.run(spec, limit=50, quiet=True)
    assert (report.rows_read, report.errors) == (50, {"WorkerDied": 1})
    assert mmray.run(spec, quiet=True).rows_read == len(places) - 50
    assert_whole(spec["store"]["uri"], places)


@pytest.mark.soak
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


@pytest.mark.soak
def test_when_all_are_deadly_the_job_ends(tmp_path: Path) -> None:
    write_tars(tmp_path / "tars", {})
    encoder = {"kind": "import", "model": "tests.toys:Deadly", "options": {"always": True}}
    report = runs.run(spec_of(tmp_path, "Deadly", encoder=encoder), tmp_path, code=1)
    assert report["status"] == "failed" and report["rows_read"] == 0
    assert "8 samples in a row ended their process" in report["message"]
    assert "exit code 3" in report["message"] and ".tar 0000" in report["message"]
