"""A near-free encoder on JPEG tars: what Ray, the store and the commits cost."""

from __future__ import annotations

from benchmarks import data
from benchmarks.beside import two_bare_processes
from benchmarks.measure import Figure, Options

POOL = 4000
ENCODER = {"kind": "import", "model": "benchmarks.toys:MeanPool"}


def figures(options: Options) -> list[Figure]:
    """mmray's rate over that of two bare processes with the same functions."""
    tars = data.photo_tars(options.size(12_000, 2000), per_tar=500, pool=POOL)
    fields = {"encoder": ENCODER, "modalities": ["image"], "keep": ["caption"]}
    return [two_bare_processes("near-free encoder", tars, options, **fields)]
