"""The ids of a store in buckets, so that one bucket of them is in memory at a time.

Ids are hex digits of a hash: their first ones deal rows evenly, and alike in two stores.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import StorageError
from mmray.sources.fragment import digest
from mmray.store.coverage import PartInfo
from mmray.store.parts import ordinary
from mmray.store.table import Store

RECORD = np.dtype([("id", "S32"), ("hash", "S32"), ("part", "<u4"), ("row", "<u4")])
"""A row: id, content hash, the number of its part and its place in that."""
_BATCH = 8192
_WIDTH = 32


class Buckets:
    """Records dealt by the first digits of their ids, in the order of ids.

    One bucket stays in memory; several are files in `folder`, which is made here.
    """

    def __init__(self, batches: Iterator[np.ndarray], number: int, folder: Path) -> None:
        self._number, self._folder = number, folder
        self._kept: list[np.ndarray] = []
        if number == 1:
            self._kept = list(batches)
            return
        folder.mkdir()
        for batch in batches:
            self._deal(batch)

    def _deal(self, batch: np.ndarray) -> None:
        digits = np.ascontiguousarray(batch["id"]).view(np.uint8).reshape(-1, _WIDTH)[:, :3]
        values = np.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0"))
        places = values.clip(0, 15).astype(np.int64) @ np.array([256, 16, 1])
        places = places * self._number // 4096
        order = np.argsort(places, kind="stable")
        edges = np.searchsorted(places[order], np.arange(self._number + 1))
        for bucket in np.flatnonzero(np.diff(edges)).tolist():
            with self._file(bucket).open("ab") as file:
                file.write(batch[order[edges[bucket] : edges[bucket + 1]]].tobytes())

    def take(self, bucket: int) -> np.ndarray:
        """The records of a bucket, which are let go here."""
        if self._number == 1:
            kept, self._kept = self._kept, []
            return np.concatenate([np.empty(0, RECORD), *kept])
        file = self._file(bucket)
        if not file.exists():
            return np.empty(0, RECORD)
        records = np.fromfile(file, RECORD)
        file.unlink()
        return records

    def _file(self, bucket: int) -> Path:
        return self._folder / f"{bucket:04d}"


def records_of(store: Store, parts: Sequence[PartInfo]) -> Iterator[np.ndarray]:
    """The rows of these parts, in batches. Raises StorageError."""
    for number, part in enumerate(parts):
        first = 0
        for table in batches_of(store, part, ["id", "content_hash"]):
            records = np.empty(table.num_rows, RECORD)
            records["id"] = fixed(table["id"])
            records["hash"] = fixed(table["content_hash"])
            records["part"] = number
            records["row"] = np.arange(first, first + table.num_rows)
            first += table.num_rows
            yield records


def batches_of(store: Store, part: PartInfo, columns: list[str]) -> Iterator[pa.Table]:
    """The rows of a part in order, these columns of it.

    Raises:
        StorageError: the part is gone or damaged, or storage stayed broken.
    """
    filesystem, base = store.storage.arrow_filesystem(store.uri)
    try:
        with filesystem.open_input_file(f"{base}/{part.path}") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=columns):
                yield ordinary(pa.Table.from_batches([batch]))
    except (OSError, pa.ArrowException) as error:
        words = " ".join(str(error).split())[:300]
        raise StorageError(store.uri, f"{part.path} can't be read: {words}") from error


def fixed(column: pa.ChunkedArray) -> np.ndarray:
    """Ids or hashes as a `RECORD` holds them: 32 hex digits, the value itself or, of a value of
    another length, its digest."""
    values = column.combine_chunks()
    if len(values) and pc.all(pc.equal(pc.binary_length(values), _WIDTH)).as_py():
        _, offsets, data = values.buffers()
        first = np.frombuffer(offsets, np.int32)[values.offset]
        return np.frombuffer(data, f"S{_WIDTH}", len(values), int(first))
    texts = [v if len(v.encode()) == _WIDTH else digest(v, 16) for v in values.to_pylist()]
    return np.array([text.encode() for text in texts], f"S{_WIDTH}")
