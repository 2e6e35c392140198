"""WebDataset tars: files that share a name up to its first dot are one sample.

Nothing in a tar goes without a word: what can't be a sample becomes one with `error` set, and where
a tar is torn the sample that may lack files is the error. Format: the WebDataset convention of
`folder/key.ext`; keys keep their folder.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

from mmray.errors import BadSample, RefusedError, SampleError
from mmray.sources.assemble import KINDS, assemble
from mmray.sources.cut import Cut, Item, cut_fragments
from mmray.sources.fragment import Fragment, Sample, Shard, object_shard
from mmray.sources.stream import Broken, ByteStream, GzipChunks, RangeChunks
from mmray.sources.tar import Entry, TarReader
from mmray.specs.common import Limits
from mmray.storage import Storage

GZIP_EXTENT = 1 << 40
"""Size of every gzipped tar: how much there is to decompress can't be known without doing it."""

MAX_FILES = 1000
"""Files of one sample, and strange members within one; more mean a broken naming scheme."""

_OTHER_TARS = (".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tbz2", ".txz", ".tzst")


class WebDatasetReader:
    """Reads `.tar`, `.tar.gz` and `.tgz`; other objects of a folder are counted as ignored."""

    sliced = False

    def __init__(
        self, uri: str | Sequence[str], storage: Storage, limits: Limits, cut: Cut
    ) -> None:
        self._uri = uri
        self._storage = storage
        self._limits = limits
        self._cut = cut
        self.ignored = 0

    def shards(self, may_be_gone: Callable[[str], bool] | None = None) -> Iterator[Shard]:
        """One shard for each tar; its units are bytes, uncompressed ones of a gzipped tar."""
        found: list[Shard] = []
        self.ignored = 0
        for item in self._storage.expand(self._uri, may_be_gone):
            name = item.uri.lower()
            if name.endswith(_OTHER_TARS):
                raise RefusedError(f"{item.uri}: only .tar, .tar.gz and .tgz can be read")
            if name.endswith(".tar"):
                found.append(object_shard(item.uri, item.etag, item.size))
            elif is_gzip(name):
                found.append(object_shard(item.uri, item.etag, GZIP_EXTENT))
            else:
                self.ignored += 1
        if not found:
            raise RefusedError(f"{self._uri}: holds no .tar, .tar.gz or .tgz")
        return iter(found)

    def covers(self, uri: str) -> bool:
        """Whether a tar of this uri is, or was, one of this source's shards."""
        is_tar = uri.lower().endswith((".tar", ".tar.gz", ".tgz"))
        return is_tar and self._storage.matcher(self._uri)(uri)

    def read(self, shard: Shard, start: int, stop: int, seen: set[str]) -> Iterator[Fragment]:
        """Streams the tar from `start`, a member's header; a gzipped one from its beginning."""
        with closing(self._items(shard, start, stop, set(seen))) as items:
            yield from cut_fragments(shard, start, stop, items, self._cut)

    def _items(
        self, shard: Shard, start: int, stop: int, seen: set[str]
    ) -> Generator[Item, None, None]:
        def fetch(first: int, end: int) -> bytes:
            return self._storage.read_range(shard.uri, first, end, shard.etag)

        if is_gzip(shard.uri):
            raw = RangeChunks(fetch, 0, GZIP_EXTENT)
            stream = ByteStream(GzipChunks(raw), 0)
        else:
            raw = RangeChunks(fetch, start, min(stop, shard.size))
            stream = ByteStream(raw, start)
        walk = _Walk(shard, seen, self._limits.bytes)
        with closing(raw):
            try:
                if stream.pos < start and not stream.skip(start - stream.pos):
                    raise Broken("TruncatedShard", f"it ends at {stream.pos}, before {start}")
                yield from walk.samples(TarReader(stream, stop, whole=stop >= shard.size))
            except Broken as error:
                yield from walk.broken(error, stream.pos)
            except (FileNotFoundError, PermissionError) as error:
                yield from walk.broken(Broken("UnreadableShard", str(error)), stream.pos)


def is_gzip(uri: str) -> bool:
    """Whether a tar's name says that it is gzipped."""
    return uri.lower().endswith((".tar.gz", ".tgz"))


def split_name(name: str) -> tuple[str, str]:
    """Key and lower-cased extension: the path up to the first dot of its last part, and the rest.

    A leading dot belongs to the key.
    """
    slash = name.rfind("/") + 1
    dot = name.find(".", slash + 1)
    return (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())


