"""The end of a build: pieces become segments, the search is tuned, and recall is measured.

What was measured decides whether the index is published; that is the caller's to do.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import pyarrow.parquet as pq

from mmray.flow.batch import Timer
from mmray.index.building.pieces import ROW_GROUP, Added, Recipe
from mmray.index.building.truth import Questions, Truth
from mmray.index.building.tune import Tried, Tuned, tune
from mmray.index.kinds import KINDS, Parameters
from mmray.index.manifest import Manifest, Measured, Segment
from mmray.index.searching.loaded import Loaded, Part
from mmray.index.searching.segments import dead_rows, load_segments, read_index
from mmray.storage import blobs
from mmray.storage.blobs import File

MOST_SEGMENTS = 8
"""Beyond, all but the first become one: a search of graphs asks each of them."""
UNMEASURED = 0.05
"""Rows that may come and go, of all, before recall is measured anew."""
SHOWN, NEAREST = 8, 6
"""Queries that the report shows, and hits of each."""
_COPY_BYTES = 8 * 1024 * 1024


class Source(Protocol):
    """What is joined: a piece, or a segment."""

    @property
    def rows(self) -> int:
        """Rows in it."""

    @property
    def index(self) -> File | None:
        """None where there is no row."""

    @property
    def table(self) -> File | None:
        """Likewise."""

    @property
    def vectors(self) -> File | None:
        """Where the kind keeps codes."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What is to be finished."""

    recipe: Recipe
    added: tuple[Added, ...]
    """In the order of their rows."""
    k: int
    floor: float
    queries: str
    """The column that the held-out queries come from."""
    before: Manifest | None = None
    """The version that rows are added to; None where the index is built as a whole."""
    removed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Numbers of rows that no longer count."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A whole index that is on storage, and that no version names yet."""

    segments: tuple[Segment, ...]
    truth: File
    dead: File | None
    dead_rows: int
    parameters: Parameters
    measured: Measured
    unmeasured: int
    curve: tuple[Tried, ...]
    samples: tuple[tuple[int, tuple[tuple[int, float], ...]], ...]
    """Row numbers of some queries, with those of their hits and scores."""
    seconds: dict[str, float]


def finish(ending: Ending) -> Ended:
    """Join, tune and measure. Writes files that nothing names yet.

    Raises:
        RefusedError: a file isn't what it was.
        StorageError: storage stayed broken.
    """
    with blobs.scratch() as folder:
        return _Finishing(ending, folder).run()


