"""Promise 1 on real parts: whatever is killed, every sample is there once after the next run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests import runs, shards
from tests.conftest import TestServer
from tests.faults import FaultProxy

pytestmark = pytest.mark.e2e

SHARDS, PER_SHARD = 6, 128
BAD = {7, 200, 201, 450}
"""Seeds whose picture is broken: they must end in quarantine, once."""


def write_shards(folder: Path) -> list[tuple[str, str]]:
    """Tars with some broken pictures; the places that must be accounted for."""
    folder.mkdir(parents=True)
    places = []
    for shard in range(SHARDS):
        entries = []
        for seed in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            members = shards.members(f"{seed:06d}", seed)
            if seed in BAD:
                members[0] = (members[0][0], b"not a picture")
            entries += members
            places.append((str(folder / f"{shard:02d}.tar"), f"{seed:06d}"))
        (folder / f"{shard:02d}.tar").write_bytes(shards.tar(entries))
    return sorted(places)


@pytest.fixture
def job(tmp_path: Path) -> tuple[runs.Spec, list[tuple[str, str]], Path]:
    """A spec that runs for some seconds, what it must account for, and a folder to run in."""
    places = write_shards(tmp_path / "tars")
    spec = runs.embed_spec(
        str(tmp_path / "tars" / "{00..05}.tar"),
        str(tmp_path / "store"),
        encoder=runs.slow(0.02),
        errors={"max_fraction": 0.05},
    )
    return spec, places, tmp_path


def assert_whole(spec: runs.Spec, places: list[tuple[str, str]]) -> None:
    store = spec["store"]["uri"]
    assert runs.places(store) == places
    assert runs.verify(store)["problems"] == []


def test_driver_killed_again_and_again(job: tuple[runs.Spec, Any, Path]) -> None:
    spec, places, folder = job
    spec["encoder"] = runs.slow(0.08)  # a fragment takes longer than a part waits: small steps
    chance = random.Random(5)
    store, kills, after_first_commit = spec["store"]["uri"], 0, 0
    while after_first_commit < 5:
        run = runs.Run(spec, folder)
        before = runs.store_version(store, {})
        run.wait_for_version(store, max(before, 0) + 1, {})
        time.sleep(chance.uniform(0, 1.5))
        assert run.running, run.log.read_text()
        run.kill()
        kills += 1
        after_first_commit += runs.store_version(store, {}) >= 1
    report = runs.run(spec, folder)
    assert kills >= 5
    assert_whole(spec, places)
    assert report["rows_read"] + report["rows_skipped"] == len(places)
    again = runs.run(spec, folder)
    assert (again["rows_read"], again["rows_skipped"]) == (0, len(places))


def test_actors_killed(job: tuple[runs.Spec, Any, Path]) -> None:
    spec, places, folder = job
    run = runs.Run(spec, folder)
    killed = 0
    for version in (1, 2, 3):
        run.wait_for_version(spec["store"]["uri"], version, {})
        for pid in run.workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            killed += 1
    report = run.finish()
    assert killed >= 2
    assert report["rows_read"] == len(places)
    assert report["errors"] == {"UnreadableImage": len(BAD)}  # no innocent sample is blamed
    assert_whole(spec, places)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_commits_what_is_finished(
    job: tuple[runs.Spec, Any, Path], number: int, code: int
) -> None:
    spec, places, folder = job
    run = runs.Run(spec, folder)
    run.wait_for_version(spec["store"]["uri"], 1, {})
    run.signal(number)
    report = run.finish(code=code)
    assert report["status"] == "interrupted"
    assert 0 < report["rows_read"] < len(places)
    rest = runs.run(spec, folder)
    assert rest["rows_read"] == len(places) - report["rows_read"]
    assert_whole(spec, places)


def test_two_drivers_on_one_spec(job: tuple[runs.Spec, Any, Path]) -> None:
    spec, places, folder = job
    first = runs.Run(spec, folder / "first")
    second = runs.Run(spec, folder / "second")
    reports = [first.finish(), second.finish()]
    assert sum(report["rows_read"] for report in reports) == len(places)
    assert_whole(spec, places)


CRASH = """
import os, signal, sys
import mmray
from mmray.store.quarantine import Quarantine
ensure = Quarantine.ensure
def crash(self, rows, run_id):
    ensure(self, rows, run_id)
    os.kill(os.getpid(), signal.SIGKILL)
