"""A hundred kills at random moments of drivers, actors and the S3 server; then every sample once.

In ten parts of ten kills, each with a seed of its own and some minutes long. A part that passed
leaves a mark under `out/soak`, so that `make soak` goes on where it was stopped; `make soak
ARGS=--soak-afresh` forgets the marks. The marks name the commit: another commit starts over.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import runs, shards
from tests.conftest import TestServer, use

PARTS, KILLS = 10, 10
SHARDS, PER_SHARD = 6, 160
MARKS = runs.ROOT / "out" / "soak"


def commit() -> str:
    """The commit under test, with a `+` where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return described.stdout.strip()


def upload(server: TestServer, prefix: str) -> list[tuple[str, str]]:
    """Tars with a broken picture in each; the places that must be accounted for."""
    places = []
    for shard in range(SHARDS):
        entries = []
        for number in range(PER_SHARD):
            seed = shard * PER_SHARD + number
            members = shards.members(f"{seed:06d}", seed)
            if number == 17 * shard:
                members[0] = (members[0][0], b"not a picture")
            entries += members
            places.append((f"{prefix}/tars/{shard:02d}.tar", f"{seed:06d}"))
        shards.put(prefix, {f"tars/{shard:02d}.tar": shards.tar(entries)}, server.client())
    return sorted(places)


def strike(chance: random.Random, run: runs.Run, server: TestServer) -> str:
    """Kill something; what it was, or "" where there was nothing to kill."""
    kind = chance.choices(("driver", "actor", "server"), weights=(5, 3, 2))[0]
    if kind == "driver":
        run.kill()
    elif kind == "server":
        server.kill()
        time.sleep(chance.uniform(0, 3))
        server.start()
    else:
        workers = run.workers()
        if not workers:
            return ""
        try:
            os.kill(chance.choice(workers), signal.SIGKILL)
        except ProcessLookupError:
            return ""
    return kind


@pytest.mark.parametrize("part", range(PARTS))
def test_kills(
    part: int,
    own_s3: TestServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    mark = MARKS / f"kills-{part}-{commit()}"
    if mark.exists() and not request.config.getoption("--soak-afresh"):
        pytest.skip(f"part {part} passed before: {mark.read_text().strip()}")
    use(own_s3.environment, monkeypatch)
    chance = random.Random(part)
    done: list[str] = []
    round_ = 0
    while len(done) < KILLS:
        prefix = own_s3.uri(f"soak-{part}-{round_}")
        places = upload(own_s3, prefix)
        spec = runs.embed_spec(
            f"{prefix}/tars/*.tar",
            f"{prefix}/store",
            encoder=runs.slow(0.05),
            errors={"max_fraction": 0.05},
        )
        done += job_with_kills(spec, tmp_path / str(round_), own_s3, chance, KILLS - len(done))
        store = spec["store"]["uri"]
        assert runs.places(store, own_s3.environment) == places
        assert runs.verify(store)["problems"] == []
        round_ += 1
    MARKS.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{len(done)} kills in {round_} jobs: {', '.join(done)}\n")


def job_with_kills(
    spec: runs.Spec, folder: Path, server: TestServer, chance: random.Random, most: int
) -> list[str]:
    """Run the job until it is done, killing at random moments until `most` kills are made."""
    done: list[str] = []
    while True:
        run = runs.Run(spec, folder)
        while run.running and len(done) < most:
            wait = time.monotonic() + chance.uniform(1, 12)
            while run.running and time.monotonic() < wait:
                time.sleep(0.1)
            if run.running:
                kind = strike(chance, run, server)
                done += [kind] if kind else []
        if run.process.poll() == -signal.SIGKILL:
            continue
        run.finish()
        return done
