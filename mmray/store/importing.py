"""clip-retrieval's folders into a store, exactly once: what no commit covers is read and written.

A sample's place is the metadata file (or the embedding file, where there is none) and its row. The
encoder is what the user says it was, so the fingerprint only tells imports of other names apart.
"""

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa

from mmray.encoders.fingerprint import fingerprint
from mmray.errors import RefusedError
from mmray.sources.fragment import Shard, Span, object_shard, sample_id
from mmray.storage import Storage
from mmray.store.changes import Change
from mmray.store.clipcolumns import Errors, Kept, checked_texts, left_out
from mmray.store.clipfolder import Piece, read_pieces
from mmray.store.commit import Committer
from mmray.store.parts import Quarantined, Receipt, write_part
from mmray.store.schema import SUFFIX, VECTOR, StoreColumns, StoreMeta, require_columns
from mmray.store.table import Store

PART_BYTES = 32 * 1024 * 1024
"""Of vectors in a part; a few times as much is held in memory."""
PART_ROWS = 65_536


@dataclass(slots=True)
class ImportResult:
    """What an import did."""

    uri: str
    version: int = 0
    pieces: int = 0
    """Numbers of the folder, each a set of files."""
    written: int = 0
    skipped: int = 0
    """Rows that the store accounted for before."""
    quarantined: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by type."""
    replaced: list[str] = field(default_factory=list)
    """Uris of pieces that had changed."""
    dims: dict[str, int] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    """Metadata column to the store's column."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Metadata columns of other types than text, numbers and booleans, with their types."""


def import_clip(
    folder: str,
    uri: str,
    storage: Storage,
    encoder: str,
    keep: Sequence[str] | None = None,
) -> ImportResult:
    """Import `folder` into the store at `uri`, which is made where there is none.

    Vectors become float32 of length 1; a row with NaN, infinity or zeros for a vector goes to
    quarantine. `encoder` names the model for people; `keep` are the metadata columns wanted, None:
    all of text, numbers and booleans.

    Raises:
        RefusedError: the folder is not as it should be, `keep` names no column of it, or the store
            is of another encoder or has other columns. Nothing was written.
        StorageError: storage stayed broken; what was committed stays, and a second call goes on.
    """
    folder, uri = storage.normalise(folder), storage.normalise(uri)
    pieces = [piece for piece in read_pieces(storage, folder) if piece.rows]
    if not pieces:
        raise RefusedError(f"{folder}: none of its files has rows")
    kept = Kept.of(folder, pieces, keep)
    dims = {modality: matrix.dim for modality, matrix in pieces[0].matrices.items()}
    columns = StoreColumns(tuple(dims), kept.columns)
    store = _open(uri, storage, columns, _meta(folder, encoder, dims))
    importer = _Importer(store, columns, kept)
    result = importer.result
    result.pieces, result.dims = len(pieces), dims
    result.columns, result.left_out = kept.names, left_out(pieces)
    importer.run(pieces)
    return result


