"""Verification: reads a store to the last byte and says what is wrong with it.

Memory is bounded by the ids of parts whose source_uri ranges touch, which is one shard as a rule:
two rows can only share an id when they share source_uri and source_key.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.errors import MmrayError
from mmray.sources.fragment import Span, sample_id
from mmray.storage import join
from mmray.store.coverage import PartInfo, overlap
from mmray.store.gc import orphans
from mmray.store.parts import ordinary
from mmray.store.schema import BASE, SUFFIX
from mmray.store.table import Store

NORM_TOLERANCE = 1e-2
"""How far from 1 the length of a normalised vector may be; bfloat16 keeps about 3 digits."""
_MOST_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What was read, and what is wrong with it; `orphans` are files that no version names."""

    rows: int
    parts: int
    quarantined: int
    orphans: int
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(store: Store) -> VerifyResult:
    """Read all of the store and its quarantine.

    Raises:
        StorageError: storage stayed broken, which is no problem of the store's.
    """
    return _Check(store).run()


class _Check:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.problems: list[str] = []
        self.rows = 0
        live = store.quarantine.live()
        self.quarantined = live.num_rows
        self.quarantined_ids = set(live["id"].to_pylist())
        if len(self.quarantined_ids) != live.num_rows:
            self.say("the quarantine holds an id twice")

    def say(self, problem: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(problem)

    def run(self) -> VerifyResult:
        self.spans()
        self.sizes()
        for group in _touching(self.store.parts()):
            self.group(group)
        return VerifyResult(
            rows=self.rows,
            parts=len(self.store.stored.parts),
            quarantined=self.quarantined,
            orphans=len(orphans(self.store)),
            problems=self.problems,
        )

    def spans(self) -> None:
        """No two parts cover one sample, and a shard has one version."""
        entries = sorted(
            ((span, part.path) for part in self.store.parts() for span in part.spans),
            key=lambda entry: str(entry[0]),
        )
        for (one, path), (other, rival) in pairwise(entries):
            if one.shard != other.shard:
                continue
            if one.version != other.version:
                self.say(f"{path} and {rival} hold two versions of shard {one.shard}")
            elif other.start < one.stop:
                self.say(f"{path} and {rival} overlap: {one} and {other}")

    def sizes(self) -> None:
        """Every part is there with the size that the log says."""
        listed = {o.uri: o.size for o in self.store.storage.list(self.store.uri)}
        for part in self.store.parts():
            size = listed.get(join(self.store.uri, part.path))
            if size is None:
                self.say(f"{part.path} is missing")
            elif size != part.size:
                self.say(f"{part.path} has {size} bytes, the log says {part.size}")

    def group(self, parts: list[PartInfo]) -> None:
        """The parts whose samples might be the same ones."""
        seen: set[str] = set()
        for part in parts:
            rows = 0
            try:
                for batch in self.batches(part):
                    rows += batch.num_rows
                    self.check_ids(part, batch, seen)
                    self.check_vectors(part, batch)
            except (OSError, pa.ArrowException, KeyError, ValueError) as error:
                if isinstance(error, MmrayError):
                    raise
                self.say(f"{part.path} can't be read: {str(error)[:200]}")
                continue
            self.rows += rows
            if rows != part.rows:
                self.say(f"{part.path} has {rows} rows, the log says {part.rows}")

    def batches(self, part: PartInfo) -> Iterator[pa.Table]:
        filesystem, base = self.store.storage.arrow_filesystem(self.store.uri)
        with filesystem.open_input_file(f"{base}/{part.path}") as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            lacking = set(self.store.schema.names) - set(parquet.schema_arrow.names)
            if lacking:
                self.say(f"{part.path} has no column {', '.join(sorted(lacking))}")
            for batch in parquet.iter_batches(batch_size=4096):
                yield ordinary(pa.Table.from_batches([batch]))

    def check_ids(self, part: PartInfo, batch: pa.Table, seen: set[str]) -> None:
        for name in BASE:
            if batch[name].null_count:
                self.say(f"{part.path} has null in {name}")
                return
        if part.attempt is not None:
            for name in set(batch["fragment"].to_pylist()):
                span = Span.parse(name)
                if not (
                    overlap(span, part.span)
                    and part.span.start <= span.start < span.stop <= part.span.stop
                ):
                    self.say(f"{part.path} has the fragment {name} outside of its span")
        ids = batch["id"].to_pylist()
        places = zip(
            ids, batch["source_uri"].to_pylist(), batch["source_key"].to_pylist(), strict=True
        )
        for name, uri, key in places:
            if name != sample_id(uri, key):
                self.say(f"{part.path} has the id {name}, which is not that of {uri} {key}")
            if name in seen:
                self.say(f"{part.path} has the id {name} ({uri} {key}) a second time")
            if name in self.quarantined_ids:
                self.say(f"{part.path} has the id {name} ({uri} {key}), quarantined as well")
            seen.add(name)

    def check_vectors(self, part: PartInfo, batch: pa.Table) -> None:
        meta = self.store.meta
        for modality, dim in meta.dims.items():
            name = modality + SUFFIX
            if name not in batch.schema.names:
                continue
            column = batch[name].combine_chunks().drop_null()
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
            if any(length != dim for length in lengths):
                self.say(f"{part.path} has {name} of {sorted(lengths)} numbers, not {dim}")
                continue
            values = column.flatten()
            matrix = np.asarray(values, dtype=np.float32).reshape(-1, dim)
            if values.null_count or not np.isfinite(matrix).all():
                self.say(f"{part.path} has {name} with NaN, infinity or null")
            elif meta.normalised and len(matrix):
                worst = float(np.abs(np.linalg.norm(matrix, axis=1) - 1).max())
                if worst > NORM_TOLERANCE:
                    self.say(f"{part.path} has {name} of length {worst:.3g} away from 1")


def _touching(parts: list[PartInfo]) -> Iterator[list[PartInfo]]:
    """The parts in groups whose source_uri ranges touch."""
    group: list[PartInfo] = []
    reached = ""
    for part in sorted(parts, key=lambda part: (part.min_uri, part.max_uri)):
        if group and part.min_uri > reached:
            yield group
            group = []
        group.append(part)
        reached = max(reached, part.max_uri)
    if group:
        yield group
