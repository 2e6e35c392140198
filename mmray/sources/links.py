"""Uris inside rows: what they may name, and fetching them, several at once and in order.

A row comes from somebody else and may name anything, so a uri is first brought into its normal form
and then held against what is allowed: the shard's own folder, and `source.allow` or else the
shard's own bucket. What can't be had is the sample's error; only storage that stays broken raises.
"""

import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from mmray.errors import BadSample, RefusedError, SampleError, ShardChanged, SpecError
from mmray.sources.ahead import Job, Later, in_order
from mmray.sources.cut import Item
from mmray.sources.fragment import Sample, Shard
from mmray.sources.rows import Row, to_sample
from mmray.specs.common import Limits
from mmray.storage import Storage, is_s3
from mmray.storage.web import Web

FIRST_BYTES = 4 * 1024 * 1024
"""What is fetched ahead of a link's turn: how large it is isn't known before."""

MAX_URI = 8192
MAX_KEY = 1024
"""Bytes of an S3 key."""

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class Allowed:
    """What `source.allow` names: prefixes in storage, in normal form, and http prefixes."""

    stored: tuple[str, ...]
    web: tuple[str, ...]
    private: bool

    @classmethod
    def of(cls, allow: Sequence[str], allow_private: bool) -> "Allowed":
        """Raises SpecError for a prefix that can't be one."""
        stored, web = [], []
        for index, text in enumerate(allow):
            match = _SCHEME.match(text)
            try:
                if match and match.group(1).lower() in _WEB:
                    Web([text])
                    web.append(text)
                else:
                    stored.append(Storage().normalise(text))
            except (RefusedError, BadSample) as error:
                raise SpecError(f"source.allow[{index}]", str(error)) from error
        return cls(tuple(stored), tuple(web), allow_private)


@dataclass(slots=True)
class _Loaded:
    """A row, and by modality the links that go on: their uri, what came of them and its etag."""

    row: Row
    more: dict[str, tuple[str, bytes, str]]


