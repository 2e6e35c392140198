"""Samples that end their process: which of them is guilty, and when it's no sample's fault."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from mmray.encoders import EncodeOptions, describe
from mmray.errors import JobFailed, SampleError
from mmray.flow.batch import Answer, Batch, Finished, Timer, Work, joined
from mmray.flow.careful import IN_A_ROW, WORKER_DIED, Careful
from mmray.flow.child import Child, Died
from mmray.flow.plan import Plan
from mmray.flow.run import DEADLY, Flow
from mmray.flow.stages import Stages
from mmray.sources import Fragment, Sample, Span, open_source
from mmray.specs import load_spec
from mmray.storage import Storage
from mmray.store import StoreColumns
from mmray.store.parts import read_part
from tests import shards

SPAN = Span("0" * 16, "1" * 8, 0, 100)
URI = "s3://b/x.tar"


def fragment(keys: Iterable[str]) -> Fragment:
    return Fragment(SPAN, [Sample(URI, key, "etag") for key in keys])


class Machine:
    """Processes that die when told: the n-th that sees a key, or those that are to start."""

    def __init__(self, deadly: dict[str, int] | None = None, starts: int = 0) -> None:
        self.deadly = dict(deadly or {})
        """Key to how often it ends what takes it."""
        self.failing = starts
        """Starts that end before they are done."""
        self.started = 0
        self.asked: list[str] = []

    def start(self) -> Machine:
        self.started += 1
        if self.failing:
            self.failing -= 1
            raise Died("decode", "SIGABRT")
        return self

    def ask(self, fragment: Fragment, uri: str) -> Answer:
        keys = [each.source_key for each in fragment.samples if each.error is None]
        self.asked.append("".join(keys))
        for key in keys:
            if self.deadly.get(key, 0) > 0:
                self.deadly[key] -= 1
                raise Died("encode", "SIGKILL")
        batch = Batch(
            span=fragment.span,
            shard_uri=uri,
            samples=list(fragment.samples),
            columns={"caption": [each.source_key for each in fragment.samples]},
            inputs={},
            keys=[None] * len(fragment.samples),
            vectors={"text": [None] * len(fragment.samples)},
        )
        return Answer(batch, len(keys), {"encode": 1.0})


ALWAYS = 1_000


def taken(machine: Machine, *fragments: str) -> dict[str, str]:
    """Key to error type of the samples in quarantine; all are there, in order."""
    take, timer = Careful(machine.start), Timer()
    found: dict[str, str] = {}
    for keys in fragments:
        batch, encoded = take(fragment(keys), URI, timer)
        assert [each.source_key for each in batch.samples] == batch.columns["caption"] == [*keys]
        assert len(batch.keys) == len(batch.vectors["text"]) == len(keys)
        bad = {s.source_key: s.error.type for s in batch.samples if s.error is not None}
        assert encoded == len(keys) - len(bad) and batch.span == SPAN
        found |= bad
    return found


def test_nothing_dies() -> None:
    machine = Machine()
    assert taken(machine, "abc", "d") == {}
    assert (machine.started, machine.asked) == (1, ["abc", "d"])


def test_the_guilty_one_is_found_and_the_others_pass() -> None:
    machine = Machine({"c": ALWAYS})
    assert taken(machine, "abcde", "fg") == {"c": "WorkerDied"}
    assert machine.asked == ["abcde", "a", "b", "c", "c", "", "d", "e", "fg"]
    assert machine.started == 4


def test_two_in_one_fragment_and_one_in_the_next() -> None:
    machine = Machine({"a": ALWAYS, "d": ALWAYS, "g": ALWAYS})
    assert taken(machine, "abcd", "ef", "g") == dict.fromkeys("adg", "WorkerDied")


@pytest.mark.parametrize(
    "deadly",
    [
        {"b": 1},  # killed from outside with all of them in hand
        {"b": 2},  # and once more with one
        {"a": 2, "b": 1, "c": 1},  # and with another each time
    ],
)
def test_who_is_killed_from_outside_is_not_blamed(deadly: dict[str, int]) -> None:
    assert taken(Machine(deadly), "abc", "def") == {}


def test_a_death_among_others_counts_for_nothing() -> None:
    machine = Machine({"b": 3})
    assert taken(machine, "abc") == {"b": "WorkerDied"}
    machine = Machine({"b": 2})
    assert taken(machine, "abc", "b") == {}


def test_the_words_say_what_is_known() -> None:
    batch, _ = Careful(Machine({"b": ALWAYS}).start)(fragment("ab"), URI, Timer())
    error = batch.samples[1].error
    assert error is not None and error.stage == "encode"
    assert error.message == "each of 2 processes that had it alone in hand ended with SIGKILL"


def test_an_error_of_reading_stays_what_it_is() -> None:
    one = fragment("ab")
    one.samples[0].error = SampleError("read", "BadText", "not UTF-8")
    batch, encoded = Careful(Machine({"b": ALWAYS}).start)(one, URI, Timer())
    assert encoded == 0
    assert [s.error.type for s in batch.samples if s.error] == ["BadText", "WorkerDied"]


def test_one_after_another_is_no_samples_fault() -> None:
    keys = "abcdefghijklmnop"
    machine = Machine(dict.fromkeys(keys, ALWAYS))
    with pytest.raises(JobFailed, match=r"8 samples in a row .* with SIGKILL: s3://b/x\.tar h"):
        taken(machine, keys)
    assert machine.started == 1 + 2 * IN_A_ROW
    machine = Machine(dict.fromkeys(keys, ALWAYS))
    with pytest.raises(JobFailed, match="samples in a row"):
        taken(machine, *keys)


def test_one_that_passes_ends_the_row() -> None:
    row = "abcdefg"
    assert len(row) == IN_A_ROW - 1
    deadly = dict.fromkeys(row.upper() + row, ALWAYS)
    assert len(taken(Machine(deadly), row + "-" + row.upper())) == 2 * len(row)
    assert len(taken(Machine(deadly), row, "--", row.upper())) == 2 * len(row)


def test_a_process_that_does_not_start() -> None:
    assert taken(Machine(starts=1), "abc") == {}
    with pytest.raises(JobFailed, match="ended with SIGABRT while it loaded the encoder"):
        taken(Machine(starts=ALWAYS), "abc")


def test_seconds_are_counted() -> None:
    timer = Timer()
    Careful(Machine({"b": ALWAYS}).start)(fragment("ab"), URI, timer)
    assert timer.take() == {"encode": 2.0}


def test_joined_batches_are_one() -> None:
    def batch(keys: str, filtered: dict[str, int]) -> Batch:
        samples = fragment(keys).samples
        vectors = {"image": [np.full(2, ord(key), np.float32) for key in keys]}
        names = {"x": [*keys]}
        return Batch(SPAN, URI, samples, names, {}, [b"k"] * len(keys), filtered, {**vectors})

    whole = joined([batch("a", {"small": 1}), batch("", {"small": 2, "dark": 1}), batch("bc", {})])
    assert [each.source_key for each in whole.samples] == whole.columns["x"] == ["a", "b", "c"]
    assert [float(each[0]) for each in whole.vectors["image"] if each is not None] == [97, 98, 99]
    assert (whole.keys, whole.filtered) == ([b"k"] * 3, {"small": 3, "dark": 1})


# --- real processes -----------------------------------------------------------------------------


def stages_of(folder: Path, model: str, **options: Any) -> Stages:
    spec = load_spec(
        {
            "job": "embed",
            "source": {"kind": "webdataset", "uri": str(folder / "*.tar")},
            "encoder": {"kind": "import", "model": f"tests.toys:{model}", "options": options},
            "store": {"uri": str(folder / "store")},
            "keep": ["caption"],
        }
    )
    encode = EncodeOptions()
    card = describe(spec.encoder, encode)
    columns = StoreColumns(tuple(card.dims), dict(spec.keep))
    root = str(folder / "store")
    return Stages(spec, card, encode, Storage(), columns, root, tuple(card.dims), careful=True)


def run(stages: Stages) -> list[Any]:
    """What comes of the source's shards."""
    found: list[Any] = []
    source = open_source(stages.spec.source, stages.storage, stages.spec.limits)
    for shard in source.shards():
        found += stages.fused(Work(shard, 0, shard.size))
    return found


