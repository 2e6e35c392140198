"""Replay without Ray: what is planned, what a worker does, and the loop around them."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from mmray.encoders import EncodeOptions, describe
from mmray.errors import JobFailed
from mmray.flow import replay as loop
from mmray.flow import retrying
from mmray.flow.batch import Failed, Finished
from mmray.flow.decoding import keeps_times
from mmray.flow.plan import make_plan
from mmray.flow.replay import Replay
from mmray.flow.replay_plan import ReplayPlan, Wish, plan_replay
from mmray.flow.retry import Retried, Retry
from mmray.flow.stages import Stages
from mmray.report.progress import progress
from mmray.sources import Cut, open_source
from mmray.sources.files import FilesReader
from mmray.specs import EmbedSpec, load_spec
from mmray.store import Change, Committer, Store, StoreColumns, StoreMeta
from mmray.store.compact import compact
from mmray.store.verify import verify
from tests import media, shards, toys
from tests.unit.store_samples import STORAGE, raw_quarantine
from tests.unit.test_store_commit import Killed, kill, step

pytestmark = pytest.mark.unit

SIDE = 400
"""Of pictures that a lowered limit of pixels keeps out."""


@dataclass
class World:
    """A spec with its store, run without Ray."""

    spec: EmbedSpec
    store: Store

    @property
    def source(self) -> Any:
        return open_source(self.spec.source, STORAGE, self.spec.limits)

    @property
    def stages(self) -> Stages:
        return stages_of(self.spec)

    def changed(self, **fields: Any) -> World:
        """The same store, another spec."""
        data = self.spec.model_dump(mode="json", exclude_defaults=True) | fields
        return World(load_spec(data), self.store)

    def embed(self) -> list[Finished]:
        """What `mmray run` does."""
        self.store.reload()
        committer = Committer(self.store, "embed", self.store.version, patience=5)
        plan = make_plan(self.source, self.store)
        done: list[Finished] = []
        for work in plan.work:
            finished = [each for each in self.stages.fused(work) if isinstance(each, Finished)]
            receipts = tuple(each.receipt for each in finished)
            if work.shard.key in plan.replacements:
                old = plan.replacements[work.shard.key]
                committer.commit([Change(receipts, old.remove, old.drop_uris)])
            else:
                committer.commit([Change((receipt,)) for receipt in receipts])
            done += finished
        committer.reconcile()
        return done

    def plan(self, **wish: Any) -> ReplayPlan:
        self.store.reload()
        return plan_replay(self.source, self.store, Wish(**wish))

    def retry(self, plan: ReplayPlan) -> list[Retried]:
        """What the workers do."""
        found = []
        for work in plan.work:
            (each,) = retrying.retried(self.stages, work)
            assert isinstance(each, Retried), each
            found.append(each)
        return found

    def replay(self, monkeypatch: pytest.MonkeyPatch, **wish: Any) -> Replay:
        """A whole replay, its Ray replaced by a loop."""
        monkeypatch.setattr(loop, "Drive", InlineDrive)

        def replan(left: frozenset[str]) -> ReplayPlan:
            return self.plan(ids=left)

        with progress(quiet=True) as show:
            replay = Replay(self.stages, self.committer, replan, show)
            replay.run(self.plan(**wish))
        self.committer().reconcile()
        self.store.reload()
        return replay

    def committer(self) -> Committer:
        store = Store.open(self.store.uri, STORAGE)
        return Committer(store, "replay", store.version, patience=5)

    def commit(self, retried: Sequence[Retried]) -> list[Any]:
        """Commit what workers did; the receipts that were taken."""
        return self.committer().commit([change_of(each) for each in retried]).committed

    @property
    def rows(self) -> list[str]:
        table = Store.open(self.store.uri, STORAGE).to_arrow(["source_key"])
        return sorted(table["source_key"].to_pylist())

    @property
    def bad(self) -> dict[str, str]:
        table = Store.open(self.store.uri, STORAGE).quarantine.live()
        keys, kinds = table["source_key"].to_pylist(), table["error_type"].to_pylist()
        assert len(set(table["id"].to_pylist())) == len(keys)
        return dict(zip(keys, kinds, strict=True))

    def assert_sound(self) -> None:
        """Nothing is wrong, nothing is left to do, and the quarantine holds nothing else."""
        store = Store.open(self.store.uri, STORAGE)
        assert verify(store).problems == []
        assert make_plan(self.source, store).work == []
        assert len(raw_quarantine(store)) == store.quarantine.live().num_rows


def change_of(retried: Retried) -> Change:
    return Change(retried.receipts, (retried.remove,) if retried.remove else ())


def stages_of(spec: EmbedSpec) -> Stages:
    options = EncodeOptions()
    card = describe(spec.encoder, options)
    modalities = tuple(card.dims)
    columns = StoreColumns(modalities, dict(spec.keep), times=keeps_times(spec))
    return Stages(spec, card, options, STORAGE, columns, spec.store.uri, modalities)


class InlineDrive:
    """`Drive` without Ray: the work is done at once, in this process."""

    def __init__(self, work: Sequence[Retry], stages: Stages) -> None:
        self.items: SimpleQueue[Any] = SimpleQueue()
        for each in work:
            for item in retrying.retried(stages, each):
                self.items.put(item)
        self.items.put(None)

    def stop(self) -> list[Finished]:
        return []


Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def world(source: str, kind: str = "webdataset", model: str = "Toy", **fields: Any) -> World:
        spec = load_spec(
            {
                "job": "embed",
                "source": {"kind": kind, "uri": source},
                "encoder": {"kind": "import", "model": f"tests.toys:{model}"},
                "store": {"uri": str(tmp_path / "store")},
                "keep": ["caption"],
                **fields,
            }
        )
        stages = stages_of(spec)
        meta = StoreMeta(stages.card.fingerprint, "toy", stages.card.dims)
        return World(spec, Store.create(spec.store.uri, STORAGE, stages.columns, meta))

    return world


SMALL = {"limits": {"pixels": 100_000}}
"""Keeps out pictures of `SIDE`."""


def samples(count: int, big: Sequence[int] = (), broken: Sequence[int] = ()) -> list[Any]:
    """Members of a tar: some pictures too large for `SMALL`, some that no one can read."""
    entries: list[Any] = []
    for seed in range(count):
        size = (SIDE, SIDE) if seed in big else (32, 24)
        members = shards.members(f"{seed:04d}", seed, size=size)
        if seed in broken:
            members[0] = (members[0][0], b"not a picture")
        entries += members
    return entries


def keys(*numbers: int) -> list[str]:
    return [f"{number:04d}" for number in numbers]


def order(store: Store) -> list[str]:
    """Keys of all rows as the parts hold them, parts and rows in order."""
    found: list[str] = []
    store = Store.open(store.uri, STORAGE)
    for part in sorted(store.parts(), key=lambda part: str(part.span)):
        file = pq.ParquetFile(Path(store.uri, part.path))
        found += file.read(["source_key"])["source_key"].to_pylist()
    return found


def fragments(store: Store) -> set[str]:
    return set(Store.open(store.uri, STORAGE).to_arrow(["fragment"])["fragment"].to_pylist())


def test_a_raised_limit_lets_the_good_ones_in(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = samples(200, big=(3, 70, 71, 150), broken=(5, 151))
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    world = make(str(tmp_path / "x.tar"), **SMALL)
    world.embed()
    before, named = Store.open(world.store.uri, STORAGE).to_arrow(), fragments(world.store)
    assert world.bad.keys() == {*keys(3, 5, 70, 71, 150, 151)}

    raised = world.changed(limits={})
    plan = raised.plan()
    assert len(plan.wanted) == 6 and plan.quarantined == 6
    encoded: list[int] = []
    encode = Stages.encode

    def counting(self: Stages, batch: Any, *rest: Any) -> int:
        encoded.append(len(batch.samples))
        return encode(self, batch, *rest)

    monkeypatch.setattr(Stages, "encode", counting)
    done = raised.replay(monkeypatch)
    assert sum(encoded) == 6
    tally = done.tally
    assert (tally.read, tally.written, tally.quarantined, tally.encoded) == (6, 4, 2, 4)
    assert tally.errors == {"UnreadableImage": 2}
    assert {"read", "decode", "encode", "write"} == set(tally.seconds)
    assert raised.bad == dict.fromkeys(keys(5, 151), "UnreadableImage")
    assert raised.rows == [key for key in keys(*range(200)) if key not in keys(5, 151)]
    assert order(world.store) == raised.rows
    assert fragments(world.store) == named
    after = {row["id"]: row for row in Store.open(world.store.uri, STORAGE).to_arrow().to_pylist()}
    assert all(after[row["id"]] == row for row in before.to_pylist())
    raised.assert_sound()
    # Again: the bad ones are tried, and nothing changes.
    version = raised.store.version
    again = raised.replay(monkeypatch)
    assert (again.tally.read, again.tally.written) == (2, 0)
    assert raised.store.version == version


def test_nothing_in_quarantine_is_nothing_to_do(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(5)))
    world = make(str(tmp_path / "x.tar"))
    world.embed()
    monkeypatch.setattr("mmray.sources.webdataset.WebDatasetReader.shards", lambda *a: 1 / 0)
    assert world.plan() == ReplayPlan()


def test_a_class_that_raised(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder itself failed; the repaired one has the same fingerprint."""
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(20)))
    world = make(str(tmp_path / "x.tar"))

    def raising(self: Any, images: list[Any]) -> Any:
        raise RuntimeError("not today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.toys.Toy.encode_images", raising)
        world.embed()
    assert world.rows == [] and set(world.bad.values()) == {"RuntimeError"}
    assert Store.open(world.store.uri, STORAGE).parts() == []
    world.replay(monkeypatch)
    assert world.rows == keys(*range(20)) and world.bad == {}
    world.assert_sound()


