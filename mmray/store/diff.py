"""What differs between two stores, or two versions of one: rows, vectors, columns, models.

Rows are the same by id and equal by content hash. A part that both sides name holds the same rows,
so two versions of one store cost by what differs between them. Ids are uniform, so they are dealt
into buckets by their first digits, on disk where there are many: one bucket at a time is in memory.
"""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmray.store.buckets import RECORD, Buckets, batches_of, records_of
from mmray.store.coverage import PartInfo
from mmray.store.schema import SUFFIX
from mmray.store.table import Store

EXAMPLES = 5
BUCKET_ROWS = 1_000_000
"""Rows of one side in a bucket: a few hundred MB while it is compared."""
_MOST_BUCKETS = 512

_PAIR = np.dtype([(side + name, "<u4") for name in ("part", "row") for side in "ab"])


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two stores."""

    uri: str
    version: int
    rows: int
    fingerprint: str
    encoder: str
    dims: dict[str, int]


@dataclass(frozen=True, slots=True)
class Example:
    """A row that differs."""

    id: str
    source_uri: str
    source_key: str


@dataclass(frozen=True, slots=True)
class Drift:
    """Cosines between the two vectors of a row, over `rows` rows that both sides have."""

    rows: int
    mean: float
    p5: float
    least: float


@dataclass(frozen=True, slots=True)
class Columns:
    """How the columns differ, by name: types of those of one side alone, and of both."""

    only_a: dict[str, str] = field(default_factory=dict)
    only_b: dict[str, str] = field(default_factory=dict)
    changed: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.only_a or self.only_b or self.changed)


@dataclass(frozen=True, slots=True)
class DiffResult:
    """From `a` to `b`: an added row is in `b` alone, a removed one in `a` alone."""

    a: Side
    b: Side
    added: int
    removed: int
    changed: int
    """In both, with another content hash."""
    unchanged: int
    examples: dict[str, list[Example]]
    """The first by id of what is added, removed and changed."""
    drift: dict[str, Drift | None]
    """By modality; None where vectors can't be compared, or there are none to compare."""
    why_no_drift: str
    """Empty where vectors were compared."""
    columns: Columns
    shared_parts: int
    """Parts that both name: their rows count as unchanged and were not read."""

    @property
    def same(self) -> bool:
        """Whether both hold the same rows, columns and model."""
        differ = self.added or self.removed or self.changed or self.columns
        return not differ and self.a.fingerprint == self.b.fingerprint


def diff(a: Store, b: Store, *, sample: int = 10_000) -> DiffResult:
    """Compare two stores, on any storage, at the versions that they are on.

    Vectors are compared over up to `sample` rows that both have, of the parts that not both name.
    More than `BUCKET_ROWS` rows to compare go through temporary files of 72 bytes a row.

    Raises:
        StorageError: storage stayed broken, or a part is gone or damaged.
    """
    shared = _shared(a, b)
    sides = [[p for p in store.parts() if p.path not in shared] for store in (a, b)]
    same_rows = sum(part.rows for part in a.parts() if part.path in shared)
    with tempfile.TemporaryDirectory(prefix="mmray-diff-") as folder:
        found = _compare(a, b, sides, sample, Path(folder))
    counts = found.counts
    drift, why = _drift(a, b, sides, found.pairs)
    return DiffResult(
        a=_side(a),
        b=_side(b),
        added=counts["added"],
        removed=counts["removed"],
        changed=counts["changed"],
        unchanged=counts["unchanged"] + same_rows,
        examples={
            "added": _examples(b, sides[1], found.added),
            "removed": _examples(a, sides[0], found.removed),
            "changed": _examples(b, sides[1], found.changed),
        },
        drift=drift,
        why_no_drift=why,
        columns=_columns(a, b),
        shared_parts=len(shared),
    )


def _shared(a: Store, b: Store) -> set[str]:
    """Parts by the same name: a part never changes, and its name is drawn at random."""
    ours, theirs = a.stored.parts, b.stored.parts
    return {
        path
        for path in ours.keys() & theirs.keys()
        if (ours[path].size, ours[path].rows) == (theirs[path].size, theirs[path].rows)
    }


# --- rows ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    counts: dict[str, int]
    added: np.ndarray
    removed: np.ndarray
    changed: np.ndarray
    """The first records of each."""
    pairs: np.ndarray
    """Where up to `sample` rows lie on both sides."""


