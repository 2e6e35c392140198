"""A piece: some of the rows, added to an index of their own in one task of bounded memory.

Its files go to their final places under new names; `done.json` under the build's folder, written
last and only where there is none, makes them count. So a build that was killed goes on with the
pieces that are done, and of two builds at once each piece is made by one.
"""

import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.flow.batch import Timer
from mmray.index.building.truth import Questions, Truth
from mmray.index.column import Block, Column, PartRows, blocks
from mmray.index.kinds import KINDS
from mmray.index.searching.segments import read_index
from mmray.storage import Storage, blobs, join
from mmray.storage.blobs import File

ADD_ROWS = 32_768
"""Rows that are added at once: faiss's threads share them."""
ROW_GROUP = 16_384


@dataclass(frozen=True, slots=True)
class Recipe:
    """What all pieces of a build share."""

    storage: Storage
    root: str
    """Uri of the index."""
    building: str
    """The build's folder, relative to `root`."""
    column: Column
    kind: str
    factory: str
    schema: pa.Schema
    """Of the rows: the base columns and the kept ones."""
    depth: int
    """Neighbours to know of each query."""
    trained: File | None = None
    questions: File | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows to add in one task."""

    name: str
    parts: tuple[PartRows, ...]

    @property
    def rows(self) -> int:
        """With and without a vector."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True, slots=True)
class Added:
    """A piece that is done."""

    name: str
    rows: int
    """That have a vector, and so are in the index."""
    index: File | None
    """None where no row has a vector."""
    table: File | None
    vectors: File | None
    truth: File
    left_out: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def files(self) -> list[File]:
        """All that are there."""
        return [f for f in (self.index, self.table, self.vectors, self.truth) if f is not None]


def empty(recipe: Recipe) -> Any:
    """The index before any row, trained where its kind needs that."""
    if recipe.trained is not None:
        return read_index(blobs.get(recipe.storage, recipe.root, recipe.trained))
    return faiss.index_factory(recipe.column.dim, recipe.factory, faiss.METRIC_INNER_PRODUCT)


def add(work: tuple[Recipe, Piece]) -> Added:
    """Make a piece, unless it is done.

    Raises:
        StorageError: a part can't be read, or storage stayed broken.
    """
    recipe, piece = work
    found = done(recipe, piece.name)
    return found or _Adding(recipe, piece).run()


def done(recipe: Recipe, name: str) -> Added | None:
    """What an earlier run, or another one, made of a piece."""
    try:
        data = json.loads(recipe.storage.read_bytes(_receipt(recipe, name)))
    except FileNotFoundError:
        return None
    for key in ("index", "table", "vectors", "truth"):
        data[key] = None if data[key] is None else File(**data[key])
    return Added(**data)


def _receipt(recipe: Recipe, name: str) -> str:
    return join(recipe.root, recipe.building, name, "done.json")


class _Adding:
    """One piece on its way."""

    def __init__(self, recipe: Recipe, piece: Piece) -> None:
        self.recipe, self.piece = recipe, piece
        self.watch = Timer()
        self.index = empty(recipe)
        assert recipe.questions is not None
        self.questions = Questions.read(blobs.get(recipe.storage, recipe.root, recipe.questions))
        self.truth = Truth.empty(self.questions.vectors, recipe.depth)
        self.left_out: Counter[str] = Counter()
        self.waiting: list[np.ndarray] = []

    def run(self) -> Added:
        with blobs.scratch() as folder:
            rows = self._read(folder)
            made = self._written(folder, rows)
        data = json.dumps(asdict(made)).encode()
        if self.recipe.storage.put_if_absent(_receipt(self.recipe, self.piece.name), data):
            return made
        for file in made.files:  # another run was first: its piece counts
            self.recipe.storage.delete(join(self.recipe.root, file.path))
        first = done(self.recipe, self.piece.name)
        assert first is not None
        return first

    def _read(self, folder: Path) -> int:
        """Add all rows; the table and whole vectors go to `folder` as they come."""
        rows = 0
        keeps = KINDS[self.recipe.kind].codes
        with (
            (folder / "vectors").open("wb") as whole,
            pq.ParquetWriter(
                folder / "rows",
                self.recipe.schema,
                compression="zstd",
                write_page_checksum=True,
            ) as table,
        ):
            for path, block in self._blocks():
                self._own(path, block, rows)
                rows += len(block.vectors)
                self.left_out += block.left_out
                with self.watch.stage("write"):
                    _write_rows(table, block, self.recipe.schema)
                    if keeps:
                        _append(whole, block.vectors)
                self.waiting.append(block.vectors)
                if sum(map(len, self.waiting)) >= ADD_ROWS:
                    self._add()
            self._add()
        return rows

    def _blocks(self) -> Iterator[tuple[str, Block]]:
        for part in self.piece.parts:
            found = blocks(self.recipe.column, part)
            while True:
                with self.watch.stage("read"):
                    block = next(found, None)
                if block is None:
                    break
                yield part.path, block

    def _own(self, path: str, block: Block, first: int) -> None:
        """Note which rows of the block are queries."""
        mine = np.flatnonzero(self.questions.paths == path)
        at = np.searchsorted(block.places, self.questions.places[mine])
        at = np.minimum(at, max(0, len(block.places) - 1))
        if len(block.places):
            same = block.places[at] == self.questions.places[mine]
            self.truth.own[mine[same]] = first + at[same]

    def _add(self) -> None:
        if not self.waiting:
            return
        vectors = np.concatenate(self.waiting)
        self.waiting = []
        first = self.index.ntotal
        with self.watch.stage("add"):
            self.index.add(vectors)
        with self.watch.stage("measure"):
            self.truth.see(vectors, first)

    def _written(self, folder: Path, rows: int) -> Added:
        name = uuid.uuid4().hex
        index = table = whole = None
        with self.watch.stage("write"):
            truth_path = folder / "truth.npz"
            self.truth.save(truth_path)
            truth = self._put(truth_path, f"{self.recipe.building}/{name}.truth.npz")
            if rows:
                faiss.write_index(self.index, str(folder / "index"))
                index = self._put(folder / "index", f"segments/{name}/index.faiss")
                table = self._put(folder / "rows", f"segments/{name}/rows.parquet")
                if KINDS[self.recipe.kind].codes:
                    whole = self._put(folder / "vectors", f"segments/{name}/vectors.f32")
        return Added(
            self.piece.name,
            rows,
            index,
            table,
            whole,
            truth,
            dict(self.left_out),
            self.watch.take(),
        )

    def _put(self, local: Path, path: str) -> File:
        return blobs.put(self.recipe.storage, local, self.recipe.root, path)


def _write_rows(table: pq.ParquetWriter, block: Block, schema: pa.Schema) -> None:
    if block.table.num_rows:
        rows = block.table.select(schema.names).cast(schema)
        table.write_table(rows, row_group_size=ROW_GROUP)


def _append(file: IO[bytes], vectors: np.ndarray) -> None:
    file.write(vectors.astype("<f4", copy=False).tobytes())
