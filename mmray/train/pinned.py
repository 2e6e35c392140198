"""The pinned list of samples: a piece for each shard, as the source was when training began.

    <output>/_mmray/data/<key>/<shard>-<version>.{arrow,bin}   a piece; .json: what it is

Pieces are made once: a run that was killed goes on with those that are missing, and a changed shard
has a piece of its own. They go when the training is done; the list of them stays.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from pydantic import BaseModel, ConfigDict

from mmray.errors import JobFailed, RefusedError
from mmray.report import Example
from mmray.sources import Shard, Source
from mmray.specs.train import TrainSpec
from mmray.storage import Storage, blobs, is_s3, join
from mmray.storage.blobs import File
from mmray.train.pieces import INPUTS, ROWS, Found, PieceWriter

FOLDER = "_mmray/data"
ABOUT = ".json"


class Piece(BaseModel):
    """A piece that is there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: File
    """Paths are below the output."""
    inputs: File | None
    """None where it holds none."""
    found: Found


class Pinned(BaseModel):
    """All samples of a training, in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pieces: tuple[Piece, ...]

    @property
    def read(self) -> int:
        """Samples read."""
        return sum(piece.found.read for piece in self.pieces)

    @property
    def rows(self) -> int:
        """Samples that can be learned from."""
        return sum(piece.found.rows for piece in self.pieces)

    @property
    def errors(self) -> dict[str, int]:
        """Error type to bad samples."""
        return dict(sum((Counter(each.found.errors) for each in self.pieces), Counter[str]()))

    @property
    def filtered(self) -> dict[str, int]:
        """Reason to samples that are left out."""
        return dict(sum((Counter(each.found.filtered) for each in self.pieces), Counter[str]()))

    @property
    def examples(self) -> list[Example]:
        """Bad samples, some of each type."""
        return [example for each in self.pieces for example in each.found.examples]


def piece_path(key: str, shard: Shard) -> str:
    """Where a shard's piece lies, below the output and without an ending."""
    return f"{FOLDER}/{key}/{shard.key}-{shard.version}"


def remove_pieces(storage: Storage, output: str) -> int:
    """Remove all pieces of an output, once its training is done: nothing reads them again.

    Returns how many bytes they were. Raises StorageError.
    """
    folder, removed = storage.normalise(join(output, FOLDER)), 0
    for item in storage.list(folder):
        storage.delete(item.uri)
        removed += item.size
    if not is_s3(folder):
        shutil.rmtree(folder, ignore_errors=True)
    return removed


def known_piece(storage: Storage, output: str, path: str) -> Piece | None:
    """A piece that was made before, if it's whole."""
    try:
        piece = Piece.model_validate_json(storage.read_bytes(join(output, path + ABOUT)))
        for file in (piece.rows, piece.inputs):
            if file is not None:
                blobs.require(storage, output, file)
    except (FileNotFoundError, NotADirectoryError, ValueError, RefusedError):
        return None
    return piece


def make_piece(
    storage: Storage, output: str, path: str, writer: PieceWriter, work: tuple[Source, Shard]
) -> Piece:
    """Read a shard and put its piece to where it belongs. Raises StorageError."""
    with blobs.scratch() as folder:
        found = writer.write(*work, folder)
        some = (folder / INPUTS).stat().st_size
        inputs = blobs.put(storage, folder / INPUTS, output, path + ".bin") if some else None
        rows = blobs.put(storage, folder / ROWS, output, path + ".arrow")
    piece = Piece(rows=rows, inputs=inputs, found=found)
    storage.write_bytes(join(output, path + ABOUT), piece.model_dump_json().encode())
    return piece


Make = Callable[[list[tuple[str, Shard]]], Iterable[Piece]]
"""Makes the pieces of some shards, by path; in this process, or in many."""


def pin(
    spec: TrainSpec, storage: Storage, shards: list[Shard], key: str, make: Make
) -> Iterator[Piece]:
    """The pieces of all shards: known ones first. Raises JobFailed past the error budget."""
    paths = [(piece_path(key, shard), shard) for shard in shards]
    missing = []
    for path, shard in paths:
        piece = known_piece(storage, spec.output, path)
        if piece is None:
            missing.append((path, shard))
        else:
            yield piece
    yield from make(missing) if missing else ()


def pinned(spec: TrainSpec, pieces: Iterable[Piece]) -> Pinned:
    """The list, checked: there is something to learn from, and not too much that is bad."""
    found = Pinned(pieces=tuple(sorted(pieces, key=lambda piece: piece.rows.path)))
    bad = sum(found.errors.values())
    if found.read and bad > spec.errors.max_fraction * found.read:
        kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(found.errors.items()))
        first = found.examples[0]
        raise JobFailed(
            f"{bad:,} of {found.read:,} samples can't be used ({kinds}), more than"
            f" errors.max_fraction={spec.errors.max_fraction:g} allows; such as"
            f" {first.source_uri} {first.source_key}: {first.message}"
        )
    if not found.rows:
        towers = ", ".join(spec.model.towers)
        raise RefusedError(f"no sample of data.source has anything for the towers: {towers}")
    return found
