"""The loop of passes, its Ray replaced by this process: what ends a run, and with which words."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from deltalake import DeltaTable

from mmray.encoders import EncodeOptions, describe
from mmray.errors import JobFailed, RefusedError, StorageError
from mmray.flow import run as loop
from mmray.flow.batch import Failed, Finished, Work
from mmray.flow.plan import Plan, make_plan
from mmray.flow.run import Flow
from mmray.flow.stages import Stages
from mmray.flow.writing import PartWriter
from mmray.jobs.embed import EmbedJob
from mmray.report import Report
from mmray.report.progress import progress
from mmray.sources import open_source
from mmray.specs import EmbedSpec, load_spec
from mmray.storage import Storage
from mmray.store import Committer, Store, StoreColumns, StoreMeta

STORAGE = Storage()
BROKEN = "still failing after 8 attempts: 503 SlowDown"


class Drive:
    """`Drive` without Ray. `lost` passes go by in which the worker dies after its first part."""

    lost = 0

    def __init__(self, work: Sequence[Work], stages: Stages) -> None:
        self.items: SimpleQueue[Any] = SimpleQueue()
        here = replace(stages, careful=False, _made={})
        for each in work:
            for item in here.fused(each):
                self.items.put(item)
                if Drive.lost:
                    break
        Drive.lost = max(0, Drive.lost - 1)
        self.items.put(None)

    def stop(self) -> list[Finished]:
        return []


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "Drive", Drive)
    monkeypatch.setattr(Drive, "lost", 0)


def lines(path: Path, good: int, bad: int = 0) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = [json.dumps({"caption": f"{path.name} text {n}"}) for n in range(good)]
    path.write_text("\n".join(rows + ["broken"] * bad) + "\n")


def spec_of(folder: Path, uri: str = "in", **fields: Any) -> EmbedSpec:
    return load_spec(
        {
            "job": "embed",
            "source": {"kind": "jsonl", "uri": str(folder / uri)},
            "encoder": {"kind": "import", "model": "tests.toys:Toy"},
            "store": {"uri": str(folder / "store")},
            "modalities": ["text"],
            **fields,
        }
    )


def files(folder: Path, uri: str, **fields: Any) -> EmbedSpec:
    return spec_of(folder, uri, source={"kind": "files", "uri": str(folder / uri)}, **fields)


def run(spec: EmbedSpec, limit: int | None = None) -> Flow:
    """What is left of `spec`, to its end."""
    options = EncodeOptions()
    card = describe(spec.encoder, options)
    columns, uri = StoreColumns(("text",)), spec.store.uri
    stages = Stages(spec, card, options, STORAGE, columns, uri, ("text",), limit=limit)
    store = Store.create(uri, STORAGE, columns, StoreMeta(card.fingerprint, "toy", {"text": 16}))

    def plan() -> Plan:
        store.reload()
        return make_plan(open_source(spec.source, STORAGE, spec.limits), store)

    with progress(quiet=True) as show:
        flow = Flow(stages, Committer(store, "run", store.version), plan, show)
        flow.run(plan())
    return flow


def rows(spec: EmbedSpec) -> int:
    return Store.open(spec.store.uri, STORAGE).count


def test_a_second_pass_counts_no_sample_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 of 12,010 are within 0.1 %: counted twice, the first pass's would be beyond it."""
    monkeypatch.setattr(PartWriter, "is_due", property(lambda self: self.holds_batches))
    lines(tmp_path / "in" / "a.jsonl", 10_000)
    spec = spec_of(tmp_path, errors={"max_fraction": 0.001})
    run(spec)
    lines(tmp_path / "in" / "b.jsonl", 2000)
    text = (tmp_path / "in" / "b.jsonl").read_text()
    (tmp_path / "in" / "b.jsonl").write_text("broken\n" * 10 + text)
    Drive.lost = 1
    flow = run(spec)
    assert (flow.tally.quarantined, flow.tally.read, rows(spec)) == (10, 2010, 12_000)


@pytest.mark.parametrize("limit", [None, 10])
def test_a_source_that_can_not_be_read_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    lines(tmp_path / "in" / "a.jsonl", 50)
    spec = spec_of(tmp_path)

    def down(self: Storage, uri: str, *_: Any) -> bytes:
        raise StorageError(uri, BROKEN)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "read_range", down)
        with pytest.raises(JobFailed, match=r"a\.jsonl: still failing .* 503"):
            run(spec, limit)
    assert run(spec, limit).tally.read == (limit or 50)


