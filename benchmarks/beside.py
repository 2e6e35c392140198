"""A job beside the same decode and encode in two bare processes: the figure of several files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import jobs
from benchmarks.measure import Figure, Options, Peer, ratio, rounds, ticks_of, together

ROWS = 64
"""Samples in a fragment, as mmray cuts them on CPUs."""


def two_bare_processes(
    name: str, tars: Sequence[str], options: Options, most: int = 32 * 1024 * 1024, **fields: Any
) -> Figure:
    """mmray's rate over that of two processes with the same functions.

    `most` bytes close a fragment; `fields` are those of the spec.
    """

    def ours() -> float:
        return jobs.run(jobs.embed(name, tars, **fields)).rate()

    def bare() -> float:
        halves = [jobs.embed(f"bare-{half}", tars[half::2], **fields) for half in (0, 1)]
        peers = [Peer("bare", spec=spec, rows=ROWS, threads=1, most=most) for spec in halves]
        return together([ticks_of(peer.result()) for peer in peers])

    raw = rounds(options.pairs, {"ours": ours, "peer": bare})
    return Figure(f"{name}: mmray / two bare processes", ratio(raw), ">=", 0.85, raw=raw)
