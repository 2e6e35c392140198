"""How many samples the work that is left holds: counted where that is cheap, else estimated.

Of files and stores the listing tells, of Parquet the footers. Of tars and JSON lines only bytes are
known: a probe tells how many samples are in a byte.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mmray.flow.batch import Work
from mmray.jobs.probe import Timed
from mmray.sources import Span
from mmray.sources.fragment import is_object
from mmray.sources.rangefile import RangeFile
from mmray.sources.webdataset import GZIP_EXTENT
from mmray.specs import EmbedSpec
from mmray.storage import Storage

MOST = 2_000
"""Footers or sizes that are looked at; beyond them the others' mean stands in."""
THREADS = 16
HEAD = 256 * 1024
"""Bytes of a gzipped shard that tell how well it is packed."""
HEADS = 8

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Left:
    """Samples, and bytes as the shards' units have it, of each piece of work."""

    samples: list[float]
    exact: bool
    """Whether the numbers were counted."""
    bytes_per_sample: float | None = None
    note: str = ""


def count(spec: EmbedSpec, storage: Storage, work: Sequence[Work]) -> Left | None:
    """The samples of the work, where no probe is needed to tell; None where it is.

    Raises:
        StorageError: storage stayed broken.
    """
    if spec.source.kind == "files":
        return Left([float(each.stop - each.start) for each in work], exact=True)
    if spec.source.kind == "store":
        exact = all(_is_whole(each) for each in work)
        return Left([float(_stored(each)) for each in work], exact)
    if spec.source.kind == "parquet":
        return _footers(storage, work)
    return None


def estimate(storage: Storage, work: Sequence[Work], seen: Iterable[Timed]) -> Left:
    """The samples of tars or JSON lines, from the bytes of fragments that a probe read.

    Raises:
        StorageError: storage stayed broken.
    """
    sizes, note = _sizes(storage, work)
    samples, size = 0, 0.0
    for fragment in seen:
        stop = min(float(fragment.stop), sizes[fragment.work])
        size += max(stop - fragment.start, 1.0)
        samples += fragment.samples
    each = size / max(samples, 1)
    left = [max((sizes[i] - one.start) / each, 1.0) for i, one in enumerate(work)]
    return Left(left, exact=False, bytes_per_sample=each, note=note)


def _is_whole(work: Work) -> bool:
    return not is_object(work.shard.key, work.shard.uri) or (
        work.start == 0 and work.stop == work.shard.size
    )


def _stored(work: Work) -> int:
    """Rows of a store: members of a slice are files with their rows, of an object parts."""
    members = work.shard.members
    if not is_object(work.shard.key, work.shard.uri):
        return sum(member.size for member in members[work.start : work.stop])
    found = sum(member.size * _share(Span.parse(member.name), work) for member in members)
    return max(round(found), 1)


def _share(span: Span, work: Work) -> float:
    inside = min(span.stop, work.stop) - max(span.start, work.start)
    return max(inside, 0) / max(span.stop - span.start, 1)


def _footers(storage: Storage, work: Sequence[Work]) -> Left:
    """Rows by the footers; a file whose footer can't be read counts as its one error sample."""

    def look(one: Work) -> tuple[float, int]:
        try:
            item = storage.stat(one.shard.uri)
            file = RangeFile(lambda a, b: storage.read_range(item.uri, a, b), item.size)
            rows = pq.read_metadata(pa.PythonFile(file, "r")).num_rows
        except (FileNotFoundError, PermissionError, pa.ArrowException, OSError, ValueError):
            return 1.0, 0
        return float(max(min(rows, one.stop) - one.start, 1)), item.size // max(rows, 1)

    looked = _threads(look, work)
    found = [each[0] for each in looked]
    size = fmean(each[1] for each in looked)
    note = "" if len(found) == len(work) else f"rows by the footers of {len(found):,} files"
    rows = _stretched(found, len(work))
    return Left(rows, exact=len(found) == len(work), bytes_per_sample=size, note=note)


def _sizes(storage: Storage, work: Sequence[Work]) -> tuple[list[float], str]:
    """Where the work ends, in bytes of its shard; of a gzipped one guessed from its beginning."""
    packed = [one for one in work if one.stop >= GZIP_EXTENT]
    if not packed:
        return [float(one.stop) for one in work], ""
    looked = _threads(lambda one: float(_size(storage, one)), packed)
    ratio = fmean(
        _threads(lambda one: _ratio(storage, one), packed[:: max(len(packed) // HEADS, 1)])
    )
    unpacked = iter(_stretched([size * ratio for size in looked], len(packed)))
    sizes = [
        max(next(unpacked), one.start + 1.0) if one.stop >= GZIP_EXTENT else float(one.stop)
        for one in work
    ]
    return sizes, "gzipped shards: their unpacked size is guessed from their first bytes"


def _size(storage: Storage, one: Work) -> int:
    try:
        return storage.stat(one.shard.uri).size
    except (FileNotFoundError, PermissionError):
        return 0  # gone since the listing


def _ratio(storage: Storage, one: Work) -> float:
    """Bytes out for each byte in, at the beginning of a gzipped shard."""
    try:
        data = storage.read_range(one.shard.uri, 0, HEAD)
        unzip = zlib.decompressobj(wbits=31)
        out = unzip.decompress(data, 256 * HEAD)
    except (FileNotFoundError, PermissionError, zlib.error):
        return 1.0
    used = len(data) - len(unzip.unconsumed_tail) - len(unzip.unused_data)
    return max(len(out) / max(used, 1), 1e-3)


def _threads(look: Callable[[Work], T], work: Sequence[Work]) -> list[T]:
    """What `look` says of the work, of at most `MOST` pieces evenly spread."""
    step = -(-len(work) // MOST)
    with ThreadPoolExecutor(THREADS, "mmray-plan") as pool:
        return list(pool.map(look, work[::step]))


def _stretched(found: list[float], length: int) -> list[float]:
    """One number for each piece of work where only every n-th was looked at."""
    step = -(-length // MOST)
    return [found[place // step] for place in range(length)]