class Links:
    """Resolves and fetches the links of one shard's rows."""

    def __init__(self, shard: Shard, storage: Storage, limits: Limits, allowed: Allowed) -> None:
        self._shard = shard
        self._storage = storage
        self._limit = limits.bytes
        self._folder = shard.uri.rpartition("/")[0]
        left_out = not (allowed.stored or allowed.web)
        own = (bucket_of(shard.uri),) if is_s3(shard.uri) and left_out else ()
        self._prefixes = tuple(map(_beginning, (self._folder, *allowed.stored, *own)))
        self._web = Web(allowed.web, allowed.private)

    def items(self, rows: Iterator[Row]) -> Generator[Item, None, None]:
        """The samples of `rows`, in their order, each with its place."""
        with closing(in_order(self._jobs(rows))) as loaded:
            for each in loaded:
                yield each.row.place, self._finish(each)

    def _jobs(self, rows: Iterator[Row]) -> Iterator[Job[_Loaded]]:
        for row in rows:
            if row.links and row.error is None:
                yield row.nbytes + len(row.links) * FIRST_BYTES, Later(partial(self._load, row))
            else:
                yield row.nbytes, _Loaded(row, {})

    def _load(self, row: Row) -> _Loaded:
        """Fetches the beginning of each link, most often all of it; runs in a thread."""
        more: dict[str, tuple[str, bytes, str]] = {}
        most = min(FIRST_BYTES, self._limit)
        try:
            for modality, text in row.links.items():
                uri = self.resolve(text)
                data, etag = self._begin(uri, most)
                if data is None or len(data) > most:
                    more[modality] = uri, data or b"", etag
                else:
                    row.members[modality] = data
        except BadSample as error:
            row.error = SampleError.of("read", error)
        return _Loaded(row, more)

    def _finish(self, loaded: _Loaded) -> Sample:
        """The sample; fetches what is left of large links, now that it is their turn."""
        row = loaded.row
        try:
            for modality, (uri, head, etag) in loaded.more.items():
                row.members[modality] = self._rest(uri, head, etag)
        except BadSample as error:
            row.error = SampleError.of("read", error)
        return to_sample(self._shard, row)

    def _begin(self, uri: str, most: int) -> tuple[bytes | None, str]:
        """The first bytes, one more than `most` where there are more, and the etag."""
        if not is_web(uri):
            return self._fetch(uri, 0, most + 1, "")
        try:
            return self._web.get(uri, most), ""
        except BadSample as error:
            if error.error_type != "OversizedMember" or most == self._limit:
                raise
            return None, ""  # it is fetched anew when it is its turn

    def _rest(self, uri: str, head: bytes, etag: str) -> bytes:
        if is_web(uri):
            return self._web.get(uri, self._limit)
        tail, _ = self._fetch(uri, len(head), self._limit + 1, etag)
        size = len(head) + len(tail)
        if size > self._limit:
            words = f"{uri[:300]} has {size:,} bytes or more, over {self._limit:,}"
            raise BadSample("OversizedMember", words)
        return head + tail

    def resolve(self, text: str) -> str:
        """The normal uri of what a row says. Raises BadSample LinkRefused."""
        if not text or len(text) > MAX_URI or any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise _refused(text, "is empty, too long, or holds control characters")
        match = _SCHEME.match(text)
        scheme = match.group(1).lower() if match else ""
        if scheme in _WEB:
            return text
        try:
            text.encode()
            if match or text.startswith("/"):
                uri = self._storage.normalise(text)
            else:  # joined first: "~" is somebody's home only at the beginning
                uri = self._storage.normalise(f"{self._folder}/{text}")
        except (RefusedError, UnicodeError) as error:
            raise _refused(text, f"can't be fetched: {error}") from error
        uri = _flat_key(text, uri) if is_s3(uri) else os.path.realpath(uri)
        if uri.startswith(self._prefixes):
            return uri
        raise _refused(text, f"is not in the folder {self._folder}, nor under source.allow")

    def _fetch(self, uri: str, start: int, stop: int, etag: str) -> tuple[bytes, str]:
        try:
            if not is_s3(uri):
                self._storage.stat(uri)  # a pipe would be waited for
            return self._storage.fetch(uri, start, stop, etag)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BadSample("LinkMissing", f"{uri[:300]}: there is no such object") from error
        except ShardChanged as error:
            raise BadSample("LinkBroken", f"{uri[:300]}: changed while it was read") from error
        except OSError as error:
            raise BadSample("LinkBroken", f"{uri[:300]}: {error}"[:500]) from error


def is_web(uri: str) -> bool:
    """Whether a uri is fetched by http."""
    return uri[:8].lower().startswith(("http://", "https://"))


def bucket_of(uri: str) -> str:
    """`s3://bucket` of an object's uri."""
    return "s3://" + uri.removeprefix("s3://").partition("/")[0]


def _beginning(prefix: str) -> str:
    """What a uri within `prefix` begins with; it ends in a slash, so no other name fits."""
    if is_s3(prefix):
        return prefix + "/"
    return os.path.realpath(prefix or "/").rstrip("/") + "/"


def _flat_key(text: str, uri: str) -> str:
    """An S3 uri without `.` and `..`: to S3 they are names, to whoever wrote them they climb."""
    bucket, *parts = uri.removeprefix("s3://").split("/")
    flat: list[str] = []
    for part in parts:
        if part == "..":
            if not flat:
                raise _refused(text, "leaves its bucket")
            flat.pop()
        elif part != ".":
            flat.append(part)
    key = "/".join(flat)
    if not key or len(key.encode()) > MAX_KEY or not re.fullmatch(r"[a-zA-Z0-9._-]{1,255}", bucket):
        raise _refused(text, "is no uri of an S3 object")
    return f"s3://{bucket}/{key}"


def _refused(text: str, why: str) -> BadSample:
    return BadSample("LinkRefused", f"{text[:200]!r} {why}"[:500])
