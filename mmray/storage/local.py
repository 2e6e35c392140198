"""Local files with the manners of object storage: whole objects, etags, put if absent.

A file's etag is its size and modification time; writes appear at once or not at all.
"""

import errno
import os
import stat as modes
import uuid
from collections.abc import Iterator

from mmray.errors import ShardChanged
from mmray.storage.objects import Object

_NO_FILE = frozenset({errno.ENOENT, errno.ELOOP})
"""Gone since it was listed; a link that dangles or leads to itself."""


def etag_of(info: os.stat_result) -> str:
    """Size and modification time in nanoseconds."""
    return f"{info.st_size}-{info.st_mtime_ns}"


def stat(path: str) -> Object:
    """The file at `path`. Raises FileNotFoundError, IsADirectoryError."""
    info = os.stat(path)
    if modes.S_ISDIR(info.st_mode):
        raise IsADirectoryError(f"{path}: is a folder")
    if not modes.S_ISREG(info.st_mode):
        raise PermissionError(f"{path}: is no regular file")
    return Object(path, info.st_size, etag_of(info), info.st_mtime)


def walk(folder: str, recursive: bool) -> Iterator[Object]:
    """The regular files under `folder`, in no order; none where it doesn't exist.

    Linked folders aren't entered, and a linked file counts only when it stays inside `folder`.
    """
    if not os.path.isdir(folder):
        return
    inside = os.path.realpath(folder) + os.sep
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=False):
        if not recursive:
            folders.clear()
        for name in names:
            path = os.path.join(parent, name)
            if os.path.islink(path) and not os.path.realpath(path).startswith(inside):
                continue
            try:
                info = os.stat(path)
            except OSError as error:
                if error.errno in _NO_FILE:
                    continue
                raise
            if modes.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
                yield Object(path, info.st_size, etag_of(info), info.st_mtime)


def _raise(error: OSError) -> None:
    # os.walk would pass over a folder that it can't read without a word.
    if not isinstance(error, FileNotFoundError):
        raise error


def read(path: str, start: int, stop: int | None, etag: str) -> tuple[bytes, str]:
    """Bytes `[start, stop)` and the etag; ShardChanged when `etag` is given and differs."""
    with open(path, "rb", buffering=0) as file:
        info = os.fstat(file.fileno())
        found = etag_of(info)
        if etag and found != etag:
            raise ShardChanged(path, f"changed while it was read: {etag} became {found}")
        end = info.st_size if stop is None else min(stop, info.st_size)
        file.seek(start)
        pieces: list[bytes] = []
        while start < end and (piece := file.read(end - start)):
            pieces.append(piece)
            start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces), found


def write(path: str, data: bytes) -> None:
    """Writes a whole file: a reader sees the old content or the new one."""
    hidden = _write_hidden(path, data)
    try:
        os.replace(hidden, path)
    except BaseException:
        os.unlink(hidden)
        raise


def put_if_absent(path: str, data: bytes) -> bool:
    """Writes a whole file unless there is one; whether this call wrote it."""
    hidden = _write_hidden(path, data)
    try:
        # A link appears with all its content and fails when the name is taken, as one step.
        os.link(hidden, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(hidden)
    return True


def _write_hidden(path: str, data: bytes) -> str:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    hidden = os.path.join(folder, f".{name[:100]}.{uuid.uuid4().hex}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(hidden, flags, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hidden


def delete(path: str) -> None:
    """Removes a file; nothing happens where there is none."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
