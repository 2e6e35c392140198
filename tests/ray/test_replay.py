"""Replays on a real Ray session: beside a job, and killed midway."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import mmray
from mmray.jobs.replay import replay
from mmray.report import Report
from mmray.store.verify import verify
from tests import runs, shards
from tests.toys import Toy

SHARDS, PER_SHARD = 4, 48
BIG, BROKEN = {1, 2, 50, 100, 101, 102, 103, 150}, {3, 160}
"""Seeds whose picture a lowered limit keeps out, and those that no one can read."""


class Slow(Toy):
    """As slow as the environment says: options would be part of the fingerprint."""

    fingerprint = "toy-slow"

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        time.sleep(float(os.environ.get("TOY_DELAY", "0")) * len(images))
        return super().encode_images(images)


def write_shard(path: Path, first: int) -> list[str]:
    entries: list[Any] = []
    for seed in range(first, first + PER_SHARD):
        size = (400, 400) if seed in BIG else (32, 24)
        members = shards.members(f"{seed:06d}", seed, size=size)
        if seed in BROKEN:
            members[0] = (members[0][0], b"not a picture")
        entries += members
    path.write_bytes(shards.tar(entries))
    return [f"{seed:06d}" for seed in range(first, first + PER_SHARD)]


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Tars, and the keys of all their samples."""
    (tmp_path / "tars").mkdir()
    return [
        key
        for number in range(SHARDS)
        for key in write_shard(tmp_path / "tars" / f"{number}.tar", number * PER_SHARD)
    ]


@pytest.fixture
def spec(tmp_path: Path) -> runs.Spec:
    return runs.embed_spec(
        str(tmp_path / "tars"),
        str(tmp_path / "store"),
        encoder={"kind": "import", "model": "tests.ray.test_replay:Slow"},
        errors={"max_fraction": 0.5},
    )


def embed_small(spec: runs.Spec) -> Report:
    """A run whose limit keeps the big pictures out."""
    return mmray.run(spec | {"limits": {"pixels": 100_000}}, quiet=True)


def assert_whole(uri: str, keys: list[str], bad: int) -> None:
    """Every sample is there once, by DuckDB's account; nothing is wrong."""
    assert sorted(key for _, key in runs.places(uri)) == sorted(keys)
    store = mmray.open_store(uri)
    assert verify(store).problems == []
    assert store.quarantine.live().num_rows == bad


def test_quarantined_samples_come_in(spec: runs.Spec, keys: list[str]) -> None:
    uri = spec["store"]["uri"]
    first = embed_small(spec)
    assert first.errors == {"DecompressionBomb": len(BIG), "UnreadableImage": len(BROKEN)}
    report = replay(uri, spec, quiet=True)
    assert (report.job, report.status) == ("replay", "done")
    assert (report.rows_read, report.rows_written) == (len(BIG | BROKEN), len(BIG))
    assert report.errors == {"UnreadableImage": len(BROKEN)}
    assert report.rows_encoded == len(BIG)
    assert {"read", "decode", "encode", "write"} == set(report.stages)
    assert Path(str(report.outputs["report"])).parent.parent == Path(uri, "_mmray", "runs")
    assert Path(str(report.outputs["page"])).exists()
    assert_whole(uri, keys, bad=len(BROKEN))
    assert mmray.run(spec, quiet=True).rows_read == 0
    # In one GPU actor, where the encoder owns one.
    split = {"gpus": 0.5, "cpus": 0.5, "decode_cpus": 0.5}
    again = replay(uri, spec | {"resources": split}, reasons=["UnreadableImage"], quiet=True)
    assert (again.rows_read, again.rows_written, again.rows_quarantined) == (2, 0, 2)
    nothing = replay(uri, spec, reasons=["NoSuchReason"], quiet=True)
    assert nothing.rows_read == 0 and "report" not in nothing.outputs


def test_beside_a_job(spec: runs.Spec, keys: list[str], tmp_path: Path) -> None:
    uri = spec["store"]["uri"]
    embed_small(spec)
    for number in (10, 11, 12):
        keys += write_shard(tmp_path / "tars" / f"{number}.tar", number * PER_SHARD)
    one = spec | {"resources": {"pool": 1}}
    job = runs.Run(one, tmp_path / "job", env={"TOY_DELAY": "0.2"})
    job.wait_for_version(uri, mmray.open_store(uri).version + 1, {})
    report = replay(uri, spec, quiet=True)
    assert job.finish()["rows_read"] == 3 * PER_SHARD
    assert report.rows_written == len(BIG)
    made_by = [each.run_id for each in mmray.open_store(uri).history()]
    assert made_by[0] != report.run_id and report.run_id in made_by  # the job went on after it
    assert_whole(uri, keys, bad=len(BROKEN))


def test_killed_and_run_again(spec: runs.Spec, keys: list[str], tmp_path: Path) -> None:
    uri = spec["store"]["uri"]
    embed_small(spec)
    before = mmray.open_store(uri).version
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(spec | {"resources": {"pool": 1}}))
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "mmray", "store", "replay", uri, str(path)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(runs.ROOT), "TOY_DELAY": "1.5"},
            cwd=runs.ROOT,
        )
    deadline = time.monotonic() + runs.TIMEOUT
    while driver.poll() is None and runs.store_version(uri, {}) == before:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    assert driver.poll() is None, (tmp_path / "log").read_text()
    driver.kill()
    driver.wait(timeout=runs.TIMEOUT)
    left = mmray.open_store(uri).quarantine.live().num_rows
    assert len(BROKEN) < left < len(BIG | BROKEN)
    report = replay(uri, spec, quiet=True)
    assert (report.rows_written, report.rows_quarantined) == (left - 2, 2)
    assert_whole(uri, keys, bad=len(BROKEN))