Write = Callable[[dict[str, bytes]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a tar of ten samples, in which some members are others."""

    def tar(other: dict[str, bytes]) -> Path:
        entries = [m for seed in range(10) for m in shards.members(f"{seed:06d}", seed)]
        entries = [(name, other.get(name, data)) for name, data in entries]
        (tmp_path / "x.tar").write_bytes(shards.tar(entries))
        return tmp_path

    return tar


RED = shards.encoded(Image.new("RGB", (40, 40), (255, 0, 0)), "JPEG")


def test_stages_go_on_without_the_guilty(write: Write) -> None:
    folder = write({"000003.jpg": RED, "000007.jpg": shards.picture(7) + b"deadly"})
    stages = stages_of(folder, "DeadlyDecoder")
    (done,) = run(stages)
    assert isinstance(done, Finished)
    bad = {row.source_key: row for row in done.receipt.quarantined}
    assert {key: (row.stage, row.error_type) for key, row in bad.items()} == {
        "000003": ("encode", "WorkerDied"),
        "000007": ("decode", "WorkerDied"),
    }
    assert "SIGKILL" in bad["000003"].message and "SIGSEGV" in bad["000007"].message
    assert (done.receipt.rows, done.encoded) == (8, 8)
    assert set(done.seconds) == {"read", "decode", "encode", "write"}
    table = read_part(stages.storage, stages.root, done.receipt.path)
    assert table["source_key"].to_pylist() == [
        f"{seed:06d}" for seed in range(10) if seed not in (3, 7)
    ]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("Fatal", "ended with exit code 4 while it loaded the encoder"),
        ("Unloadable", "the weights are torn"),
    ],
)
def test_an_encoder_that_does_not_load(write: Write, model: str, words: str) -> None:
    (failed,) = run(stages_of(write({}), model))
    assert failed.fatal and words in failed.message, failed


def test_a_fault_of_ours_does_not_pass_for_a_death(write: Write) -> None:
    stages = stages_of(write({}), "Toy")
    child = Child(stages)
    with pytest.raises(JobFailed, match="a fault in mmray(.|\n)*Traceback"):
        child.ask(Fragment(SPAN, [None]), URI)  # type: ignore[list-item]


def test_a_killed_process_is_started_again(write: Write) -> None:
    """And gives the rows that a worker gives which has no other process."""
    stages = stages_of(write({"000004.jpg": b"not a picture"}), "Toy")
    before = run(stages)
    (process,) = children()
    process.kill()
    after = run(stages)
    assert len(children()) == 1
    stages.careful = False
    tables = []
    for (done,) in (before, after, run(stages)):
        assert [row.error_type for row in done.receipt.quarantined] == ["UnreadableImage"]
        tables.append(read_part(stages.storage, stages.root, done.receipt.path))
    assert tables[0].equals(tables[2]) and tables[1].equals(tables[2])
    del stages
    assert children() == []


def children() -> list[psutil.Process]:
    """This process's own, without those that an earlier test's traceback kept."""
    gc.collect()
    every = psutil.Process().children()
    return [each for each in every if "mmray.flow.child" in each.cmdline()]


def test_budget_counts_the_deadly() -> None:
    """A job in which many samples end their process does not go on for hours."""
    spec = SimpleNamespace(errors=SimpleNamespace(max_fraction=0.1))
    flow = Flow(SimpleNamespace(spec=spec), None, Plan, None)  # type: ignore[arg-type]
    flow.tally.written, flow.tally.quarantined = 100, DEADLY
    flow.tally.errors = Counter({WORKER_DIED: DEADLY - 1, "BadText": 1})
    flow._check_budget(at_end=False)
    flow.tally.errors[WORKER_DIED] += 1
    with pytest.raises(JobFailed, match="20 of 120 samples are in quarantine"):
        flow._check_budget(at_end=False)
    flow.tally.written = 1_000
    flow.tally.quarantined = 20
    flow._check_budget(at_end=False)
