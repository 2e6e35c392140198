"""Answers of a search: found exactly, and the best of several."""

from collections.abc import Sequence

import faiss
import numpy as np

Found = tuple[np.ndarray, np.ndarray]
"""Scores float32 [q, k] and row numbers int64 [q, k], best first; -inf and -1 for none."""


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> Found:
    """Exact search: scores and places in `vectors`, best first, filled up with -inf and -1."""
    count = min(k, len(vectors))
    if not count or not len(queries):
        return nothing(len(queries), k)
    scores, places = faiss.knn(queries, vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
    return top([(scores, places.astype(np.int64))], k)


def top(found: Sequence[Found], k: int) -> Found:
    """The best k of several answers to the same queries; equal scores by row number."""
    scores = np.concatenate([each[0] for each in found], axis=1)
    numbers = np.concatenate([each[1] for each in found], axis=1)
    if scores.shape[1] < k:
        lack = ((0, 0), (0, k - scores.shape[1]))
        scores = np.pad(scores, lack, constant_values=-np.inf)
        numbers = np.pad(numbers, lack, constant_values=-1)
    order = np.lexsort((numbers, -scores), axis=1)[:, :k]
    return (
        np.take_along_axis(scores, order, axis=1).astype(np.float32, copy=False),
        np.take_along_axis(numbers, order, axis=1).astype(np.int64, copy=False),
    )


def nothing(queries: int, k: int) -> Found:
    """The answers where there are no rows."""
    return np.full((queries, k), -np.inf, np.float32), np.full((queries, k), -1, np.int64)