def test_a_limit_is_met_though_the_worker_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PartWriter, "is_due", property(lambda self: self.holds_batches))
    monkeypatch.setattr(Stages, "rows", 8)
    lines(tmp_path / "in" / "a.jsonl", 50)
    Drive.lost = 1
    spec = spec_of(tmp_path)
    assert run(spec, 30).tally.read == 30 == rows(spec)


def test_a_limit_below_a_changed_shard_commits_nothing(tmp_path: Path) -> None:
    """Its rows are swapped as a whole, and so much was not asked for."""
    lines(tmp_path / "in" / "a.jsonl", 50)
    spec = spec_of(tmp_path)
    run(spec)
    lines(tmp_path / "in" / "a.jsonl", 60)
    assert run(spec, 10).tally.read == 0
    assert rows(spec) == 50
    assert run(spec).tally.read == 60 == rows(spec)


def test_what_a_neighbour_rewrote_does_not_keep_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run replaces a file of a part while this one has a new file of the same range."""
    monkeypatch.setattr("mmray.sources.files.SLICE_ODDS", 1 << 16)
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcdxyz":
        (folder / f"{name}.txt").write_text(f"the text of {name}")
    spec = files(tmp_path, "in")
    run(spec)
    (folder / "b.txt").write_text("other words")
    once = iter([True])
    inner = Flow._begin

    def begin(self: Flow, plan: Plan) -> None:
        if next(once, False):
            (folder / "m.txt").rename(tmp_path / "m.txt")
            run(spec)
            (tmp_path / "m.txt").rename(folder / "m.txt")
        inner(self, plan)

    monkeypatch.setattr(Flow, "_begin", begin)
    (folder / "m.txt").write_text("the text of m")
    assert run(spec).tally.written == 1
    assert rows(spec) == 8


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StorageError("s3://b/k", BROKEN), "503"),
        (OSError(errno.ENOSPC, "No space left on device"), "can't be written: No space left"),
        (PermissionError("s3://b/k: access refused (ExpiredToken)"), "can't be written: .*Expired"),
    ],
    ids=["503", "full", "expired"],
)
@pytest.mark.parametrize("due", [False, True], ids=["at the end", "on the way"])
def test_a_part_that_can_not_be_written_is_storages_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str, due: bool
) -> None:
    """Such as a read that fails: a pass is lost, not the job, and the words are of storage."""
    monkeypatch.setattr(PartWriter, "is_due", property(lambda self: due and self.holds_batches))
    lines(tmp_path / "in" / "a.jsonl", 20)
    spec = spec_of(tmp_path)
    inner, calls = Storage.write_bytes, []

    def failing(times: int) -> Callable[..., None]:
        def write(self: Storage, uri: str, data: bytes) -> None:
            if "/data/" in uri and len(calls) < times:
                calls.append(uri)
                raise error
            inner(self, uri, data)

        return write

    monkeypatch.setattr(Storage, "write_bytes", failing(1))
    assert run(spec).tally.written == 20
    assert len(calls) == 1
    lines(tmp_path / "in" / "b.jsonl", 20)
    monkeypatch.setattr(Storage, "write_bytes", failing(1000))
    with pytest.raises(JobFailed, match=words) as failure:
        run(spec)
    assert "fault in mmray" not in str(failure.value)
    assert rows(spec) == 20


def test_work_that_others_always_do_first_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines(tmp_path / "in" / "a.jsonl", 20)
    spec = spec_of(tmp_path)
    run(spec)
    every = make_plan(open_source(spec.source, STORAGE, spec.limits), None)
    monkeypatch.setattr("tests.unit.test_flow_run.make_plan", lambda *_: every)
    with pytest.raises(JobFailed, match="the store had its samples by the time .* other runs"):
        run(spec)


# --- the job around it ----------------------------------------------------------------------------


def job(spec: EmbedSpec) -> Report:
    with progress(quiet=True) as show:
        return EmbedJob(spec, None, show).run()


def test_a_job_that_failed_of_its_quarantine_fails_again(tmp_path: Path) -> None:
    """An orchestrator that tries again must not take what is left of it for success."""
    lines(tmp_path / "in" / "a.jsonl", 80, bad=20)
    spec = spec_of(tmp_path, errors={"max_fraction": 0.1})
    with pytest.raises(JobFailed, match="20 of 100 samples are in quarantine"):
        run(spec)
    with pytest.raises(JobFailed, match=r"20 of 100 .* \(of earlier runs\)") as failure:
        job(spec)
    assert failure.value.report is not None
    assert (failure.value.report.status, failure.value.report.rows_skipped) == ("failed", 100)
    assert job(spec_of(tmp_path, errors={"max_fraction": 0.2})).status == "done"


def test_a_rebuild_does_not_lose_another_jobs_rows(tmp_path: Path) -> None:
    for name in ("x", "y"):
        lines(tmp_path / name / "a.jsonl", 5)
        lines(tmp_path / name / "b.jsonl", 5)
        run(spec_of(tmp_path, name))
    other = {"encoder": {"kind": "import", "model": "tests.toys:OtherToy"}}
    rebuilt = spec_of(tmp_path, "x", **other, on_model_change="rebuild")
    with pytest.raises(RefusedError, match=r"also holds rows .*/y/a\.jsonl.*would lose them"):
        job(rebuilt)
    assert rows(rebuilt) == 20


def test_a_rebuild_tells_which_rows_it_can_not_make_again(tmp_path: Path) -> None:
    lines(tmp_path / "in" / "a.jsonl", 5)
    lines(tmp_path / "in" / "b.jsonl", 5)
    run(spec_of(tmp_path))
    (tmp_path / "in" / "b.jsonl").unlink()
    other = {"encoder": {"kind": "import", "model": "tests.toys:OtherToy"}}
    spec = spec_of(tmp_path, **other, on_model_change="rebuild")
    with progress(quiet=True) as show:
        found = EmbedJob(spec, None, show).look()
    assert found.plan.removed == [str(tmp_path / "in" / "b.jsonl")]


def test_a_rebuild_does_not_lose_what_shares_a_slice(tmp_path: Path) -> None:
    """Of a slice that runs on from folder to folder the first file is not all."""
    for name in ("1/a", "1/b", "2/a", "2/b"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{name}.txt").write_text(f"the text of {name}")
    run(files(tmp_path, "in"))
    other = {"encoder": {"kind": "import", "model": "tests.toys:OtherToy"}}
    for name, lost in (("in/1", "in/2/a.txt"), ("in/2", "in/1/a.txt")):
        with pytest.raises(RefusedError, match=f"such as those of .*{lost}"):
            job(files(tmp_path, name, **other, on_model_change="rebuild"))
    assert rows(files(tmp_path, "in")) == 4


def test_of_what_another_engine_merged_the_removed_shard_is_pruned(tmp_path: Path) -> None:
    """One file holds both: the first one's uri is not the other's."""
    for name in ("a", "b", "c"):
        lines(tmp_path / "in" / f"{name}.jsonl", 5)
    spec = spec_of(tmp_path, on_removed="prune")
    run(spec)
    DeltaTable(spec.store.uri).optimize.compact()
    assert len(Store.open(spec.store.uri, STORAGE).parts()) == 1
    (tmp_path / "in" / "b.jsonl").unlink()
    report = job(spec)
    assert report.removed == [str(tmp_path / "in" / "b.jsonl")]
    found = Store.open(spec.store.uri, STORAGE).to_arrow(["source_uri"])["source_uri"].to_pylist()
    assert sorted(found) == sorted(5 * [str(tmp_path / "in" / f"{name}.jsonl") for name in "ac"])
    assert job(spec).removed == []


def test_failed_work_names_the_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before the shard broke is kept."""
    lines(tmp_path / "in" / "a.jsonl", 20)
    spec = spec_of(tmp_path)
    options = EncodeOptions()
    card = describe(spec.encoder, options)
    uri = spec.store.uri
    stages = Stages(spec, card, options, STORAGE, StoreColumns(("text",)), uri, ("text",))
    (work,) = make_plan(open_source(spec.source, STORAGE, spec.limits), None).work
    inner = Stages._read

    def breaks(self: Stages, *given: Any) -> Any:
        yield from inner(self, *given)
        raise StorageError(work.shard.uri, BROKEN)

    monkeypatch.setattr(Stages, "_read", breaks)
    finished, failed = stages.fused(work)
    assert isinstance(finished, Finished) and finished.receipt.rows == 20
    assert isinstance(failed, Failed) and (failed.uri, failed.fatal) == (work.shard.uri, False)