def _compare(a: Store, b: Store, sides: list[list[PartInfo]], sample: int, folder: Path) -> _Found:
    rows = max(sum(part.rows for part in parts) for parts in sides)
    number = min(_MOST_BUCKETS, -(-rows // BUCKET_ROWS)) or 1
    dealt = [
        Buckets(records_of(store, parts), number, folder / name)
        for store, parts, name in zip((a, b), sides, "ab", strict=True)
    ]
    nothing = np.empty(0, RECORD)
    found = _Found(dict.fromkeys(("added", "removed", "changed", "unchanged"), 0),
                   nothing, nothing, nothing, np.empty(0, _PAIR))  # fmt: skip
    for bucket in range(number):
        one, other = (_sorted(each.take(bucket)) for each in dealt)
        _, mine, theirs = np.intersect1d(
            one["id"], other["id"], assume_unique=True, return_indices=True
        )
        differs = one["hash"][mine] != other["hash"][theirs]
        added = np.delete(other, theirs)
        removed = np.delete(one, mine)
        changed = other[theirs[differs]]
        found.counts["added"] += len(added)
        found.counts["removed"] += len(removed)
        found.counts["changed"] += len(changed)
        found.counts["unchanged"] += len(mine) - len(changed)
        # Buckets come in the order of ids, so the first rows stay the first.
        found.added = np.concatenate([found.added, added[:EXAMPLES]])[:EXAMPLES]
        found.removed = np.concatenate([found.removed, removed[:EXAMPLES]])[:EXAMPLES]
        found.changed = np.concatenate([found.changed, changed[:EXAMPLES]])[:EXAMPLES]
        found.pairs = _sampled(found.pairs, one[mine], other[theirs], sample)
    return found


def _sampled(pairs: np.ndarray, one: np.ndarray, other: np.ndarray, most: int) -> np.ndarray:
    """Of the pairs so far and these the ones in the first parts of `b`, so that few parts are read.

    Parts are sorted by name, and names are drawn at random, so the choice is too.
    """
    fresh = np.empty(len(one), _PAIR)
    fresh["apart"], fresh["arow"] = one["part"], one["row"]
    fresh["bpart"], fresh["brow"] = other["part"], other["row"]
    both = np.concatenate([pairs, fresh])
    return both[np.lexsort((both["brow"], both["bpart"]))[:most]]


def _sorted(records: np.ndarray) -> np.ndarray:
    return records[np.argsort(records["id"], kind="stable")]


# --- what is told of them ------------------------------------------------------------------------


def _examples(store: Store, parts: list[PartInfo], records: np.ndarray) -> list[Example]:
    found: dict[tuple[int, int], Example] = {}
    names = ["id", "source_uri", "source_key"]
    for number in np.unique(records["part"]).tolist():
        rows = records["row"][records["part"] == number]
        table = _rows(store, parts[number], rows, names)
        for row, values in zip(rows.tolist(), table.to_pylist(), strict=True):
            found[number, row] = Example(**values)
    places = zip(records["part"].tolist(), records["row"].tolist(), strict=True)
    return [found[place] for place in places]


def _rows(store: Store, part: PartInfo, rows: np.ndarray, columns: list[str]) -> pa.Table:
    """These rows of a part, in the order given."""
    order = np.argsort(rows)
    ascending, taken, first = rows[order], [], 0
    for table in batches_of(store, part, columns):
        low, high = np.searchsorted(ascending, [first, first + table.num_rows])
        taken.append(table.take(pa.array(ascending[low:high] - first)))
        first += table.num_rows
    return pa.concat_tables(taken).take(pa.array(np.argsort(order)))


def _drift(
    a: Store, b: Store, sides: list[list[PartInfo]], pairs: np.ndarray
) -> tuple[dict[str, Drift | None], str]:
    """The drift of each modality that both have, and why there is none."""
    both = [modality for modality in a.meta.dims if modality in b.meta.dims]
    nothing: dict[str, Drift | None] = dict.fromkeys(both)
    if a.meta.fingerprint != b.meta.fingerprint:
        return nothing, "the fingerprints differ: vectors of two models can't be compared"
    alike = [each for each in both if a.meta.dims[each] == b.meta.dims[each]]
    if not alike:
        return nothing, f"the dims differ: {a.meta.dims} and {b.meta.dims}"
    if not len(pairs):
        return nothing, "no row is in both outside of the parts that both name"
    names = [modality + SUFFIX for modality in alike]
    ours = _vectors(a, sides[0], pairs["apart"], pairs["arow"], names)
    theirs = _vectors(b, sides[1], pairs["bpart"], pairs["brow"], names)
    measured = {m: _cosines(ours[m + SUFFIX], theirs[m + SUFFIX]) for m in alike}
    return nothing | measured, ""


def _vectors(
    store: Store, parts: list[PartInfo], numbers: np.ndarray, rows: np.ndarray, names: list[str]
) -> dict[str, list[Any]]:
    """Float32 vectors of these rows by column, None where null, in the order given."""
    found: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
    for number in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == number)
        table = _rows(store, parts[number], rows[places], names)
        for name in names:
            vectors = table[name].combine_chunks()
            offsets = vectors.offsets.to_numpy()
            values = np.array(vectors.values, dtype=np.float32)
            valid = vectors.is_valid().to_pylist()
            for index, place in enumerate(places.tolist()):
                if valid[index]:
                    found[name][place] = values[offsets[index] : offsets[index + 1]]
    return found


def _cosines(ours: list[Any], theirs: list[Any]) -> Drift | None:
    """None where no row has both vectors."""
    cosines = []
    for one, other in zip(ours, theirs, strict=True):
        if one is None or other is None or one.shape != other.shape:
            continue
        left, right = one.astype(np.float64), other.astype(np.float64)
        lengths = np.linalg.norm(left) * np.linalg.norm(right)
        if np.isfinite(lengths) and lengths > 0:
            cosines.append(float(left @ right / lengths))
    if not cosines:
        return None
    low = float(np.percentile(cosines, 5))
    return Drift(len(cosines), float(np.mean(cosines)), low, min(cosines))


def _side(store: Store) -> Side:
    meta = store.meta
    return Side(
        store.uri, store.version, store.count, meta.fingerprint, meta.encoder, dict(meta.dims)
    )


def _columns(a: Store, b: Store) -> Columns:
    ours = {f.name: str(f.type) for f in a.schema}
    theirs = {f.name: str(f.type) for f in b.schema}
    return Columns(
        only_a={name: kind for name, kind in ours.items() if name not in theirs},
        only_b={name: kind for name, kind in theirs.items() if name not in ours},
        changed={
            name: (kind, theirs[name])
            for name, kind in ours.items()
            if name in theirs and theirs[name] != kind
        },
    )
