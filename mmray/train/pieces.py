"""Pieces: the decoded samples of one shard, in two files that training reads in any order.

`rows.arrow` has a row for each sample, with the vectors of frozen towers, so that training never
runs those again; it is memory-mapped afterwards. `inputs.bin` has the decoded inputs of the other
towers, one after the other; a row says where its own lie. Both are written in batches, so that
memory is bounded by a batch; nothing in them depends on labels, split or seed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from mmray.errors import BadSample, SampleError
from mmray.report import EXAMPLES_EACH, Example
from mmray.sources import Sample, Shard, Source
from mmray.train.decoded import Decoder, Row
from mmray.train.inputs import SPOT, append

ROWS, INPUTS = "rows.arrow", "inputs.bin"

CHUNK = 64
"""Samples of a record batch, and of a call of a frozen tower."""
DECODERS = 4
"""Threads that decode: the codecs work outside Python's lock."""

COLUMN = "input_"
"""Before a modality: the name of its column."""

Look = Callable[[str, list[Any]], np.ndarray]
"""Modality and inputs (None where absent) to the frozen tower's vectors, float32 [n, features]."""


class Found(BaseModel):
    """What came of a shard."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    read: int = 0
    rows: int = 0
    errors: dict[str, int] = {}
    """Error type to samples."""
    filtered: dict[str, int] = {}
    """Reason to samples that have nothing to learn from."""
    examples: tuple[Example, ...] = ()


class PieceWriter:
    """Writes pieces for one spec. `columns` says how each modality is kept: as vectors, or as
    inputs (`SPOT`)."""

    def __init__(self, decoder: Decoder, columns: Mapping[str, pa.DataType], look: Look) -> None:
        self._decoder, self._columns, self._look = decoder, columns, look
        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("own", pa.int64()),
                ("group", pa.int64()),
                ("text", pa.string()),
                ("category", pa.string()),
                ("number", pa.float64()),
                *((COLUMN + name, kind) for name, kind in columns.items()),
            ]
        )

    def write(self, source: Source, shard: Shard, folder: Path) -> Found:
        """Read a shard once and write its piece into `folder`.

        Raises StorageError where storage stays broken, ShardChanged for another version of it.
        """
        tally = _Tally()
        with (
            (folder / INPUTS).open("xb") as inputs,
            pa.OSFile(str(folder / ROWS), "wb") as out,
            pa.ipc.new_file(out, self._schema) as file,
        ):
            held: list[Row] = []
            for row in self._rows(source, shard, tally):
                held.append(row)
                if len(held) == CHUNK:
                    file.write_batch(self._batch(held, inputs))
                    held = []
            if held:
                file.write_batch(self._batch(held, inputs))
        return tally.found()

    def _rows(self, source: Source, shard: Shard, tally: "_Tally") -> Iterator[Row]:
        with ThreadPoolExecutor(DECODERS) as pool:
            for fragment in source.read(shard, 0, shard.size, set()):
                for start in range(0, len(fragment.samples), CHUNK):
                    samples = fragment.samples[start : start + CHUNK]
                    decoded = pool.map(self._decoded, samples)
                    for sample, row in zip(samples, decoded, strict=True):
                        if tally.takes(sample, row):
                            assert isinstance(row, Row)
                            yield row

    def _decoded(self, sample: Sample) -> Row | SampleError | None:
        if sample.error is not None:
            return sample.error
        try:
            return self._decoder(sample)
        except BadSample as error:
            return SampleError.of("decode", error)

    def _batch(self, rows: Sequence[Row], out: BinaryIO) -> pa.RecordBatch:
        plain = [
            pa.array([getattr(row, name) for row in rows], self._schema.field(name).type)
            for name in ("id", "own", "group", "text", "category", "number")
        ]
        kept = [
            self._column(name, kind, [row.inputs.get(name) for row in rows], out)
            for name, kind in self._columns.items()
        ]
        return pa.record_batch([*plain, *kept], schema=self._schema)

    def _column(self, name: str, kind: pa.DataType, values: list[Any], out: BinaryIO) -> pa.Array:
        if kind == SPOT:
            return pa.array([None if each is None else append(out, each) for each in values], kind)
        absent = np.array([each is None for each in values])
        if absent.all():
            return pa.nulls(len(values), kind)
        vectors = self._look(name, values).astype(np.float32, copy=False)
        return pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), kind.list_size, mask=pa.array(absent)
        )


class _Tally:
    def __init__(self) -> None:
        self.read = self.rows = self.filtered = 0
        self.errors: Counter[str] = Counter()
        self.examples: list[Example] = []

    def takes(self, sample: Sample, row: Row | SampleError | None) -> bool:
        self.read += 1
        if row is None:
            self.filtered += 1
        elif isinstance(row, SampleError):
            self.errors[row.type] += 1
            if self.errors[row.type] <= EXAMPLES_EACH:
                self.examples.append(_example(sample, row))
        else:
            self.rows += 1
        return isinstance(row, Row)

    def found(self) -> Found:
        filtered = {"NothingForTowers": self.filtered} if self.filtered else {}
        errors = dict(self.errors)
        return Found(
            read=self.read,
            rows=self.rows,
            errors=errors,
            filtered=filtered,
            examples=tuple(self.examples),
        )


def _example(sample: Sample, error: SampleError) -> Example:
    return Example(
        source_uri=sample.source_uri,
        source_key=sample.source_key,
        stage=error.stage,
        error_type=error.type,
        message=error.message,
    )
