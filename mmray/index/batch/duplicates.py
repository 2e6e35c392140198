"""Near-duplicates: which rows are within a threshold of each other, and which stands for which.

Rows are settled in the order of their numbers. One that is within the threshold of a row that is
kept is dropped, and the first such row stands for it; any other is kept, and drops all that are
near it. So only the neighbours of kept rows count, and those of a dropped row aren't asked for: ten
thousand copies cost one long search and no list of all their pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mmray.errors import RefusedError

if TYPE_CHECKING:
    from mmray.index.searching.opened import Index

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

FIRST = 32
"""Neighbours that are asked for at first."""
STEP = 8
"""Times as many, where all of them were near."""
MOST = FIRST * STEP
"""Neighbours of one row in `Found`; of rows that are kept in the end, the others are asked for."""
SLACK = 0.02
"""Scores of an index that keeps codes are about right; those from so far below are looked at."""
ROUNDING = 1e-6
"""Equal vectors have a cosine of 1 within this."""
PAIR_BYTES = 1 << 25
"""Of the vectors whose exact scores are found at once."""


@dataclass(frozen=True, slots=True)
class Found:
    """The near neighbours of some rows, themselves left out: of `rows[i]`, those from `starts[i]`
    to `starts[i + 1]`."""

    rows: Ints
    """Numbers [n], ascending."""
    starts: Ints
    """[n + 1]"""
    numbers: Ints
    scores: Floats
    """Exact, at least the threshold within `ROUNDING`."""
    cut: Bools
    """[n]: whether the row may have more than these."""

    def of(self, place: int) -> tuple[Ints, Floats]:
        """Numbers and scores of the neighbours of `rows[place]`."""
        run = slice(self.starts[place], self.starts[place + 1])
        return self.numbers[run], self.scores[run]


def neighbours(
    index: "Index", rows: Ints, threshold: float, where: str | None = None, *, all_of: bool = False
) -> Found:
    """The rows of the index within `threshold` (a cosine) of each of `rows`.

    Args:
        index: what to search.
        rows: numbers, ascending.
        threshold: least cosine of neighbours.
        where: neighbours have to meet this condition.
        all_of: find all of them, however many; else about `MOST` of each row.

    Raises:
        RefusedError: the index is one of inner products, and they are no cosines.
    """
    vectors = index.vectors(rows)
    if index.manifest.metric != "cosine":
        _require_length_one(vectors)
    total = index.manifest.rows
    most = total if all_of else MOST
    k = min(MOST * STEP if all_of else FIRST, total)
    left = np.arange(len(rows))
    cut = np.zeros(len(rows), dtype=bool)
    pairs: list[tuple[Ints, Ints, Floats]] = []
    while left.size:
        hits = index.search(vectors[left], k, where=where)
        near = hits.scores >= threshold - SLACK
        is_full = near[:, -1] & (k < total)
        again = is_full & (k < most)
        cut[left] = is_full & ~again
        near[again] = False
        query, place = np.nonzero(near)
        pairs.append(_exact(index, (rows, vectors), left[query], hits.numbers[query, place]))
        left, k = left[again], min(k * STEP, total)
    return _found(rows, cut, pairs, threshold)


def _exact(
    index: "Index", searched: tuple[Ints, Floats], places: Ints, numbers: Ints
) -> tuple[Ints, Ints, Floats]:
    """The pairs that aren't a row with itself, and their scores by whole vectors."""
    rows, vectors = searched
    others = rows[places] != numbers
    places, numbers = places[others], numbers[others]
    scores = np.empty(len(places), dtype=np.float32)
    step = max(PAIR_BYTES // (4 * vectors.shape[1]), 1)
    for begin in range(0, len(places), step):
        some = slice(begin, begin + step)
        distinct, inverse = np.unique(numbers[some], return_inverse=True)
        against = index.vectors(distinct)[inverse]
        scores[some] = np.einsum("ij,ij->i", vectors[places[some]], against)
    return places, numbers, scores


def _found(
    rows: Ints, cut: Bools, pairs: list[tuple[Ints, Ints, Floats]], threshold: float
) -> Found:
    empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    places, numbers, scores = (np.concatenate(each) for each in zip(empty, *pairs, strict=True))
    passes = scores >= threshold - ROUNDING
    places, numbers, scores = places[passes], numbers[passes], scores[passes]
    order = np.lexsort((numbers, places))
    starts = np.searchsorted(places[order], np.arange(len(rows) + 1))
    return Found(rows, starts, numbers[order], np.minimum(scores[order], np.float32(1.0)), cut)


def _require_length_one(vectors: Floats) -> None:
    lengths = np.linalg.norm(vectors, axis=1)
    if (np.abs(lengths - 1) > 1e-3).any():
        raise RefusedError(
            f"the index is one of inner products over vectors of lengths such as {lengths[0]:.3g}; "
            "near-duplicates are told by the cosine: build one with `metric: cosine`"
        )


class Groups:
    """Which row stands for which, as far as rows are settled.

    `rows` are all numbers there are, ascending; everything else here is by place in them.
    """

    def __init__(self, rows: Ints) -> None:
        self.rows = rows
        self.stands: Ints = np.full(len(rows), -1, dtype=np.int64)
        """Place of the row that stands for this one; -1: it's kept, or not settled yet."""
        self.scores: Floats = np.zeros(len(rows), dtype=np.float32)
        """Between the two."""
        self.settled = 0
        """Places before this one are settled."""

    def open(self, start: int, stop: int) -> Ints:
        """Numbers of the rows at places `[start, stop)` that nothing has dropped yet."""
        return self.rows[start:stop][self.stands[start:stop] < 0]

    def settle(
        self, stop: int, found: Found, every: Callable[[int], tuple[Ints, Floats]]
    ) -> tuple[Ints, Ints, Floats]:
        """Settle the rows up to place `stop`.

        Args:
            stop: place after the last.
            found: has all of them that nothing had dropped when it was made, at least.
            every: a number to all its near neighbours, where `found` has some of them.

        Returns:
            What was dropped: places, the places of the rows that stand for them, scores.
        """
        dropped: list[tuple[Ints, int, Floats]] = []
        some = np.flatnonzero((np.diff(found.starts) > 0) | found.cut)
        for each in some.tolist():
            place = int(np.searchsorted(self.rows, found.rows[each]))
            if self.stands[place] >= 0:
                continue
            near = found.of(each)
            drops = self._before(place, *near)
            if drops is None and found.cut[each]:
                near = every(int(found.rows[each]))
                drops = self._before(place, *near)
            if drops is None:
                drops = self._after(place, *near)
            places, keeper, scores = drops
            self.stands[places], self.scores[places] = keeper, scores
            dropped.append(drops)
        self.settled = stop
        none = np.empty(0, np.int64)
        return (
            np.concatenate([none, *(places for places, _, _ in dropped)]),
            np.concatenate([none, *(np.full(len(p), keeper) for p, keeper, _ in dropped)]),
            np.concatenate([np.empty(0, np.float32), *(scores for _, _, scores in dropped)]),
        )

    def restore(self, stop: int, places: Ints, keepers: Ints, scores: Floats) -> None:
        """Take over what `settle` returned in an earlier run."""
        self.stands[places], self.scores[places] = keepers, scores
        self.settled = stop

    def _before(self, place: int, numbers: Ints, scores: Floats) -> tuple[Ints, int, Floats] | None:
        """The drop of `place` by the first kept row before it that is near."""
        places = np.searchsorted(self.rows, numbers)
        keepers = np.flatnonzero((places < place) & (self.stands[places] < 0))
        if not keepers.size:
            return None
        first = keepers[places[keepers].argmin()]
        return np.array([place]), int(places[first]), scores[[first]]

    def _after(self, place: int, numbers: Ints, scores: Floats) -> tuple[Ints, int, Floats]:
        """The drops of those near `place`, which is kept, that nothing dropped before."""
        places = np.searchsorted(self.rows, numbers)
        free = (places > place) & (self.stands[places] < 0)
        return places[free], place, scores[free]

    @property
    def kept(self) -> Ints:
        """Numbers of the rows that are kept."""
        return self.rows[self.stands < 0]

    def largest(self, count: int) -> list[tuple[int, Ints]]:
        """Up to `count` groups, largest first: the kept row's place, and places of those that it
        stands for, nearest first."""
        dropped = np.flatnonzero(self.stands >= 0)
        keepers, sizes = np.unique(self.stands[dropped], return_counts=True)
        groups = []
        for at in np.argsort(-sizes, kind="stable")[:count]:
            members = dropped[self.stands[dropped] == keepers[at]]
            order = np.argsort(-self.scores[members], kind="stable")
            groups.append((int(keepers[at]), members[order]))
        return groups
