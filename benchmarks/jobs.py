"""mmray as a user runs it: `python -m mmray run SPEC --json`, and its rate from the store's parts.

A part's file time says when its rows were finished, to the millisecond; commits come seconds later
and in lumps. Rates are taken while all workers have work.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from deltalake import DeltaTable

from benchmarks.data import scratch
from benchmarks.measure import LIMIT, ROOT, slope

WORKERS = 2


@dataclass(frozen=True, slots=True)
class Done:
    """A finished run."""

    report: dict[str, Any]
    store: Path

    def rate(self, workers: int = WORKERS) -> float:
        """Rows per second while all workers were busy."""
        return busy_rate(parts(self.store), workers)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a store: when it was written, its shard and its rows."""

    time: float
    shard: str
    rows: int


def embed(name: str, tars: Sequence[str], **fields: Any) -> dict[str, Any]:
    """A spec over `tars` into an empty store; `fields` are further fields of the spec."""
    spec: dict[str, Any] = {
        "job": "embed",
        "source": {"kind": "webdataset", "uri": list(tars)},
        "store": {"uri": str(scratch(name) / "store")},
    }
    return spec | fields


def start(spec: dict[str, Any], *python: str) -> subprocess.Popen[str]:
    """Start the job; standard error goes to `stderr.txt` beside the store."""
    folder = Path(spec["store"]["uri"]).parent
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    with (folder / "stderr.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, *python, "-m", "mmray", "run", str(path), "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=environment(),
            text=True,
        )


def finish(process: subprocess.Popen[str], spec: dict[str, Any]) -> Done:
    """Wait for the job and read its report."""
    store = Path(spec["store"]["uri"])
    out, _ = process.communicate(timeout=LIMIT)
    if process.returncode:
        words = (store.parent / "stderr.txt").read_text()[-3000:]
        raise RuntimeError(f"mmray exited {process.returncode}\n{words}\n{out[-2000:]}")
    return Done(json.loads(out.splitlines()[-1]), store)


def run(spec: dict[str, Any]) -> Done:
    """The job from start to end."""
    return finish(start(spec), spec)


def environment() -> dict[str, str]:
    """Of the job: the toys of this folder can be imported, and nothing calls out."""
    more = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    return os.environ | more


def parts(store: Path) -> list[Part]:
    """The parts of a local store, in the order of their time."""
    actions = pa.table(DeltaTable(str(store)).get_add_actions(flatten=True)).to_pylist()
    found = [
        Part((store / each["path"]).stat().st_mtime, each["min.source_uri"], each["num_records"])
        for each in actions
    ]
    return sorted(found, key=lambda part: part.time)


def busy_rate(found: list[Part], workers: int) -> float:
    """Rows per second from the first part of every worker until the first of them runs dry.

    Workers take shards in turns and end a shard before the next: at the start each is on a shard of
    its own, and they run dry in the order in which the last shards end.
    """
    ends: dict[str, float] = {part.shard: part.time for part in found}
    firsts: dict[str, float] = {}
    for part in found:
        firsts.setdefault(part.shard, part.time)
    begin = sorted(firsts.values())[workers - 1]
    end = sorted(ends.values())[-workers]
    done, ticks = 0, []
    for part in found:
        done += part.rows
        ticks.append((part.time, done))
    return slope(ticks, begin, end)