def _meta(folder: str, encoder: str, dims: dict[str, int]) -> StoreMeta:
    details = {"imported": encoder, "dims": dims}
    lineage = {
        "imported": folder,
        "format": "clip-retrieval",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return StoreMeta(fingerprint(details), encoder, dims, True, details, lineage)


def _open(uri: str, storage: Storage, columns: StoreColumns, meta: StoreMeta) -> Store:
    if Store.exists(uri, storage):
        store = Store.open(uri, storage)
    else:
        storage.require_conditional_put(uri)
        store = Store.create(uri, storage, columns, meta)
    store.meta.require_same(uri, meta)
    require_columns(uri, store.schema, columns.arrow_schema())
    return store


class _Importer:
    """One import into a store that is open."""

    def __init__(self, store: Store, columns: StoreColumns, kept: Kept) -> None:
        self._store, self._kept = store, kept
        self._schema = columns.arrow_schema()
        self._run = f"import-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
        self.result = ImportResult(store.uri)

    def run(self, pieces: list[Piece]) -> None:
        """Import what the store does not account for; commits part by part."""
        store = self._store
        coverage = store.coverage()
        committer = Committer(store, self._run, store.version)
        done = True
        for piece in pieces:
            shard = object_shard(piece.uri, piece.etag, piece.rows)
            known = coverage.versions(shard.key)
            missing = coverage.missing(shard.key, shard.version, shard.size)
            self.result.skipped += shard.size - sum(stop - start for start, stop in missing)
            done = done and not missing
            if not known or shard.version in known:
                for start, stop in missing:
                    for receipt in self._receipts(piece, shard, start, stop):
                        self._count(committer.commit([Change((receipt,))]).committed)
            else:
                old = tuple(store.stored.paths(shard.key))
                receipts = tuple(self._receipts(piece, shard, 0, shard.size))
                self._count(committer.commit([Change(receipts, old)]).committed)
                self.result.replaced.append(shard.uri)
        if not done:
            committer.reconcile()
            store.reload()
        self.result.version = store.version

    def _count(self, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            self.result.written += receipt.rows
            self.result.quarantined += len(receipt.quarantined)
            for row in receipt.quarantined:
                known = self.result.errors.get(row.error_type, 0)
                self.result.errors[row.error_type] = known + 1

    def _receipts(self, piece: Piece, shard: Shard, start: int, stop: int) -> Iterator[Receipt]:
        """A part for each stretch of rows, whose length depends on the dims alone."""
        width = sum(4 * matrix.dim for matrix in piece.matrices.values())
        step = max(1, min(PART_ROWS, PART_BYTES // width))
        spans = [shard.span(first, min(first + step, stop)) for first in range(start, stop, step)]
        storage = self._store.storage
        for span, table in zip(spans, self._tables(piece, start, spans), strict=True):
            vectors = {
                modality: matrix.read(storage, span.start, span.stop)
                for modality, matrix in piece.matrices.items()
            }
            yield self._write(shard, span, table, vectors)

    def _tables(self, piece: Piece, start: int, spans: list[Span]) -> Iterator[pa.Table]:
        """The kept metadata of each span, with the store's names and types."""
        lengths = [span.stop - span.start for span in spans]
        have = [name for name in self._kept.names if piece.has(name)]
        if piece.table is None or not have:
            tables = iter([pa.table({})] * len(spans))
        else:
            tables = piece.table.read(self._store.storage, have, start, lengths)
        for table, length in zip(tables, lengths, strict=True):
            yield self._kept.conform(table, length)

    def _write(
        self, shard: Shard, span: Span, table: pa.Table, vectors: dict[str, np.ndarray]
    ) -> Receipt:
        count = span.stop - span.start
        errors: Errors = [None] * count
        table = checked_texts(table, errors)
        hashes = _hashes(table, vectors, count)
        for modality, matrix in vectors.items():
            vectors[modality] = _normalised(modality, matrix, errors)
        good = np.array([row for row, error in enumerate(errors) if error is None], np.int64)
        keys = [str(span.start + row) for row in range(count)]
        columns: dict[str, Any] = {
            "id": [sample_id(shard.uri, keys[row]) for row in good],
            "source_uri": [shard.uri] * len(good),
            "source_key": [keys[row] for row in good],
            "source_etag": [shard.etag] * len(good),
            "fragment": [str(span)] * len(good),
            "content_hash": [hashes[row] for row in good],
        }
        for name in table.column_names:
            columns[name] = table[name].take(pa.array(good))
        for modality, matrix in vectors.items():
            columns[modality + SUFFIX] = _vectors(matrix[good])
        rows = pa.table([columns[name] for name in self._schema.names], schema=self._schema)
        failed = [
            Quarantined(
                id=sample_id(shard.uri, keys[row]),
                source_uri=shard.uri,
                source_key=keys[row],
                source_etag=shard.etag,
                fragment=str(span),
                stage="read",
                error_type=error[0],
                message=error[1],
            )
            for row, error in enumerate(errors)
            if error is not None
        ]
        return write_part(self._store.storage, self._store.uri, rows, [span], shard.uri, failed)


def _normalised(modality: str, matrix: np.ndarray, errors: Errors) -> np.ndarray:
    """Rows brought to length 1; what can't be is told in `errors`."""
    lengths = np.linalg.norm(matrix.astype(np.float64), axis=1)
    for row in np.flatnonzero(~np.isfinite(lengths)).tolist():
        errors[row] = "NonFiniteVector", f"its {modality} vector has NaN or infinity"
    for row in np.flatnonzero(lengths == 0).tolist():
        errors[row] = "ZeroVector", f"its {modality} vector is all zeros"
    usable = np.isfinite(lengths) & (lengths > 0)
    return (matrix / np.where(usable, lengths, 1.0)[:, None]).astype(np.float32)


def _vectors(matrix: np.ndarray) -> pa.Array:
    rows, dim = matrix.shape
    offsets = np.arange(0, (rows + 1) * dim, dim, dtype=np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(matrix.ravel(), pa.float32()), type=VECTOR
    )


def _hashes(table: pa.Table, vectors: dict[str, np.ndarray], count: int) -> list[str]:
    """Content hashes: over the vectors as they were, and the kept metadata."""
    rows = table.to_pylist() if table.num_columns else [{}] * count
    hashes = []
    for row, values in enumerate(rows):
        hashed = blake2b(digest_size=16)
        for modality, matrix in vectors.items():
            hashed.update(f"{modality}:{matrix.shape[1]}:".encode())
            hashed.update(matrix[row].tobytes())
        hashed.update(json.dumps(values, sort_keys=True).encode())
        hashes.append(hashed.hexdigest())
    return hashes
