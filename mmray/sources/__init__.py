"""Sources: shards -> fragments -> samples. The Protocol, and the table of all kinds.

A source lists on the driver (`shards`) and streams on a worker (`read`). A new kind is one class
and one line in `SOURCES`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mmray.sources.cut import Cut
from mmray.sources.files import FilesReader
from mmray.sources.fragment import Fragment, Member, Sample, Shard, Span, sample_id
from mmray.sources.jsonl import JsonlReader
from mmray.sources.parquet import ParquetReader
from mmray.sources.store import StoreReader
from mmray.sources.webdataset import WebDatasetReader
from mmray.specs.common import FilesSource, Limits, SourceSpec, WebDatasetSource
from mmray.storage import Storage

__all__ = [
    "SOURCES",
    "Cut",
    "Fragment",
    "Member",
    "Sample",
    "Shard",
    "Source",
    "Span",
    "open_source",
    "sample_id",
]


class Source(Protocol):
    """What reads one kind of input. Picklable; holds no open file."""

    ignored: int
    """After `shards()`: listed objects that are no input of this kind."""

    sliced: bool
    """Whether shards are slices of a listing, whose samples are objects of their own."""

    def shards(self, may_be_gone: Callable[[str], bool] | None = None) -> Iterator[Shard]:
        """The shards, sorted by uri; lists objects and reads no data. Runs on the driver.

        Raises RefusedError where the input is missing, empty or not to be read; named objects of
        which `may_be_gone` says True are left out instead.
        """
        ...

    def covers(self, uri: str) -> bool:
        """Whether an object of this uri is, or was, part of this source."""
        ...

    def read(self, shard: Shard, start: int, stop: int, seen: set[str]) -> Iterator[Fragment]:
        """The fragments of `shard` that tile `[start, stop)`; runs on a worker.

        `start` is 0 or where some fragment of this shard version stopped, `stop` the shard's
        size or where one started; `seen` holds the keys of this shard that come before `start`.
        Broken samples and broken tails come as samples with `error` set. Raises ShardChanged when
        the object is no longer the one listed, StorageError when storage stays broken.
        """
        ...


Opener = Callable[[Any, Storage, Limits, Cut, frozenset[str] | None], Source]


def _files(
    spec: FilesSource, storage: Storage, limits: Limits, cut: Cut, wanted: frozenset[str] | None
) -> Source:
    del wanted  # its JSON is read as a whole
    return FilesReader(spec.uri, storage, limits, cut)


def _webdataset(
    spec: WebDatasetSource,
    storage: Storage,
    limits: Limits,
    cut: Cut,
    wanted: frozenset[str] | None,
) -> Source:
    del wanted
    return WebDatasetReader(spec.uri, storage, limits, cut)


SOURCES: dict[str, Opener] = {
    "files": _files,
    "webdataset": _webdataset,
    "parquet": ParquetReader,
    "jsonl": JsonlReader,
    "store": StoreReader,
}


def open_source(
    spec: SourceSpec,
    storage: Storage,
    limits: Limits,
    cut: Cut | None = None,
    wanted: frozenset[str] | None = None,
) -> Source:
    """The reader for `spec`; touches no storage yet. Raises SpecError.

    `cut` is left out except in tests. `wanted` are the metadata fields that the job looks at: a
    source may leave out the others. None: it gives all.
    """
    return SOURCES[spec.kind](spec, storage, limits, cut or Cut(), wanted)
