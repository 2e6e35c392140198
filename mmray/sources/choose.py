"""Which columns of a Parquet file are read, by the names in the spec and by their types."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mmray.errors import BadSample
from mmray.sources.columns import Column, find, is_bytes, is_texts, media, media_fields, values
from mmray.sources.rows import DEFAULT_COLUMNS

_NEEDS = "bytes, a struct of bytes and path, or a uri"

Rows = list[tuple[dict[str, Any], dict[str, Any]]]
"""Of each row the values by modality, and its metadata."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The columns that are read: those of the modalities, and metadata."""

    members: dict[str, Column]
    metadata: dict[str, Column]

    @property
    def names(self) -> list[str]:
        """Paths as pyarrow takes them; of a struct only its bytes and path."""
        found: list[str] = []
        for modality, column in self.members.items():
            path = ".".join(column.path)
            fields = () if modality == "text" else media_fields(column) or ()
            found += [f"{path}.{name}" for name in fields] or [path]
        found += [".".join(column.path) for column in self.metadata.values()]
        return list(dict.fromkeys(found))

    def take(self, batch: pa.RecordBatch) -> Rows:
        """The values of a batch; a BadSample stands for one that can't be had."""
        members = {m: media(column.take(batch)) for m, column in self.members.items()}
        metadata = {n: values(column.take(batch)) for n, column in self.metadata.items()}
        return [
            (
                {name: column[i] for name, column in members.items()},
                {n: column[i] for n, column in metadata.items() if column[i] is not None},
            )
            for i in range(batch.num_rows)
        ]


def choose(schema: pa.Schema, named: dict[str, str], wanted: frozenset[str] | None) -> Chosen:
    """The columns to read of a file: `named` are the spec's, `wanted` the metadata (None: all).

    Raises BadSample: MissingColumn, WrongColumnType, AmbiguousColumn.
    """
    there = ", ".join(schema.names)
    members: dict[str, Column] = {}
    for modality, name in (named or DEFAULT_COLUMNS).items():
        column = find(schema, name)
        if column is None:
            if named:
                words = f"there is no column {name!r} for {modality}; there are: {there}"
                raise BadSample("MissingColumn", words)
            continue
        fits = is_texts(column) if modality == "text" else media_fields(column) is not None
        if not fits:
            needs = "text" if modality == "text" else _NEEDS
            words = f"column {name!r} for {modality} is {column.type!s:.80}; {needs} is needed"
            raise BadSample("WrongColumnType", words)
        members[modality] = column
    if not members:
        words = f"no column is called {', '.join(DEFAULT_COLUMNS.values())}; there are: {there}"
        raise BadSample("MissingColumn", words)
    taken = {column.name for modality, column in members.items()}
    if wanted is None:
        every = (find(schema, n) for n in schema.names if schema.names.count(n) == 1)
        found = [c for c in every if c and not (pa.types.is_nested(c.type) or is_bytes(c.type))]
        kept = {c.name: c for c in found if c.name not in taken or c == members.get("text")}
    else:
        found = [column for name in sorted(wanted) if (column := find(schema, name))]
        kept = {c.name: c for c in found if not (c.name in taken and _holds_bytes(c))}
    for column in kept.values():
        if is_bytes(column.type):
            words = f"column {column.name!r} is {column.type}, which can't be kept as metadata"
            raise BadSample("WrongColumnType", words)
    return Chosen(members, kept)


def _holds_bytes(column: Column) -> bool:
    return is_bytes(column.type) or pa.types.is_struct(column.type)
