"""The quarantine in numbers: how many samples for which reason, with a few examples of each.

What is summed up are rows that count (`Store.quarantined`), not all that the table may hold.
"""

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mmray.errors import SpecError

_COLUMNS = {
    "reason": "error_type",
    "stage": "stage",
    "shard": "source_uri",
    "run": "run_id",
}
EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Quoted:
    """One quarantined sample: where it is, and why it is not in the store."""

    key: str
    uri: str
    message: str


@dataclass(frozen=True, slots=True)
class Reason:
    """The quarantined samples that share a reason, a stage, a shard or a run."""

    name: str
    count: int
    examples: tuple[Quoted, ...]


def of_reasons(rows: pa.Table, reasons: Collection[str]) -> pa.Table:
    """The quarantine's rows of these error types; all of them where none is named."""
    if not reasons:
        return rows
    return rows.filter(pc.is_in(rows["error_type"], pa.array(sorted(reasons), pa.string())))


def summary(rows: pa.Table, by: str = "reason", examples: int = EXAMPLES) -> list[Reason]:
    """Rows of the quarantine counted by what they share, most frequent first.

    Args:
        rows: such as `Store.quarantined()` gives.
        by: `reason` (the error type), `stage`, `shard` (source_uri) or `run` (the run's id).
        examples: told of each, at most.

    Raises:
        SpecError: `by` is none of these.
    """
    if by not in _COLUMNS:
        raise SpecError("by", f"must be one of {', '.join(_COLUMNS)}, not {by!r}")
    counts: dict[str, int] = {}
    first: dict[str, list[int]] = {}
    for row, name in enumerate(rows[_COLUMNS[by]].to_pylist()):
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= examples:
            first.setdefault(name, []).append(row)
    ranked = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return [Reason(name, count, _examples(rows, first.get(name, []))) for name, count in ranked]


def _examples(rows: pa.Table, places: list[int]) -> tuple[Quoted, ...]:
    return tuple(
        Quoted(row["source_key"], row["source_uri"], row["message"])
        for row in rows.take(pa.array(places, pa.int64())).to_pylist()
    )
