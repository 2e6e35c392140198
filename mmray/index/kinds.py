"""The kinds of index in one table: what faiss calls them, what they take, what a search turns up.

And which of them suits: by rows, dimension, memory and the recall that is asked for.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from mmray.errors import RefusedError
from mmray.report.words import size
from mmray.specs.index import IndexOptions

EXACT_VALUES = 1 << 23
"""Numbers that an exact search reads in a few milliseconds: 21,845 vectors of 384."""
GRAPH_ROWS = 500_000
"""Rows up to which `auto` takes a graph: beyond, clusters are built many times quicker."""
GRAPH_LINKS = 32
TRAIN_EACH = 64
"""Vectors that each cluster is trained on; faiss warns below 39 and gains little beyond."""
_MOST_CLUSTERS = 1 << 18

Parameters = dict[str, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of index."""

    factory: Callable[[int, int, int], str]
    """Rows, dimension and bytes for a row's code to the string for `faiss.index_factory`."""
    row_bytes: Callable[[int, int], float]
    """Memory of a row, by dimension and bytes for its code."""
    merges: bool
    """Pieces become one index; graphs don't, and are searched side by side."""
    clusters: bool = False
    """Has to be trained, and searches `nprobe` of its clusters."""
    least: int = 1
    """Vectors that training can't do without."""
    codes: bool = False
    """Keeps no whole vectors: candidates are ranked again by those on disk."""


def clusters(rows: int) -> int:
    """Clusters for so many rows: a power of two near twice the root, each of 64 rows or more."""
    wanted = 1 << round(math.log2(2 * math.sqrt(max(1, rows))))
    return max(1, min(wanted, rows // TRAIN_EACH, _MOST_CLUSTERS))


def _ivf(codec: str) -> Callable[[int, int, int], str]:
    def factory(rows: int, dim: int, code: int) -> str:
        number = clusters(rows)
        # Finding the nearest of very many clusters is a search of its own.
        coarse = f"IVF{number}_HNSW32" if number >= 1 << 16 else f"IVF{number}"
        return f"{coarse},{codec.format(code=code)}"

    return factory


KINDS: dict[str, Kind] = {
    "flat": Kind(lambda rows, dim, code: "Flat", lambda dim, code: 4 * dim, merges=True),
    "hnsw": Kind(
        lambda rows, dim, code: f"HNSW{GRAPH_LINKS},Flat",
        lambda dim, code: 4 * dim + 2 * GRAPH_LINKS * 4 * 1.1,
        merges=False,
    ),
    "ivf_flat": Kind(_ivf("Flat"), lambda dim, code: 4 * dim + 8, merges=True, clusters=True),
    "sq8": Kind(_ivf("SQ8"), lambda dim, code: dim + 8, merges=True, clusters=True, codes=True),
    "ivf_pq": Kind(
        _ivf("PQ{code}x8"),
        lambda dim, code: code + 8,
        merges=True,
        clusters=True,
        least=256,
        codes=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind with all that is settled before it is built."""

    kind: str
    factory: str
    bytes: int
    """Memory of all rows."""


def choices(options: IndexOptions, rows: int, dim: int, memory: int) -> list[Choice]:
    """What to build, and what to try next where that does not reach `min_recall`.

    Args:
        options: as the spec has them.
        rows: vectors to hold.
        dim: length of each.
        memory: bytes that the index may take.

    Raises:
        RefusedError: the kind that is asked for, or any kind, takes more memory.
    """
    wanted = [options.kind] if options.kind != "auto" else _order(options, rows, dim)
    found = [_choice(kind, rows, dim, memory) for kind in wanted]
    if options.kind != "auto" and rows < KINDS[options.kind].least:
        raise RefusedError(
            f"index.kind: {options.kind} needs {KINDS[options.kind].least} vectors to be trained "
            f"on, and there are {rows}; flat is as quick for so few"
        )
    fits = [choice for choice in found if choice.bytes <= memory]
    if fits:
        return fits
    least = min(found, key=lambda choice: choice.bytes)
    smaller = [
        each.kind
        for each in (_choice(kind, rows, dim, memory) for kind in KINDS)
        if each.bytes <= memory
    ]
    hint = f"; {' or '.join(smaller)} would fit" if smaller else ""
    raise RefusedError(
        f"index.memory: {rows:,} vectors of {dim} take {size(least.bytes)} as {least.kind}, and "
        f"may take {size(memory)}{hint}"
    )


def _order(options: IndexOptions, rows: int, dim: int) -> list[str]:
    """Kinds by how quick they are where they fit; the later ones reach a higher recall."""
    if options.min_recall == 1 or rows * dim <= EXACT_VALUES:
        return ["flat"]
    if rows <= GRAPH_ROWS:
        return ["hnsw", "ivf_flat", "sq8", "ivf_pq", "flat"]
    return ["ivf_flat", "sq8", "ivf_pq", "flat"]


def _choice(kind: str, rows: int, dim: int, memory: int) -> Choice:
    code = _code_bytes(rows, dim, memory)
    table = KINDS[kind]
    factory = table.factory(rows, dim, code)
    total = rows * table.row_bytes(dim, code)
    if table.clusters:
        total += clusters(rows) * dim * 4
    return Choice(kind, factory, math.ceil(total))


def _code_bytes(rows: int, dim: int, memory: int) -> int:
    """Bytes of a product-quantised vector: one for every 4 numbers, or fewer where memory is short.

    Each byte codes a run of numbers, so their count divides the dimension.
    """
    divisors = [each for each in range(1, dim // 4 + 1) if dim % each == 0] or [1]
    room = 0.8 * memory / max(1, rows) - 8
    fitting = [each for each in divisors if each <= room]
    return max(fitting, default=divisors[0])


def steps(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... up to `most`, which is the last."""
    found = {most}
    power = 1
    while power < most:
        found |= {power, power * 3 // 2} - {0}
        power *= 2
    return sorted(each for each in found if each <= most)
