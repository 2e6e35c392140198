"""What travels through the flow: work out, batches between stages, finished parts back.

A `Batch` is one fragment on its way; its lists run parallel, one entry a sample, and a sample that
failed keeps its place with its `error` set, so that nothing leaves without being counted.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmray.sources.fragment import Sample, Shard, Span
from mmray.store.parts import Receipt

FAULT = "a fault in mmray, please report it:"


@dataclass(frozen=True, slots=True)
class Work:
    """A range of a shard that no commit covers yet."""

    shard: Shard
    start: int
    stop: int
    seen: frozenset[str] = frozenset()
    """Keys of the shard that come before `start`: a key that comes back is not a new sample."""


@dataclass(slots=True)
class Batch:
    """One fragment between two stages."""

    span: Span
    shard_uri: str
    samples: list[Sample]
    """Their member bytes are dropped once decoded."""
    columns: dict[str, list[Any]]
    """Kept metadata, and what else the store has beside base columns and vectors."""
    inputs: dict[str, list[Any]]
    """Modality to decoded inputs, `None` where absent: a uint8 HWC array for an image, a text, a
    list of float32 waves for sound, a list of uint8 HWC frames for video."""
    keys: list[bytes | None] = field(default_factory=list)
    """What duplicates are known by, where the spec looks for them."""
    filtered: dict[str, int] = field(default_factory=dict)
    """Why samples were left out, and how many; they have no place in the lists."""
    vectors: dict[str, list[np.ndarray | None]] = field(default_factory=dict)
    """Modality to float32 [dim] vectors; `None` where absent."""
    previews: tuple["Preview", ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """What reading and decoding took, where they ran apart."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A fragment that was decoded and encoded in another process."""

    batch: Batch
    encoded: int
    """Samples that went through the encoder."""
    seconds: dict[str, float]
    """Stage to seconds spent in it."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A small picture of a sample, or its sound, for the report."""

    id: str
    source_key: str
    caption: str
    jpeg: bytes | None
    audio: bytes | None = None
    mime: str = ""
    """Of `audio`."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A written part and what it took."""

    receipt: Receipt
    seconds: dict[str, float]
    """Stage to seconds spent in it."""
    encoded: int
    """Samples that went through the encoder; remembered duplicates did not."""
    previews: tuple[Preview, ...] = ()
    filtered: dict[str, int] = field(default_factory=dict)
    """Why samples were left out, and how many."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Work that could not go on for a reason that is no sample's fault."""

    uri: str
    message: str
    fatal: bool
    """True: trying again can't help (the model does not load), so the job ends at once."""


def joined(batches: Sequence[Batch]) -> Batch:
    """The encoded batches of one fragment's samples, in order, as one."""
    first = batches[0]
    filtered: dict[str, int] = {}
    for batch in batches:
        filtered = added(filtered, batch.filtered)
    return Batch(
        span=first.span,
        shard_uri=first.shard_uri,
        samples=[each for batch in batches for each in batch.samples],
        columns={n: [each for b in batches for each in b.columns[n]] for n in first.columns},
        inputs={},
        keys=[each for batch in batches for each in batch.keys],
        filtered=filtered,
        vectors={m: [each for b in batches for each in b.vectors[m]] for m in first.vectors},
        previews=tuple(each for batch in batches for each in batch.previews),
    )


def added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    """The sums of two counts by name."""
    return one | {name: one.get(name, 0) + count for name, count in other.items()}


class Timer:
    """Seconds spent in each stage, summed until taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to the stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add({name: time.perf_counter() - start})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds that another process spent in each stage."""
        for name, spent in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def take(self) -> dict[str, float]:
        """What was summed since the last call."""
        taken, self._seconds = self._seconds, {}
        return taken
