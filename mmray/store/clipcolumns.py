"""Metadata of clip-retrieval as columns of a store: one type for all files, names for Delta."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from mmray.errors import RefusedError
from mmray.specs.common import ColumnType
from mmray.specs.embed import RESERVED
from mmray.store.clipfolder import Piece
from mmray.store.schema import StoreColumns

Errors = list[tuple[str, str] | None]
"""For each row its error's type and words, None where it is good."""

_INDEX = re.compile(r"__index_level_\d+__")
_UNFIT = re.compile(r"[ ,;{}()\n\t=]")


@dataclass(frozen=True, slots=True)
class Kept:
    """The metadata columns that go into the store."""

    names: dict[str, str]
    """Metadata column to the store's."""
    columns: dict[str, ColumnType]
    """The store's columns, in their order."""

    @classmethod
    def of(cls, folder: str, pieces: list[Piece], keep: Sequence[str] | None) -> "Kept":
        """Those named in `keep`; None: all of text, numbers and booleans.

        Raises:
            RefusedError: `keep` names a column that isn't there, or has another type.
        """
        found: dict[str, set[ColumnType]] = {}
        for name, kind in _fields(pieces):
            mine = _kind(kind)
            # A column of nulls alone says nothing about its type.
            if mine is not None or pa.types.is_null(kind):
                found.setdefault(name, set()).update({mine} if mine else ())
        for name in keep or ():
            if name not in found:
                there = ", ".join(found) or "nothing"
                raise RefusedError(
                    f"--keep: the metadata of {folder} has {there} to keep, no {name!r}"
                )
        if keep is not None:
            found = {name: found[name] for name in keep}
        names = _names(list(found))
        return cls(names, {names[name]: _common(kinds) for name, kinds in found.items()})

    def conform(self, table: pa.Table, length: int) -> pa.Table:
        """Metadata with the store's names and types; null where a file lacks a column."""
        columns = {}
        for field in StoreColumns((), self.columns).arrow_schema():
            if field.name in self.columns:
                columns[field.name] = pa.nulls(length, field.type)
        for name, mine in self.names.items():
            if name in table.column_names:
                columns[mine] = _cast(table[name], columns[mine].type)
        return pa.table(columns)


def _kind(kind: pa.DataType) -> ColumnType | None:
    """The store's type for an Arrow type; None for one that a store has no column for."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_uint64(kind):
        return "string"  # may be past what an int column holds
    if pa.types.is_integer(kind):
        return "int"
    return "float" if pa.types.is_floating(kind) else None


def _common(kinds: set[ColumnType]) -> ColumnType:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "float" if kinds == {"int", "float"} else "string"


def _fields(pieces: list[Piece]) -> Iterator[tuple[str, pa.DataType]]:
    for piece in pieces:
        for each in piece.table.schema if piece.table else ():
            if not _INDEX.fullmatch(each.name):
                yield each.name, each.type


def left_out(pieces: list[Piece]) -> dict[str, str]:
    """Metadata columns of other types than a store keeps, with their types."""
    return {
        name: str(kind)
        for name, kind in _fields(pieces)
        if _kind(kind) is None and not pa.types.is_null(kind)
    }


def _names(metadata: list[str]) -> dict[str, str]:
    """Metadata column to store column: one that a store has of its own gets an underscore, and
    characters that Delta tables have no place for become one."""
    names: dict[str, str] = {}
    taken = {name.lower() for name in RESERVED}
    for name in metadata:
        mine = _UNFIT.sub("_", name) or "_"
        while mine.lower() in taken:  # Delta takes names that differ by case alone for one
            mine += "_"
        taken.add(mine.lower())
        names[name] = mine
    return names


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # An integer among floats may lose its last digits; nothing else can.
    return column.cast(kind, safe=False)


def checked_texts(table: pa.Table, errors: Errors) -> pa.Table:
    """The table with null for text that isn't UTF-8, which is told in `errors`."""
    for place, name in enumerate(table.column_names):
        if not pa.types.is_string(table.schema.field(name).type):
            continue
        try:
            table[name].to_pylist()
        except UnicodeDecodeError:
            good: list[str | None] = []
            for row, value in enumerate(table[name].cast(pa.binary()).to_pylist()):
                try:
                    good.append(None if value is None else value.decode())
                except UnicodeDecodeError:
                    good.append(None)
                    errors[row] = "BadText", f"its {name} is not UTF-8"
            table = table.set_column(place, name, pa.array(good, pa.string()))
    return table
