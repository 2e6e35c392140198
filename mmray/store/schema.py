"""The columns of a store and what it remembers about the model that made it.

Every row has the base columns, never null; the vectors are ordinary Arrow lists of float32, so that
any reader of Parquet reads them. `StoreMeta` lives as JSON in the Delta table's description, since
a RESTORE brings the description back together with the rows that it describes.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from mmray.errors import RefusedError
from mmray.specs.common import ColumnType

FORMAT = 1
BASE = ("id", "source_uri", "source_key", "source_etag", "fragment", "content_hash")
SUFFIX = "_embedding"
VECTOR = pa.list_(pa.field("element", pa.float32()))

_KEPT: dict[ColumnType, pa.DataType] = {
    "string": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}


@dataclass(frozen=True, slots=True)
class StoreColumns:
    """Which columns a store has beside the base ones; vectors come last, in the order given."""

    modalities: tuple[str, ...]
    keep: dict[str, ColumnType] = field(default_factory=dict)
    thumbnail: bool = False
    times: bool = False
    """Rows may be windows or frames: `start_seconds` and `stop_seconds`, null of other rows."""
    duplicate_of: bool = False
    """The id of the row that a row repeats, null where it repeats none."""

    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema of a part."""
        fields = [pa.field(name, pa.string(), nullable=False) for name in BASE]
        fields += [pa.field(name, _KEPT[kind]) for name, kind in self.keep.items()]
        if self.thumbnail:
            fields.append(pa.field("thumbnail", pa.binary()))
        if self.times:
            fields += [pa.field(f"{end}_seconds", pa.float64()) for end in ("start", "stop")]
        if self.duplicate_of:
            fields.append(pa.field("duplicate_of", pa.string()))
        fields += [pa.field(modality + SUFFIX, VECTOR) for modality in self.modalities]
        return pa.schema(fields)


@dataclass(frozen=True, slots=True)
class StoreMeta:
    """What made the rows of a store."""

    fingerprint: str
    """32 hex: weights, preprocessing, pooling and declared dtype."""
    encoder: str
    """Name for people."""
    dims: dict[str, int]
    """Modality to vector length."""
    normalised: bool = True
    """Whether vectors have length 1."""
    details: dict[str, Any] = field(default_factory=dict)
    """The hashed ingredients, to show what differs between two fingerprints."""
    lineage: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    """How sound and video were cut into what the model took; empty for images and text."""
    mmray_format: int = FORMAT

    def to_json(self) -> str:
        """The text of the Delta table's description."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, uri: str, text: str | None) -> "StoreMeta":
        """What `to_json` wrote.

        Raises:
            RefusedError: the table was not made by mmray, or by a newer one.
        """
        try:
            value = json.loads(text or "")
        except ValueError:
            value = None
        if not isinstance(value, dict) or "mmray_format" not in value:
            raise RefusedError(f"{uri} is a Delta table, but not an mmray store")
        if value["mmray_format"] > FORMAT:
            raise RefusedError(
                f"{uri} has store format {value['mmray_format']}, "
                f"this mmray reads up to {FORMAT}: upgrade mmray"
            )
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**known)

    def require_same(self, uri: str, other: "StoreMeta") -> None:
        """Refuse to mix rows of two models in the store at `uri`, whose meta this is.

        Raises:
            RefusedError: fingerprint, dims or normalisation differ; both are named.
        """
        if self.fingerprint != other.fingerprint:
            raise RefusedError(
                f"{uri} holds vectors of {self.encoder} (fingerprint {self.fingerprint}), "
                f"not of {other.encoder} (fingerprint {other.fingerprint})"
            )
        if self.normalised != other.normalised:
            kept, asked = (("" if m.normalised else "not ") for m in (self, other))
            raise RefusedError(f"{uri} holds vectors {kept}normalised, {asked}normalised asked for")
        if self.sampling != other.sampling:
            raise RefusedError(
                f"{uri} holds vectors of sound and video sampled by {self.sampling or 'nothing'}, "
                f"not by {other.sampling or 'nothing'}: use its options or a new store"
            )
        if self.dims != other.dims:
            raise RefusedError(f"{uri} holds vectors of dims {self.dims}, not {other.dims}")


def require_columns(uri: str, have: pa.Schema, want: pa.Schema) -> None:
    """Refuse parts whose columns differ from those of the store at `uri`.

    Raises:
        RefusedError: names the columns that differ.
    """
    ours = {f.name: str(f.type) for f in have}
    theirs = {f.name: str(f.type) for f in want}
    if ours.keys() != theirs.keys():
        extra, lacking = sorted(theirs.keys() - ours.keys()), sorted(ours.keys() - theirs.keys())
        words = [f"has no column {', '.join(extra)}"] if extra else []
        words += [f"needs the column {', '.join(lacking)}"] if lacking else []
        raise RefusedError(f"the store {uri} {' and '.join(words)}: use its columns or a new store")
    for name, kind in theirs.items():
        if ours[name] != kind:
            raise RefusedError(f"the store {uri} has {name} as {ours[name]}, not as {kind}")
