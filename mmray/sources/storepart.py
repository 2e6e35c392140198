"""One part of a store, read a row group and a few columns at a time.

Two things can be wrong with it: it is gone, which is `ShardChanged`, for its rows may be elsewhere;
or its bytes are broken, which is `DamagedPart`, for its rows are lost.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import ShardChanged
from mmray.storage import Storage


class DamagedPart(Exception):
    """A part can't be read though it is there; the text names it."""


class PartReader:
    """An open part; holds the columns of the last row group that was asked for. Close it.

    Every call raises ShardChanged when the part is gone, DamagedPart when it can't be read, and
    StorageError when storage stays broken.
    """

    def __init__(self, storage: Storage, uri: str) -> None:
        self.uri = uri
        self._last: tuple[int, pa.Table] | None = None
        with self._told():
            self._raw = _Ranges(storage, uri)
            # Bytes come through `Storage`, which waits out its troubles: what Arrow complains of
            # is then the part's own.
            self._parquet = pq.ParquetFile(
                pa.PythonFile(self._raw, mode="r"), page_checksum_verification=True
            )

    def __enter__(self) -> "PartReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file and of the rows."""
        self._last = None
        self._parquet.close(force=True)

    @property
    def groups(self) -> int:
        """Row groups."""
        return int(self._parquet.num_row_groups)

    def texts(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of strings of one row group."""
        with self._told():
            table = self._parquet.read_row_group(group, columns=list(columns))
            plain = pa.schema([pa.field(name, pa.string()) for name in columns])
            return table.select(list(columns)).cast(plain)

    def runs(self, group: int, column: str) -> Iterator[tuple[str, int, int]]:
        """Equal values one after another: the value, the first row, how many rows."""
        with self._told():
            values = self.texts(group, [column])[column].combine_chunks().dictionary_encode()
            indices = values.indices.to_numpy(zero_copy_only=False)
            names = values.dictionary.to_pylist()
        first = 0
        for stop in [*(np.flatnonzero(np.diff(indices)) + 1).tolist(), len(indices)]:
            if stop > first:
                yield names[indices[first]], first, stop - first
            first = stop

    def matching(self, group: int, column: str, wanted: pa.Array) -> pa.Array:
        """The rows of one row group whose `column` is among `wanted`."""
        with self._told():
            mask = pc.is_in(self.texts(group, [column])[column], wanted).combine_chunks()
            return pc.indices_nonzero(mask)

    def rows(self, group: int, needed: Callable[[pa.Schema], list[str]]) -> pa.Table:
        """The columns that `needed` picks of one row group."""
        if self._last is None or self._last[0] != group:
            self._last = None  # never two groups at once
            with self._told():
                columns = needed(self._parquet.schema_arrow)
                self._last = group, self._parquet.read_row_group(group, columns=columns)
        return self._last[1]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, PermissionError) as error:
            words = f"this part of the store can't be had any more, a vacuum perhaps: {error}"
            raise ShardChanged(self.uri, words) from error
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            words = " ".join(str(error).split())[:300]
            raise DamagedPart(f"{self.uri} can't be read: {words}") from error


class _Ranges(io.RawIOBase):
    """An object as a file, for Arrow."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage = storage
        self._object = storage.stat(uri)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._object.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._object.size if size < 0 else min(self._at + size, self._object.size)
        if stop <= self._at:
            return b""
        found = self._object
        data = self._storage.read_range(found.uri, self._at, stop, found.etag)
        self._at += len(data)
        return data


def is_text(kind: Any) -> bool:
    """Whether an Arrow type holds strings."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    is_plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_plain or pa.types.is_string_view(kind))


def is_bytes(kind: Any) -> bool:
    """Whether an Arrow type holds bytes."""
    is_plain = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(is_plain or pa.types.is_binary_view(kind) or pa.types.is_fixed_size_binary(kind))


def is_scalar(kind: Any) -> bool:
    """Whether values of an Arrow type are what JSON has: text, numbers, true and false."""
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_text(kind) or is_number or pa.types.is_boolean(kind))
