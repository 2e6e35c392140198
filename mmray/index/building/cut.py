"""Cuts the rows of a build into pieces: what one task adds, and what a kill may lose."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from mmray.index.building.pieces import Piece
from mmray.index.column import PartRows
from mmray.index.kinds import KINDS
from mmray.index.workers import on_cluster
from mmray.specs.index import IndexResources

PIECE_BYTES = 512 * 1024 * 1024
PIECE_SHARE = 8
"""A piece takes this part of the memory at the most."""
ONE_PIECE_BYTES = 2 * 1024 * 1024 * 1024
"""An index that this process builds is one piece up to this size: pieces are written and read
again, and what a kill loses of one is a minute's work."""
GRAPH_ROWS = 1_000_000
"""Rows of one graph: graphs can't be merged, and each costs every search."""


def cut(
    parts: Sequence[PartRows], kind: str, dim: int, memory: int, resources: IndexResources
) -> Iterator[Piece]:
    """Parts by their order, as many as a piece may hold; a larger part is cut.

    Args:
        parts: rows to add.
        kind: of `KINDS`.
        dim: numbers of a vector.
        memory: bytes that the index may take.
        resources: where the work is done, and the size of a piece where it is given.
    """
    row_bytes = KINDS[kind].row_bytes(dim, dim)
    total = sum(part.rows for part in parts) * row_bytes
    room = resources.piece or min(PIECE_BYTES, memory // PIECE_SHARE)
    here = not on_cluster(resources) and not resources.piece
    if here and total <= ONE_PIECE_BYTES:
        room = max(room, int(total) + 1)
    most = max(4096, int(room / row_bytes))
    if not KINDS[kind].merges:
        most = GRAPH_ROWS
    waiting: list[PartRows] = []
    number = 0
    for part in (some for each in parts for some in _slices(each, most)):
        if waiting and sum(each.rows for each in waiting) + part.rows > most:
            yield _piece(number, waiting)
            number, waiting = number + 1, []
        waiting.append(part)
    if waiting:
        yield _piece(number, waiting)


def _piece(number: int, parts: Sequence[PartRows]) -> Piece:
    """Named after its rows too: a build that goes on with other memory or elsewhere is cut
    otherwise, and what was made of other rows under the same number isn't this piece."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.path}\0{part.rows}\0".encode())
        if part.take is not None:
            digest.update(part.take.astype("<i8", copy=False).tobytes())
    return Piece(f"{number:06d}-{digest.hexdigest()[:16]}", tuple(parts))


def _slices(part: PartRows, most: int) -> Iterator[PartRows]:
    """The part itself, or runs of its rows where it is much larger than a piece."""
    if part.rows <= 2 * most:
        yield part
        return
    places = np.arange(part.rows) if part.take is None else part.take
    for first in range(0, part.rows, most):
        some = places[first : first + most]
        yield PartRows(part.path, len(some), some)
