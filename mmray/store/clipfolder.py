"""A folder of clip-retrieval's: embeddings in .npy files, metadata in Parquet files beside them.

    img_emb/img_emb_N.npy   text_emb/text_emb_N.npy   metadata/metadata_N.parquet

Row k of each file of one N is the same sample: nothing but the order ties them together, so all
counts are checked before anything is read. Format: `clip_inference/writer.py` of clip-retrieval.
"""

import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.errors import RefusedError, StorageError
from mmray.sources.files import join_etags
from mmray.storage import Object, Storage, join, with_backoff

FOLDERS = {"image": "img_emb", "text": "text_emb", "metadata": "metadata"}
_SUFFIX = {"image": "npy", "text": "npy", "metadata": "parquet"}
_HEADER = 64 * 1024
_LONGEST_HEADER = 10_000
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_READERS = 8
_DTYPES = ("float16", "float32")


@dataclass(frozen=True, slots=True)
class Matrix:
    """One .npy file: rows of `dim` numbers, from byte `offset` on."""

    uri: str
    etag: str
    rows: int
    dim: int
    dtype: np.dtype
    offset: int

    def read(self, storage: Storage, start: int, stop: int) -> np.ndarray:
        """Rows `[start, stop)` as float32 [n, dim].

        Raises:
            ShardChanged: the file is no longer the one listed.
            StorageError: it ends early, or storage stayed broken.
        """
        width = self.dim * self.dtype.itemsize
        first, end = self.offset + start * width, self.offset + stop * width
        data = storage.read_range(self.uri, first, end, self.etag)
        if len(data) != end - first:
            raise StorageError(self.uri, f"ends before row {stop:,}")
        values = np.frombuffer(data, self.dtype).reshape(stop - start, self.dim)
        return values.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Table:
    """One metadata file."""

    uri: str
    etag: str
    rows: int
    schema: pa.Schema

    def read(
        self, storage: Storage, columns: list[str], start: int, sizes: list[int]
    ) -> Iterator[pa.Table]:
        """The rows from `start` on as tables of these `sizes`; streams the file.

        Raises:
            StorageError: the file is damaged or gone.
        """
        filesystem, path = storage.arrow_filesystem(self.uri)
        waiting: list[pa.Table] = []
        try:
            with filesystem.open_input_file(path) as file:
                batches = pq.ParquetFile(file).iter_batches(batch_size=8192, columns=columns)
                skipped = 0
                while skipped < start:
                    batch = next(batches)
                    skipped += batch.num_rows
                    if skipped > start:
                        rest = batch.slice(batch.num_rows - (skipped - start))
                        waiting.append(pa.Table.from_batches([rest]))
                for size in sizes:
                    while sum(table.num_rows for table in waiting) < size:
                        waiting.append(pa.Table.from_batches([next(batches)]))
                    whole = pa.concat_tables(waiting)
                    waiting = [whole.slice(size)]
                    yield whole.slice(0, size)
        except StopIteration:
            raise StorageError(self.uri, f"ends before its {self.rows:,} rows") from None
        except (OSError, pa.ArrowException) as error:
            words = " ".join(str(error).split())[:300]
            raise StorageError(self.uri, f"can't be read: {words}") from error


@dataclass(frozen=True, slots=True)
class Piece:
    """The files of one N."""

    matrices: dict[str, Matrix]
    """By modality."""
    table: Table | None

    @property
    def files(self) -> list[Matrix | Table]:
        """All of them, matrices first."""
        return [*self.matrices.values(), *([self.table] if self.table else [])]

    def has(self, column: str) -> bool:
        """Whether its metadata has the column."""
        return self.table is not None and column in self.table.schema.names

    @property
    def uri(self) -> str:
        """What its samples come from: the metadata file, or else the first matrix."""
        return self.table.uri if self.table else self.files[0].uri

    @property
    def etag(self) -> str:
        """Changes when any of its files does."""
        return join_etags([each.etag for each in self.files])

    @property
    def rows(self) -> int:
        """Samples."""
        return self.files[0].rows


