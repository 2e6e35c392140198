"""Columns of a Parquet file: where a name leads, which types can hold what, and their values.

Values come out as Python's own. One that can't be had (text that isn't UTF-8, a date beyond
Python's) comes out as a BadSample in its place, so that it costs its own row alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mmray.errors import BadSample


@dataclass(frozen=True, slots=True)
class Column:
    """A column by the name that the spec uses; `path` leads to it through structs."""

    name: str
    path: tuple[str, ...]
    type: pa.DataType

    def take(self, batch: pa.RecordBatch) -> pa.Array:
        """Its values in `batch`, without dictionary or extension type around them."""
        found = batch.column(batch.schema.get_field_index(self.path[0]))
        for name in self.path[1:]:
            found = pc.struct_field(plain(found), name)
        return plain(found)


def find(schema: pa.Schema, name: str) -> Column | None:
    """The column of this name, or the one within structs at `outer.inner`; None if none is.

    Raises BadSample AmbiguousColumn where several have the name.
    """
    times = schema.names.count(name)
    if times > 1:
        raise BadSample("AmbiguousColumn", f"{times} columns are named {name!r}")
    if times:
        return Column(name, (name,), bare(schema.field(name).type))
    top, *inner = name.split(".")
    if not inner or schema.names.count(top) != 1:
        return None
    kind = bare(schema.field(top).type)
    for part in inner:
        if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return None
        kind = bare(kind.field(part).type)
    return Column(name, (top, *inner), kind)


def bare(kind: pa.DataType) -> pa.DataType:
    """The type within a dictionary or an extension type."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind):
            kind = kind.value_type
        else:
            return kind


def plain(array: pa.Array) -> pa.Array:
    """The values within a dictionary or an extension array."""
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif isinstance(array, pa.DictionaryArray):
            array = array.dictionary_decode()
        else:
            return array


def is_bytes(kind: pa.DataType) -> bool:
    """Whether a type holds bytes."""
    checks = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
    )
    return any(check(kind) for check in checks)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type holds text."""
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def media_fields(column: Column) -> tuple[str, ...] | None:
    """What of a modality's column is to be read: nothing more than itself, or fields of a struct.

    None where its type can hold no picture, sound or film. A struct is Hugging Face's: `bytes`,
    and `path` in their stead.
    """
    kind = column.type
    if is_bytes(kind) or is_text(kind) or pa.types.is_null(kind):
        return ()
    if not pa.types.is_struct(kind):
        return None
    types = {kind.field(i).name: bare(kind.field(i).type) for i in range(kind.num_fields)}
    found = []
    for name, check in (("bytes", is_bytes), ("path", is_text)):
        if name in types and not pa.types.is_null(types[name]):
            if not check(types[name]):
                return None
            found.append(name)
    return tuple(found) or None


def is_texts(column: Column) -> bool:
    """Whether a column can hold the text modality: text, or its UTF-8 bytes."""
    return is_text(column.type) or is_bytes(column.type) or pa.types.is_null(column.type)


def media(array: pa.Array) -> list[Any]:
    """Values of a modality: bytes, text, None, or a BadSample."""
    if not pa.types.is_struct(array.type):
        return values(array)
    empty = [None] * len(array)
    names = [array.type.field(i).name for i in range(array.type.num_fields)]
    parts = [
        values(plain(pc.struct_field(array, name))) if name in names else empty
        for name in ("bytes", "path")
    ]
    return [path if data is None else data for data, path in zip(*parts, strict=True)]


def values(array: pa.Array) -> list[Any]:
    """Values as metadata: what JSON can say, or a BadSample; bytes as they are.

    Dates and times are ISO 8601 (a time with a zone in UTC, with Z), decimals their digits,
    durations seconds. NaN and infinities are None: JSON has no word for them.
    """
    kind = array.type
    if pa.types.is_timestamp(kind):
        zone = "Z" if kind.tz else ""
        texts = array.cast(pa.timestamp(kind.unit)).cast(pa.string()).to_pylist()
        return [None if text is None else text.replace(" ", "T", 1) + zone for text in texts]
    if pa.types.is_date(kind) or pa.types.is_time(kind):
        return list(array.cast(pa.string()).to_pylist())
    if pa.types.is_duration(kind):
        per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        counts = array.cast(pa.int64()).to_pylist()
        return [None if count is None else count / per for count in counts]
    try:
        found: list[Any] = array.to_pylist()
    except (ValueError, OverflowError):  # one of them; UnicodeDecodeError is a ValueError
        found = [_value(array, i) for i in range(len(array))]
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_nested(kind):
        return [_checked(value) for value in found]
    return found


def _value(array: pa.Array, index: int) -> Any:
    try:
        return array[index].as_py()
    except UnicodeDecodeError as error:
        return BadSample("BadText", f"not UTF-8: {error}")
    except (ValueError, OverflowError) as error:
        return BadSample("BadMetadata", f"a value can't be read: {error}")


def _checked(value: Any) -> Any:
    if isinstance(value, BadSample):
        return value
    try:
        return _json(value, 0)
    except BadSample as error:
        return error


def _json(value: Any, depth: int) -> Any:
    """A value as JSON can say it. Raises BadSample BadMetadata."""
    if depth > 100:
        raise BadSample("BadMetadata", "a value is nested too deep")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(name): _json(each, depth + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each, depth + 1) for each in value]
    for kind, say in _SAID.items():
        if isinstance(value, kind):
            return say(value)
    raise BadSample("BadMetadata", f"{type(value).__name__} can't be kept as metadata")


_SAID: dict[type, Callable[[Any], Any]] = {
    float: lambda value: float(value) if math.isfinite(value) else None,
    Decimal: lambda value: format(value, "f"),
    datetime: lambda value: value.isoformat(),
    date: lambda value: value.isoformat(),
    time: lambda value: value.isoformat(),
    timedelta: lambda value: value.total_seconds(),
}
