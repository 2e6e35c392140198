"""One part of a store, read a row group and a few columns at a time.

Two things can be wrong with it: it is gone, which is `ShardChanged`, for its rows may be elsewhere;
or its bytes are broken, which is `DamagedPart`, for its rows are lost.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import MmrayError, ShardChanged
from mmray.sources.columns import bare, is_text
from mmray.sources.rangefile import RangeFile
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
        self._file: RangeFile | None = None
        with self._told():
            found = storage.stat(uri)
            # Bytes come through `Storage`, which waits out its troubles: what Arrow complains of
            # is then the part's own.
            self._file = RangeFile(
                lambda start, stop: storage.read_range(uri, start, stop, found.etag), found.size
            )
            self._parquet = pq.ParquetFile(
                pa.PythonFile(self._file, mode="r"), page_checksum_verification=True
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
        except (pa.ArrowException, OSError, ValueError, KeyError) as error:
            cause = (self._file and self._file.failure) or error
            if isinstance(cause, FileNotFoundError | PermissionError):
                words = f"this part of the store can't be had any more, a vacuum perhaps: {cause}"
                raise ShardChanged(self.uri, words) from error
            if isinstance(cause, MmrayError):
                raise cause from error
            words = " ".join(str(error).split())[:300]
            raise DamagedPart(f"{self.uri} can't be read: {words}") from error


def is_scalar(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are what JSON has: text, numbers, true and false."""
    kind = bare(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(is_text(kind) or is_number or pa.types.is_boolean(kind))
