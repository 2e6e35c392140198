"""From rows of a store to samples: members out of its columns, metadata out of the others.

A sample keeps the place and the etag that its row has, and so its id.
"""

from typing import Any

import pyarrow as pa

from mmray.errors import BadSample, SampleError
from mmray.sources.assemble import whole
from mmray.sources.files import oversized
from mmray.sources.fragment import Sample
from mmray.sources.storelog import PLACE
from mmray.sources.storepart import is_scalar
from mmray.specs.common import Limits
from mmray.specs.embed import RESERVED


class Rows:
    """Makes samples of the store at `uri`; `columns` are modality to column."""

    def __init__(
        self, uri: str, columns: dict[str, str], limits: Limits, wanted: frozenset[str] | None
    ) -> None:
        self._uri = uri
        self._columns = columns
        self._limits = limits
        self._wanted = wanted

    def needed(self, schema: pa.Schema) -> list[str]:
        """The columns of a part that make samples."""
        wanted = {*PLACE, *self._columns.values()}
        return [f.name for f in schema if f.name in wanted or self._is_metadata(f)]

    def samples(self, table: pa.Table) -> list[Sample]:
        """A sample for each row; what is wrong with one is its error."""
        names = [field.name for field in table.schema if self._is_metadata(field)]
        columns = {name: _values(table[name]) for name in table.column_names}
        samples: list[Sample] = []
        for index in range(table.num_rows):
            row = {name: values[index] for name, values in columns.items()}
            uri, key, etag, _ = (row[name] for name in PLACE)
            try:
                members = self._members(row)
                metadata = {n: _checked(n, row[n]) for n in names if row[n] is not None}
            except BadSample as error:
                samples.append(Sample(uri, key, etag, error=SampleError.of("read", error)))
                continue
            if "text" in members and (self._wanted is None or "caption" in self._wanted):
                metadata.setdefault("caption", members["text"].decode())
            samples.append(whole(uri, key, etag, members, metadata))
        return samples

    def _is_metadata(self, field: pa.Field) -> bool:
        asked = self._wanted is None or field.name in self._wanted
        return asked and field.name not in RESERVED and is_scalar(field.type)

    def _members(self, row: dict[str, Any]) -> dict[str, bytes]:
        """Bytes by modality. Raises BadSample: BadText, OversizedMember, NoModality."""
        members: dict[str, bytes] = {}
        for modality, name in self._columns.items():
            value = row.get(name)
            if modality == "text" and value is not None:
                value = _checked(name, value).strip().encode() or None
            if value is None:
                continue
            if len(value) > self._limits.bytes:
                raise oversized(f"its {name}", len(value), self._limits.bytes)
            members[modality] = value
        if not members:
            names = ", ".join(self._columns.values())
            raise BadSample("NoModality", f"its row in {self._uri} has nothing in {names}")
        return members


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; a text that isn't UTF-8 stays bytes."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_decoded(value) for value in column.cast(pa.binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _checked(name: str, value: Any) -> Any:
    """A scalar. Raises BadSample BadText for a text that isn't UTF-8."""
    if isinstance(value, bytes):
        raise BadSample("BadText", f"its {name} is not UTF-8")
    return value
