"""Quarantined samples tried again: what one worker does with one part of the store.

It reads only the fragments that hold them, leaves out what the store has, and writes the part anew:
the old rows, those that now are good, and the quarantine of the others. The new part covers what
the old one did, so that one commit swaps them and nothing in between is ever missing or twice.
"""

import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from mmray.errors import MmrayError, ShardChanged
from mmray.flow.batch import Batch, Failed, Preview, Timer, added
from mmray.flow.pieces import Piece, base_key, joined, rows_by_fragment
from mmray.flow.retry import Again, Retried, Retry, Run, stands_for_more
from mmray.flow.stages import Stages, stopped
from mmray.flow.writing import PartWriter, quarantined_of
from mmray.sources import Cut, Fragment, Sample, open_source
from mmray.store.compact import TARGET
from mmray.store.parts import Quarantined, Receipt, read_part, write_part
from mmray.store.rewrite import tiles

_UNCUT = Cut(rows=1 << 60, bytes=1 << 60)
"""A fragment that was cut once comes back as one."""


def retried(stages: Stages, retry: Retry) -> Iterator[Retried | Failed]:
    """Try again, and write the part anew where that changed anything."""
    uri = retry.runs[0].uri
    try:
        yield _Retrying(stages, retry).run()
    except MmrayError as error:
        yield stopped(uri, error)
    except FileNotFoundError as error:  # a part that another program has vacuumed meanwhile
        yield Failed(uri, str(error), fatal=False)


class _Retrying:
    """One retry under way."""

    def __init__(self, stages: Stages, retry: Retry) -> None:
        self._stages, self._retry = stages, retry
        self._schema = stages.columns.arrow_schema()
        self._timer = Timer()
        self._writer = PartWriter(stages.storage, stages.root, stages.columns, self._timer)
        self._found = Retried(retry.path, retry.wanted)
        self._stored: dict[str, pa.Table] = {}

    def run(self) -> Retried:
        """Raises StorageError."""
        found, retry = self._found, self._retry
        if retry.path:
            with self._timer.stage("read"):
                table = read_part(self._stages.storage, self._stages.root, retry.path)
            self._stored = rows_by_fragment(table.select(self._schema.names).cast(self._schema))
        tiled = [list(self._tiles(run)) for run in retry.runs]
        if not retry.path and found.bad and not any(p.rows for pieces in tiled for p in pieces):
            # Without a row, the quarantine that is there already says all that a new one could.
            found.filtered = {}
        elif found.written or found.filtered:
            with self._timer.stage("write"):
                for run, pieces in zip(retry.runs, tiled, strict=True):
                    found.receipts += tuple(self._write(run, pieces))
        found.seconds = self._timer.take()
        return found

    def _tiles(self, run: Run) -> Iterator[Piece]:
        """What the run consists of from now on, in order and without gaps."""
        bad: dict[str, list[Quarantined]] = {}
        for row in run.quarantined:
            bad.setdefault(row.fragment, []).append(row)
        again = {str(each.span): each for each in run.again}
        empty = self._schema.empty_table()
        for span in tiles(run.span, self._stored.keys() | bad.keys() | again.keys()):
            name = str(span)
            piece = Piece(span, self._stored.get(name, empty), bad.get(name, []))
            yield from self._again(again[name], piece, run.uri) if name in again else [piece]

    def _again(self, again: Again, old: Piece, uri: str) -> list[Piece]:
        """The fragment as it is now; as several where one error stood for very many samples."""
        look = _Look(again, old)
        try:
            pieces = [self._piece(each, look, uri) for each in self._fragments(again)]
        except ShardChanged as error:
            fewer = again.without(error.uri, old.bad)
            self._found.changed.append(error.uri)
            self._found.skipped += len(again.wanted) - len(fewer.wanted)
            return self._again(fewer, old, uri) if fewer.wanted else [old]
        if again.files and len(pieces) > 1:  # read in several goes, and still one fragment
            table = pa.concat_tables([each.table for each in pieces])
            pieces = [Piece(again.span, table, [row for each in pieces for row in each.bad])]
        look.add_to(self._found)
        return joined(old.table, look.carried(), pieces, look.where)

    def _fragments(self, again: Again) -> Iterator[Fragment]:
        """What the source has of it. Raises ShardChanged, StorageError."""
        stages = self._stages
        source = stages.source(stages.rows)
        if not again.whole:
            spec = stages.spec
            source = open_source(
                spec.source, stages.storage, spec.limits, _UNCUT, stages.spec.wanted
            )
        seen = set() if source.sliced else self._seen(again)
        fragments = source.read(again.shard, again.start, again.stop, seen)
        while True:
            with self._timer.stage("read"):
                fragment = next(fragments, None)
            if fragment is None:
                return
            yield fragment

    def _seen(self, again: Again) -> set[str]:
        """The shard's keys elsewhere: a sample of theirs is not a new one."""
        stages, span = self._stages, again.span
        tables = [*self._stored.values()]
        with self._timer.stage("read"):
            for path in self._retry.beside:
                columns = ["source_key", "fragment"]
                tables.append(read_part(stages.storage, stages.root, path, columns))
        shard, own = f"{span.shard}-{span.version}-", str(span)
        seen = set(again.seen)
        for table in tables:
            keys, fragments = table["source_key"].to_pylist(), table["fragment"].to_pylist()
            for key, fragment in zip(keys, fragments, strict=True):
                if fragment.startswith(shard) and fragment != own:
                    seen |= {key, base_key(key)}
        return seen

    def _piece(self, fragment: Fragment, look: "_Look", uri: str) -> Piece:
        """Decode and encode what is to be tried of the fragment."""
        stages = self._stages
        look.choose(fragment)
        piece = Piece(
            look.again.span if look.again.files else fragment.span, self._schema.empty_table(), []
        )
        if fragment.samples:
            batch, encoded = stages.take(fragment, uri, self._timer)
            look.encoded += encoded
            table = self._writer.table([batch])
            fresh = [name not in look.settled for name in table["id"].to_pylist()]
            piece.table = table.filter(pa.array(fresh, pa.bool_()))
            piece.bad = [row for row in quarantined_of([batch]) if row.id not in look.settled]
            look.count(piece, batch)
        return piece

    def _write(self, run: Run, pieces: list[Piece]) -> Iterator[Receipt]:
        """One part, unless it would be very large."""
        waiting: list[Piece] = []
        for piece in pieces:
            waiting.append(piece)
            if sum(each.table.nbytes for each in waiting) >= TARGET or piece is pieces[-1]:
                yield write_part(
                    self._stages.storage,
                    self._stages.root,
                    pa.concat_tables([each.table for each in waiting]),
                    [each.span for each in waiting],
                    run.uri,
                    [row for each in waiting for row in each.bad],
                )
                waiting = []


