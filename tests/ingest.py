"""Bad input's one way in: files through the real reader, stages, commits and verification, and back
comes an account of every sample. No Ray: the stages run in this process, one shard after another.

What holds for any input is asserted here, so that a case only says what is its own.
"""

from __future__ import annotations

import os
import re
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmray.encoders import EncodeOptions, describe
from mmray.errors import RefusedError
from mmray.flow.batch import Finished, Work
from mmray.flow.decoding import keeps_times
from mmray.flow.plan import make_plan
from mmray.flow.stages import Stages
from mmray.jobs.modalities import ORDER, dim_of
from mmray.sources import Source, open_source
from mmray.specs import EmbedSpec, load_spec
from mmray.storage import Storage
from mmray.store import Change, Committer, Store, StoreColumns, StoreMeta
from mmray.store.verify import verify

STORAGE = Storage()
ENCODER = {"kind": "import", "model": "tests.toys:Listener"}

Files = Mapping[str, "bytes | Link | Callable[[str], bytes]"]
"""Name to content, or to what makes it from the folder that it will lie in."""
Data = bytes | Callable[[], bytes]
Vectors = dict[str, "list[float] | None"]


@dataclass(frozen=True, slots=True)
class Link:
    """Stands for a file's bytes: a symbolic link to `target`."""

    target: str


@dataclass(frozen=True, slots=True)
class Bad:
    """One sample in quarantine."""

    key: str
    stage: str
    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Account:
    """What became of every sample, in the order of the input.

    Keys are source keys; where there are several shards, with the shard's name before: `a.tar:key`.
    """

    rows: dict[str, Vectors]
    """Key to modality to vector; `None` where the sample has none."""
    kept: dict[str, dict[str, Any]]
    """Key to kept metadata."""
    bad: list[Bad]
    filtered: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    """Most bytes that Python, numpy among it, held at a time; 0 unless measured."""

    @property
    def total(self) -> int:
        """Samples that were accounted for."""
        return len(self.rows) + len(self.bad) + sum(self.filtered.values())

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """Key and error type of all that is in quarantine."""
        return [(each.key, each.type) for each in self.bad]


def ingest(
    files: Files, source: dict[str, Any], *, measured: bool = False, **changes: Any
) -> Account:
    """Write `files` to a new folder, take them into a new store, and say what became of them.

    `source.uri` is within that folder; `changes` are fields of the spec. Asserts that nothing is
    lost or there twice, that each reason can be read, that `verify` finds nothing, and that a
    second pass has nothing to read.
    """
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "in", files)
        spec = spec_of(folder, source, changes)
        stages = _stages(spec)
        meta = StoreMeta(stages.card.fingerprint, "toy", _dims(stages))
        store = Store.create(spec.store.uri, STORAGE, stages.columns, meta)
        if not measured:
            return _account(store, stages, _taken(store, stages), 0)
        tracemalloc.start()
        try:
            finished = _taken(store, stages)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return _account(store, stages, finished, peak)


def refusal(files: Files, source: dict[str, Any]) -> str:
    """Why `files` are refused before any work."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "in", files)
        spec = spec_of(folder, source, {})
        try:
            make_plan(open_source(spec.source, STORAGE, spec.limits), None)
        except RefusedError as error:
            return str(error)
        raise AssertionError("it is not refused")


def spec_of(folder: str, source: dict[str, Any], changes: dict[str, Any]) -> EmbedSpec:
    """A spec that reads `folder/in` and writes `folder/store`."""
    return load_spec(
        {
            "job": "embed",
            "source": source | {"uri": f"{folder}/in/{source['uri']}"},
            "encoder": ENCODER,
            "store": {"uri": f"{folder}/store"},
            **changes,
        }
    )


def write(folder: Path, files: Files) -> None:
    """The files under `folder`; a name that ends in a slash is an empty folder."""
    folder.mkdir()
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif isinstance(data, Link):
            os.symlink(data.target, path)
        else:
            path.write_bytes(data if isinstance(data, bytes) else data(str(folder)))


def made(data: Data) -> bytes:
    """The bytes of a case."""
    return data if isinstance(data, bytes) else data()


def _stages(spec: EmbedSpec) -> Stages:
    options = EncodeOptions()
    card = describe(spec.encoder, options)
    columns = StoreColumns(
        ORDER, dict(spec.keep), thumbnail=bool(spec.thumbnails), times=keeps_times(spec)
    )
    return Stages(spec, card, options, STORAGE, columns, spec.store.uri, ORDER)


def _dims(stages: Stages) -> dict[str, int]:
    return {modality: dim_of(stages.card, modality) for modality in stages.modalities}


def _taken(store: Store, stages: Stages) -> list[Finished]:
    """The one pass: every shard, each part committed as it comes."""
    committer = Committer(store, "run", store.version, patience=5)
    finished: list[Finished] = []
    for work in _left(store, stages):
        for each in stages.fused(work):
            assert isinstance(each, Finished), each
            committer.commit([Change((each.receipt,))])
            finished.append(each)
    committer.reconcile()
    return finished


def _left(store: Store, stages: Stages) -> list[Work]:
    return make_plan(_source(stages), store).work


def _source(stages: Stages) -> Source:
    return open_source(stages.spec.source, STORAGE, stages.spec.limits)


def _account(store: Store, stages: Stages, finished: list[Finished], peak: int) -> Account:
    store = Store.open(store.uri, STORAGE)
    assert verify(store).problems == []
    assert _left(store, stages) == []
    table, live = store.to_arrow(), store.quarantine.live()
    found = sorted(table.to_pylist(), key=lambda row: (row["source_uri"], row["fragment"]))
    ids = [row["id"] for row in found] + live["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    filtered: Counter[str] = Counter()
    for each in finished:
        filtered.update(each.filtered)
    told = [row for each in finished for row in each.receipt.quarantined]
    several = stages.spec.source.kind != "files" and len([*_source(stages).shards()]) > 1

    def key(uri: str, source_key: str) -> str:
        return f"{uri.rpartition('/')[2]}:{source_key}" if several else source_key

    bad = [
        Bad(key(row.source_uri, row.source_key), row.stage, row.error_type, row.message)
        for row in told
    ]
    assert Counter(row.id for row in told) == Counter(live["id"].to_pylist())
    assert sum(each.receipt.rows for each in finished) == len(found)
    keys = [key(row["source_uri"], row["source_key"]) for row in found]
    assert len(set(keys)) == len(keys), "the files of a case have names of their own"
    for each in bad:
        assert_readable(each)
    return Account(
        {k: {m: row[f"{m}_embedding"] for m in ORDER} for k, row in zip(keys, found, strict=True)},
        {k: {n: row[n] for n in stages.spec.keep} for k, row in zip(keys, found, strict=True)},
        bad,
        dict(filtered),
        peak,
    )


def assert_readable(bad: Bad) -> None:
    """A person who reads the reason learns what is wrong, in words."""
    assert re.fullmatch(r"([A-Z][a-z0-9]+)+", bad.type), bad
    assert len(re.findall(r"[A-Za-z]{2,}", bad.message)) >= 3, bad
    assert len(bad.message) <= 500, bad
    assert not re.search(r"Traceback|object at 0x|<class |<built-in", bad.message), bad
    assert not re.match(r"\w*(Error|Exception)\b", bad.message), bad
