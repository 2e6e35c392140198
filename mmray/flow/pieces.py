"""Pieces: a fragment's rows and quarantined samples, on their way into a part that is written anew.

A fragment that is read again may come back as several; its old rows then move to the piece that
holds their sample.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from mmray.sources.fragment import Span
from mmray.store.parts import Quarantined

Where = Callable[[str, str], tuple[int, Any]]
"""source_uri and source_key of a row to the number of its piece and its place there."""


@dataclass(slots=True)
class Piece:
    """What a part has of one fragment."""

    span: Span
    table: pa.Table
    bad: list[Quarantined]

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(self.table.num_rows)

    @property
    def is_bad(self) -> bool:
        """Whether all of its samples are quarantined."""
        return not self.rows and bool(self.bad)


def base_key(key: str) -> str:
    """The key of the sample that a row's key names: a row may be a window of it (`KEY#t=10,20`)."""
    base, mark, _ = key.rpartition("#t=")
    return base if mark else key


def rows_by_fragment(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each fragment, by its name."""
    places: dict[str, list[int]] = {}
    for row, name in enumerate(table["fragment"].to_pylist()):
        places.setdefault(name, []).append(row)
    return {name: table.take(pa.array(rows, pa.int64())) for name, rows in places.items()}


def joined(
    old: pa.Table, carried: list[Quarantined], fresh: list[Piece], where: Where
) -> list[Piece]:
    """The `fresh` pieces of one fragment with its `old` rows and the quarantined samples that are
    `carried` over, in the order of the source."""
    homes: list[list[int]] = [[] for _ in fresh]
    places = zip(old["source_uri"].to_pylist(), old["source_key"].to_pylist(), strict=True)
    for row, place in enumerate(places):
        homes[where(*place)[0]].append(row)
    for number, (piece, home) in enumerate(zip(fresh, homes, strict=True)):
        kept = old.take(pa.array(home, pa.int64()))
        piece.table = _ordered(pa.concat_tables([kept, piece.table]), where)
        piece.bad += [row for row in carried if where(row.source_uri, row.source_key)[0] == number]
    return [_named(piece) for piece in _absorbed(fresh)]


def _ordered(table: pa.Table, where: Where) -> pa.Table:
    names = zip(table["source_uri"].to_pylist(), table["source_key"].to_pylist(), strict=True)
    places = [where(*name) for name in names]
    order = sorted(range(len(places)), key=places.__getitem__)
    return table.take(pa.array(order, pa.int64()))


def _absorbed(pieces: list[Piece]) -> list[Piece]:
    """No piece of quarantined samples alone, as long as there is a row beside them.

    Such a fragment counts as done by the quarantine itself (see mmray.store.liveness), so a crash
    before the commit would leave it beside the error that stood for all of them.
    """
    kept: list[Piece] = []
    for piece in pieces:
        last = kept[-1] if kept else None
        if last is None or not (last.is_bad or piece.is_bad):
            kept.append(piece)
            continue
        span = replace(last.span, stop=piece.span.stop)
        kept[-1] = Piece(span, pa.concat_tables([last.table, piece.table]), last.bad + piece.bad)
    return kept


def _named(piece: Piece) -> Piece:
    """The piece with its own name in the rows, which an old fragment's may be another."""
    name, at = str(piece.span), piece.table.schema.get_field_index("fragment")
    column = pa.array([name] * piece.rows, pa.string())
    piece.table = piece.table.set_column(at, piece.table.schema.field(at), column)
    piece.bad = [replace(row, fragment=name) for row in piece.bad]
    return piece
