"""Folders of raw files that change between runs: whatever comes, goes, changes and comes back, the
store has each file once, as it is now."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mmray.encoders import EncodeOptions, describe
from mmray.flow.batch import Finished, Work
from mmray.flow.plan import Plan, make_plan
from mmray.flow.stages import Stages
from mmray.sources import open_source
from mmray.specs import load_spec
from mmray.storage import Storage
from mmray.store import Change, Committer, Store, StoreColumns, StoreMeta
from mmray.store.compact import compact
from mmray.store.parts import Receipt
from mmray.store.quarantine import Quarantine
from mmray.store.verify import verify

STORAGE = Storage()
LEAST = 5
"""Characters of a text that is not left out."""
BAD = b"\xff\xfe\xfa text"
STEPS = [(Store, "apply"), (Quarantine, "_append"), (Quarantine, "_delete")]
"""What a commit writes."""


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@dataclass
class Folder:
    """`root/in` with texts, embedded into `root/store` without Ray."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / "in" / f"{name}.txt"

    def put(self, name: str, text: str | bytes = "") -> None:
        """Write a file. The same content has the same etag, as an object's is in a bucket."""
        data = (text or f"the text of {name}").encode() if isinstance(text, str) else text
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        moment = 1_700_000_000 + sum(data)
        os.utime(path, (moment, moment))

    def job(self, uri: str = "in") -> Job:
        return Job(self.root, uri)

    @property
    def store(self) -> Store:
        return Store.open(str(self.root / "store"), STORAGE)

    def texts(self) -> dict[str, str]:
        """What the store has, by file."""
        rows = self.store.to_arrow(["source_uri", "caption"]).to_pylist()
        assert verify(self.store).problems == []
        return {self.name(row["source_uri"]): row["caption"] for row in rows}

    def bad(self) -> set[str]:
        """What is in quarantine."""
        return {self.name(uri) for uri, _, _ in self.store.quarantine.members()}

    def name(self, uri: str) -> str:
        return str(Path(uri).relative_to(self.root / "in")).removesuffix(".txt")


class Job:
    """One spec's runs, each in this process."""

    def __init__(self, root: Path, uri: str) -> None:
        self.spec = load_spec(
            {
                "job": "embed",
                "source": {"kind": "files", "uri": str(root / uri)},
                "encoder": {"kind": "import", "model": "tests.toys:Toy"},
                "store": {"uri": str(root / "store")},
                "keep": ["caption"],
                "modalities": ["text"],
                "filter": {"min_characters": LEAST},
            }
        )
        options = EncodeOptions()
        card = describe(self.spec.encoder, options)
        columns = StoreColumns(("text",), dict(self.spec.keep))
        uri = self.spec.store.uri
        self.stages = Stages(self.spec, card, options, STORAGE, columns, uri, ("text",))
        meta = StoreMeta(card.fingerprint, "toy", {"text": 16})
        self.store = Store.create(uri, STORAGE, columns, meta)

    def plan(self, prune: bool = False) -> Plan:
        self.store.reload()
        source = open_source(self.spec.source, STORAGE, self.spec.limits)
        return make_plan(source, self.store, prune=prune)

    def uris(self) -> list[str]:
        """Of the files that it would look at."""
        return [member.uri for work in self.plan().work for member in work.shard.members]

    def run(self, *, prune: bool = False, commits: int | None = None) -> Plan:
        """As `mmray run` does it; killed after so many `commits`."""
        plan = self.plan(prune)
        committer = Committer(self.store, "run", self.store.version, patience=5)
        for done, change in enumerate(self._changes(plan, prune)):
            if done == commits:
                return plan
            committer.commit([change])
        committer.reconcile()
        return plan

    def _changes(self, plan: Plan, prune: bool) -> Iterator[Change]:
        for work in plan.work:
            receipts = self.receipts(work)
            old = plan.replacements.get(work.shard.key)
            if old is not None:
                yield Change(receipts, old.remove, old.drop_uris)
            else:
                yield from (Change((receipt,)) for receipt in receipts)
        if prune and plan.prunes:
            yield from self.plan(prune).prunes

    def receipts(self, work: Work) -> tuple[Receipt, ...]:
        """Of a part for every other file, so that a kill may leave half of a slice."""
        found = []
        for start in range(work.start, work.stop, 2):
            each = replace(work, start=start, stop=min(start + 2, work.stop))
            (done,) = self.stages.fused(each)
            assert isinstance(done, Finished)
            found.append(done.receipt)
        return tuple(found)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_file_that_was_pruned_and_comes_back_is_embedded_again(folder: Folder) -> None:
    for name in "abc":
        folder.put(name)
    job = folder.job()
    job.run()
    shutil.move(folder.path("b"), folder.root / "b.txt")
    job.run(prune=True)
    assert folder.texts().keys() == {"a", "c"}
    shutil.move(folder.root / "b.txt", folder.path("b"))
    assert [work.shard.size for work in job.run(prune=True).work] == [1]
    assert folder.texts().keys() == {"a", "b", "c"}
    assert job.plan().work == []


