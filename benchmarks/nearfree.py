"""A near-free encoder on JPEG tars: what Ray, the store and the commits cost."""

from __future__ import annotations

from benchmarks import data, jobs
from benchmarks.measure import Figure, Options, Peer, ratio, rounds, ticks_of, together

POOL = 4000
ENCODER = {"kind": "import", "model": "benchmarks.toys:MeanPool"}
ROWS = 64
"""Samples in a fragment, as mmray cuts them on CPUs."""


def figures(options: Options) -> list[Figure]:
    """mmray's rate over that of two bare processes with the same functions."""
    tars = data.photo_tars(options.size(12_000, 2000), per_tar=500, pool=POOL)

    def ours() -> float:
        return jobs.run(jobs.embed("nearfree", tars, encoder=ENCODER, keep=["caption"])).rate()

    def bare() -> float:
        halves = [
            jobs.embed(f"bare-{half}", tars[half::2], encoder=ENCODER, keep=["caption"])
            for half in (0, 1)
        ]
        peers = [Peer("bare", spec=spec, rows=ROWS, threads=1) for spec in halves]
        return together([ticks_of(peer.result()) for peer in peers])

    raw = rounds(options.pairs, {"ours": ours, "peer": bare})
    return [
        Figure("near-free encoder: mmray / two bare processes", ratio(raw), ">=", 0.85, raw=raw)
    ]
