"""Files that a manifest names, each with its size and SHA-256: put on storage once, and brought to
this machine with their content checked. Indexes, trainings and checkpoints are made of them.

From object storage they come as copies in a cache that processes share: a copy is named after its
content, written beside its place and renamed, so that no one sees half of one. The copies unused
for longest go when all take more than `MMRAY_CACHE_SIZE` (`50GiB`).
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mmray.errors import RefusedError, ShardChanged, SpecError
from mmray.storage import Object, Storage, is_s3, join
from mmray.storage.names import split_s3

PIECE = 16 * 1024 * 1024
"""Bytes of one request; objects of up to 10,000 pieces, larger ones have larger pieces."""
AHEAD = 4
"""Pieces that are fetched at once."""
CACHE_BYTES = "50GiB"
IN_USE_SECONDS = 3600.0
"""A copy that was asked for so lately stays, however full the cache is: it may not be read yet."""

_MOST_PIECES = 10_000
_MOST_COPIED = 5 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class File:
    """One file; `path` is relative to its root, the folder or prefix that the manifest is of."""

    path: str
    bytes: int
    sha256: str


def put(storage: Storage, local: Path, root: str, path: str) -> File:
    """Copy the file `local` to `path` under `root`; readers see all of it or nothing.

    On the same disk the two may be one file: don't change `local` afterwards.

    Raises:
        StorageError: storage stayed broken.
    """
    uri = uri_of(storage, root, path)
    hashed = hashlib.sha256()
    size = _upload(storage, local, uri, hashed) if is_s3(uri) else _place(local, Path(uri), hashed)
    return File(path, size, hashed.hexdigest())


def get(storage: Storage, root: str, file: File) -> Path:
    """A local file with the content that `file` names: itself on local storage, else a copy.

    Raises:
        RefusedError: the file is missing, of another size, or of other content.
        StorageError: storage stayed broken.
    """
    found = require(storage, root, file)
    if not is_s3(found.uri):
        _require_content(found.uri, file, _digest(Path(found.uri)))
        return Path(found.uri)
    folder = cache_folder()
    # The etag is in the name too: of an object that was rewritten the copy is no proof.
    place = folder / f"{file.sha256}-{hashlib.sha256(found.etag.encode()).hexdigest()[:8]}"
    if not _is_copy(place, file):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            if not _is_copy(place, file):
                _download(storage, found, file, place)
                trim(folder, cache_limit())
    return place


def copy(storage: Storage, root: str, file: File, path: str) -> File:
    """The content of a file of `root` at another `path` of it; an object store copies it itself.

    It isn't read: like any other it's checked by who gets it.

    Raises:
        RefusedError: the file is missing, of another size, or of more than 5 GiB on S3, which one
            request doesn't copy.
        StorageError: storage stayed broken.
    """
    found = require(storage, root, file)
    uri = uri_of(storage, root, path)
    if not is_s3(uri):
        with _becoming(Path(uri)) as hidden:
            shutil.copyfile(found.uri, hidden)
            _sync(hidden)
    else:
        from mmray.storage import s3

        if found.size > _MOST_COPIED:
            raise RefusedError(f"{found.uri} is too large to be copied by one request")
        (bucket, key), (into, name) = split_s3(found.uri), split_s3(uri)
        place = {"Bucket": into, "Key": name, "CopySource": {"Bucket": bucket, "Key": key}}
        s3.call(uri, lambda: s3.access(storage).client.copy_object(**place))
    return File(path, file.bytes, file.sha256)


def lay_out(storage: Storage, root: str, files: Iterable[File], folder: Path) -> None:
    """Make `folder` one that holds these files under their paths: links to what `get` gives.

    For code that opens a folder. Copies stay for an hour at least, so open them soon.

    Raises:
        RefusedError, StorageError: as `get` does.
    """
    for file in files:
        local = get(storage, root, file)
        place = folder / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(local.absolute())


def require(storage: Storage, root: str, file: File) -> Object:
    """The file, which is there and whole by its size. Raises RefusedError otherwise."""
    uri = uri_of(storage, root, file.path)
    if not _SHA256.fullmatch(file.sha256):
        raise RefusedError(f"{root}: its manifest has no SHA-256 of {file.path}")
    try:
        found = storage.stat(uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise RefusedError(f"{uri} is missing, and its manifest names it") from None
    if found.size != file.bytes:
        raise RefusedError(f"{uri} is torn: {found.size:,} bytes, not {file.bytes:,}")
    return found


def check(storage: Storage, root: str, file: File) -> None:
    """Read a file where it lies, to the last byte. Raises what `get` raises."""
    found = require(storage, root, file)
    hashed = hashlib.sha256()
    for piece in _pieces(storage, found):
        hashed.update(piece)
    _require_content(found.uri, file, hashed.hexdigest())


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for files on their way, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mmray-") as folder:
        yield Path(folder)


def uri_of(storage: Storage, root: str, path: str) -> str:
    """Where a file of `root` lies. Raises RefusedError for a path that leads elsewhere."""
    return storage.normalise(join(root, safe(root, path)))


def safe(root: str, path: str) -> str:
    """`path`, which stays below `root`. Raises RefusedError for one that leads elsewhere."""
    if not path or any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
        raise RefusedError(f"{root}: its manifest names {path!r}, which is no file below it")
    return path


def cache_folder() -> Path:
    """Where copies are kept: `blobs` in `$MMRAY_CACHE`, else in `~/.cache/mmray`."""
    base = os.environ.get("MMRAY_CACHE") or Path.home() / ".cache" / "mmray"
    return Path(base) / "blobs"


def cache_limit() -> int:
    """Bytes that copies may take. Raises SpecError where `MMRAY_CACHE_SIZE` is no size."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    text = os.environ.get("MMRAY_CACHE_SIZE") or CACHE_BYTES
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise SpecError("MMRAY_CACHE_SIZE", f"{text!r:.60} is no size such as 50GiB") from None