class _Finishing:
    def __init__(self, ending: Ending, folder: Path) -> None:
        self.ending, self.recipe, self.folder = ending, ending.recipe, folder
        self.before = ending.before
        self.watch = Timer()

    def run(self) -> Ended:
        known = self.before.segments if self.before else ()
        first = sum(segment.rows for segment in known)
        sources = [piece for piece in self.ending.added if piece.rows]
        with self.watch.stage("merge"):
            fresh, loaded = self._segments(sources, first)
        dead, dead_file = self._dead()
        truth = self._truth(first)
        segments = (*known, *fresh)
        moved = sum(piece.rows for piece in sources) + len(self.ending.removed)
        unmeasured = moved + (self.before.unmeasured if self.before else 0)
        live = sum(segment.rows for segment in segments) - len(dead)
        tuned: Tuned | None = None
        samples: tuple[tuple[int, tuple[tuple[int, float], ...]], ...] = ()
        if self.before is None or unmeasured > UNMEASURED * live:
            with self.watch.stage("measure"):
                if self.before is not None or loaded is None:
                    loaded = self._load(segments, dead)
                judged = truth.without(dead, self.ending.k)
                tuned = tune(loaded, judged, self.ending.k, self.ending.floor)
                samples = _samples(loaded, judged, tuned.parameters)
                unmeasured = 0
        if len(segments) > MOST_SEGMENTS:
            with self.watch.stage("merge"):
                del loaded
                folded, _ = self._joined(segments[1:], segments[0].rows)
                segments = (segments[0], folded)
        return Ended(
            segments=segments,
            truth=self._put_truth(truth),
            dead=dead_file,
            dead_rows=len(dead),
            parameters=tuned.parameters if tuned else self._was.parameters,
            measured=self._measured(tuned) if tuned else self._was.measured,
            unmeasured=unmeasured,
            curve=tuned.curve if tuned else (),
            samples=samples,
            seconds=self.watch.take(),
        )

    @property
    def _was(self) -> Manifest:
        assert self.before is not None
        return self.before

    def _segments(
        self, sources: Sequence[Added], first: int
    ) -> tuple[list[Segment], Loaded | None]:
        """The new rows as segments; of a kind that merges as one, which then is in memory."""
        if not sources:
            return [], Loaded(self.recipe.kind, self.recipe.column.dim, [])
        if not KINDS[self.recipe.kind].merges or len(sources) == 1:
            segments = []
            for piece in sources:
                segments.append(_named(piece, first))
                first += piece.rows
            return segments, None
        segment, loaded = self._joined(sources, first)
        return [segment], loaded

    def _joined(self, sources: Sequence[Source], first: int) -> tuple[Segment, Loaded]:
        """Sources one after the other as one segment: one of them in memory beside the whole."""
        name, recipe = uuid.uuid4().hex, self.recipe
        index, rows = None, 0
        for source in sources:
            assert source.index is not None
            one = read_index(self._fetch(source.index))
            index = one if index is None else _with(recipe, index, one, rows)
            rows += source.rows
        faiss.write_index(index, str(self.folder / f"{name}.index"))
        table = self._table(name, sources)
        whole = self._whole(name, sources)
        segment = Segment(
            name,
            first,
            rows,
            self._put(f"{name}.index", f"segments/{name}/index.faiss"),
            self._put(table, f"segments/{name}/rows.parquet"),
            self._put(whole, f"segments/{name}/vectors.f32") if whole else None,
        )
        kept = []
        if whole:
            shape = (rows, recipe.column.dim)
            kept = [np.memmap(self.folder / whole, np.float32, "r", shape=shape)]
        loaded = Loaded(recipe.kind, recipe.column.dim, [Part(index, 0, rows)], kept)
        return segment, loaded

    def _table(self, name: str, sources: Sequence[Source]) -> str:
        local = f"{name}.rows"
        with pq.ParquetWriter(
            self.folder / local, self.recipe.schema, compression="zstd", write_page_checksum=True
        ) as writer:
            for source in sources:
                assert source.table is not None
                path = self._fetch(source.table)
                with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
                    for batch in parquet.iter_batches(ROW_GROUP):
                        writer.write_batch(batch, row_group_size=ROW_GROUP)
        return local

    def _whole(self, name: str, sources: Sequence[Source]) -> str:
        """The file of whole vectors; empty where the kind has none."""
        if not KINDS[self.recipe.kind].codes:
            return ""
        local = f"{name}.vectors"
        with (self.folder / local).open("wb") as out:
            for source in sources:
                assert source.vectors is not None
                path = self._fetch(source.vectors)
                with path.open("rb") as file:
                    while data := file.read(_COPY_BYTES):
                        out.write(data)
        return local

    def _dead(self) -> tuple[np.ndarray, File | None]:
        """All rows that don't count, and the file that says so."""
        known = dead_rows(self.before, self._fetch) if self.before else np.empty(0, np.int64)
        dead = np.union1d(known, self.ending.removed)
        if not len(dead):
            return dead, None
        if len(dead) == len(known) and self.before is not None:
            return dead, self.before.dead
        dead.astype("<i8").tofile(self.folder / "dead")
        return dead, self._put("dead", f"shared/{uuid.uuid4().hex}.dead")

    def _truth(self, first: int) -> Truth:
        """What is known of the queries' neighbours with the new rows taken in."""
        if self.before is not None and self.before.truth is not None:
            truth = Truth.read(self._fetch(self.before.truth))
        else:
            assert self.recipe.questions is not None
            questions = Questions.read(self._fetch(self.recipe.questions))
            truth = Truth.empty(questions.vectors, self.recipe.depth)
        for piece in self.ending.added:
            truth.join(Truth.read(self._fetch(piece.truth)), first)
            first += piece.rows
        return truth

    def _put_truth(self, truth: Truth) -> File:
        truth.save(self.folder / "truth.npz")
        return self._put("truth.npz", f"shared/{uuid.uuid4().hex}.truth.npz")

    def _load(self, segments: Sequence[Segment], dead: np.ndarray) -> Loaded:
        kind, dim = self.recipe.kind, self.recipe.column.dim
        return load_segments(kind, dim, segments, dead, self._fetch)

    def _fetch(self, file: File) -> Path:
        return blobs.get(self.recipe.storage, self.recipe.root, file)

    def _measured(self, tuned: Tuned) -> Measured:
        return Measured(
            recall=round(tuned.recall, 6),
            k=self.ending.k,
            queries=tuned.queries,
            queries_per_second=round(tuned.queries_per_second, 1),
            threads=tuned.threads,
            column=self.ending.queries,
        )

    def _put(self, local: str, path: str) -> File:
        return blobs.put(self.recipe.storage, self.folder / local, self.recipe.root, path)


def _named(piece: Added, first: int) -> Segment:
    assert piece.index is not None
    assert piece.table is not None
    name = piece.index.path.split("/")[1]
    return Segment(name, first, piece.rows, piece.index, piece.table, piece.vectors)


def _with(recipe: Recipe, index: Any, other: Any, rows: int) -> Any:
    """`index`, of so many rows, with the rows of `other` after its own."""
    kind = KINDS[recipe.kind]
    if kind.merges:
        index.merge_from(other, rows if kind.clusters else 0)
    else:
        index.add(other.reconstruct_n(0, other.ntotal))
    return index


def _samples(
    loaded: Loaded, truth: Truth, parameters: Parameters
) -> tuple[tuple[int, tuple[tuple[int, float], ...]], ...]:
    """Some queries that are rows themselves, with what a search finds."""
    mine = np.flatnonzero(truth.own >= 0)
    mine = mine[:: max(1, len(mine) // SHOWN)][:SHOWN]
    scores, numbers = loaded.search(truth.vectors[mine], NEAREST + 1, parameters)
    found = []
    for own, row, points in zip(truth.own[mine].tolist(), numbers.tolist(), scores, strict=True):
        pairs = zip(row, points.tolist(), strict=True)
        hits = tuple((number, score) for number, score in pairs if number not in (-1, own))
        found.append((own, hits[:NEAREST]))
    return tuple(found)
