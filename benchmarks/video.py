"""Films through an encoder that costs next to nothing: decoding is what is measured."""

from __future__ import annotations

from benchmarks import data
from benchmarks.beside import two_bare_processes
from benchmarks.measure import Figure, Options
from benchmarks.nearfree import ENCODER
from mmray.flow.stages import MEDIA_BYTES


def figures(options: Options) -> list[Figure]:
    """mmray's rate over that of two bare processes with the same functions."""
    tars = data.film_tars(24, per_tar=20)[: options.size(24, 4)]
    fields = {"encoder": ENCODER, "modalities": ["video"]}
    return [two_bare_processes("video", tars, options, MEDIA_BYTES, **fields)]
