"""One set of storage options, resolved alike for fsspec, pyarrow and deltalake; and whole objects.

A `Storage` holds no secret and no connection: it can be pickled, printed and kept. Credentials are
looked up on use, so ask it for `delta_options` or a file system each time instead of keeping them.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from mmray.errors import RefusedError, StorageError
from mmray.storage import local, names
from mmray.storage.backoff import is_transient, with_backoff
from mmray.storage.names import is_s3, join
from mmray.storage.objects import MissingBucket, Object

if TYPE_CHECKING:
    import pyarrow.fs

    from mmray.specs.common import StorageOptions
    from mmray.storage.s3 import Access

__all__ = ["MissingBucket", "Object", "Storage", "is_s3", "is_transient", "join", "with_backoff"]

LISTING_THREADS = 16

Gone = Callable[[str], bool]
"""Whether an object that is named and not there may be missing."""

Objects = list[Object]  # within Storage, `list` is its method


@dataclass(frozen=True, slots=True)
class Storage:
    """Local files and S3-compatible object storage, by uri.

    `AWS_ENDPOINT_URL`, `AWS_PROFILE`, `AWS_REGION` and the rest of the AWS environment stand in for
    what is left out. Every call waits out passing trouble and then raises StorageError; a missing
    object is FileNotFoundError, refused credentials are PermissionError, both naming the uri.
    """

    endpoint: str | None = None
    profile: str | None = None
    role: str | None = None
    region: str | None = None

    @classmethod
    def of(cls, options: "StorageOptions") -> "Storage":
        """The storage that a spec asks for."""
        return cls(options.endpoint, options.profile, options.role, options.region)

    def normalise(self, uri: str) -> str:
        """An absolute path, or `s3://bucket/key` without a final slash."""
        return names.normalise(uri)

    def filesystem(self, uri: str) -> tuple[Any, str]:
        """An fsspec file system, cached in this process, and the path of `uri` in it."""
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage.bridges import s3_filesystem

            return s3_filesystem(self._s3(uri), uri), uri.removeprefix("s3://")
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(auto_mkdir=True), uri

    def arrow_filesystem(self, uri: str) -> "tuple[pyarrow.fs.FileSystem, str]":
        """A pyarrow file system and the path of `uri` in it."""
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage.bridges import s3_arrow_filesystem

            return s3_arrow_filesystem(self._s3(uri), uri), uri.removeprefix("s3://")
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), uri

    def delta_options(self, uri: str) -> dict[str, str]:
        """`storage_options` for deltalake; they hold secrets, so never log or keep them."""
        uri = self.normalise(uri)
        if not is_s3(uri):
            return {}
        from mmray.storage.bridges import s3_delta_options

        return s3_delta_options(self._s3(uri), uri)

    def list(self, uri: str, *, recursive: bool = True) -> Iterator[Object]:
        """The objects in folder `uri`, sorted by uri; none where there is no such folder.

        Follows no link out of a local folder. Holds the whole listing in memory.
        """
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage import s3

            _, key = names.split_s3(uri)
            found = s3.walk(self._s3(uri), uri, key and key + "/", recursive)
        else:
            found = local.walk(uri, recursive)
        # Some servers list folder by folder, which isn't the order of the keys.
        return iter(sorted(found, key=lambda item: item.uri))

    def expand(self, uri: str | Sequence[str], may_be_gone: Gone | None = None) -> Objects:
        """What is named: objects, folders, globs (`*`, `?`, `[..]`, `**`) and brace ranges.

        Sorted by uri, each once. Raises RefusedError naming what doesn't exist, holds nothing or
        may not be read; a name of which `may_be_gone` says True is left out instead.
        """
        wanted = [uri] if isinstance(uri, str) else uri
        found: dict[str, Object] = {}
        try:
            with ThreadPoolExecutor(LISTING_THREADS) as pool:
                for text in wanted:
                    normal = self.normalise(text)
                    every = [normal] if self._exists(normal) else names.expand_braces(normal)
                    for objects in pool.map(lambda one: self._expand_one(one, may_be_gone), every):
                        found.update((item.uri, item) for item in objects)
        except (FileNotFoundError, PermissionError) as error:
            raise RefusedError(_words(error)) from error
        for name in found:
            _require_utf8(name)
        return [found[key] for key in sorted(found)]

    def matcher(self, uri: str | Sequence[str]) -> Callable[[str], bool]:
        """Whether an object's normal uri is among what `expand` would list, if it existed."""
        wanted = [uri] if isinstance(uri, str) else uri
        every = [each for text in wanted for each in names.expand_braces(self.normalise(text))]
        exact = frozenset(every)
        folders = tuple(each + "/" for each in every if not names.has_magic(each))
        patterns = [names.glob_regex(each) for each in every if names.has_magic(each)]

        def matches(candidate: str) -> bool:
            return (
                candidate in exact
                or candidate.startswith(folders)
                or any(pattern.fullmatch(candidate) for pattern in patterns)
            )

        return matches

    def _expand_one(self, uri: str, may_be_gone: Gone | None) -> Objects:
        found = self._stat_or_none(uri)
        if found is not None:
            return [found]
        if names.has_magic(uri):
            matches = names.glob_regex(uri).fullmatch
            # A pattern without further folders needs no walk through those below.
            deep = "**" in uri or names.has_magic(uri.rpartition("/")[0])
            listed = self.list(names.literal_folder(uri), recursive=deep)
            objects = [item for item in listed if matches(item.uri)]
        else:
            objects = [*self.list(uri)]
        if not objects and not (may_be_gone and may_be_gone(uri)):
            reason = "matches nothing" if names.has_magic(uri) else "does not exist or is empty"
            raise RefusedError(f"{uri}: {reason}")
        return objects

    def _exists(self, uri: str) -> bool:
        # A name may hold brackets or braces itself; then it means that object.
        special = names.has_magic(uri) or "{" in uri
        return not special or self._stat_or_none(uri) is not None

    def _stat_or_none(self, uri: str) -> Object | None:
        if is_s3(uri) and not names.split_s3(uri)[1]:
            return None
        try:
            return self.stat(uri)
        except IsADirectoryError:
            return None
        except MissingBucket:
            raise
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stat(self, uri: str) -> Object:
        """The object at `uri`."""
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage import s3

            return s3.stat(self._s3(uri), uri)
        return with_backoff(uri, lambda: local.stat(uri))

    def open(self, uri: str, mode: str = "rb") -> IO[bytes]:
        """A binary file, to read or to write; its caller closes it.

        A read on S3 is held to the object's etag: FileExpired when the object changes meanwhile.
        """
        if mode not in ("rb", "wb"):
            raise ValueError(f"mode is rb or wb, not {mode}")
        filesystem, path = self.filesystem(uri)
        try:
            file: IO[bytes] = with_backoff(uri, lambda: filesystem.open(path, mode))
        except (FileNotFoundError, PermissionError) as error:
            raise type(error)(f"{uri}: {error}") from error  # s3fs says no more than "Forbidden"
        return file

    def read_range(self, uri: str, start: int, stop: int | None, etag: str = "") -> bytes:
        """Bytes `[start, stop)`, fewer at the object's end; `stop` None reads to the end.

        Raises ShardChanged when `etag` is given and the object has another one by now.
        """
        return self.fetch(uri, start, stop, etag)[0]

    def fetch(
        self, uri: str, start: int = 0, stop: int | None = None, etag: str = ""
    ) -> tuple[bytes, str]:
        """`read_range`, with the etag of the object that was read."""
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage import s3

            return s3.read(self._s3(uri), uri, start, stop, etag)
        return with_backoff(uri, lambda: local.read(uri, start, stop, etag))

    def read_bytes(self, uri: str) -> bytes:
        """The whole object."""
        return self.fetch(uri)[0]

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Writes a whole object: readers see the old one or the new one."""
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage import s3

            s3.write(self._s3(uri), uri, data)
        else:
            with_backoff(uri, lambda: local.write(uri, data))

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Writes a whole object unless there is one; whether this call wrote it, in one step.

        Make `data` unlike other writers': after a lost reply it is how the winner is told.
        """
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage import s3

            return s3.put_if_absent(self._s3(uri), uri, data)
        return with_backoff(uri, lambda: local.put_if_absent(uri, data))

    def delete(self, uri: str) -> None:
        """Removes an object; nothing happens where there is none."""
        uri = self.normalise(uri)
        if is_s3(uri):
            from mmray.storage import s3

            s3.delete(self._s3(uri), uri)
        else:
            with_backoff(uri, lambda: local.delete(uri))

    def require_conditional_put(self, uri: str) -> None:
        """Tries a conditional put below `uri`, which commits rest on; local files always have it.

        Raises RefusedError naming the endpoint where the server ignores or refuses the condition,
        or where `uri` can't be written.
        """
        uri = self.normalise(uri)
        if not is_s3(uri):
            return
        from mmray.storage import s3

        probe = join(uri, "_mmray", f"probe-{uuid.uuid4().hex}")
        words = f"{uri}: the server at {self._s3(uri).endpoint or 'AWS'} has no conditional put"
        try:
            self.write_bytes(probe, b"a")
            if self.put_if_absent(probe, b"b"):
                raise RefusedError(f"{words} (it ignores If-None-Match): commits would be lost")
        except (FileNotFoundError, PermissionError) as error:
            raise RefusedError(_words(error)) from error
        except StorageError as error:
            if s3.ignores_conditions(error):
                raise RefusedError(f"{words}: {error}") from error
            raise
        finally:
            self.delete(probe)

    def _s3(self, uri: str) -> "Access":
        from mmray.storage import s3

        try:
            return s3.access(self)
        except PermissionError as error:
            raise PermissionError(f"{uri}: {error}") from error


def _require_utf8(uri: str) -> None:
    """Local names may be any bytes; one that is no text can be no `source_uri`."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{uri!r}: its name is not UTF-8; rename it") from None


def _words(error: OSError) -> str:
    """What went wrong in one line; Python's own file errors name the path last."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