class _Look:
    """A fragment that is read again: which of its samples are tried, and what comes of them."""

    def __init__(self, again: Again, old: Piece) -> None:
        self.again = again
        self._tried = [row for row in old.bad if row.id in again.wanted]
        self._kept = [row for row in old.bad if row.id not in again.wanted]
        uris, keys = (old.table[name].to_pylist() for name in ("source_uri", "source_key"))
        self.settled = {*old.table["id"].to_pylist(), *(row.id for row in self._kept)}
        """Ids of rows that the store has, and of quarantined samples that are not tried."""
        self._stored = {*zip(uris, keys, strict=True)}
        self._stored |= {(uri, base_key(key)) for uri, key in self._stored}
        self._windows = {row.id: sample for row in self._tried if (sample := _window_of(row))}
        self._windowed = {*self._windows.values()}
        self._taken: set[str | Place] = set()
        """Ids and places of the samples that were tried."""
        self._places: dict[Place, tuple[int, int]] = {}
        self._number = -1
        self.encoded = 0
        self._written = 0
        self._bad: list[Quarantined] = []
        self._filtered: dict[str, int] = {}
        self._previews: tuple[Preview, ...] = ()

    def choose(self, fragment: Fragment) -> None:
        """Leave in the fragment only the samples that are to be tried."""
        self._number += 1
        for number, sample in enumerate(fragment.samples):
            if sample.ordinal is None:
                self._places.setdefault(_place(sample), (self._number, number))
        fragment.samples = [sample for sample in fragment.samples if self._takes(sample)]
        for sample in fragment.samples:
            self._taken.add(sample.id)
            if sample.ordinal is None:
                self._taken.add(_place(sample))

    def _takes(self, sample: Sample) -> bool:
        if sample.id in self.again.wanted:
            return True
        if sample.id in self.settled:
            return False
        if sample.ordinal is not None:
            return self.again.whole
        if sample.error is None and _place(sample) in self._windowed:
            return True
        return self.again.whole and _place(sample) not in self._stored

    def count(self, piece: Piece, batch: Batch) -> None:
        """Count what came of the samples."""
        self._written += piece.rows
        self._bad += piece.bad
        self._filtered = added(self._filtered, batch.filtered)
        self._previews = self._previews or batch.previews

    def add_to(self, found: Retried) -> None:
        """Add what was counted."""
        found.written += self._written
        found.bad += self._bad + self._missed()
        found.filtered = added(found.filtered, self._filtered)
        found.encoded += self.encoded
        found.previews = found.previews or self._previews

    def carried(self) -> list[Quarantined]:
        """The quarantined samples that stay as they were."""
        return self._kept + self._missed()

    def _missed(self) -> list[Quarantined]:
        """Those that should have been tried and did not come up: reading broke before them."""
        return [
            row
            for row in self._tried
            if row.id not in self._taken
            and self._windows.get(row.id) not in self._taken
            and not (self.again.whole and stands_for_more(row))
        ]

    def where(self, uri: str, key: str) -> tuple[int, Any]:
        """Number of the piece that a row belongs to, and its place there."""
        if self.again.files:
            return 0, uri
        last = (self._number, sys.maxsize)
        return self._places.get((uri, key)) or self._places.get((uri, base_key(key))) or last


Place = tuple[str, str]
"""source_uri and source_key of a sample."""


def _place(sample: Sample) -> Place:
    return sample.source_uri, sample.source_key


def _window_of(row: Quarantined) -> Place | None:
    """The sample that a quarantined window is of."""
    key = base_key(row.source_key)
    return (row.source_uri, key) if key != row.source_key else None