def test_a_file_that_is_restored_gets_its_old_vector_back(folder: Folder) -> None:
    for name in "abc":
        folder.put(name)
    job = folder.job()
    job.run()
    for text in ("other words", "", "other words", "short"[:3], "", "no"):
        folder.put("b", text)
        job.run()
        shown = text or "the text of b"
        assert folder.texts().get("b") == (shown if len(shown) >= LEAST else None)
        assert job.plan().work == []


def test_a_file_that_was_left_out_is_left_alone(folder: Folder) -> None:
    folder.put("a")
    folder.put("b")
    job = folder.job()
    job.run()
    folder.put("b", "x")
    job.run()
    assert folder.texts().keys() == {"a"}
    assert job.plan().work == []


def test_half_a_slice_that_is_listed_again_is_not_done_twice(folder: Folder) -> None:
    for name in "abcd":
        folder.put(name)
    job = folder.job()
    job.run(commits=1)
    folder.put("e")
    job.run()
    folder.path("e").unlink()
    assert job.run(prune=True).work == []
    assert folder.texts().keys() == set("abcd")


@pytest.mark.parametrize("year", ["2023", "2024", "2025"])
def test_a_folder_within_the_folder_of_another_job(folder: Folder, year: str) -> None:
    """They share parts: the rows of one are not the other's to remove or to do again."""
    names = {f"{each}/{name}" for each in ("2023", "2024", "2025") for name in "abc"}
    for name in names:
        folder.put(name)
    folder.job().run()
    mine = folder.job(f"in/{year}")
    plan = mine.run(prune=True)
    assert (plan.work, plan.removed, plan.skipped_rows) == ([], [], 3)
    folder.path(f"{year}/a").unlink()
    assert len(mine.run(prune=True).removed) == 1
    assert folder.texts().keys() == names - {f"{year}/a"}


@pytest.mark.parametrize("between", ["no", ""])
def test_a_bad_file_that_comes_back_is_in_quarantine_again(folder: Folder, between: str) -> None:
    """Its row went with the quarantine's alone, while the part went on covering it."""
    folder.put("a")
    folder.put("b", BAD)
    job = folder.job()
    job.run()
    for text in (None, between, None, between):
        folder.path("b").unlink()
        if text is not None:
            folder.put("b", text)
        job.run(prune=True)
        assert folder.bad() == set()
        folder.put("b", BAD)
        job.run(prune=True)
        assert (folder.texts().keys(), folder.bad()) == ({"a"}, {"b"})
        assert job.plan().work == []


