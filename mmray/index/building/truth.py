"""Held-out queries and their true neighbours: what an index is tuned on, and measured by.

The queries are vectors of the store that no training saw. Their neighbours are found by exact
search over each block of vectors while it is added, and merged, so that the truth costs one pass
that is made anyway, and an addition to an index costs the truth only what was added.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmray.index.searching.nearest import Found, nearest, top

QUERIES = 512
"""Half of them tune, half of them measure: 0.05 of recall@10 is 12 standard errors."""
SPARE = 16
"""Neighbours known beyond twice k, so that rows may be removed before a query has too few."""
EPSILON = 2e-6
"""Scores this near are the same: two ways to add up a product differ by more than zero."""


@dataclass(slots=True)
class Questions:
    """Queries before anything is known of the rows."""

    vectors: np.ndarray
    """float32 [q, dim]."""
    paths: np.ndarray
    """str [q]: the part that each was drawn from; empty where it's no row of the index."""
    places: np.ndarray
    """int64 [q]: its place in that part."""

    def at(self, chosen: np.ndarray) -> "Questions":
        """These of them."""
        return Questions(self.vectors[chosen], self.paths[chosen], self.places[chosen])

    def save(self, path: Path) -> None:
        """Write as npz."""
        np.savez(path, vectors=self.vectors, paths=self.paths, places=self.places)

    @classmethod
    def read(cls, path: Path) -> "Questions":
        """What `save` wrote; never unpickles."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["vectors"], data["paths"], data["places"])


@dataclass(slots=True)
class Truth:
    """The best rows of each query by exact search, as far as rows were added."""

    vectors: np.ndarray
    """float32 [q, dim]."""
    own: np.ndarray
    """int64 [q]: the query's own row; -1 where it has none."""
    scores: np.ndarray
    """float32 [q, depth]."""
    numbers: np.ndarray
    """int64 [q, depth]."""

    @classmethod
    def empty(cls, vectors: np.ndarray, depth: int) -> "Truth":
        """Before any row was added."""
        shape = len(vectors), depth
        none = np.full(len(vectors), -1, np.int64)
        return cls(vectors, none, np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64))

    @property
    def depth(self) -> int:
        """Neighbours that are known of each query."""
        return int(self.scores.shape[1])

    def see(self, vectors: np.ndarray, first: int) -> None:
        """Take in rows: float32 [n, dim], numbered from `first`."""
        scores, places = nearest(self.vectors, vectors, self.depth)
        self._join((scores, np.where(places >= 0, places + first, -1)))

    def join(self, other: "Truth", first: int) -> None:
        """Take in what was found over other rows, whose numbers count from `first` here."""
        self._join((other.scores, np.where(other.numbers >= 0, other.numbers + first, -1)))
        mine = other.own >= 0
        self.own[mine] = other.own[mine] + first

    def _join(self, found: Found) -> None:
        self.scores, self.numbers = top([(self.scores, self.numbers), found], self.depth)

    def half(self, which: int) -> "Truth":
        """Every other query, from the first (0) or the second (1): to tune, and to measure."""
        every = slice(which, None, 2) if len(self.vectors) > 1 else slice(None)
        return Truth(self.vectors[every], self.own[every], self.scores[every], self.numbers[every])

    def without(self, dead: np.ndarray, k: int) -> "Truth":
        """As if these rows had never been; queries that know too few neighbours then are left
        out."""
        if not len(dead):
            return self
        gone = np.isin(self.numbers, dead)
        left = np.where(gone, -np.inf, self.scores), np.where(gone, -1, self.numbers)
        scores, numbers = top([left], self.depth)
        full = (self.numbers >= 0).all(1)  # what lies beyond is not known
        enough = ~full | ((numbers >= 0).sum(1) > k)
        own = np.where(np.isin(self.own, dead), -1, self.own)
        return Truth(self.vectors[enough], own[enough], scores[enough], numbers[enough])

    def save(self, path: Path) -> None:
        """Write as npz."""
        np.savez(path, vectors=self.vectors, own=self.own, scores=self.scores, numbers=self.numbers)

    @classmethod
    def read(cls, path: Path) -> "Truth":
        """What `save` wrote; never unpickles."""
        with np.load(path, allow_pickle=False) as data:
            return cls(data["vectors"], data["own"], data["scores"], data["numbers"])


def depth_for(k: int) -> int:
    """Neighbours to know of each query, to measure recall@k by."""
    return 2 * k + SPARE


def recall(found: Found, truth: Truth, k: int) -> float:
    """recall@k: the share of each query's k true neighbours that was found, over all queries.

    The query's own row counts on neither side. A row that scores as well as the k-th neighbour is
    as good: rows that repeat each other can't be told apart. 1 where there is nothing to find.

    Args:
        found: the answers to `truth.vectors`, to k + 1 rows or more.
        truth: what there is to find.
        k: neighbours.
    """
    true, _ = _others((truth.scores, truth.numbers), truth.own, k)
    scores, _ = _others(found, truth.own, k)
    there = np.isfinite(true)
    if not there.any():
        return 1.0
    worst = np.where(there, true, np.inf).min(axis=1, keepdims=True)
    margin = EPSILON * np.maximum(1.0, np.abs(np.where(np.isfinite(worst), worst, 0)))
    hits = np.minimum((scores >= worst - margin).sum(1), there.sum(1))
    return float(hits.sum() / there.sum())


def _others(found: Found, own: np.ndarray, k: int) -> Found:
    scores, numbers = found
    mine = (numbers == own[:, None]) & (numbers >= 0)
    return top([(np.where(mine, -np.inf, scores), np.where(mine, -1, numbers))], k)
