"""The vectors of an index in memory: the one place that searches with faiss.

Segments that can be merged are one faiss index here, so that many small additions cost a search
nothing; graphs stay side by side. Rows that a filter leaves are searched so that recall holds: few
of them exactly, many with wider parameters.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from mmray.index.kinds import KINDS
from mmray.index.searching.nearest import Found, nearest, nothing, top

EXACT_ROWS = 20_000
"""Rows left by a filter up to which, or up to a tenth of the index, each of them is compared."""
EXACT_SHARE = 0.1
BLOCK = 8192
"""Whole vectors, or queries, that are held at once."""
_MOST_SETTINGS = 256
MOST_EFFORT = 4096
"""Of `ef_search`, however narrow the filter."""


@dataclass(slots=True)
class Part:
    """A faiss index over rows one after another."""

    index: Any
    first: int
    rows: int


class Loaded:
    """Made by `segments.load`, or of what a build has in memory."""

    def __init__(
        self,
        kind: str,
        dim: int,
        parts: Sequence[Part],
        whole: Sequence[np.ndarray] = (),
        dead: np.ndarray | None = None,
    ) -> None:
        """Takes the parts, in the order of their rows, over.

        Args:
            kind: of `KINDS`.
            dim: length of a vector.
            parts: merged into one where the kind can.
            whole: float32 [rows, dim] of each part, mapped from disk, where the kind keeps codes.
            dead: sorted numbers of rows that don't answer.
        """
        self.kind, self.dim = kind, dim
        self.total = sum(part.rows for part in parts)
        self.dead = np.empty(0, np.int64) if dead is None else dead
        self.rows = self.total - len(self.dead)
        self._whole = list(whole)
        self._edges = np.cumsum([0, *(part.rows for part in parts)])
        self._parts = _merged(list(parts), kind) if KINDS[kind].merges else list(parts)
        if KINDS[kind].clusters and len(self.dead):
            for part in self._parts:
                part.index.remove_ids(faiss.IDSelectorBatch(self.dead))
        self._settings: dict[tuple[int, int, int], Any] = {}
        self._located: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def clusters(self) -> int:
        """How many clusters a search may look into; 0 where the kind has none."""
        has = KINDS[self.kind].clusters and self._parts
        return int(self._parts[0].index.nlist) if has else 0

    def search(
        self,
        queries: np.ndarray,
        k: int,
        parameters: Mapping[str, int],
        allowed: np.ndarray | None = None,
    ) -> Found:
        """The best k rows of each query.

        Args:
            queries: float32 [q, dim], of length 1 where the metric is cosine.
            k: wanted; fewer are found where there are fewer rows.
            parameters: `nprobe`, `ef_search`, `rerank`, as the kind has them.
            allowed: sorted numbers of the rows that may be found; None: all.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is not None and len(self.dead):
            allowed = np.setdiff1d(allowed, self.dead, assume_unique=True)
        room = self.rows if allowed is None else len(allowed)
        if not room or not len(queries):
            return nothing(len(queries), k)
        if allowed is not None and self._few(len(allowed)):
            return self._exact(queries, k, allowed)
        wide = dict(parameters)
        if room < self.total:
            widen = self.total / room
            wide["nprobe"] = int(np.ceil(wide.get("nprobe", 1) * widen))
            wide["ef_search"] = int(np.ceil(wide.get("ef_search", 1) * widen))
        found = self._approximate(queries, k, wide, allowed)
        if found[1][:, -1].min() >= 0:
            return found
        # A filter may have left nothing where a query looked.
        short = np.flatnonzero((found[1] >= 0).sum(1) < min(k, room))
        if len(short) and self.kind != "flat":
            rest = self._thorough(queries[short], k, wide, allowed)
            for side, better in zip(found, rest, strict=True):
                side[short] = better
        return found

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of these rows, as they were indexed."""
        numbers = np.asarray(numbers, np.int64)
        if self._whole:
            return self._gathered(numbers)
        out = np.empty((len(numbers), self.dim), np.float32)
        if KINDS[self.kind].clusters:
            self._decoded(numbers, out)
            return out
        for part in self._parts:
            mine = (numbers >= part.first) & (numbers < part.first + part.rows)
            if mine.any():
                out[mine] = part.index.reconstruct_batch(numbers[mine] - part.first)
        return out

    def _few(self, rows: int) -> bool:
        share = 0.0 if KINDS[self.kind].codes else EXACT_SHARE * self.total
        return rows <= max(EXACT_ROWS, share) or self.kind == "flat"

    def _exact(self, queries: np.ndarray, k: int, allowed: np.ndarray) -> Found:
        """Compare every allowed row."""
        if not KINDS[self.kind].codes and len(allowed) > BLOCK:
            # Cheaper where the vectors are than copied out of there.
            return self._approximate(queries, k, {"nprobe": 1 << 30, "exact": 1}, allowed)
        best: list[Found] = []
        for start in range(0, len(allowed), BLOCK):
            block = allowed[start : start + BLOCK]
            scores, places = nearest(queries, self.vectors(block), k)
            numbers = np.where(places >= 0, block[places], -1)
            best.append((scores, numbers))
        return top(best, k)

    def _thorough(
        self, queries: np.ndarray, k: int, parameters: dict[str, int], allowed: np.ndarray | None
    ) -> Found:
        """Look everywhere, for queries that found too little."""
        if KINDS[self.kind].clusters:
            return self._approximate(queries, k, {**parameters, "nprobe": 1 << 30}, allowed)
        every = self._live() if allowed is None else allowed
        return self._approximate(queries, k, {"exact": 1}, every)

    def _live(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.total), self.dead, assume_unique=True)

    def _approximate(
        self,
        queries: np.ndarray,
        k: int,
        parameters: Mapping[str, int],
        allowed: np.ndarray | None,
    ) -> Found:
        again = max(1, parameters.get("rerank", 1)) if KINDS[self.kind].codes else 1
        wanted = min(self.total, k * again)
        mask = self._mask(allowed)
        found: list[Found] = []
        for part in self._parts:
            count = min(wanted, part.rows)
            if mask is None and "exact" not in parameters:
                options = self._plain(part, count, parameters)
                scores, places = part.index.search(queries, count, params=options)
            else:
                with _parameters(self.kind, part, wanted, parameters, mask) as (index, options):
                    scores, places = index.search(queries, count, params=options)
            if count and places[:, -1].min() < 0:
                scores[places < 0] = -np.inf
            if shift := self._shift(part):
                places = np.where(places >= 0, places + shift, -1)
            found.append((scores, places))
        # One part's answer is in order as it comes, and most indexes are one part.
        best = found[0] if len(found) == 1 else top(found, wanted)
        if self._whole:
            return top([self._ranked(queries, best)], k)
        return best if best[0].shape[1] == k else top([best], k)

    def _plain(self, part: Part, k: int, parameters: Mapping[str, int]) -> Any:
        """faiss's options of a search of all rows, made once: making them costs a third of one
        quick search."""
        effort = k if self.kind != "hnsw" else max(k, parameters.get("ef_search", k))
        key = part.first, effort, parameters.get("nprobe", 1)
        if key not in self._settings:
            if len(self._settings) > _MOST_SETTINGS:
                self._settings.clear()
            with _parameters(self.kind, part, k, parameters, None) as (_, options):
                self._settings[key] = options
        return self._settings[key]

    def _shift(self, part: Part) -> int:
        """What faiss's ids lack to row numbers: in clusters they are row numbers already."""
        return 0 if KINDS[self.kind].clusters else part.first

    def _mask(self, allowed: np.ndarray | None) -> np.ndarray | None:
        """Which rows may be found, bool [total]; None: all that faiss knows."""
        gone = len(self.dead) and not KINDS[self.kind].clusters
        if allowed is None and not gone:
            return None
        mask = np.zeros(self.total, bool) if allowed is not None else np.ones(self.total, bool)
        if allowed is not None:
            mask[allowed] = True
        mask[self.dead] = False
        return mask

    def _ranked(self, queries: np.ndarray, found: Found) -> Found:
        """The candidates by their true scores."""
        _, numbers = found
        scores = np.full(numbers.shape, -np.inf, np.float32)
        size = max(1, BLOCK // max(1, numbers.shape[1]))
        for start in range(0, len(queries), size):
            chosen = numbers[start : start + size]
            whole = self._gathered(np.maximum(chosen, 0).ravel()).reshape(*chosen.shape, self.dim)
            exact = np.einsum("qd,qkd->qk", queries[start : start + size], whole)
            scores[start : start + size] = np.where(chosen >= 0, exact, -np.inf)
        return scores, numbers

    def _gathered(self, numbers: np.ndarray) -> np.ndarray:
        if len(self._whole) == 1:
            return np.asarray(self._whole[0][numbers])
        out = np.empty((len(numbers), self.dim), np.float32)
        owner = np.searchsorted(self._edges, numbers, side="right") - 1
        for place, whole in enumerate(self._whole):
            mine = owner == place
            if mine.any():
                out[mine] = whole[numbers[mine] - self._edges[place]]
        return out

    def _decoded(self, numbers: np.ndarray, out: np.ndarray) -> None:
        """Whole vectors out of their clusters."""
        index = self._parts[0].index
        lists = index.invlists
        if self._located is None:
            self._located = _locate(lists, self.total)
        owner, offset = (each[numbers] for each in self._located)
        if (owner < 0).any():
            raise IndexError(f"row {numbers[owner < 0][0]} was removed from the index")
        for cluster in np.unique(owner).tolist():
            mine = owner == cluster
            size = lists.list_size(cluster)
            codes = faiss.rev_swig_ptr(lists.get_codes(cluster), size * self.dim * 4)
            out[mine] = codes.view(np.float32).reshape(size, self.dim)[offset[mine]]


def _merged(parts: list[Part], kind: str) -> list[Part]:
    """One part of all. In clusters a later one's ids are moved up by the rows before it; where rows
    lie in order they are their own ids."""
    if not parts:
        return []
    first, *others = parts
    for other in others:
        first.index.merge_from(other.index, other.first if KINDS[kind].clusters else 0)
        first.rows += other.rows
    return [first]


@contextmanager
def _parameters(
    kind: str,
    part: Part,
    k: int,
    parameters: Mapping[str, int],
    mask: np.ndarray | None,
) -> Iterator[tuple[Any, Any]]:
    """The index to ask, and faiss's options of one search."""
    bits, selector = None, None
    if mask is not None:
        mine = mask if KINDS[kind].clusters else mask[part.first : part.first + part.rows]
        bits = np.packbits(mine, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
    if KINDS[kind].clusters:
        probes = min(max(1, parameters.get("nprobe", 1)), part.index.nlist)
        options = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
        yield part.index, options
    elif kind == "hnsw" and "exact" in parameters:
        yield faiss.downcast_index(part.index.storage), faiss.SearchParameters(sel=selector)
    elif kind == "hnsw":
        effort = min(max(k, parameters.get("ef_search", k)), max(k, MOST_EFFORT))
        yield part.index, faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
    else:
        yield part.index, faiss.SearchParameters(sel=selector)
    del bits  # faiss holds only a pointer to it


def _locate(lists: Any, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster and place in it of each row, int32 [total] each; -1 of those that were removed."""
    owner = np.full(total, -1, np.int32)
    offset = np.zeros(total, np.int32)
    for cluster in range(lists.nlist):
        size = lists.list_size(cluster)
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(cluster), size)
            owner[ids] = cluster
            offset[ids] = np.arange(size)
    return owner, offset