@pytest.fixture
def one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of several fragments, two files each."""

    def receipts(self: Job, work: Work) -> tuple[Receipt, ...]:
        found = [each for each in self.stages.fused(work) if isinstance(each, Finished)]
        return tuple(each.receipt for each in found)

    monkeypatch.setattr(Job, "receipts", receipts)
    monkeypatch.setattr(Stages, "rows", 2)


@pytest.mark.parametrize("rival", [False, True], ids=["killed", "two drivers"])
def test_quarantined_ones_stay_as_a_row_of_their_part_leaves(
    folder: Folder, one_part: None, monkeypatch: pytest.MonkeyPatch, rival: bool
) -> None:
    """They are carried over before the commit: whatever comes between, they are in quarantine."""
    for name in "abcd":
        folder.put(name, "" if name in "ab" else BAD)
    folder.job().run()
    assert len(folder.store.parts()) == 1
    folder.path("b").unlink()
    with monkeypatch.context() as patch:
        once = interrupt(patch, (Store, "apply"), 1, folder.job() if rival else None, prune=True)
        with once:
            folder.job().run(prune=True)
    assert folder.bad() == {"c", "d"}
    assert folder.job().run(prune=True).work == []
    assert (folder.texts().keys(), folder.bad()) == ({"a"}, {"c", "d"})


def test_a_plan_asks_for_the_quarantine_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmray.sources.files.SLICE_ROWS", 2)
    for name in "abcdefgh":
        folder.put(name, BAD)
    job = folder.job()
    job.run()
    asked: list[int] = []
    inner = Quarantine.members
    monkeypatch.setattr(Quarantine, "members", lambda self: asked.append(1) or inner(self))
    assert job.plan().skipped_quarantined == 8
    assert len(asked) == 1


@contextmanager
def interrupt(
    patch: pytest.MonkeyPatch,
    step: tuple[type, str],
    at: int,
    rival: Job | None,
    *,
    before: bool = True,
    prune: bool,
) -> Iterator[None]:
    """Around the `at`-th call of a step of a commit: another job runs, or the process is killed."""
    owner, name = step
    inner = getattr(owner, name)
    left = at

    def wrapped(*given: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        mine = left == 0
        done = None if mine and before else inner(*given, **more)
        if mine and rival is not None:
            rival.run(prune=prune)
        elif mine:
            raise Killed
        return inner(*given, **more) if mine and before else done

    patch.setattr(owner, name, wrapped)
    with suppress(Killed):
        yield


@pytest.mark.parametrize("seed", range(24))
def test_whatever_happens_each_file_is_there_once(
    folder: Folder, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files come, go, change and come back, runs are killed between any two steps, others commit
    between them, and jobs share the folder."""
    rng = random.Random(seed)
    monkeypatch.setattr(Stages, "rows", rng.choice([1, 2, 64]))
    names = [f"{year}/{letter}" for year in ("1", "2") for letter in "abcd"]
    contents: list[str | bytes] = ["", "other words", "no", BAD]
    for name in names:
        folder.put(name)
    jobs = [folder.job(), folder.job("in/1"), folder.job("in/2")]
    for _ in range(12):
        for name in rng.sample(names, rng.randint(0, 3)):
            if rng.random() < 0.4:
                folder.path(name).unlink(missing_ok=True)
            else:
                folder.put(name, rng.choice(contents))
        for year in ("1", "2"):  # an empty source is refused
            folder.put(f"{year}/stays")
        for _ in range(rng.randint(0, 2)):
            job, prune = rng.choice(jobs), rng.random() < 0.5
            if rng.random() < 0.5:
                job.run(prune=prune, commits=rng.randint(0, 4))
                continue
            rival = rng.choice([None, None, folder.job(), folder.job("in/1")])
            at, before = rng.randint(1, 3), rng.random() < 0.5
            step = rng.choice(STEPS)
            with (
                monkeypatch.context() as patch,
                interrupt(patch, step, at, rival, before=before, prune=prune),
            ):
                job.run(prune=prune)
        if rng.random() < 0.2:
            compact(folder.store)
        jobs[0].run(prune=True)
        here = {name: folder.path(name) for name in names if folder.path(name).exists()}
        good = {name: path.read_bytes() for name, path in here.items()}
        bad = {name for name, data in good.items() if not data.isascii()}
        texts = {name: data.decode() for name, data in good.items() if name not in bad}
        found = folder.texts()
        assert found.pop("1/stays") and found.pop("2/stays")
        assert found == {name: text for name, text in texts.items() if len(text) >= LEAST}
        assert folder.bad() == bad
        # A file that was left out has no row to be known by: it may be looked at once more.
        jobs[0].run(prune=True)
        assert jobs[0].plan().work == []
        again = {folder.name(uri) for job in jobs[1:] for uri in job.uris()}
        assert again <= {name for name, text in texts.items() if len(text) < LEAST}
