"""Raw files: a picture, sound, video or text with the files of the same name beside it.

The listing is cut into slices at places that depend on names alone, so that a file that comes or
goes changes the slice it is in and leaves the others as they were.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial

from mmray.errors import BadSample, RefusedError, SampleError, ShardChanged
from mmray.sources.ahead import Job, Later, in_order
from mmray.sources.assemble import KINDS, assemble
from mmray.sources.cut import Cut, Item, cut_fragments
from mmray.sources.fragment import Fragment, Member, Sample, Shard, digest, slice_shard
from mmray.specs.common import Limits
from mmray.storage import Object, Storage

SLICE_ROWS = 512
SLICE_ODDS = 128
"""A sample in this many starts a new slice."""

PRIMARY = ("image", "audio", "video", "text")
"""The first of these that a group has is what its samples are."""


class FilesReader:
    """Reads files one by one; `ignored` counts what is neither a sample nor part of one."""

    sliced = True

    def __init__(
        self, uri: str | Sequence[str], storage: Storage, limits: Limits, cut: Cut
    ) -> None:
        self._uri = uri
        self._storage = storage
        self._limits = limits
        self._cut = cut
        self._matches: Callable[[str], bool] | None = None
        self.ignored = 0

    def shards(self, may_be_gone: Callable[[str], bool] | None = None) -> Iterator[Shard]:
        """The slices; their units are positions."""
        groups: dict[str, list[Object]] = {}
        listed = self._storage.expand(self._uri, may_be_gone)
        for item in listed:
            stem = stem_of(item.uri)
            if stem:
                groups.setdefault(stem, []).append(item)
        members: list[Member] = []
        used: set[str] = set()
        for group in groups.values():
            for member in group_members(group):
                members.append(member)
                used.update((member.uri, *(uri for uri, _ in member.sidecars)))
        self.ignored = len(listed) - len(used)
        if not members:
            raise RefusedError(f"{self._uri}: holds no image, text, audio or video file")
        members.sort(key=lambda member: member.uri)
        return iter([slice_shard(part) for part in slices(members)])

    def covers(self, uri: str) -> bool:
        """Whether a file of this uri is, or was, one of this source's samples."""
        if self._matches is None:
            self._matches = self._storage.matcher(self._uri)
        return bool(stem_of(uri)) and self._matches(uri)

    def read(self, shard: Shard, start: int, stop: int, seen: set[str]) -> Iterator[Fragment]:
        """Fetches the files at positions `[start, stop)`, several at once, in order."""
        del seen  # a file's place is its path: none comes back
        with closing(in_order(self._items(shard, start, stop))) as items:
            yield from cut_fragments(shard, start, stop, items, self._cut)

    def _items(self, shard: Shard, start: int, stop: int) -> Iterator[Job[Item]]:
        for place in range(start, stop):
            member = shard.members[place]
            cost = min(member.size, self._limits.bytes)
            yield cost, Later(partial(self._item, place, member))

    def _item(self, place: int, member: Member) -> Item:
        return place, self._fetch(member)

    def _fetch(self, member: Member) -> Sample:
        """The sample of `member`; what is wrong with its files is its error."""
        try:
            return assemble(member.uri, member.name, member.etag, self._load(member))
        except BadSample as error:
            found = SampleError.of("read", error)
        except (FileNotFoundError, PermissionError) as error:
            found = SampleError("read", "UnreadableShard", str(error)[:500])
        return Sample(member.uri, member.name, member.etag, error=found)

    def _load(self, member: Member) -> dict[str, bytes]:
        """The files' bytes by kind. Raises BadSample OversizedMember, ShardChanged."""
        limit = self._limits.bytes
        raw: dict[str, bytes] = {}
        etags: list[str] = []
        ext = member.name.rpartition(".")[2].lower()
        for uri, suffix in ((member.uri, ext), *member.sidecars):
            if uri == member.uri and member.size > limit:
                raise oversized(uri, member.size, limit)
            # The size of a sidecar isn't known here: one byte past the limit tells.
            data, etag = self._storage.fetch(uri, 0, limit + 1)
            if len(data) > limit:
                raise oversized(uri, len(data), limit)
            raw[KINDS[suffix]] = data
            etags.append(etag)
        found = join_etags(etags)
        if found != member.etag:
            words = f"it or a file beside it changed after it was listed: {member.etag}"
            raise ShardChanged(member.uri, f"{words} became {found}")
        return raw


def oversized(uri: str, size: int, limit: int) -> BadSample:
    """The error of a file that is too large; of a sidecar the size is known as a lower bound."""
    return BadSample("OversizedMember", f"{uri} has {size:,} bytes or more, over {limit:,}")


def join_etags(etags: list[str]) -> str:
    """The etag of a sample: its only file's, or a digest over all of them."""
    return etags[0] if len(etags) == 1 else digest("\n".join(etags), 16)


def stem_of(uri: str) -> str:
    """The path without its extension; empty for what can't be part of a sample."""
    folder, _, name = uri.rpartition("/")
    stem, _, ext = name.rpartition(".")
    if not stem or name.startswith(".") or ext.lower() not in KINDS:
        return ""
    return f"{folder}/{stem}"


def group_members(group: list[Object]) -> Iterator[Member]:
    """The samples that files of one stem make: each file of the first modality present.

    Of every other kind the first file by name is a sidecar of each sample.
    """
    kinds: dict[str, list[Object]] = {}
    for item in sorted(group, key=lambda item: item.uri):
        kinds.setdefault(KINDS[extension(item.uri)], []).append(item)
    primary = next((kind for kind in PRIMARY if kind in kinds), None)
    if primary is None:
        return
    beside = [items[0] for kind, items in sorted(kinds.items()) if kind != primary]
    sidecars = tuple((item.uri, extension(item.uri)) for item in beside)
    for item in kinds[primary]:
        etag = join_etags([item.etag, *(other.etag for other in beside)])
        name = item.uri.rpartition("/")[2]
        yield Member(item.uri, name, etag, item.size, sidecars)


def extension(uri: str) -> str:
    """The last suffix, lower-cased."""
    return uri.rpartition(".")[2].lower()


def slices(members: list[Member]) -> Iterator[tuple[Member, ...]]:
    """Runs of sorted members, cut where a name's digest says so and at `SLICE_ROWS`."""
    run: list[Member] = []
    for member in members:
        uri = member.uri.encode("utf-8", "surrogateescape")
        mark = int.from_bytes(hashlib.blake2b(uri).digest()[:2])
        if run and (mark % SLICE_ODDS == 0 or len(run) >= SLICE_ROWS):
            yield tuple(run)
            run = []
        run.append(member)
    if run:
        yield tuple(run)