def test_reasons_and_limit(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [*samples(100, big=(1, 2, 70), broken=(3,)), ("late.txt", b"\xff\xfe\xfa")]
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    world = make(str(tmp_path / "x.tar"), **SMALL)
    world.embed()
    before = world.bad
    assert set(before.values()) == {"DecompressionBomb", "UnreadableImage", "BadText"}
    raised = world.changed(limits={})
    done = raised.replay(monkeypatch, reasons=("UnreadableImage",))
    assert (done.tally.read, done.tally.written) == (1, 0) and raised.bad == before
    done = raised.replay(monkeypatch, reasons=("DecompressionBomb",), limit=2)
    assert (done.tally.read, done.tally.written) == (2, 2)
    assert raised.bad.keys() == before.keys() - {*keys(1, 2)}
    raised.assert_sound()
    raised.replay(monkeypatch, reasons=("DecompressionBomb", "BadText"))
    assert raised.bad == {"0003": "UnreadableImage", "late": "BadText"}
    assert order(world.store) == raised.rows
    raised.assert_sound()


@pytest.mark.parametrize("packed", [False, True])
def test_a_shard_that_could_not_be_read(
    make: Make, tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of the quarantine stands for all of its samples."""
    name = "b.tar.gz" if packed else "b.tar"
    data = shards.tar(samples(300, big=(7, 200), broken=(8,)))
    (tmp_path / name).write_bytes(gzip.compress(data) if packed else data)
    (tmp_path / "a.tar").write_bytes(shards.tar(shards.members("other", 900)))
    world = make(str(tmp_path / f"{{a.tar,{name}}}"), **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, str(tmp_path / name))
        world.embed()
        assert world.bad == {"": "UnreadableShard"} and world.rows == ["other"]
        world.replay(monkeypatch)
        assert world.bad == {"": "UnreadableShard"}
    done = world.replay(monkeypatch)
    assert (done.tally.written, done.tally.quarantined) == (297, 3)
    assert world.bad == dict.fromkeys(keys(7, 200), "DecompressionBomb") | {
        "0008": "UnreadableImage"
    }
    assert len(fragments(world.store)) > 4  # cut as usual, not one fragment of 300 samples
    found = [key for key in order(world.store) if key != "other"]
    assert found == keys(*sorted({*range(300)} - {7, 8, 200}))
    world.assert_sound()
    raised = world.changed(limits={})
    raised.replay(monkeypatch)
    assert raised.bad == {"0008": "UnreadableImage"}
    raised.assert_sound()


def forbid(patch: pytest.MonkeyPatch, *uris: str) -> None:
    """Reads of these uris are refused, as by a server; tests may run as root."""
    from mmray.storage import Storage

    fetch = Storage.fetch

    def refusing(self: Storage, uri: str, *rest: Any, **more: Any) -> Any:
        if uri in uris:
            raise PermissionError(f"{uri}: forbidden")
        return fetch(self, uri, *rest, **more)

    patch.setattr(Storage, "fetch", refusing)


def test_a_rest_that_could_not_be_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fragment has good rows, and one error for all that came after them."""
    back = shards.members("0000", 500, size=(30, 30))
    data = shards.tar([*samples(150, broken=(10,)), *back])
    torn = shards.cut_in_member(data, "0080.json")
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    times = path.stat()
    world = make(str(path))
    whole = type(STORAGE).read_range

    def short(self: Any, uri: str, start: int, stop: int | None, etag: str = "") -> bytes:
        return whole(self, uri, start, min(stop or 0, len(torn)), etag)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmray.storage.Storage.read_range", short)
        world.embed()
    assert path.stat().st_mtime_ns == times.st_mtime_ns
    assert world.bad == {"0010": "UnreadableImage", "0080": "TruncatedShard"}
    assert len(world.rows) == 79
    # Only the others are asked for: what came after stays unseen.
    world.replay(monkeypatch, reasons=("UnreadableImage",))
    assert len(world.rows) == 79
    done = world.replay(monkeypatch)
    assert done.tally.written == 70
    assert world.bad == {"0000": "NonContiguousKey", "0010": "UnreadableImage"}
    assert order(world.store) == [key for key in keys(*range(150)) if key != "0010"]
    world.assert_sound()


def test_reading_that_breaks_again_loses_nothing(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(100, big=(1, 50))))
    world = make(str(tmp_path / "x.tar"), **SMALL)
    world.embed()
    before = world.bad
    raised = world.changed(limits={})
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, str(tmp_path / "x.tar"))
        done = raised.replay(monkeypatch)
    assert (done.tally.written, done.tally.quarantined) == (0, 2)
    assert raised.bad == before
    raised.assert_sound()


