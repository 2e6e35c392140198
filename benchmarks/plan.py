"""How far the estimate of `mmray plan` is from the run, on the demo's pictures and its encoders."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import jobs
from benchmarks.data import made
from benchmarks.measure import LIMIT, ROOT, Figure, Options, say, wait_until_calm
from mmray.demo.pack import pack
from mmray.demo.run import SHARDS, drawings
from mmray.demo.specs import EMBED
from mmray.demo.stamps import fetch_stamps
from mmray.storage import Storage


def figures(options: Options) -> list[Figure]:
    """|estimate / actual - 1|, the median of the pairs; both are seconds of one whole run."""
    pairs = [_pair() for _ in range(options.pairs)]
    off = [abs(plan["seconds"] / run["seconds"] - 1) for plan, run in pairs]
    raw = {
        "estimated": [round(plan["seconds"], 1) for plan, _ in pairs],
        "actual": [round(run["seconds"], 1) for _, run in pairs],
        "off": [round(each, 3) for each in off],
        "rows": [run["rows_read"] for _, run in pairs],
    }
    return [Figure("plan: demo, estimate off by", statistics.median(off), "<=", 0.3, raw=raw)]


def _pair() -> tuple[dict[str, Any], dict[str, Any]]:
    """The line of a plan, and that of the run right after it."""
    fields = {name: EMBED[name] for name in ("encoder", "keep", "thumbnails", "errors")}
    spec = jobs.embed("plan", _tars(), **fields)
    wait_until_calm()
    plan = _plan(spec)
    wait_until_calm()
    run = jobs.run(spec).report
    assert (plan["status"], run["status"]) == ("work", "done"), (plan, run)
    say(f"  estimated {plan['seconds']:.1f} s {plan['startup']}, took {run['seconds']:.1f} s")
    return plan, run


def _tars() -> list[str]:
    def make(folder: Path) -> None:
        pack(drawings(fetch_stamps()), Storage(), str(folder), SHARDS)

    return [str(path) for path in sorted(made("stamps", make).glob("*.tar"))]


def _plan(spec: dict[str, Any]) -> dict[str, Any]:
    folder = Path(spec["store"]["uri"]).parent
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec))
    with (folder / "stderr.txt").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", "mmray", "plan", str(path), "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            env=jobs.environment(),
            text=True,
            timeout=LIMIT,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
