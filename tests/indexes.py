"""Small indexes on storage in their real layout, and stores that an embed job made without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmray.flow.batch import Finished
from mmray.index import manifest
from mmray.index.building.asked import look
from mmray.index.manifest import BASE, Made, Manifest, Measured, Segment
from mmray.jobs.embed import EmbedJob
from mmray.report.progress import progress
from mmray.sources.fragment import Span
from mmray.specs import load_spec
from mmray.specs.index import IndexSpec
from mmray.storage import Storage, blobs
from mmray.storage.blobs import File
from mmray.store import Change, Committer, Store
from tests import media, shards

STORAGE = Storage()
DIM = 16
ROWS = 60
TOY = {"kind": "import", "model": "tests.toys:Toy"}
LISTENER = {"kind": "import", "model": "tests.toys:Listener"}
CATEGORIES = ("food", "sport", "city")
MADE = Made("/no/store", 0, "image_embedding", "f" * 32, "toy", {}, {"dtype": "auto"})


def unit(rows: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """float32 [rows, dim] of length 1, drawn from a seed."""
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def name(row: int) -> str:
    """The id of a row of `index`."""
    return f"{row:032x}"


def rows_of(rows: int) -> pa.Table:
    """BASE and some kept columns; `number` is null of every seventh row."""
    every = range(rows)
    return pa.table(
        {
            "id": [name(row) for row in every],
            "source_uri": [f"/in/{row % 2}.tar" for row in every],
            "source_key": [f"k{row:04d}" for row in every],
            "fragment": [str(Span("0" * 16, "0" * 8, row, row + 1)) for row in every],
            "content_hash": ["0" * 32] * rows,
            "category": [CATEGORIES[row % 3] for row in every],
            "number": pa.array([None if row % 7 == 0 else row for row in every], pa.int64()),
            "caption": [shards.caption(row) for row in every],
        }
    )


def index(
    root: str,
    vectors: np.ndarray | None = None,
    table: pa.Table | None = None,
    *,
    cuts: Sequence[int] = (25,),
    dead: Sequence[int] = (),
    made: Made = MADE,
    metric: str = "cosine",
    version: int = 1,
    storage: Storage = STORAGE,
) -> Manifest:
    """Publish a flat index whose segments end at `cuts`; rows `dead` don't answer."""
    vectors = unit(ROWS) if vectors is None else vectors
    table = rows_of(len(vectors)) if table is None else table
    edges = [0, *cuts, len(vectors)]
    with blobs.scratch() as folder:
        segments = [
            _segment(folder, storage, root, (first, vectors[first:stop], table[first:stop]))
            for first, stop in zip(edges, edges[1:], strict=False)
        ]
        gone: File | None = None
        if dead:
            np.array(sorted(dead), "<i8").tofile(folder / "dead")
            gone = blobs.put(storage, folder / "dead", root, f"shared/{version}.dead")
    found = Manifest(
        version=version,
        made=made,
        kind="flat",
        factory="Flat",
        metric=metric,
        dim=vectors.shape[1],
        rows=len(vectors) - len(dead),
        parameters={},
        min_recall=0.95,
        measured=Measured(1.0, 10, 8, 100.0, 2, made.column),
        segments=tuple(segments),
        columns={each.name: str(each.type) for each in table.schema if each.name not in BASE},
        trained_rows=len(vectors),
        dead=gone,
        dead_rows=len(dead),
        created="2026-01-02T03:04:05+00:00",
        run_id=f"run-{version}",
    )
    assert manifest.publish(root, storage, found) is not None
    return found


def _segment(
    folder: Path, storage: Storage, root: str, rows: tuple[int, np.ndarray, pa.Table]
) -> Segment:
    first, vectors, table = rows
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(np.ascontiguousarray(vectors))
    where = f"segments/{first:04d}-{np.random.default_rng().integers(1 << 40):x}"
    faiss.write_index(flat, str(folder / "index"))
    # Small row groups, so that rows are looked up over several.
    pq.write_table(
        table,
        folder / "rows",
        row_group_size=8,
        compression="zstd",
        write_page_checksum=True,
    )
    return Segment(
        where.split("/")[1],
        first,
        len(vectors),
        blobs.put(storage, _aside(folder / "index"), root, f"{where}/index.faiss"),
        blobs.put(storage, _aside(folder / "rows"), root, f"{where}/rows.parquet"),
    )


def _aside(path: Path) -> Path:
    """What was put may be the very file: the next segment writes another."""
    return path.rename(path.with_name(f"{path.name}-{np.random.default_rng().integers(1 << 40)}"))


def samples(count: int, *, sound: bool = False) -> dict[str, bytes]:
    """Raw files: pictures with captions and metadata; with `sound`, a sound beside each."""
    found = shards.sample_files(count, size=(40, 32))
    if sound:
        found |= {
            f"{'ab'[seed % 2]}/{seed:06d}.wav": media.sound(2.5, seed=seed) for seed in range(count)
        }
    return found


def embedded(
    folder: Path, given: Mapping[str, bytes], encoder: Mapping[str, Any], **changes: Any
) -> Store:
    """The store that an embed job makes of raw files, by its own stages in this process."""
    for path, data in given.items():
        (folder / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "in" / path).write_bytes(data)
    spec = load_spec(
        {
            "job": "embed",
            "source": {"kind": "files", "uri": str(folder / "in")},
            "encoder": dict(encoder),
            "store": {"uri": str(folder / "store")},
            "keep": ["caption", "category"],
            "thumbnails": 32,
            **changes,
        }
    )
    with progress(quiet=True) as show:
        job = EmbedJob(spec, None, show)  # type: ignore[arg-type]
    plan = job.look().plan
    store = Store.create(job.uri, STORAGE, job.columns, job.meta)
    committer = Committer(store, "run", store.version, patience=5)
    for work in plan.work:
        for each in job.stages(job.uri).fused(work):
            assert isinstance(each, Finished), each
            committer.commit([Change((each.receipt,))])
    committer.reconcile()
    return Store.open(store.uri, STORAGE)


def index_of(store: Store, column: str, root: str) -> Manifest:
    """Publish a flat index of one of the store's columns, made as a job says it is."""
    spec = {"job": "index", "store": {"uri": store.uri}, "column": column, "output": root}
    asked = look(IndexSpec.model_validate(spec), STORAGE)
    table = store.to_arrow().sort_by("source_key")
    vectors = np.stack([np.asarray(each, np.float32) for each in table[column].to_pylist()])
    return index(root, vectors, table.select(asked.schema.names), cuts=(), made=asked.made)
