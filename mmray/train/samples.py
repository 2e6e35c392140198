"""The pinned samples as batches: pieces are memory-mapped, so that only what a step sees is read.

A sample's number is its place in the list; everything else is looked up by it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mmray.encoders.joint_config import Labels
from mmray.encoders.joint_inputs import JointInputs
from mmray.models.joint.batch import Input, JointBatch
from mmray.models.joint.heads import NO_LABEL
from mmray.specs.train import Split
from mmray.train.decoded import NO_GROUP
from mmray.train.order import held_out
from mmray.train.pieces import COLUMN


class Samples:
    """All samples of a training, by number."""

    def __init__(self, paths: Sequence[Path], split: Split) -> None:
        self._batches: list[pa.RecordBatch] = []
        for path in paths:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
            self._batches += [reader.get_batch(n) for n in range(reader.num_record_batches)]
        sizes = [batch.num_rows for batch in self._batches]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.groups = self._numbers("group")
        """int64 [n]; -1 for a sample without a group."""
        own = self._numbers("own")
        self.match = np.where(self.groups == NO_GROUP, own, self.groups)
        """int64 [n]: equal where a sample counts as the other one in retrieval."""
        tested = held_out(self.match, split.test, split.seed)
        self.train = np.flatnonzero(~tested)
        self.test = np.flatnonzero(tested)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def ids(self, rows: np.ndarray) -> list[str]:
        """Ids of samples."""
        return [self._value("id", row) for row in rows]

    def labels(self) -> Labels:
        """What the training split says of labels."""
        categories = self._train_column("category")
        numbers = self._train_column("number").to_numpy().astype(np.float64)
        classes = sorted(pc.unique(categories).to_pylist())
        if not len(numbers):
            return Labels(classes)
        return Labels(classes, float(numbers.mean()), float(numbers.std()) or 1.0)

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

    def _value(self, name: str, row: int) -> Any:
        place = int(np.searchsorted(self._starts, row, "right")) - 1
        return self._batches[place].column(name)[int(row - self._starts[place])].as_py()


class Batches:
    """Makes batches of samples for one model."""

    def __init__(
        self,
        samples: Samples,
        config: dict[str, Any],
        inputs: JointInputs,
    ) -> None:
        self._samples, self._inputs = samples, inputs
        self._heads = config["heads"]
        self._towers: dict[str, dict[str, Any]] = config["towers"]
        classes = self._heads.get("classify", {}).get("classes", ())
        self._classes = {name: place for place, name in enumerate(classes)}
        self._views: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, rows: np.ndarray) -> JointBatch:
        """The samples with these numbers, side by side. Every tower is named in it."""
        samples = self._samples
        places = np.searchsorted(samples._starts, rows, "right") - 1
        spots = list(zip(places.tolist(), (rows - samples._starts[places]).tolist(), strict=True))
        inputs: dict[str, Input] = {}
        present: dict[str, torch.Tensor] = {}
        for name in self._towers:
            inputs[name], present[name] = self._input(name, spots)
        labels: dict[str, torch.Tensor] = {}
        if "classify" in self._heads:
            found = [self._classes.get(each, NO_LABEL) for each in self._values("category", spots)]
            labels["classify"] = torch.tensor(found)
        if "regress" in self._heads:
            numbers = [
                float("nan") if each is None else each for each in self._values("number", spots)
            ]
            labels["regress"] = torch.tensor(numbers, dtype=torch.float32)
        ids = mask = None
        if "caption" in self._heads:
            ids, mask = self._inputs.captions(self._values("text", spots))
        groups = torch.from_numpy(samples.groups[rows])
        return JointBatch(inputs, present, labels, ids, mask, groups)

    def _input(self, name: str, spots: list[tuple[int, int]]) -> tuple[Input, torch.Tensor]:
        batches = self._samples._batches
        own = COLUMN + name
        column = batches[0].schema.field(own if own in batches[0].schema.names else "text")
        if pa.types.is_fixed_size_list(column.type):
            return self._fixed(own, spots, (column.type.list_size,), np.float32)
        if name == "image":
            height, width = self._inputs.images["image"].size
            return self._fixed(own, spots, (height, width, 3), np.uint8)
        values = self._values(column.name, spots)
        present = torch.tensor([each is not None for each in values])
        if name == "text":
            return self._inputs.texts([each or "" for each in values]), present
        if name == "audio":
            waves = [np.frombuffer(each or b"", np.float32) for each in values]
            return self._inputs.sounds(waves), present
        shape = (-1, *self._inputs.images["video"].size, 3)
        films = [
            [] if each is None else list(np.frombuffer(each, np.uint8).reshape(shape))
            for each in values
        ]
        return self._inputs.videos(films), present

    def _fixed(
        self, name: str, spots: list[tuple[int, int]], shape: tuple[int, ...], kind: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = np.zeros((len(spots), *shape), kind)
        there = np.zeros(len(spots), bool)
        for place, (batch, row) in enumerate(spots):
            values, valid = self._view(name, batch, shape, kind)
            if valid[row]:
                out[place], there[place] = values[row], True
        return torch.from_numpy(out), torch.from_numpy(there)

    def _view(
        self, name: str, batch: int, shape: tuple[int, ...], kind: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """A column of a record batch in the file's own memory, and which rows are there."""
        if (name, batch) not in self._views:
            column = self._samples._batches[batch].column(name)
            valid = column.is_valid().to_numpy(zero_copy_only=False)
            owner = column.values if pa.types.is_fixed_size_list(column.type) else column
            buffer = owner.buffers()[1]
            values = np.zeros((0, *shape), kind) if buffer is None else np.frombuffer(buffer, kind)
            count = len(column) * int(np.prod(shape))
            whole = values.reshape(-1)[:count]
            self._views[name, batch] = whole.reshape(-1, *shape), valid
        return self._views[name, batch]

    def _values(self, name: str, spots: list[tuple[int, int]]) -> list[Any]:
        batches = self._samples._batches
        return [batches[batch].column(name)[row].as_py() for batch, row in spots]