def read_pieces(storage: Storage, folder: str) -> list[Piece]:
    """The pieces of a folder, sorted by number; reads headers and footers.

    Raises:
        RefusedError: no embeddings are there, a file of a number is lacking or no array of
            float16 or float32 numbers, or two files of one number differ in rows.
        StorageError: storage stayed broken.
    """
    found = {kind: _listed(storage, folder, kind) for kind in FOLDERS}
    kinds = [kind for kind, files in found.items() if files]
    if not {"image", "text"} & {*kinds}:
        raise RefusedError(
            f"{folder}: holds neither img_emb/img_emb_N.npy nor text_emb/text_emb_N.npy"
        )
    numbers = sorted({number for files in found.values() for number in files})
    for number in numbers:
        for kind in kinds:
            if number not in found[kind]:
                there = next(f[number].uri for f in found.values() if number in f)
                lacking = f"{FOLDERS[kind]}_{number}.{_SUFFIX[kind]}"
                raise RefusedError(f"{there}: there is no {lacking} of the same number")
    files = [{kind: found[kind][number] for kind in kinds} for number in numbers]
    with ThreadPoolExecutor(_READERS, "mmray-headers") as pool:
        pieces = list(pool.map(lambda each: _piece(storage, each), files))
    for piece in pieces:
        _require_same_rows(piece)
    _require_same_dims(pieces)
    return pieces


def _listed(storage: Storage, folder: str, kind: str) -> dict[int, Object]:
    name = FOLDERS[kind]
    pattern = re.compile(rf"{name}_(\d+)\.{_SUFFIX[kind]}")
    found: dict[int, Object] = {}
    for item in storage.list(join(folder, name), recursive=False):
        match = pattern.fullmatch(item.uri.rpartition("/")[2])
        if match is None:
            continue
        number = int(match[1])
        if number in found:
            raise RefusedError(f"{found[number].uri} and {item.uri} have the same number")
        found[number] = item
    return found


def _piece(storage: Storage, files: dict[str, Object]) -> Piece:
    matrices = {k: read_matrix(storage, f) for k, f in files.items() if k != "metadata"}
    table = _read_table(storage, files["metadata"]) if "metadata" in files else None
    return Piece(matrices, table)


def read_matrix(storage: Storage, item: Object) -> Matrix:
    """What the header of a .npy file says. Never unpickles.

    Raises:
        RefusedError: it is no two-dimensional array of floats, or shorter than it says.
    """
    head = io.BytesIO(storage.read_range(item.uri, 0, _HEADER, item.etag))
    try:
        version = np.lib.format.read_magic(head)
        if version not in _HEADERS:
            raise ValueError(f"format {version[0]}.{version[1]}")
        shape, fortran, dtype = _HEADERS[version](head, max_header_size=_LONGEST_HEADER)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        words = str(error).splitlines()[0][:200]
        raise RefusedError(f"{item.uri}: is no .npy file that can be read: {words}") from error
    if dtype.name not in _DTYPES or dtype.hasobject:
        raise RefusedError(f"{item.uri}: holds {dtype}, not {' or '.join(_DTYPES)}")
    if len(shape) != 2 or shape[1] < 1 or (fortran and shape[0] > 1):
        order = "column by column, " if fortran else ""
        raise RefusedError(f"{item.uri}: its array is {order}of shape {shape}, not rows of vectors")
    rows, dim = shape
    offset = head.tell()
    needed = offset + rows * dim * dtype.itemsize
    if item.size != needed:
        raise RefusedError(
            f"{item.uri}: has {item.size:,} bytes, but its {rows:,} rows of {dim} numbers take "
            f"{needed:,}"
        )
    return Matrix(item.uri, item.etag, rows, dim, dtype, offset)


def _read_table(storage: Storage, item: Object) -> Table:
    filesystem, path = storage.arrow_filesystem(item.uri)

    def read() -> Table:
        with filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            return Table(item.uri, item.etag, parquet.metadata.num_rows, parquet.schema_arrow)

    try:
        return with_backoff(item.uri, read)
    except (pa.ArrowException, OSError) as error:
        words = " ".join(str(error).split())[:200]
        raise RefusedError(f"{item.uri}: is no Parquet file that can be read: {words}") from error


def _require_same_rows(piece: Piece) -> None:
    first = piece.files[0]
    for other in piece.files[1:]:
        if other.rows != first.rows:
            raise RefusedError(
                f"{first.uri} has {first.rows:,} rows and {other.uri} has {other.rows:,}: which "
                "vector belongs to which row can't be known"
            )


def _require_same_dims(pieces: list[Piece]) -> None:
    first = pieces[0]
    for piece in pieces[1:]:
        for modality, matrix in piece.matrices.items():
            known = first.matrices[modality]
            if matrix.dim != known.dim:
                raise RefusedError(
                    f"{known.uri} has vectors of {known.dim} numbers, {matrix.uri} of {matrix.dim}"
                )
