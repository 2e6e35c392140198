"""What an index is: one JSON document that names its files, each with its size and SHA-256.

A version of an index is one object, `versions/00000001.json`, written last and only where there is
none: readers see whole versions, and of two builds at once one is told that it came second. Files
never change, so versions share them.

    <index>/
      versions/<n>.json             manifests
      segments/<id>/index.faiss     vectors of the segment's rows, by position from 0
      segments/<id>/rows.parquet    the rows in that order: BASE, then the kept columns
      segments/<id>/vectors.f32     whole vectors, where the index keeps only codes (raw rows)
      shared/<id>.*                 the trained but empty index; queries and their true neighbours;
                                    numbers of rows that don't count any more
      _mmray/                       builds under way, reports of runs

A row's number is `segment.first` plus its position. Numbers stay within an index: people see ids.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmray.errors import RefusedError
from mmray.storage import Storage, join
from mmray.storage.blobs import File

FORMAT = 1
BASE = ("id", "source_uri", "source_key", "fragment", "content_hash")
"""Columns of `rows.parquet` that every index has; all strings."""

BUILDS = "_mmray/building"
"""Where builds note what they have done, each in a folder of its own."""

_NAME = re.compile(r"versions/(\d{8})\.json")


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows that were added together."""

    id: str
    first: int
    """Number of its first row."""
    rows: int
    index: File
    table: File
    vectors: File | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """How good the index is, on queries that were held out of its training and tuning."""

    recall: float
    """recall@k against exact search, the query's own row left out."""
    k: int
    queries: int
    queries_per_second: float
    """All queries as one batch, on `threads` threads."""
    threads: int
    column: str
    """Where the queries come from."""


@dataclass(frozen=True, slots=True)
class Made:
    """Which vectors are in the index, and what a query must be made by."""

    store: str
    store_version: int
    column: str
    fingerprint: str
    encoder: str
    """Name for people."""
    encoder_spec: dict[str, Any]
    """As in an embed spec; empty where the store does not say."""
    encode: dict[str, Any]
    """How: `dtype`, `max_tokens`, `audio_seconds` of a window, `normalize`."""

    @property
    def modality(self) -> str:
        """`image`, of `image_embedding`."""
        return self.column.removesuffix("_embedding")


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of an index."""

    version: int
    made: Made
    kind: str
    factory: str
    """For `faiss.index_factory`."""
    metric: str
    dim: int
    rows: int
    """Rows that answer: those of the segments without the dead."""
    parameters: dict[str, int]
    """Of a search, as tuned: `nprobe`, `ef_search`, `rerank` (candidates for each hit)."""
    min_recall: float
    measured: Measured
    segments: tuple[Segment, ...]
    columns: dict[str, str]
    """Kept columns and their Arrow types."""
    trained_rows: int
    """Rows that the index had when it was last built as a whole."""
    trained: File | None = None
    """Empty where the kind needs no training."""
    truth: File | None = None
    dead: File | None = None
    """int64 row numbers, sorted, little-endian: replaced or removed since they were added."""
    dead_rows: int = 0
    unmeasured: int = 0
    """Rows added or removed since `measured`, which few of them leave as it is."""
    options: dict[str, Any] = field(default_factory=dict)
    """The `index` field of the spec, to see whether it changed."""
    created: str = ""
    """UTC, ISO 8601."""
    run_id: str = ""
    mmray_format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.bytes for file in self.files)

    @property
    def files(self) -> tuple[File, ...]:
        """Every file that this version needs."""
        mine = [self.trained, self.truth, self.dead]
        for segment in self.segments:
            mine += [segment.index, segment.table, segment.vectors]
        return tuple(file for file in mine if file is not None)

    def to_json(self) -> bytes:
        """What is kept; `digest` is over all the rest."""
        data = {**asdict(self), "size": self.size}
        return json.dumps({**data, "digest": _digest(data)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, uri: str, data: bytes) -> "Manifest":
        """What `to_json` wrote.

        Raises:
            RefusedError: it isn't whole, was changed, or is of a newer mmray.
        """
        try:
            value = json.loads(data)
            digest = value.pop("digest")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RefusedError(f"{uri} is torn, or no manifest of an index") from None
        if isinstance(value.get("mmray_format"), int) and value["mmray_format"] > FORMAT:
            raise RefusedError(
                f"{uri} has index format {value['mmray_format']}, this mmray reads up to {FORMAT}: "
                "upgrade mmray"
            )
        if digest != _digest(value):
            raise RefusedError(f"{uri} was changed after it was written: its digest is another")
        value.pop("size", None)  # of the files, for people
        try:
            return cls(
                **{
                    **value,
                    "made": Made(**value["made"]),
                    "measured": Measured(**value["measured"]),
                    "segments": tuple(_segment(each) for each in value["segments"]),
                    **{name: _file(value[name]) for name in ("trained", "truth", "dead")},
                }
            )
        except (TypeError, KeyError):
            raise RefusedError(f"{uri} lacks what a manifest of an index has") from None


def versions(uri: str, storage: Storage) -> list[int]:
    """The versions that are at `uri`, oldest first."""
    names = (each.uri for each in storage.list(join(uri, "versions"), recursive=False))
    found = (_NAME.search(name) for name in names)
    return sorted(int(match[1]) for match in found if match)


def exists(uri: str, storage: Storage) -> bool:
    """Whether an index was ever published at `uri`."""
    return bool(versions(uri, storage))


def read(uri: str, storage: Storage, version: int | None = None) -> Manifest:
    """The latest version, or the one given.

    Raises:
        RefusedError: no index is there, it has no such version, or its manifest isn't whole.
        StorageError: storage stayed broken.
    """
    have = versions(uri, storage)
    if not have:
        raise RefusedError(f"{uri}: no index is there")
    if version is not None and version not in have:
        raise RefusedError(f"{uri} has no version {version}, only {_listed(have)}")
    place = _place(uri, version or have[-1])
    return Manifest.from_json(place, storage.read_bytes(place))


def publish(uri: str, storage: Storage, manifest: Manifest) -> Manifest | None:
    """Make this the next version; None where another build came first."""
    if storage.put_if_absent(_place(uri, manifest.version), manifest.to_json()):
        return manifest
    return None


def successor(before: Manifest | None, manifest: Manifest) -> Manifest:
    """The manifest with the number after `before`'s."""
    return replace(manifest, version=before.version + 1 if before else 1)


def _place(uri: str, version: int) -> str:
    return join(uri, "versions", f"{version:08d}.json")


def _listed(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _file(value: dict[str, Any] | None) -> File | None:
    return None if value is None else File(**value)


def _segment(value: dict[str, Any]) -> Segment:
    files = {name: _file(value[name]) for name in ("index", "table", "vectors")}
    return Segment(**{**value, **files})