def test_a_key_that_comes_back_is_no_new_sample(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [*samples(70, big=(1, 66)), *shards.members("0000", 500, size=(30, 30))]
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    world = make(str(tmp_path / "x.tar"), **SMALL)
    world.embed()
    assert world.bad["0000"] == "NonContiguousKey"
    raised = world.changed(limits={})
    raised.replay(monkeypatch)
    assert raised.bad == {"0000": "NonContiguousKey"}
    assert raised.rows == keys(*range(70))
    raised.assert_sound()


def test_raw_files(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "files"
    big = shards.picture(7, (SIDE, SIDE))
    for name, data in shards.sample_files(60, size=(32, 24)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(big if name in ("a/000010.jpg", "b/000011.jpg") else data)
    for name in ("c", "d", "e"):
        (folder / "a" / f"{name}.jpg").write_bytes(shards.picture(8, (SIDE, SIDE)))
    world = make(str(folder), "files", **SMALL)
    world.embed()
    names = ["000010.jpg", "000011.jpg", "c.jpg", "d.jpg", "e.jpg"]
    assert sorted(world.bad) == names
    # Other files of their slices come and go, one of them changes, one goes.
    (folder / "a" / "new.jpg").write_bytes(shards.picture(9, (32, 24)))
    (folder / "a" / "d.jpg").write_bytes(shards.picture(10, (SIDE, SIDE + 1)))
    (folder / "a" / "e.jpg").unlink()
    raised = world.changed(limits={})
    plan = raised.plan()
    assert plan.changed == [str(folder / "a" / "d.jpg")]
    assert plan.removed == [str(folder / "a" / "e.jpg")]
    assert plan.skipped == 2
    read: list[str] = []
    load = FilesReader._load
    monkeypatch.setattr(
        FilesReader, "_load", lambda self, member: read.append(member.name) or load(self, member)
    )
    done = raised.replay(monkeypatch)
    assert done.tally.written == 3
    assert sorted(read) == names[:3]
    assert sorted(raised.bad) == ["d.jpg", "e.jpg"]
    # The job takes what is new and changed.
    raised.embed()
    assert len(raised.rows) == len(set(raised.rows)) == 60 + 3
    assert sorted(raised.bad) == ["e.jpg"]
    assert verify(Store.open(world.store.uri, STORAGE)).problems == []


def test_very_many_raw_files_that_could_not_be_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One fragment when they took no bytes, and more than is read in one go."""
    monkeypatch.setattr("mmray.sources.files.SLICE_ODDS", 1 << 16)
    folder = tmp_path / "files"
    folder.mkdir()
    names = [f"{number:03d}.txt" for number in range(150)]
    for name in names:
        (folder / name).write_text(f"the text of {name}")
    world = make(str(folder), "files", modalities=["text"])
    with monkeypatch.context() as patch:
        patch.setattr(FilesReader, "_load", _denied)
        patch.setattr(Stages, "rows", 1024)
        world.embed()
    assert len(world.bad) == 150
    assert any(group.rows > 64 for group in world.store.quarantine.groups())
    monkeypatch.setattr(Stages, "rows", 64)
    done = world.replay(monkeypatch)
    assert (done.tally.written, world.rows, world.bad) == (150, names, {})
    world.assert_sound()


def _denied(self: FilesReader, member: Any) -> dict[str, bytes]:
    raise PermissionError(f"{member.uri}: access refused (AccessDenied)")


def test_a_file_that_changes_while_it_is_read(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(shards.picture(ord(name), (SIDE, SIDE)))
    world = make(str(folder), "files", **SMALL)
    world.embed()
    raised = world.changed(limits={})
    plan = raised.plan()
    (folder / "b.jpg").write_bytes(shards.picture(1, (30, 30)))
    found = raised.retry(plan)
    assert sum(each.written for each in found) == 2
    assert sum(each.skipped for each in found) == 1
    assert [uri for each in found for uri in each.changed] == [str(folder / "b.jpg")]
    raised.commit(found)
    assert raised.rows == ["a.jpg", "c.jpg"] and list(raised.bad) == ["b.jpg"]
    raised.embed()
    assert raised.rows == ["a.jpg", "b.jpg", "c.jpg"] and raised.bad == {}
    raised.assert_sound()


def test_a_shard_that_changed_is_left_to_the_job(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.tar").write_bytes(shards.tar(samples(10, big=(1,))))
    other = tmp_path / "elsewhere.tar"
    shutil.copy(tmp_path / "a.tar", other)
    world = make(str(tmp_path / "{a,b,c}.tar"), **SMALL)
    world.embed()
    elsewhere = world.changed(source={"kind": "webdataset", "uri": str(other)})
    elsewhere.embed()
    raised = world.changed(limits={})
    first = raised.plan()
    assert (len(first.work), first.skipped, first.elsewhere) == (3, 1, 1)
    (tmp_path / "a.tar").write_bytes(shards.tar(samples(10, big=(1, 2))))
    (tmp_path / "b.tar").unlink()
    found = raised.retry(first)  # planned before: read afterwards
    assert [each.skipped for each in found] == [1, 0, 0]
    plan = raised.plan()
    assert plan.changed == [str(tmp_path / "a.tar")] and plan.removed == [str(tmp_path / "b.tar")]
    assert (plan.skipped, plan.elsewhere) == (3, 1)
    raised.replay(monkeypatch)
    assert len(raised.rows) == 4 * 9 + 1
    assert verify(Store.open(world.store.uri, STORAGE)).problems == []


def test_two_replays_and_a_compaction_at_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(100, big=(1, 70), broken=(2,))))
    (tmp_path / "y.tar").write_bytes(shards.tar([("only.png", shards.bomb(500))]))
    world = make(str(tmp_path / "{x,y}.tar"), **SMALL)
    world.embed()
    raised = world.changed(limits={})
    one, two = raised.retry(raised.plan()), raised.retry(raised.plan())
    assert len(raised.commit(one)) == 2
    assert raised.commit(two) == []
    assert raised.bad == {"0002": "UnreadableImage"}
    raised.assert_sound()
    # The part is merged between the plan and the commit: planned anew, it lands.
    again = make_again(raised, tmp_path)
    plan = again.plan()
    monkeypatch.setattr(loop, "Drive", compacting(again))
    with progress(quiet=True) as show:
        replay = Replay(again.stages, again.committer, lambda left: again.plan(ids=left), show)
        replay.run(plan)
    assert (replay.tally.written, replay.tally.quarantined) == (2, 1)
    assert again.bad.keys() == {"0002"}
    assert verify(Store.open(again.store.uri, STORAGE)).problems == []


def make_again(world: World, folder: Path) -> World:
    """The same with a store of its own, in two parts of one shard."""
    spec = world.spec.model_copy(
        update={"store": world.spec.store.model_copy(update={"uri": str(folder / "again")})}
    )
    stages = stages_of(spec)
    fresh = World(
        spec.model_copy(update={"limits": spec.limits.model_copy(update={"pixels": 100_000})}),
        Store.create(spec.store.uri, STORAGE, stages.columns, world.store.meta),
    )
    (work,) = [w for w in make_plan(fresh.source, fresh.store).work if "x.tar" in w.shard.uri]
    source = open_source(spec.source, STORAGE, spec.limits, Cut(rows=64))
    middle = next(source.read(work.shard, 0, work.stop, set())).span.stop
    for span in ((0, middle), (middle, work.stop)):
        (done,) = fresh.stages.fused(replace(work, start=span[0], stop=span[1]))
        assert isinstance(done, Finished)
        fresh.committer().commit([Change((done.receipt,))])
    return World(spec, fresh.store)


def compacting(world: World) -> type:
    """A drive that merges the parts before its first result is taken."""
    once = iter([True])

    class Compacting(InlineDrive):
        def __init__(self, work: Sequence[Retry], stages: Stages) -> None:
            super().__init__(work, stages)
            if next(once, False):
                assert compact(Store.open(world.store.uri, STORAGE)).merged == 2

    return Compacting


def test_a_part_that_another_engine_merged(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(shards.tar(samples(100, big=(1, 70), broken=(2,))))
    world = make(str(tmp_path / "{a,b,c}.tar"), **SMALL)
    world.embed()
    DeltaTable(world.store.uri).optimize.compact()
    assert [part.attempt for part in Store.open(world.store.uri, STORAGE).parts()] == [None]
    (tmp_path / "b.tar").write_bytes(shards.tar(samples(1)))
    raised = world.changed(limits={})
    done = raised.replay(monkeypatch)
    assert (done.tally.written, done.tally.quarantined) == (4, 2)
    table = Store.open(world.store.uri, STORAGE).quarantine.live()
    assert table.num_rows == 5 and len(raised.rows) == 295
    assert verify(Store.open(world.store.uri, STORAGE)).problems == []
    raised.embed()
    assert len(raised.rows) == 2 * 99 + 1
    raised.assert_sound()


@pytest.mark.parametrize("name", ["ensure", "groups", "apply", "remove"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_step_then_run_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    """A part, a fragment that only the quarantine has, and a shard that was not to be read."""
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(80, big=(1, 70), broken=(2, 30))))
    (tmp_path / "y.tar").write_bytes(
        shards.tar([("one.png", shards.bomb(500)), ("two.png", b"junk")])
    )
    # The second of three fragments has only broken pictures.
    (tmp_path / "z.tar").write_bytes(shards.tar(samples(192, broken=range(64, 128))))
    world = make(str(tmp_path / "{x,y,z}.tar"), **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, str(tmp_path / "z.tar"))
        world.embed()
    before = world.bad
    assert len(before) == 7
    raised = world.changed(limits={})
    found = raised.retry(raised.plan())
    victim = raised.committer()
    step(victim._store if name == "apply" else victim._store.quarantine, name, **{when: kill})
    with pytest.raises(Killed):
        victim.commit([change_of(each) for each in found])
    landed = "one" in raised.rows
    if not landed:
        assert raised.bad == before
    raised.replay(monkeypatch)
    assert len(raised.rows) == 78 + 1 + 128
    assert len(raised.bad) == 2 + 1 + 64
    later = Committer(Store.open(world.store.uri, STORAGE), "later", grace=timedelta(seconds=-1))
    later.reconcile()
    raised.assert_sound()


def test_a_rollback_brings_the_quarantine_back(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(80, big=(1, 70), broken=(2,))))
    (tmp_path / "y.tar").write_bytes(shards.tar([("one.png", shards.bomb(500))]))
    world = make(str(tmp_path / "{x,y}.tar"), **SMALL)
    world.embed()
    world.store.reload()
    version, before = world.store.version, world.bad
    raised = world.changed(limits={})
    raised.replay(monkeypatch)
    assert len(raised.bad) == 1
    then = Store.open(world.store.uri, STORAGE, version).quarantined()
    assert sorted(then["source_key"].to_pylist()) == sorted(before)
    raised.store.rollback(version)
    assert raised.bad == before
    assert verify(raised.store).problems == []
    raised.replay(monkeypatch)
    assert len(raised.bad) == 1 and len(raised.rows) == 80
    raised.assert_sound()


def test_a_changed_file_that_a_replay_had_just_made_good(make: Make, tmp_path: Path) -> None:
    """A job knew it as quarantined, so it would not take out the row that came meanwhile."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        size = (SIDE, SIDE) if name == "b" else (30, 30)
        (folder / f"{name}.jpg").write_bytes(shards.picture(ord(name), size))
    world = make(str(folder), "files", **SMALL)
    world.embed()
    raised = world.changed(limits={})
    found = raised.retry(raised.plan())
    (folder / "b.jpg").write_bytes(shards.picture(5, (30, 30)))
    job = world.committer()
    plan = make_plan(world.source, Store.open(world.store.uri, STORAGE))
    changes = []
    for work in plan.work:
        (done,) = world.stages.fused(work)
        assert isinstance(done, Finished)
        old = plan.replacements[work.shard.key]
        changes.append(Change((done.receipt,), old.remove, old.drop_uris))
    assert raised.commit(found)
    assert job.commit(changes).committed == []
    assert raised.rows == ["a.jpg", "b.jpg", "c.jpg"]
    raised.embed()
    assert raised.rows == ["a.jpg", "b.jpg", "c.jpg"]
    raised.assert_sound()


def test_filtered_ones_leave_the_quarantine(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(10, big=(1, 2))))
    (tmp_path / "y.tar").write_bytes(shards.tar([("one.png", shards.bomb(500))]))
    world = make(str(tmp_path / "{x,y}.tar"), **SMALL)
    world.embed()
    drops = world.changed(limits={}, filter={"min_side": SIDE + 200})
    done = drops.replay(monkeypatch)
    assert sum(done.tally.filtered.values()) == 3 and done.tally.read == 3
    assert drops.bad == {} and len(drops.rows) == 8
    drops.assert_sound()


def test_work_that_never_answers_ends_the_replay(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(10, big=(1,))))
    world = make(str(tmp_path / "x.tar"), **SMALL)
    world.embed()

    def failing(stages: Stages, retry: Retry) -> Iterator[Failed]:
        yield Failed(retry.runs[0].uri, "storage is down", fatal=False)

    monkeypatch.setattr(retrying, "retried", failing)
    with pytest.raises(JobFailed, match="storage is down"):
        world.replay(monkeypatch)
    assert list(world.bad) == ["0001"]


def test_windows_that_are_rows(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One window of `b` failed, and all of `c`: its sound was too long."""
    lengths = {"a": 4, "b": 5, "c": 9, "d": 4}
    entries = [(f"{name}.wav", media.sound(long)) for name, long in lengths.items()]
    (tmp_path / "x.tar").write_bytes(shards.tar(entries))
    rows = {"audio": {"windows": "rows"}}
    world = make(str(tmp_path / "x.tar"), model="Listener", **rows, limits={"seconds": 6})
    encode = toys.Listener.encode_audios

    def refusing(self: toys.Listener, waves: list[Any]) -> Any:
        if any(len(wave) < 16_000 for wave in waves):
            raise RuntimeError("no half windows")
        return encode(self, waves)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.toys.Listener.encode_audios", refusing)
        world.embed()
    assert world.bad == {"b#t=4,5": "RuntimeError", "c": "OversizedAudio"}
    assert len(world.rows) == 2 + 2 + 2
    raised = world.changed(limits={})
    done = raised.replay(monkeypatch)
    assert (done.tally.written, done.tally.quarantined) == (6, 0)
    places = [f"#t={start},{start + 2}" for start in (0, 2, 4, 6)]
    every = [name + place for name in "abcd" for place in places]
    expected = [each for each in every if each[0] == "c" or each[4] in "02"]
    expected += ["b#t=4,5", "c#t=8,9"]
    assert order(world.store) == sorted(expected)
    raised.assert_sound()


def test_parquet(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of several row groups, and a file whose footer could not be read."""
    for name in "ab":
        rows = [
            {"image": shards.picture(seed, (SIDE, SIDE) if seed in (3, 50) else (32, 24))}
            for seed in range(100)
        ]
        rows[60]["image"] = b"junk"
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=40)
    world = make(str(tmp_path / "{a,b}.parquet"), "parquet", keep={}, **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, str(tmp_path / "b.parquet"))
        world.embed()
    assert set(world.bad.values()) == {"DecompressionBomb", "UnreadableImage", "UnreadableShard"}
    raised = world.changed(limits={})
    done = raised.replay(monkeypatch)
    assert (done.tally.written, done.tally.quarantined) == (2 + 99, 2)
    assert len(raised.rows) == 2 * 99
    raised.assert_sound()


def test_a_store_as_source(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caption of a raw file's row is what is encoded; one was too long at first."""
    folder = tmp_path / "files"
    for name, data in shards.sample_files(20, size=(32, 24)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "a" / "long.jpg").write_bytes(shards.picture(99, (32, 24)))
    (folder / "a" / "long.txt").write_bytes(b"very " * 100)
    first = make(str(folder), "files")
    first.embed()
    spec = first.spec.model_dump(mode="json", exclude_defaults=True)
    spec |= {
        "source": {"kind": "store", "uri": spec["store"]["uri"]},
        "store": {"uri": str(tmp_path / "second")},
        "limits": {"characters": 200},
    }
    second = load_spec(spec)
    stages = stages_of(second)
    uri, meta = second.store.uri, first.store.meta
    world = World(second, Store.create(uri, STORAGE, stages.columns, meta))
    world.embed()
    assert list(world.bad) == ["long.jpg"]
    raised = world.changed(limits={})
    assert raised.replay(monkeypatch).tally.written == 1
    assert len(raised.rows) == 21
    raised.assert_sound()


def test_large_parts_are_written_as_several(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tar").write_bytes(shards.tar(samples(200, big=(1,), broken=range(64, 130))))
    world = make(str(tmp_path / "x.tar"), **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, str(tmp_path / "x.tar"))
        world.embed()
    monkeypatch.setattr(retrying, "TARGET", 4096)
    world.replay(monkeypatch)
    assert len(Store.open(world.store.uri, STORAGE).parts()) > 1
    assert len(world.rows) == 133 and len(world.bad) == 67
    world.assert_sound()
