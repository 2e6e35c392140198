"""The vectors of a store's column, block by block, with the rows that they belong to.

A block is a row group of one part: memory does not grow with the part. Rows without a usable vector
are left out and counted by reason.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.errors import StorageError
from mmray.storage import Storage, with_backoff
from mmray.store.parts import ordinary


@dataclass(frozen=True, slots=True)
class PartRows:
    """Rows of a part that are to be indexed."""

    path: str
    rows: int
    """How many."""
    take: np.ndarray | None = None
    """Their places in the part, sorted; None: all of it."""


@dataclass(frozen=True, slots=True)
class Column:
    """A vector column, and what is read beside it."""

    storage: Storage
    store: str
    name: str
    dim: int
    unit: bool
    """Bring vectors to length 1; one of length zero is left out."""
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a part."""

    vectors: np.ndarray
    """float32 [n, dim]."""
    table: pa.Table
    """The columns beside, n rows."""
    places: np.ndarray
    """int64 [n]: places in the part."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason to rows that have no usable vector."""


def blocks(column: Column, part: PartRows, only: Sequence[int] | None = None) -> Iterator[Block]:
    """The rows of a part in order; with `only`, of these row groups of it.

    Raises:
        StorageError: the part is gone or damaged, or storage stayed broken.
    """
    filesystem, base = column.storage.arrow_filesystem(column.store)
    names = [*column.beside, column.name]
    try:
        with filesystem.open_input_file(f"{base}/{part.path}") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            first = np.cumsum([0, *_group_rows(parquet)])
            for group in range(parquet.num_row_groups) if only is None else only:
                start, stop = int(first[group]), int(first[group + 1])
                places = np.arange(start, stop)
                if part.take is not None:
                    low, high = np.searchsorted(part.take, [start, stop])
                    places = part.take[low:high]
                if not len(places):
                    continue
                table = with_backoff(
                    f"{column.store}/{part.path}",
                    lambda group=group: parquet.read_row_group(group, columns=names),  # type: ignore[misc]
                )
                if part.take is not None:
                    table = table.take(pa.array(places - start))
                yield _block(column, ordinary(table), places)
    except (OSError, pa.ArrowException) as error:
        words = " ".join(str(error).split())[:300]
        raise StorageError(column.store, f"{part.path} can't be read: {words}") from error


def group_sizes(column: Column, path: str) -> list[int]:
    """Rows of each row group of a part. Raises StorageError."""
    filesystem, base = column.storage.arrow_filesystem(column.store)
    try:
        with filesystem.open_input_file(f"{base}/{path}") as file:
            return _group_rows(pq.ParquetFile(file))
    except (OSError, pa.ArrowException) as error:
        words = " ".join(str(error).split())[:300]
        raise StorageError(column.store, f"{path} can't be read: {words}") from error


def _group_rows(parquet: pq.ParquetFile) -> list[int]:
    meta = parquet.metadata
    return [meta.row_group(number).num_rows for number in range(meta.num_row_groups)]


def _block(column: Column, table: pa.Table, places: np.ndarray) -> Block:
    vectors, good, left_out = usable(table[column.name], column.dim, unit=column.unit)
    table = table.select(list(column.beside))
    if not good.all():
        table, places = table.filter(pa.array(good)), places[good]
    return Block(vectors, table, places, left_out)


def usable(
    column: pa.ChunkedArray, dim: int, *, unit: bool
) -> tuple[np.ndarray, np.ndarray, Counter[str]]:
    """The usable vectors of a list column, float32 [n, dim], which of its rows they are (bool), and
    reason to rows left out. With `unit` they have length 1."""
    values = column.combine_chunks()
    if isinstance(values, pa.ChunkedArray):  # of no chunks, or too long for one
        values = pa.concat_arrays(values.chunks) if values.num_chunks else values.chunk(0)
    left_out: Counter[str] = Counter()
    good = values.is_valid().to_numpy(zero_copy_only=False)
    left_out["no vector"] = int((~good).sum())
    lengths = np.diff(values.offsets.to_numpy())
    wrong = good & (lengths != dim)
    left_out["wrong length"] = int(wrong.sum())
    good &= ~wrong
    if not good.all():
        values = values.filter(pa.array(good))
    flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    vectors = flat.reshape(-1, dim)
    # In one pass: the length is neither finite nor positive where a vector can't be used.
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    finite = np.isfinite(lengths)
    left_out["not finite"] = int((~finite).sum())
    fine = finite & (lengths > 0) if unit else finite
    left_out["zero length"] = int((finite & ~fine).sum())
    if not fine.all():
        vectors, lengths = vectors[fine], lengths[fine]
        good[np.flatnonzero(good)[~fine]] = False
    if unit and len(vectors) and np.abs(lengths - 1).max() > 1e-6:
        vectors = (vectors / lengths[:, None]).astype(np.float32)
    return np.ascontiguousarray(vectors), good, +left_out
