"""The start of a build: a sample of the vectors, the held-out queries, and the trained index.

The sample comes from row groups all over the store, so that shards sorted by subject don't bias it,
and from no more of them than `MOST_GROUPS`, so that its cost stays the same as the store grows.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import faiss
import numpy as np

from mmray.index.building.truth import QUERIES, Questions
from mmray.index.column import Column, PartRows, blocks, group_sizes
from mmray.index.kinds import KINDS, TRAIN_EACH, Choice, choices, clusters
from mmray.specs.index import IndexOptions
from mmray.storage import Storage, blobs, join
from mmray.storage.blobs import File

MOST_GROUPS = 256
GROUP_ROWS = 256
"""Rows drawn from a row group at least, where there are enough groups."""


@dataclass(frozen=True, slots=True)
class Start:
    """What a build begins with."""

    storage: Storage
    root: str
    building: str
    column: Column
    parts: tuple[PartRows, ...]
    options: IndexOptions
    memory: int
    rung: int = 0
    """Which of the choices to take: the ones before did not reach the recall."""


@dataclass(frozen=True, slots=True)
class Started:
    """What all pieces need."""

    choice: Choice
    last: bool
    """No other choice is left."""
    trained: File | None
    questions: File | None
    """None where no vector was found."""
    seconds: float


def start(task: Start) -> Started:
    """Sample, choose a kind and train it, unless that is done.

    Raises:
        RefusedError: no kind that may be taken fits the memory.
        StorageError: a part can't be read, or storage stayed broken.
    """
    place = join(task.root, task.building, "start.json")
    known = _read(task.storage, place)
    if known is not None:
        return known
    begun = time.perf_counter()
    made = _start(task, begun)
    if task.storage.put_if_absent(place, json.dumps(asdict(made)).encode()):
        return made
    first = _read(task.storage, place)  # another run was first: its training counts
    assert first is not None
    return first


def _read(storage: Storage, place: str) -> Started | None:
    try:
        data = json.loads(storage.read_bytes(place))
    except FileNotFoundError:
        return None
    for name in ("trained", "questions"):
        data[name] = None if data[name] is None else File(**data[name])
    return Started(**{**data, "choice": Choice(**data["choice"])})


def _start(task: Start, begun: float) -> Started:
    rng = np.random.default_rng(0)
    rows = sum(part.rows for part in task.parts)
    wanted = TRAIN_EACH * clusters(rows) if _may_train(task.options) else 0
    sample, questions, share = _sample(task, rows, wanted + QUERIES, rng)
    found = choices(task.options, max(1, round(rows * share)), task.column.dim, task.memory)
    choice = found[min(task.rung, len(found) - 1)]
    with blobs.scratch() as folder:
        trained = None
        if KINDS[choice.kind].clusters and len(sample):
            index = _untrained(task.column.dim, choice.factory)
            index.train(sample)
            faiss.write_index(index, str(folder / "trained"))
            trained = blobs.put(
                task.storage, folder / "trained", task.root, f"{task.building}/trained.faiss"
            )
        asked = None
        if len(questions.vectors):
            questions.save(folder / "questions.npz")
            asked = blobs.put(
                task.storage, folder / "questions.npz", task.root, f"{task.building}/questions.npz"
            )
    spent = time.perf_counter() - begun
    return Started(choice, task.rung >= len(found) - 1, trained, asked, spent)


def _untrained(dim: int, factory: str) -> Any:
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    # faiss writes warnings of few vectors to standard error, past any logger.
    index.cp.min_points_per_centroid = 1
    if hasattr(index, "pq"):
        index.pq.cp.min_points_per_centroid = 1
        # Most of the time would go into an order of codes that serves a filter of faiss's own,
        # which no search here turns on.
        index.do_polysemous_training = False
    return index


def _may_train(options: IndexOptions) -> bool:
    return options.kind == "auto" or KINDS[options.kind].clusters


def _sample(
    task: Start, rows: int, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, Questions, float]:
    """Vectors to train on, queries that are none of them, and the share of rows that have one."""
    groups = _groups(task.column, task.parts, max(16, count // GROUP_ROWS), rng)
    drawn, share = _drawn(task.column, groups, min(count, rows), rng)
    order = rng.permutation(len(drawn.vectors))
    # Of few rows all are trained on, and queries are not held out.
    asked = order[:QUERIES]
    rest = order[QUERIES:] if len(order) > 4 * QUERIES else order
    vectors = drawn.vectors[rest]
    other = task.options.queries
    if other is None or other == task.column.name:
        return vectors, drawn.at(asked), share
    # Of another column: there a query's own row is as good an answer as any.
    asking, _ = _drawn(replace(task.column, name=other), groups, QUERIES, rng)
    asking = asking.at(rng.permutation(len(asking.vectors))[:QUERIES])
    return vectors, replace(asking, paths=np.full(len(asking.paths), "")), share


def _drawn(
    column: Column,
    groups: Sequence[tuple[PartRows, int, int]],
    count: int,
    rng: np.random.Generator,
) -> tuple[Questions, float]:
    """About `count` vectors, evenly from the groups, and the share of their rows that have one."""
    reach = sum(size for _, _, size in groups)
    vectors = [np.empty((0, column.dim), np.float32)]
    paths, places, usable = [np.empty(0, str)], [np.empty(0, np.int64)], 0
    for part, group, size in groups:
        for block in blocks(column, part, [group]):
            usable += len(block.vectors)
            some = _draw(len(block.vectors), -(-count * size // reach), rng)
            vectors.append(block.vectors[some])
            paths.append(np.full(len(some), part.path))
            places.append(block.places[some])
    found = Questions(np.concatenate(vectors), np.concatenate(paths), np.concatenate(places))
    return found, usable / max(1, reach)


def _groups(
    column: Column, parts: Sequence[PartRows], wanted: int, rng: np.random.Generator
) -> list[tuple[PartRows, int, int]]:
    """Part, row group and its rows, of groups all over the store."""
    most = min(wanted, MOST_GROUPS)
    weights = np.array([part.rows for part in parts], np.float64)
    if len(parts) > most:
        chosen = rng.choice(len(parts), most, replace=False, p=weights / weights.sum())
        parts = [parts[index] for index in np.sort(chosen)]
    found = [
        (part, group, size)
        for part in parts
        for group, size in enumerate(group_sizes(column, part.path))
    ]
    if len(found) > most:
        found = [found[index] for index in np.sort(rng.choice(len(found), most, replace=False))]
    return found


def _draw(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    if count >= total:
        return np.arange(total)
    return np.sort(rng.choice(total, count, replace=False))
