"""Sources: shards -> fragments -> samples. The Protocol, and the table of all kinds.

A source lists on the driver (`shards`) and streams on a worker (`read`). A new kind is one class
and one line in `SOURCES`.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

from mmray.sources.cut import Cut
from mmray.sources.files import FilesReader
from mmray.sources.fragment import Fragment, Member, Sample, Shard, Span, sample_id
from mmray.sources.webdataset import WebDatasetReader
from mmray.specs.common import Limits, SourceSpec
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


SOURCES: dict[str, type[FilesReader] | type[WebDatasetReader]] = {
    "files": FilesReader,
    "webdataset": WebDatasetReader,
}


def open_source(
    spec: SourceSpec, storage: Storage, limits: Limits, cut: Cut | None = None
) -> Source:
    """The reader for `spec`; touches no storage yet. `cut` is left out except in tests."""
    return SOURCES[spec.kind](spec.uri, storage, limits, cut or Cut())
