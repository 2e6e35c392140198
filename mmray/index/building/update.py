"""An index that is there: why it can't be brought up to date, and what new rows are measured by."""

import numpy as np

from mmray.errors import RefusedError
from mmray.index.building.asked import Asked
from mmray.index.building.changes import Changes
from mmray.index.building.truth import Questions, Truth
from mmray.index.kinds import KINDS, choices
from mmray.index.manifest import Manifest
from mmray.storage import blobs
from mmray.storage.blobs import File

REBUILD_SHARE = 0.2
"""Rows that no longer count, of all, past which the index is built anew."""
OUTGROWN = 2
"""Clusters were trained for so many rows; past this many times as many they are too few."""


def damage(asked: Asked) -> str:
    """What is wrong with the files that are there, as far as their sizes tell; empty: nothing."""
    try:
        for file in asked.latest.files if asked.latest else ():
            blobs.require(asked.storage, asked.root, file)
    except RefusedError as error:
        return f"what is there can't be used: {error}"
    return ""


def outgrown(asked: Asked, before: Manifest, found: Changes, memory: int) -> str:
    """Why all is to be built anew; empty where what was found can be added to `before`.

    Raises:
        RefusedError: what `kinds.choices` refuses.
    """
    total = sum(segment.rows for segment in before.segments) + found.rows
    dead = before.dead_rows + len(found.removed)
    if dead > REBUILD_SHARE * total:
        return f"{dead:,} of its {total:,} rows don't count any more"
    live, options = total - dead, asked.spec.index
    if KINDS[before.kind].clusters and live > OUTGROWN * before.trained_rows:
        return f"it was trained for {before.trained_rows:,} rows and has {live:,}"
    if options.kind == "auto" and live > OUTGROWN * before.trained_rows:
        return f"it was chosen for {before.trained_rows:,} rows and has {live:,}"
    # Refuses what does not fit any more.
    fits = choices(options.model_copy(update={"kind": before.kind}), live, asked.dim, 1 << 62)
    return "it does not fit the memory any more" if fits[0].bytes > memory else ""


def questions(asked: Asked, before: Manifest, building: str) -> File:
    """The held-out queries that the index has, put into a build's folder for its new pieces."""
    assert before.truth is not None
    truth = Truth.read(blobs.get(asked.storage, asked.root, before.truth))
    none = np.full(len(truth.vectors), "")
    with blobs.scratch() as folder:
        path = folder / "questions.npz"
        Questions(truth.vectors, none, np.full(len(none), -1, np.int64)).save(path)
        return blobs.put(asked.storage, path, asked.root, f"{building}/questions.npz")
