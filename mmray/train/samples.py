"""The pinned samples, by number: rows are memory-mapped, and inputs read where a step wants them.

A sample's number is its place in the list; everything else is looked up by it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.encoders.joint_config import Labels
from mmray.storage import Storage, blobs
from mmray.train.decoded import NO_GROUP
from mmray.train.inputs import Inputs, Spot
from mmray.train.order import held_out
from mmray.train.pieces import COLUMN
from mmray.train.task import Task

At = tuple[int, int]
"""A record batch, and a row of it."""


class Samples:
    """All samples of a training, by number."""

    def __init__(self, task: Task, storage: Storage) -> None:
        """Raises RefusedError where a file is missing or changed, and StorageError."""
        self._opened = task, storage
        root = task.spec.output
        pieces = [piece for piece in task.pinned.pieces if piece.found.rows]
        self._inputs = Inputs(storage, root, [piece.inputs for piece in pieces])
        self._batches: list[pa.RecordBatch] = []
        self._pieces: list[int] = []
        for number, piece in enumerate(pieces):
            path = str(blobs.get(storage, root, piece.rows))
            reader = pa.ipc.open_file(pa.memory_map(path))
            self._batches += [reader.get_batch(n) for n in range(reader.num_record_batches)]
            self._pieces += [number] * reader.num_record_batches
        self._views: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        sizes = [batch.num_rows for batch in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.groups = self._numbers("group")
        """int64 [n]; -1 for a sample without a group."""
        own = self._numbers("own")
        self.match = np.where(self.groups == NO_GROUP, own, self.groups)
        """int64 [n]: equal where a sample counts as the other one in retrieval."""
        split = task.spec.data.split
        tested = held_out(self.match, split.test, split.seed)
        self.train = np.flatnonzero(~tested)
        self.test = np.flatnonzero(tested)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[type["Samples"], tuple[Task, Storage]]:
        return Samples, self._opened  # another process opens them for itself

    def places(self, rows: np.ndarray) -> list[At]:
        """Where the samples with these numbers are."""
        batches = np.searchsorted(self._starts, rows, "right") - 1
        return list(zip(batches.tolist(), (rows - self._starts[batches]).tolist(), strict=True))

    def values(self, name: str, places: Sequence[At]) -> list[Any]:
        """What a column says."""
        return [self._batches[batch].column(name)[row].as_py() for batch, row in places]

    def kept(self, modality: str) -> pa.DataType | None:
        """How a modality is kept: vectors, `SPOT`, or not by itself."""
        schema = self._batches[0].schema
        return schema.field(COLUMN + modality).type if COLUMN + modality in schema.names else None

    def inputs(self, modality: str, places: Sequence[At]) -> list[np.ndarray | None]:
        """Decoded inputs, as bytes; None where a sample has none."""
        spots = [
            None if spot is None else Spot(self._pieces[batch], **spot)
            for spot, (batch, _) in zip(self.values(COLUMN + modality, places), places, strict=True)
        ]
        return self._inputs.read(spots)

    def vectors(self, modality: str, places: Sequence[At]) -> tuple[np.ndarray, np.ndarray]:
        """Of a frozen tower, float32 [n, features], zeros where a sample has none; and which have
        one, bool [n]."""
        kept = self.kept(modality)
        assert kept is not None
        out = np.zeros((len(places), kept.list_size), np.float32)
        there = np.zeros(len(places), bool)
        for number, (batch, row) in enumerate(places):
            values, valid = self._view(COLUMN + modality, batch)
            if valid[row]:
                out[number], there[number] = values[row], True
        return out, there

    def _view(self, name: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """A column of vectors in the file's own memory, and which rows are there."""
        if (name, batch) not in self._views:
            column = self._batches[batch].column(name)
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            values = column.values.to_numpy().reshape(-1, column.type.list_size)
            self._views[name, batch] = values, valid
        return self._views[name, batch]

    def ids(self, rows: np.ndarray) -> list[str]:
        """Ids of samples."""
        return self.values("id", self.places(rows))

    def labels(self) -> Labels:
        """What the training split says of labels."""
        categories = self._train_column("category")
        numbers = self._train_column("number").to_numpy().astype(np.float64)
        classes = sorted(pc.unique(categories).to_pylist())
        if not len(numbers):
            return Labels(classes)
        return Labels(classes, float(numbers.mean()), float(numbers.std()) or 1.0)

    def learns_from(self, name: str) -> bool:
        """Whether any training sample has a modality, or a value in the column `number`."""
        column = COLUMN + name
        if column not in self._batches[0].schema.names:  # numbers, and texts kept as texts
            column = name
        there = pc.is_valid(self._column(column)).take(pa.array(self.train))
        return bool(pc.any(there).as_py())

    def unknown_classes(self, classes: Sequence[str]) -> int:
        """Held-out samples whose class no training sample has."""
        column = self._column("category").take(pa.array(self.test))
        known: int = pc.sum(self._is_in(column, classes)).as_py() or 0
        return len(column) - int(column.null_count) - known

    def _is_in(self, column: pa.ChunkedArray, classes: Sequence[str]) -> pa.ChunkedArray:
        return pc.is_in(column, value_set=pa.array(list(classes), pa.string()))

    def _train_column(self, name: str) -> pa.ChunkedArray:
        return self._column(name).take(pa.array(self.train)).drop_null()

    def _column(self, name: str) -> pa.ChunkedArray:
        if not self._batches:
            return pa.chunked_array([], pa.string())
        return pa.chunked_array([batch.column(name) for batch in self._batches])

    def _numbers(self, name: str) -> np.ndarray:
        parts = [batch.column(name).to_numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