Quarantine.ensure = crash
mmray.run(sys.argv[1])
"""


def test_killed_between_quarantine_and_commit(job: tuple[runs.Spec, Any, Path]) -> None:
    spec, places, folder = job
    first = runs.Run(spec, folder)  # writes the spec file
    first.kill()
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH, str(folder / "spec.yaml")],
        cwd=runs.ROOT,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT)},
        capture_output=True,
        timeout=runs.TIMEOUT,
        check=False,
    )
    assert crashed.returncode == -signal.SIGKILL, crashed.stderr.decode()
    assert len(runs.places(spec["store"]["uri"])) >= 1  # the quarantine's rows are there
    runs.run(spec, folder)
    assert_whole(spec, places)


def test_rollback_brings_the_work_back(job: tuple[runs.Spec, Any, Path]) -> None:
    spec, places, folder = job
    runs.run(spec, folder)
    store = spec["store"]["uri"]
    subprocess.run(
        [sys.executable, "-m", "mmray", "store", "rollback", store, "1"],
        cwd=runs.ROOT,
        check=True,
        timeout=runs.TIMEOUT,
    )
    assert len(runs.places(store)) < len(places)
    report = runs.run(spec, folder)
    assert report["rows_read"] > 0
    assert_whole(spec, places)


def s3_job(server: TestServer, folder: Path, name: str) -> tuple[runs.Spec, list[tuple[str, str]]]:
    """The same job on S3."""
    local = write_shards(folder / "tars")
    prefix = server.uri(name)
    files = {f"tars/{p.name}": p.read_bytes() for p in (folder / "tars").iterdir()}
    shards.put(prefix, files, server.client())
    spec = runs.embed_spec(
        f"{prefix}/tars/*.tar",
        f"{prefix}/store",
        encoder=runs.slow(0.02),
        errors={"max_fraction": 0.05},
    )
    return spec, sorted((f"{prefix}/tars/{Path(uri).name}", key) for uri, key in local)


def test_server_killed_and_restarted(
    own_s3: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.conftest import use

    use(own_s3.environment, monkeypatch)
    spec, places = s3_job(own_s3, tmp_path, "restart")
    store, options = spec["store"]["uri"], runs.delta_options(own_s3.environment)
    run = runs.Run(spec, tmp_path)
    run.wait_for_version(store, 2, options)
    own_s3.kill()
    time.sleep(4)
    own_s3.start()
    report = run.finish()
    assert report["rows_read"] == len(places)
    assert runs.places(store, own_s3.environment) == places
    assert runs.verify(store)["problems"] == []


def test_a_tenth_of_requests_fail(
    s3: TestServer, faulty_s3: FaultProxy, s3_env: dict[str, str], tmp_path: Path
) -> None:
    spec, places = s3_job(s3, tmp_path, "faulty")
    environment = s3.environment_at(faulty_s3.endpoint)
    report = runs.run(spec, tmp_path, env=environment)
    assert sum(faulty_s3.counts.values()) > 0
    assert report["rows_read"] == len(places)
    assert runs.places(spec["store"]["uri"], s3_env) == places
    assert runs.verify(spec["store"]["uri"])["problems"] == []


def test_raylet_killed(tmp_path: Path) -> None:
    """Three raylets, one of which dies with its actors and whatever it was doing."""
    from ray.cluster_utils import Cluster

    places = write_shards(tmp_path / "tars")
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        spec = runs.embed_spec(
            str(tmp_path / "tars" / "*.tar"),
            str(tmp_path / "store"),
            encoder=runs.slow(0.02),
            errors={"max_fraction": 0.05},
            resources={"address": cluster.address},
        )
        run = runs.Run(spec, tmp_path)
        run.wait_for_version(spec["store"]["uri"], 1, {})
        assert run.running
        raylet = nodes[0].all_processes["raylet"][0].process
        psutil.Process(raylet.pid).kill()
        report = run.finish()
    finally:
        cluster.shutdown()
    assert report["rows_read"] == len(places)
    assert_whole(spec, places)
