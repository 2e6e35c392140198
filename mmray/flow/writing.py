"""Encoded batches become parts: Parquet files of whole, contiguous fragments of one shard.

A part is closed after some seconds of work rather than some rows, so that a kill loses little
whether the model does ten samples a second or ten thousand, and fast models make few parts.
"""

import time

import numpy as np
import pyarrow as pa

from mmray.flow.batch import Batch, Finished, Preview, Timer, added
from mmray.storage import Storage
from mmray.store import StoreColumns
from mmray.store.parts import Quarantined, write_part

PART_SECONDS = 5.0
PART_BYTES = 64 * 1024 * 1024


class PartWriter:
    """Gathers the batches of one range of work and writes them as parts."""

    def __init__(self, storage: Storage, root: str, columns: StoreColumns, timer: Timer) -> None:
        self._storage, self._root, self._columns = storage, root, columns
        self._timer = timer
        self._clear()

    def _clear(self) -> None:
        self._batches: list[Batch] = []
        self._encoded = 0
        self._bytes = 0
        self._since = time.monotonic()

    @property
    def holds_batches(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._batches)

    @property
    def is_due(self) -> bool:
        """Whether it is time to close the part."""
        return self.holds_batches and (
            time.monotonic() - self._since >= PART_SECONDS or self._bytes >= PART_BYTES
        )

    def add(self, batch: Batch, encoded: int) -> None:
        """Take an encoded batch; `encoded` samples of it went through the model."""
        self._batches.append(batch)
        self._encoded += encoded
        self._bytes += sum(
            vector.nbytes
            for vectors in batch.vectors.values()
            for vector in vectors
            if vector is not None
        )

    def flush(self) -> Finished:
        """Write what was gathered as one part.

        Raises:
            StorageError: the store can't be written to.
        """
        batches, encoded = self._batches, self._encoded
        self._clear()  # whatever comes: a part that can't be written isn't tried a second time
        with self._timer.stage("write"):
            receipt = write_part(
                self._storage,
                self._root,
                self.table(batches),
                spans=[batch.span for batch in batches],
                shard_uri=batches[0].shard_uri,
                quarantined=quarantined_of(batches),
            )
        seconds = self._timer.take()
        for batch in batches:
            for stage, spent in batch.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + spent
        previews: tuple[Preview, ...] = next((b.previews for b in batches if b.previews), ())
        filtered: dict[str, int] = {}
        for batch in batches:
            filtered = added(filtered, batch.filtered)
        return Finished(receipt, seconds, encoded, previews, filtered)

    def table(self, batches: list[Batch]) -> pa.Table:
        """The rows of the samples that did not fail, in the store's columns."""
        schema = self._columns.arrow_schema()
        columns: dict[str, list[object]] = {name: [] for name in schema.names}
        for batch in batches:
            fragment = str(batch.span)
            good = [row for row, sample in enumerate(batch.samples) if sample.error is None]
            for row in good:
                sample = batch.samples[row]
                columns["id"].append(sample.id)
                columns["source_uri"].append(sample.source_uri)
                columns["source_key"].append(sample.source_key)
                columns["source_etag"].append(sample.source_etag)
                columns["fragment"].append(fragment)
                columns["content_hash"].append(sample.content_hash)
            for name, values in batch.columns.items():
                columns[name] += [values[row] for row in good]
            for modality, vectors in batch.vectors.items():
                columns[f"{modality}_embedding"] += [vectors[row] for row in good]
        return pa.table(
            [_array(columns[field.name], field.type) for field in schema], schema=schema
        )


def _array(values: list[object], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    # One flat buffer and offsets: building lists element by element costs more than a small model.
    lengths = [0 if value is None else len(value) for value in values]  # type: ignore[arg-type]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    vectors = [value for value in values if value is not None]
    flat = np.concatenate(vectors) if vectors else np.empty(0, np.float32)  # type: ignore[arg-type]
    mask = pa.array([value is None for value in values], pa.bool_())
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(flat, pa.float32()), type=kind, mask=mask
    )


def quarantined_of(batches: list[Batch]) -> tuple[Quarantined, ...]:
    """The quarantine's rows of the samples that failed."""
    rows: list[Quarantined] = []
    for batch in batches:
        rows += [
            Quarantined(
                id=sample.id,
                source_uri=sample.source_uri,
                source_key=sample.source_key,
                source_etag=sample.source_etag,
                fragment=str(batch.span),
                stage=sample.error.stage,
                error_type=sample.error.type,
                message=sample.error.message,
            )
            for sample in batch.samples
            if sample.error is not None
        ]
    return tuple(rows)
