"""The lists that a search for near-duplicates ends with: ids to keep, and ids to drop with the row
that stands for each."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.index.batch.duplicates import Groups
from mmray.index.searching.opened import Index
from mmray.storage import Storage, blobs
from mmray.storage.blobs import File

CHUNK = 1 << 16
"""Ids that are written at once."""

_SCHEMAS = {
    "keep": pa.schema([pa.field("id", pa.string(), nullable=False)]),
    "drop": pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("kept_id", pa.string(), nullable=False),
            pa.field("score", pa.float32(), nullable=False),
        ]
    ),
}


def write_lists(index: Index, groups: Groups, storage: Storage, output: str) -> list[File]:
    """Write `keep.parquet` and `drop.parquet`, each whole; both in the order of the rows' numbers.

    Raises:
        StorageError: storage stayed broken.
    """
    written = []
    with blobs.scratch() as folder:
        for name, tables in (("keep", _keep(index, groups)), ("drop", _drop(index, groups))):
            local = folder / f"{name}.parquet"
            with pq.ParquetWriter(local, _SCHEMAS[name], compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            written.append(blobs.put(storage, local, output, local.name))
    return written


def _keep(index: Index, groups: Groups) -> Iterator[pa.Table]:
    kept = groups.kept
    for start in range(0, len(kept), CHUNK):
        ids = index.ids(kept[start : start + CHUNK])
        yield pa.table([pa.array(ids, pa.string())], schema=_SCHEMAS["keep"])


def _drop(index: Index, groups: Groups) -> Iterator[pa.Table]:
    dropped = np.flatnonzero(groups.stands >= 0)
    for start in range(0, len(dropped), CHUNK):
        some = dropped[start : start + CHUNK]
        columns = [
            pa.array(index.ids(groups.rows[some]), pa.string()),
            pa.array(index.ids(groups.rows[groups.stands[some]]), pa.string()),
            pa.array(groups.scores[some], pa.float32()),
        ]
        yield pa.table(columns, schema=_SCHEMAS["drop"])
