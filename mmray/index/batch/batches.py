"""Queries in bounded batches, out of a store or a file.

They come in pieces, each of which is answered into one file. What a piece holds follows from what
it is named after: the part of a store, or the file at its etag, and the rows.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mmray.index.column import Column, PartRows, blocks
from mmray.report import Example
from mmray.store import Store

Floats = npt.NDArray[np.float32]

PIECE = 16_384
"""Queries of a piece of a store: two of the row groups that mmray writes."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Some queries in order: texts, where `vectors` is None."""

    ids: list[str]
    vectors: Floats | None = None
    """[n, dim], each usable as it is."""
    texts: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason to rows that are no query."""
    examples: tuple[Example, ...] = ()
    """Some of those."""

    @property
    def rows(self) -> int:
        """Of the store or file, with what is left out."""
        return len(self.ids) + self.left_out.total()

    def batches(self, size: int) -> Iterator["Queries"]:
        """The same in runs of at most `size`; what was left out is told with the first."""
        left_out, examples = self.left_out, self.examples
        for start in range(0, max(len(self.ids), 1), size):
            some = slice(start, start + size)
            vectors = None if self.vectors is None else self.vectors[some]
            yield Queries(self.ids[some], vectors, self.texts[some], left_out, examples)
            left_out, examples = Counter(), ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries that are answered together."""

    uri: str
    """Of the part, or the file."""
    etag: str
    """Of the file; empty for a part, which never changes."""
    start: int
    stop: int
    """Rows of the part; numbers of the file's rows."""
    held: Queries | None = None
    """Those of a file, which only its reader can find; None: a part's, read where they're used."""

    @property
    def name(self) -> str:
        """What tells its queries from all others."""
        return f"{self.uri}\n{self.etag}\n{self.start}\n{self.stop}"


def store_pieces(store: Store) -> Iterator[Piece]:
    """The rows of a store, at its version, part by part."""
    for part in store.parts():
        for start in range(0, part.rows, PIECE):
            yield Piece(part.path, "", start, min(start + PIECE, part.rows))


def queries(piece: Piece, column: Column | None, size: int) -> Iterator[Queries]:
    """The queries of a piece, in batches of at most `size`.

    Args:
        piece: of a store or a file.
        column: the store's vectors, with the id beside.
        size: most queries of a batch.

    Raises:
        StorageError: the part is gone or damaged, or storage stayed broken.
    """
    if piece.held is not None or column is None:
        yield from (piece.held or Queries([])).batches(size)
        return
    rows = np.arange(piece.start, piece.stop)
    for block in blocks(column, PartRows(piece.uri, len(rows), rows)):
        ids = block.table["id"].to_pylist()
        yield from Queries(ids, block.vectors, left_out=block.left_out).batches(size)
