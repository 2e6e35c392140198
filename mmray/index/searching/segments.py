"""From the files of an index to what is in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mmray.errors import RefusedError
from mmray.index.manifest import Manifest, Segment
from mmray.index.searching.loaded import Loaded, Part
from mmray.storage.blobs import File

Fetch = Callable[[File], Path]
"""Gives a local copy of a file of the index, whose content was checked."""


def load_segments(
    kind: str, dim: int, segments: Sequence[Segment], dead: np.ndarray, fetch: Fetch
) -> Loaded:
    """Read segments, in the order of their rows, into memory.

    Raises:
        RefusedError: a file isn't what its segment says.
    """
    parts, whole = [], []
    for segment in segments:
        index = read_index(fetch(segment.index))
        if index.ntotal != segment.rows or index.d != dim:
            raise RefusedError(
                f"{segment.index.path} holds {index.ntotal:,} vectors of {index.d}, the manifest "
                f"says {segment.rows:,} of {dim}"
            )
        parts.append(Part(index, segment.first, segment.rows))
        if segment.vectors is not None:
            shape = (segment.rows, dim)
            whole.append(np.memmap(fetch(segment.vectors), np.float32, "r", shape=shape))
    return Loaded(kind, dim, parts, whole, dead)


def load(manifest: Manifest, fetch: Fetch, threads: int | None = None) -> Loaded:
    """Read a version of an index into memory; `threads` are faiss's of this process.

    Raises:
        RefusedError: a file isn't what the manifest says.
    """
    if threads is not None:
        faiss.omp_set_num_threads(threads)
    dead = dead_rows(manifest, fetch)
    return load_segments(manifest.kind, manifest.dim, manifest.segments, dead, fetch)


def dead_rows(manifest: Manifest, fetch: Fetch) -> np.ndarray:
    """Sorted int64 numbers of the rows that don't answer any more."""
    if manifest.dead is None:
        return np.empty(0, np.int64)
    return np.fromfile(fetch(manifest.dead), "<i8").astype(np.int64)


def read_index(path: Path) -> Any:
    """A faiss index from a file whose hash was checked. Raises RefusedError."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        words = " ".join(str(error).split())[-300:]
        raise RefusedError(f"{path} is no faiss index: {words}") from error
