"""The values that sources hand on: shards, samples, fragments, and the span that names a fragment.

A `Span` is the identity that resume rests on: it names a shard version and a half-open range in
it. Two readers that start at the same place cut the same fragments, so their spans are equal.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from mmray.errors import SampleError

_SPAN = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{12})-([0-9a-f]{12})")


def digest(text: str, size: int) -> str:
    """Hex of the BLAKE2b digest of `text` (UTF-8), `size` bytes long."""
    # Local paths may hold bytes that aren't UTF-8; Python shows them as lone surrogates.
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=size).hexdigest()


def sample_id(source_uri: str, source_key: str) -> str:
    """The id of a sample: 32 hex of sha256 over its place, never over content or etag."""
    place = f"{source_uri}\0{source_key}".encode("utf-8", "surrogateescape")
    return hashlib.sha256(place).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Span:
    """A contiguous run of samples of one shard version, `[start, stop)` in the shard's units.

    The units are bytes of a tar or of JSON lines (uncompressed ones of gzipped ones), rows of a
    Parquet file and positions in a slice.
    """

    shard: str
    version: str
    start: int
    stop: int

    def __str__(self) -> str:
        """The value of the `fragment` column; sorts by start within a shard version."""
        return f"{self.shard}-{self.version}-{self.start:012x}-{self.stop:012x}"

    @classmethod
    def parse(cls, text: str) -> "Span":
        """The span that `str` wrote; ValueError for any other text."""
        match = _SPAN.fullmatch(text)
        if match is None:
            raise ValueError(f"not a fragment name: {text!r}")
        shard, version, start, stop = match.groups()
        return cls(shard, version, int(start, 16), int(stop, 16))


@dataclass(frozen=True, slots=True)
class Member:
    """One sample of a slice of raw files: its primary file and the files beside it.

    `etag` is the primary's, or a digest over all files' etags when there are sidecars.
    `sidecars` are (uri, extension) pairs; `size` is the primary's, in bytes.
    """

    uri: str
    name: str
    etag: str
    size: int
    sidecars: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """One input object, or one slice of a listing of raw files.

    `size` is the extent in the units of `Span`: bytes of a tar or of JSON lines,
    `GZIP_EXTENT` of gzipped ones, `ROWS` of a Parquet file, whose footer is read later, and the
    number of members of a slice. It is at least 1, so that an empty object has a span too.
    `key` (16 hex) and `version` (8 hex) are what spans of this shard carry.
    """

    uri: str
    etag: str
    size: int
    key: str
    version: str
    members: tuple[Member, ...] = ()

    def span(self, start: int, stop: int) -> Span:
        """The span `[start, stop)` of this shard version."""
        return Span(self.key, self.version, start, stop)


def object_shard(uri: str, etag: str, size: int) -> Shard:
    """The shard that one object makes; `size` is its extent."""
    return Shard(uri, etag, max(size, 1), digest(uri, 8), digest(etag, 4))


def is_object(key: str, uri: str) -> bool:
    """Whether a shard of this key is the object `uri`; a slice's key is made of all its files."""
    return key == digest(uri, 8)


def slice_shard(members: tuple[Member, ...]) -> Shard:
    """The shard that a run of raw files makes; its key changes with any of its files."""
    mark = digest("\n".join(f"{member.uri}\0{member.etag}" for member in members), 8)
    return Shard(members[0].uri, mark, len(members), mark, digest(mark, 4), members)


@dataclass(slots=True)
class Sample:
    """One input record: raw bytes by modality (image, text, audio, video) and its metadata.

    `content_hash` is 32 hex over the modality bytes and the metadata, empty where `error` is set.
    `ordinal` is the byte offset that keeps the id of an error sample apart from the id of the
    sample whose key it shares.
    """

    source_uri: str
    source_key: str
    source_etag: str
    members: dict[str, bytes] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    content_hash: str = ""
    error: SampleError | None = None
    ordinal: int | None = None

    @property
    def id(self) -> str:
        """Unique in a store, and the same after the shard was uploaded again."""
        if self.ordinal is None:
            return sample_id(self.source_uri, self.source_key)
        return sample_id(self.source_uri, f"{self.source_key}@{self.ordinal}")

    @property
    def nbytes(self) -> int:
        """Bytes of all modalities."""
        return sum(map(len, self.members.values()))


@dataclass(slots=True)
class Fragment:
    """The unit of work: a span and its samples. Samples with `error` set go to quarantine."""

    span: Span
    samples: list[Sample]