class _Group:
    """The files of one key as they come. `again`: the key has been seen before another one."""

    __slots__ = ("again", "error", "extensions", "files", "key", "offset", "raw", "strays")

    def __init__(self, key: str, offset: int, again: bool) -> None:
        self.key = key
        self.offset = offset
        self.again = again
        self.error: SampleError | None = None
        self.extensions: set[str] = set()
        self.files: dict[str, str] = {}  # kind -> extension of the file that was taken for it
        self.raw: dict[str, bytes] = {}
        self.strays: list[Sample] = []

    def add(self, tar: TarReader, entry: Entry, ext: str, limit: int) -> None:
        """Takes a file, where it is the one for its modality; `tar` passes over the others."""
        if self.again or self.error is not None:
            return
        if ext in self.extensions:
            self.fail("DuplicateMember", f"{entry.name} is there twice")
        elif len(self.extensions) >= MAX_FILES:
            self.fail("TooManyMembers", f"more than {MAX_FILES} files share this key")
        self.extensions.add(ext)
        kind = KINDS.get(ext.rpartition(".")[2])
        if kind is None or self.error is not None:
            return
        taken = self.files.get(kind)
        if taken is not None and ("." in ext or "." not in taken):
            return  # the first one stays; only an exact extension replaces a compound one
        if entry.size > limit:
            self.fail("OversizedMember", f"{entry.name} has {entry.size:,} bytes, over {limit:,}")
            return
        self.files[kind] = ext
        self.raw[kind] = tar.data(entry)

    def fail(self, error_type: str, message: str) -> None:
        """Makes the sample an error; its bytes are let go."""
        self.error = SampleError("read", error_type, message[:500])
        self.raw.clear()


class _Walk:
    """One pass over the members of a tar, from members to samples."""

    def __init__(self, shard: Shard, seen: set[str], limit: int) -> None:
        self._shard = shard
        self._seen = seen
        self._limit = limit
        self._group: _Group | None = None

    def samples(self, tar: TarReader) -> Iterator[Item]:
        """The samples, each when its last file has been read. Raises Broken."""
        while (entry := tar.next()) is not None:
            if entry.kind == "folder" or is_mac_litter(entry.name):
                continue
            refusal = refuse(entry)
            if refusal is not None:
                yield from self._stray(entry, refusal)
                continue
            key, ext = split_name(entry.name)
            group = self._group
            if group is None or group.key != key:
                yield from self._close()
                group = self._group = _Group(key, entry.offset, key in self._seen)
                self._seen.add(key)
            group.add(tar, entry, ext, self._limit)
        yield from self._close()
        place = tar.trailing()
        if place is not None:
            words = f"there is data at {place}, after the end-of-archive marker"
            yield None, self._error("", SampleError("read", "TrailingData", words), place)

    def broken(self, error: Broken, place: int) -> Iterator[Item]:
        """One error for all that can't be read: the open sample, which may lack files, or none."""
        group, self._group = self._group, None
        found = SampleError("read", error.error_type, error.message[:500])
        if group is None:
            yield None, self._error(error.name, found, place or None)
        else:
            again = group.offset if group.again else None
            yield group.offset, self._error(group.key, found, again)
            yield from ((None, stray) for stray in group.strays)

    def _close(self) -> Iterator[Item]:
        """The open group's sample, then what lay strangely between its files."""
        group, self._group = self._group, None
        if group is None:
            return
        yield group.offset, self._sample(group)
        yield from ((None, stray) for stray in group.strays)

    def _sample(self, group: _Group) -> Sample:
        if group.again:
            words = f"the key comes back at {group.offset}, after another key"
            error = SampleError("read", "NonContiguousKey", words)
            return self._error(group.key, error, group.offset)
        if group.error is not None:
            return self._error(group.key, group.error)
        if not group.raw:
            names = ", ".join(sorted(group.extensions)[:10]) or "none"
            words = f"no image, text, audio or video among its extensions: {names}"
            return self._error(group.key, SampleError("read", "NoModality", words[:500]))
        try:
            return assemble(self._shard.uri, group.key, self._shard.etag, group.raw)
        except BadSample as error:
            return self._error(group.key, SampleError.of("read", error))

    def _stray(self, entry: Entry, error: SampleError) -> Iterator[Item]:
        """An error of a member's own; it doesn't come between the files around it."""
        sample = self._error(entry.name, error, entry.offset)
        if self._group is None:
            yield entry.offset, sample
            return
        self._group.strays.append(sample)
        if len(self._group.strays) >= MAX_FILES:
            yield from self._close()

    def _error(self, key: str, error: SampleError, ordinal: int | None = None) -> Sample:
        return Sample(self._shard.uri, key, self._shard.etag, error=error, ordinal=ordinal)


def is_mac_litter(name: str) -> bool:
    """Whether a member is a macOS resource fork or folder setting, which `tar` there adds."""
    base = name[name.rfind("/") + 1 :]
    return base.startswith("._") or base == ".DS_Store"


def refuse(entry: Entry) -> SampleError | None:
    """Why a member is none to be read, if so."""
    name = entry.name
    if not name:
        return SampleError("read", "UnsafeMember", "it has no name")
    if name[0] == "/" or (".." in name and ".." in name.split("/")):
        return SampleError("read", "UnsafeMember", f"its name leaves the archive: {name}"[:500])
    if entry.kind == "other":
        return SampleError("read", "UnsupportedMember", f"it is {entry.what}: {name}"[:500])
    return None
