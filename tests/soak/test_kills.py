"""A hundred kills at random moments of drivers, actors and the S3 server; then every sample once.

In ten parts of ten kills, each with a seed of its own and some minutes long.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests import runs, shards
from tests.conftest import TestServer, use
from tests.soak.kills import Part, job_with_kills, restart

PARTS, KILLS = 10, 10
SHARDS, PER_SHARD = 6, 160


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
        restart(server, chance)
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
    mine = Part(f"kills-{part}", request)
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
        done += job_with_kills(
            spec,
            tmp_path / str(round_),
            pause=lambda: chance.uniform(1, 12),
            strike=lambda run: strike(chance, run, own_s3),
            most=KILLS - len(done),
        )
        store = spec["store"]["uri"]
        assert runs.places(store, own_s3.environment) == places
        assert runs.verify(store)["problems"] == []
        round_ += 1
    mine.passed(f"{len(done)} kills in {round_} jobs: {', '.join(done)}")
