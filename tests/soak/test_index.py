"""Random kills of index builds and of their S3 server while the store goes on; after each build
every row of the store answers once, with its own vector.

A part for each kind of index.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmray
from mmray.index.kinds import KINDS
from mmray.index.upkeep import verify
from mmray.sources.fragment import object_shard
from mmray.storage import Storage
from mmray.store import Change, Committer
from tests import runs
from tests.conftest import TestServer, use
from tests.soak.kills import Part, job_with_kills, restart
from tests.stores import Vectors, vectors

KILLS = 20
DIM, ROWS, PART_ROWS = 512, 20_480, 256


class Going:
    """A store that goes on, and what an index of it has to answer."""

    def __init__(self, uri: str, chance: random.Random) -> None:
        self.chance = chance
        self.store = Vectors(uri, Storage(), DIM)
        self.shards: dict[str, np.ndarray] = {}
        self.ids: dict[str, list[str]] = {}
        self.number = 0
        self._put("first", self._drawn(ROWS))

    def go_on(self) -> str:
        """Add, replace or remove some rows; what was done."""
        small = [name for name in self.shards if name != "first"]
        what = self.chance.choice(["grow", "replace", "remove"] if small else ["grow"])
        name = f"more-{self.number}" if what == "grow" else self.chance.choice(small)
        if what == "remove":
            self._remove(name)
        elif what == "grow":
            self._put(name, self._drawn(400))
        else:
            changed = self.shards[name].copy()
            changed[:: self.chance.choice((1, 7))] *= -1
            self._put(name, changed)
        return what

    def wanted(self) -> dict[str, np.ndarray]:
        """Id to vector."""
        return {
            each: vector
            for name, found in self.shards.items()
            for each, vector in zip(self.ids[name], found, strict=True)
        }

    def _drawn(self, count: int) -> np.ndarray:
        self.number += 1
        return vectors(count, DIM, seed=self.chance.randrange(1 << 30))

    def _put(self, name: str, found: np.ndarray) -> None:
        self.shards[name] = found
        self.ids[name] = self.store.put(name, found, etag=str(self.chance.random()), rows=PART_ROWS)

    def _remove(self, name: str) -> None:
        del self.shards[name], self.ids[name]
        store = self.store.store
        store.reload()
        shard = object_shard(f"/in/{name}.tar", "1", 1)
        paths = tuple(store.stored.paths(shard.key))
        change = Change((), remove=paths, drop_uris=frozenset({shard.uri}))
        Committer(store, "prune").commit([change])
        store.reload()


def strike(chance: random.Random, run: runs.Run, server: TestServer) -> str:
    """Kill the driver, or the server; which it was."""
    kind = chance.choices(("driver", "server"), weights=(7, 3))[0]
    if kind == "driver":
        run.kill()
    else:
        restart(server, chance)
    return kind


@pytest.mark.parametrize("kind", KINDS)
def test_kills(
    kind: str,
    own_s3: TestServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    mine = Part(f"index-{kind}", request)
    use(own_s3.environment, monkeypatch)
    monkeypatch.setenv("MMRAY_CACHE", str(tmp_path / "cache"))
    chance = random.Random(kind)
    prefix = own_s3.uri(f"soak-{kind}")
    going = Going(f"{prefix}/store", chance)
    spec = {
        "job": "index",
        "store": {"uri": going.store.uri},
        "column": "image_embedding",
        "index": {"kind": kind, "memory": "80MiB", "min_recall": 0.5},
        "output": f"{prefix}/index",
        "resources": {"piece": "1MiB"},
    }
    done: list[str] = []
    did: Counter[str] = Counter()
    while len(done) < KILLS:
        done += job_with_kills(
            spec,
            tmp_path,
            pause=lambda: chance.uniform(0.8, 4.5),
            strike=lambda run: strike(chance, run, own_s3),
            most=KILLS - len(done),
        )
        assert_answers(spec["output"], going, chance)
        did.update(going.go_on() for _ in range(chance.choice((1, 2, 3))))
    mine.passed(f"{len(done)} kills: {dict(Counter(done))}; the store: {dict(did)}")


def assert_answers(uri: Any, going: Going, chance: random.Random) -> None:
    assert verify(uri, Storage()).problems == ()
    index, wanted = mmray.open_index(uri), going.wanted()
    names = index.ids(index.live())
    assert sorted(names) == sorted(wanted)
    some = chance.sample(sorted(wanted), 100)
    vectors = np.stack([wanted[name] for name in some])
    np.testing.assert_allclose(index.vectors(index.numbers(some)), vectors, atol=1e-6)
    hits = index.search(vectors, 1)
    near = index.ids(hits.numbers[:, 0])
    assert np.mean([each == name for each, name in zip(near, some, strict=True)]) >= 0.5