def trim(folder: Path, limit: int) -> None:
    """Remove the copies unused for longest until the rest take at most `limit` bytes; those in use
    stay, and so do halves that someone may be writing."""
    now, total = time.time(), 0
    known: list[tuple[float, int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process tidies up too
                info = entry.stat()
                total += info.st_size
                known.append((info.st_mtime, info.st_size, entry.path))
    for used, size, path in sorted(known):
        if total <= limit or now - used < IN_USE_SECONDS:
            return
        with suppress(FileNotFoundError):
            os.unlink(path)
        total -= size


def _require_content(uri: str, file: File, digest: str) -> None:
    if digest != file.sha256:
        raise RefusedError(
            f"{uri} was changed after it was written: its SHA-256 is {digest[:12]}.., "
            f"not {file.sha256[:12]}.."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_copy(place: Path, file: File) -> bool:
    """Whether the cache has the file, whole; from now on it counts as used."""
    try:
        os.utime(place)
        return place.stat().st_size == file.bytes and _digest(place) == file.sha256
    except FileNotFoundError:
        return False


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process of this machine fetches a copy; others wait, and find it there.

    Else as many as there are workers would fetch the same weights at the same time.
    """
    lock = place.parent.with_name("locks") / place.name[:2]  # few files, which stay
    lock.parent.mkdir(exist_ok=True)
    with lock.open("ab") as held:
        with suppress(OSError):  # not every shared disk can lock: then some is fetched twice
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _download(storage: Storage, found: Object, file: File, place: Path) -> None:
    hashed = hashlib.sha256()
    with _becoming(place) as hidden:
        with hidden.open("xb") as out:
            for piece in _pieces(storage, found):
                hashed.update(piece)
                out.write(piece)
        _require_content(found.uri, file, hashed.hexdigest())


def _pieces(storage: Storage, found: Object) -> Iterator[bytes]:
    """An object's bytes in order, some requests ahead of the reader."""

    def read(start: int) -> bytes:
        stop = min(start + PIECE, found.size)
        try:
            return storage.read_range(found.uri, start, stop, found.etag)
        except ShardChanged as error:
            raise RefusedError(f"{found.uri} was changed while it was read") from error

    with ThreadPoolExecutor(AHEAD) as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for start in range(0, found.size, PIECE):
                waiting.append(pool.submit(read, start))
                if len(waiting) == AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for each in waiting:
                each.cancel()


def _place(local: Path, target: Path, hashed: "hashlib._Hash") -> int:
    with _becoming(target) as hidden:
        linked = _linked(local, hidden)
        with nullcontext() if linked else hidden.open("xb") as out:
            size = _copy(local, out, hashed)
        _sync(hidden)
    return size


@contextmanager
def _becoming(target: Path) -> Iterator[Path]:
    """A path beside `target`, whose file becomes it where nothing is raised."""
    target.parent.mkdir(parents=True, exist_ok=True)
    hidden = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield hidden
        hidden.replace(target)
    finally:
        hidden.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _linked(local: Path, hidden: Path) -> bool:
    """Whether `hidden` is the same file now: not on another disk, nor on one without links."""
    try:
        os.link(local.resolve(), hidden)
    except OSError:
        return False
    return True


def _copy(source: Path, out: IO[bytes] | None, hashed: "hashlib._Hash") -> int:
    size = 0
    with source.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            hashed.update(chunk)
            size += len(chunk)
            if out is not None:
                out.write(chunk)
    return size


def _upload(storage: Storage, local: Path, uri: str, hashed: "hashlib._Hash") -> int:
    size = local.stat().st_size
    if size <= PIECE:
        data = local.read_bytes()
        hashed.update(data)
        storage.write_bytes(uri, data)
        return len(data)
    from mmray.storage import s3

    at, (bucket, key) = s3.access(storage), split_s3(uri)
    piece = max(PIECE, -(-size // _MOST_PIECES))
    place = {"Bucket": bucket, "Key": key}
    begun = s3.call(uri, lambda: at.client.create_multipart_upload(**place))
    place["UploadId"] = begun["UploadId"]
    parts: list[dict[str, object]] = []
    try:
        with local.open("rb") as opened:
            while data := opened.read(piece):
                hashed.update(data)
                part = {"PartNumber": len(parts) + 1, "Body": data}
                done = s3.call(uri, lambda part=part: at.client.upload_part(**place, **part))  # type: ignore[misc]
                parts.append({"PartNumber": len(parts) + 1, "ETag": done["ETag"]})
        whole = {"Parts": parts}
        s3.call(uri, lambda: at.client.complete_multipart_upload(**place, MultipartUpload=whole))
    except BaseException:
        # Its pieces would be kept, and paid for, without being seen.
        s3.call(uri, lambda: at.client.abort_multipart_upload(**place))
        raise
    return size
