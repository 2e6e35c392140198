"""Looks at a sample of a store's rows: are its vectors healthy, and what is near what.

Only the columns that are needed, of at most `MAX_PARTS` parts and one row group at a time: the cost
does not grow with the store.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.decode.image import thumbnail
from mmray.errors import BadSample
from mmray.report import spread
from mmray.report.vectors import SOUND_BYTES, Inspection, Item, Media, Neighbours, Space
from mmray.storage import join, with_backoff
from mmray.store.schema import SUFFIX
from mmray.store.table import Store

MAX_PARTS = 48
THREADS = 4
QUERIES, LATER_QUERIES = 12, 6
"""Rows whose neighbours are shown in the first space, and in each other."""
NEAREST = 6
ORDER = ("image", "audio", "video", "text")
PICTURE_SIDE = 192
PICTURE_BYTES = 16_000
"""Larger thumbnails are made smaller: a page holds up to 168 of them."""
MAX_PIXELS = 1 << 22

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Row:
    id: str
    source_key: str
    caption: str
    path: str
    group: int
    place: int
    """In the row group."""


@dataclass(slots=True)
class _Sample:
    rows: list[_Row] = field(default_factory=list)
    vectors: dict[str, list[spread.Floats | None]] = field(default_factory=dict)

    def add(self, other: "_Sample") -> None:
        self.rows += other.rows
        for modality, vectors in other.vectors.items():
            self.vectors.setdefault(modality, []).extend(vectors)


def inspect_store(
    store: Store,
    limit: int = 4000,
    previews: Mapping[str, Media] | None = None,
    first: Collection[str] = (),
) -> Inspection:
    """Vector checks, and by each kind of vector the nearest neighbours of a few rows that stand for
    the rest.

    Args:
        store: at the version to look at.
        limit: rows to look at, about; they are drawn from several parts.
        previews: id to what the run kept to show a row by: a picture, where the store keeps no
            thumbnails, and a sound.
        first: paths of parts to look at before others: those that the previews come from.

    Raises:
        StorageError: storage stayed broken.
    """
    rng = np.random.default_rng(0)
    paths = _choose([part.path for part in store.parts() if part.rows], first, rng)
    seen = previews or {}
    sample = _Sample()
    if paths:
        quota = math.ceil(limit / len(paths))

        def read(path: str) -> _Sample:
            return _read(store, path, quota, seen.keys())

        with ThreadPoolExecutor(THREADS) as pool:
            for part in pool.map(read, paths):
                sample.add(part)
    checks = tuple(
        spread.check(
            modality,
            _stack([each for each in vectors if each is not None]),
            sum(each is None for each in vectors),
            rng,
        )
        for modality, vectors in sample.vectors.items()
    )
    spaces = _spaces(store, sample, seen, rng)
    return Inspection(len(sample.rows), store.count, checks, spaces)


def _choose(paths: list[str], first: Collection[str], rng: np.random.Generator) -> list[str]:
    wanted = set(first)
    shuffled = [paths[index] for index in rng.permutation(len(paths))]
    return sorted(shuffled, key=lambda path: path not in wanted)[:MAX_PARTS]


def _open(store: Store, path: str, read: Callable[[pq.ParquetFile], T]) -> T:
    filesystem, root = store.storage.arrow_filesystem(store.uri)

    def once() -> T:
        with filesystem.open_input_file(join(root, path)) as file:
            return read(pq.ParquetFile(file))

    return with_backoff(join(store.uri, path), once)


def _read(store: Store, path: str, quota: int, wanted: Collection[str]) -> _Sample:
    """About `quota` random rows of a part, those `wanted` among them."""
    rng = np.random.default_rng(len(path) + quota)
    have = store.schema.names
    columns = ["id", "source_key", *(name for name in have if name == "caption")]
    columns += [name for name in have if name.endswith(SUFFIX)]

    def groups(file: pq.ParquetFile) -> _Sample:
        sample = _Sample()
        for group in rng.permutation(file.metadata.num_row_groups):
            left = quota - len(sample.rows)
            if left > 0:
                table = file.read_row_group(int(group), columns=columns)
                sample.add(_draw(table, left, wanted, (path, int(group)), rng))
        return sample

    return _open(store, path, groups)


def _draw(
    table: pa.Table,
    count: int,
    wanted: Collection[str],
    where: tuple[str, int],
    rng: np.random.Generator,
) -> _Sample:
    marked = np.array([each in wanted for each in table["id"].to_pylist()], dtype=bool)
    order = rng.permutation(table.num_rows)
    order = np.sort(order[np.argsort(~marked[order], kind="stable")][:count])
    part = table.take(pa.array(order))
    captions = (
        part["caption"].to_pylist() if "caption" in table.column_names else [None] * len(order)
    )
    keys = zip(part["id"].to_pylist(), part["source_key"].to_pylist(), captions, order, strict=True)
    sample = _Sample(
        [_Row(each, key, str(words or ""), *where, int(place)) for each, key, words, place in keys]
    )
    for name in table.column_names:
        if name.endswith(SUFFIX):
            sample.vectors[name.removesuffix(SUFFIX)] = list(_vectors(part[name]))
    return sample


def _vectors(column: pa.ChunkedArray) -> Iterator[spread.Floats | None]:
    column = column.combine_chunks()
    for value in column:
        yield (
            value.values.to_numpy(zero_copy_only=False).astype(np.float32)
            if value.is_valid
            else None
        )


def _stack(vectors: list[spread.Floats]) -> spread.Floats:
    return np.stack(vectors) if vectors else np.zeros((0, 0), dtype=np.float32)


def _spaces(
    store: Store, sample: _Sample, previews: Mapping[str, Media], rng: np.random.Generator
) -> tuple[Space, ...]:
    """Each space that has two rows to compare, with what was found in it."""
    found: list[Space] = []
    known = [name for name in ORDER if name in sample.vectors]
    for name in [*known, *sorted(sample.vectors.keys() - set(ORDER))]:
        rows, vectors = _candidates(store, sample, name, previews)
        if len(rows) >= 2:
            queries = spread.medoids(vectors, LATER_QUERIES if found else QUERIES, rng)
            near = {query: spread.nearest(vectors, query, NEAREST) for query in queries}
            found.append(_space(store, name, rows, near, previews))
    return tuple(found)


def _space(
    store: Store,
    name: str,
    rows: list[_Row],
    near: dict[int, list[tuple[int, float]]],
    previews: Mapping[str, Media],
) -> Space:
    shown = {index for query, found in near.items() for index in (query, *(n for n, _ in found))}
    kept = [rows[index] for index in sorted(shown)]
    pictures = {} if name == "text" else _pictures(store, kept, previews)

    def item(index: int, similarity: float = 1.0) -> Item:
        row = rows[index]
        heard = previews.get(row.id) if name == "audio" else None
        return Item(
            row.id,
            row.source_key,
            row.caption,
            pictures.get(row.id),
            similarity,
            _sound(heard) if heard else None,
            heard.mime if heard else "",
        )

    return Space(
        name,
        tuple(
            Neighbours(item(query), tuple(item(*each) for each in found))
            for query, found in near.items()
        ),
    )


def _candidates(
    store: Store, sample: _Sample, space: str, previews: Mapping[str, Media]
) -> tuple[list[_Row], spread.Floats]:
    """Rows with a direction in `space`; those that can be shown, where there are enough."""
    pairs = [
        (row, vector)
        for row, vector in zip(sample.rows, sample.vectors[space], strict=True)
        if vector is not None and spread.usable(vector[None])[0]
    ]
    ids = _showable(store, space, previews)
    showable = [pair for pair in pairs if pair[0].id in ids]
    pairs = showable if len(showable) > NEAREST else pairs
    return [row for row, _ in pairs], _stack([vector for _, vector in pairs])


def _showable(store: Store, space: str, previews: Mapping[str, Media]) -> Collection[str]:
    """Ids of the previews that stand in for what the store itself can't show in `space`."""
    if space == "audio":
        return {name for name, media in previews.items() if _sound(media)}
    if space == "text" or "thumbnail" in store.schema.names:
        return ()
    return {name for name, media in previews.items() if media.jpeg}


