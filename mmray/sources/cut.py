"""Cutting a stream of samples into fragments.

Where a cut falls depends only on what was read since `start`, so a rerun from the same start cuts
alike, and every cut is a place from which reading can start again.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass

from mmray.errors import SampleError
from mmray.sources.fragment import Fragment, Sample, Shard


@dataclass(frozen=True, slots=True)
class Cut:
    """A fragment is closed at the first boundary after this many samples or bytes."""

    rows: int = 256
    bytes: int = 32 * 1024 * 1024


Item = tuple[int | None, Sample]
"""A sample, and the place before it where a fragment may start; None where none may."""


def cut_fragments(
    shard: Shard,
    start: int,
    stop: int,
    items: Iterator[Item],
    cut: Cut,
    breaks: Container[int] = frozenset(),
) -> Iterator[Fragment]:
    """Fragments that tile `[start, stop)`: the first starts at `start`, the last stops at `stop`.

    At least one comes, and none is without a sample: where `items` is empty it holds one error
    sample, so that the span is accounted for. At a place in `breaks` a fragment starts in any case.
    """
    begin, size = start, 0
    samples: list[Sample] = []
    for place, sample in items:
        full = len(samples) >= cut.rows or size >= cut.bytes
        if samples and place is not None and (full or place in breaks):
            yield Fragment(shard.span(begin, place), samples)
            begin, samples, size = place, [], 0
        samples.append(sample)
        size += sample.nbytes
    if not samples:
        error = SampleError("read", "EmptyShard", "there is no sample in it")
        place = start or None
        samples.append(Sample(shard.uri, "", shard.etag, error=error, ordinal=place))
    yield Fragment(shard.span(begin, stop), samples)
