"""New parts out of active ones: some rows dropped, or several parts merged.

The quarantined samples of the old parts are carried over under the new part's attempt, in the
receipt, so that they go through the very commit that swaps the parts and never stop counting.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from mmray.sources.fragment import Span, digest
from mmray.store.coverage import PartInfo, contiguous
from mmray.store.parts import Quarantined, Receipt, read_part, write_part
from mmray.store.table import Store

_FIELDS = tuple(Quarantined.__slots__)


def without_rows(
    store: Store, part: PartInfo, uris: frozenset[str], shards: frozenset[str]
) -> list[Receipt]:
    """New parts with the rows of `part` that are neither of these source_uris nor shards.

    A slice of raw files that lost some of them is another shard from then on: under its old name it
    would cover them too, and none that came back would be taken for new.

    None where nothing is left; a receipt without a part where only quarantined samples are.
    """
    every = carried_over(store, [part])
    carried = [
        row
        for row in every
        if row.source_uri not in uris and Span.parse(row.fragment).shard not in shards
    ]
    lost = {Span.parse(row.fragment).shard for row in every if row.source_uri in uris}
    if part.min_uri == part.max_uri and part.min_uri in uris:
        rows = store.schema.empty_table()
        lost |= {span.shard for span in part.spans}
    else:
        rows = read_part(store.storage, store.uri, part.path)
        lost |= {Span.parse(name).shard for name in _fragments(rows.filter(_of(rows, uris)))}
        rows = rows.filter(pc.invert(_dropped(rows, uris, shards)))
    if not rows.num_rows and not carried:
        return []
    whole, rows, carried = _parted(part.span, rows, carried, lost, uris)
    names = _fragments(rows) | {row.fragment for row in carried}
    if part.attempt is not None:
        runs = [tiles(whole, names)]
    else:
        runs = [tiles(run, names) for run in contiguous(Span.parse(name) for name in names)]
    return [_write(store, run, rows, carried, part.min_uri) for run in runs]


def _parted(
    whole: Span, rows: pa.Table, carried: list[Quarantined], lost: set[str], uris: frozenset[str]
) -> tuple[Span, pa.Table, list[Quarantined]]:
    """The span, rows and quarantined samples, the shards `lost` under names of their own."""

    def parted(span: Span) -> Span:
        if span.shard not in lost:
            return span
        key = digest("\n".join([span.shard, *sorted(uris)]), 8)
        return Span(key, digest(key, 4), span.start, span.stop)

    names = _fragments(rows) | {row.fragment for row in carried}
    renamed = {name: str(parted(Span.parse(name))) for name in names}
    column = [renamed[name] for name in rows["fragment"].to_pylist()]
    place = rows.schema.get_field_index("fragment")
    rows = rows.set_column(place, rows.schema.field(place), pa.array(column, pa.string()))
    return parted(whole), rows, [replace(row, fragment=renamed[row.fragment]) for row in carried]


def merged(store: Store, parts: Sequence[PartInfo]) -> Receipt:
    """One new part with the rows of `parts`, which are contiguous and sorted by start."""
    whole = Span(
        parts[0].span.shard, parts[0].span.version, parts[0].span.start, parts[-1].span.stop
    )
    carried = carried_over(store, parts)
    tables = [read_part(store.storage, store.uri, part.path) for part in parts]
    rows = pa.concat_tables([table.cast(tables[0].schema) for table in tables])
    names = _fragments(rows) | {row.fragment for row in carried}
    return _write(store, tiles(whole, names), rows, carried, parts[0].min_uri)


def carried_over(store: Store, parts: Sequence[PartInfo]) -> list[Quarantined]:
    """The quarantined samples that count through these parts."""
    if not store.quarantine.groups():
        return []
    attempts = {part.attempt for part in parts if part.attempt}
    foreign = {part.path for part in parts if part.attempt is None}
    return [
        Quarantined(**{name: row[name] for name in _FIELDS})
        for row in store.quarantine.live().to_pylist()
        if row["attempt"] in attempts
        or (foreign and foreign & {*store.stored.overlapping(Span.parse(row["fragment"]))})
    ]


def _fragments(rows: pa.Table) -> set[str]:
    return set(pc.unique(rows["fragment"]).to_pylist())


def _of(rows: pa.Table, uris: frozenset[str]) -> pa.Array:
    return pc.is_in(rows["source_uri"], pa.array(sorted(uris), pa.string()))


def _dropped(rows: pa.Table, uris: frozenset[str], shards: frozenset[str]) -> pa.Array:
    by_uri = _of(rows, uris)
    shard = pc.utf8_slice_codeunits(rows["fragment"], 0, 16)
    return pc.or_(by_uri, pc.is_in(shard, pa.array(sorted(shards), pa.string())))


def tiles(whole: Span, names: Iterable[str]) -> list[Span]:
    """The named fragments inside `whole`, and what lies between them, so that they tile it."""
    found: list[Span] = []
    reached = whole.start
    inside = sorted((Span.parse(name) for name in names), key=str)
    for span in inside:
        if (span.shard, span.version) != (whole.shard, whole.version):
            continue
        if not whole.start <= span.start < span.stop <= whole.stop:
            continue
        if reached < span.start:
            found.append(Span(whole.shard, whole.version, reached, span.start))
        found.append(span)
        reached = span.stop
    if reached < whole.stop:
        found.append(Span(whole.shard, whole.version, reached, whole.stop))
    return found


def _write(
    store: Store,
    spans: list[Span],
    rows: pa.Table,
    carried: list[Quarantined],
    shard_uri: str,
) -> Receipt:
    names = [str(span) for span in spans]
    mine = rows.filter(pc.is_in(rows["fragment"], pa.array(names, pa.string())))
    uris = [*mine["source_uri"].to_pylist()[:1], *(row.source_uri for row in carried)]
    return write_part(
        store.storage,
        store.uri,
        mine,
        spans,
        min(uris, default=shard_uri),
        [row for row in carried if row.fragment in set(names)],
    )