def _sound(media: Media) -> bytes | None:
    return media.audio if media.audio and len(media.audio) <= SOUND_BYTES else None


def _pictures(
    store: Store, rows: Sequence[_Row], previews: Mapping[str, Media]
) -> dict[str, bytes]:
    seen = {row.id: previews[row.id].jpeg for row in rows if row.id in previews}
    pictures = {name: jpeg for name, jpeg in seen.items() if jpeg}
    if "thumbnail" in store.schema.names:
        places: dict[str, list[_Row]] = {}
        for row in rows:
            places.setdefault(row.path, []).append(row)
        for path, wanted in places.items():
            pictures |= _thumbnails(store, path, wanted)
    return {name: small for name, jpeg in pictures.items() if (small := _small(jpeg))}


def _thumbnails(store: Store, path: str, rows: Sequence[_Row]) -> dict[str, bytes]:
    def read(file: pq.ParquetFile) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for group in sorted({row.group for row in rows}):
            column = file.read_row_group(group, columns=["thumbnail"])["thumbnail"]
            for row in rows:
                if row.group == group and (jpeg := column[row.place].as_py()):
                    found[row.id] = jpeg
        return found

    return _open(store, path, read)


def _small(jpeg: bytes) -> bytes | None:
    if len(jpeg) <= PICTURE_BYTES:
        return jpeg
    try:
        return thumbnail(jpeg, PICTURE_SIDE, max_pixels=MAX_PIXELS)
    except BadSample:
        return None
