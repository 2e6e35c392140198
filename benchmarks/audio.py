"""Spoken words through an encoder that costs next to nothing: decoding is what is measured."""

from __future__ import annotations

from benchmarks import data
from benchmarks.beside import two_bare_processes
from benchmarks.measure import Figure, Options
from mmray.flow.stages import MEDIA_BYTES

ENCODER = {"kind": "import", "model": "benchmarks.toys:Loudness"}


def figures(options: Options) -> list[Figure]:
    """mmray's rate over that of two bare processes with the same functions."""
    tars = data.speech_tars(per_tar=500, copies=4)
    tars = tars[: options.size(len(tars), 4)]
    fields = {"encoder": ENCODER, "modalities": ["audio"], "errors": {"max_fraction": 0.05}}
    return [two_bare_processes("audio", tars, options, MEDIA_BYTES, **fields)]
