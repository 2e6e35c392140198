"""A rerun with nothing to do: how long it takes, and that it loads no model and starts no Ray."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import data, jobs, models
from benchmarks.measure import Figure, Options
from benchmarks.nearfree import ENCODER

HEAVY = ("torch", "transformers", "ray")


def figures(options: Options) -> list[Figure]:
    """Seconds of reruns: of a CLIP store, and of one of many shards."""
    photos = data.photo_tars(4000, per_tar=250, pool=4000)[: options.size(2, 1)]
    many = data.photo_tars(options.size(20_000, 200), per_tar=20, pool=2000, side=data.SMALL_SIDE)
    clip = jobs.embed(
        "rerun-clip",
        photos,
        encoder={"kind": "hf", "model": str(models.clip())},
        modalities=["image"],
    )
    return [
        _rerun(options, f"rerun: CLIP, {len(photos)} shards", clip),
        _rerun(options, f"rerun: {len(many)} shards", jobs.embed("rerun", many, encoder=ENCODER)),
    ]


def _rerun(options: Options, name: str, spec: dict[str, Any]) -> Figure:
    first = jobs.run(spec)
    seconds = []
    for _ in range(options.pairs):
        start = time.perf_counter()
        report = jobs.run(spec).report
        seconds.append(round(time.perf_counter() - start, 2))
        assert (report["status"], report["rows_read"]) == ("done", 0), report
        assert report["rows_skipped"] == first.report["rows_read"], report
    loaded = _imported(spec)
    assert not loaded, f"a rerun with nothing to do imported {loaded}"
    raw = {"seconds": seconds, "rows": first.report["rows_read"], "imported of heavy": loaded}
    return Figure(name, statistics.median(seconds), "<=", 15, unit="s", raw=raw)


def _imported(spec: dict[str, Any]) -> list[str]:
    """Which of the heavy modules the rerun imports, by Python's own account."""
    log = Path(spec["store"]["uri"]).parent / "stderr.txt"
    before = log.stat().st_size
    jobs.finish(jobs.start(spec, "-X", "importtime"), spec)
    lines = log.read_text()[before:].splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "mmray" in modules, "python -X importtime said nothing"
    return [
        name for name in HEAVY if any(re.fullmatch(rf"{name}(\..*)?", each) for each in modules)
    ]
