"""What `mmray plan` reckons with: the pool, the time of uneven shards, samples that are left."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from mmray.cli import plan as cli
from mmray.errors import RefusedError, SpecError
from mmray.flow.batch import Work
from mmray.jobs import left
from mmray.jobs.forecast import (
    FINISH,
    JOIN,
    RAY_INIT,
    RAY_WAITS,
    Layout,
    Machines,
    Speed,
    forecast,
    layout,
    makespan,
)
from mmray.jobs.plan import cpus_here, plan, speed_of, spread
from mmray.jobs.planned import PlanResult
from mmray.jobs.probe import Seen, Timed
from mmray.sources import Cut, open_source
from mmray.specs import EmbedSpec, load_spec
from mmray.specs.common import Limits, Resources
from mmray.storage import Storage
from mmray.store import Change
from tests import runs, shards
from tests.unit.store_samples import SIZE, committer, new_store, part, shard

STORAGE = Storage()
SPEED = Speed(
    stages={"read": 0.01, "decode": 0.03, "encode": 0.05, "write": 0.01},
    imports={"ray": 1.0, "data": 2.0, "mmray": 1.0},
    load=8.0,
    warm_up=2.0,
)


@pytest.mark.parametrize(
    ("fields", "count", "nodes", "actors", "tasks"),
    [
        ({}, 100, 1, 8, 0),
        ({}, 3, 1, 3, 0),
        ({}, 100, 4, 32, 0),
        ({"cpus": 3}, 100, 1, 2, 0),
        ({"cpus": 16}, 100, 1, 1, 0),
        ({"pool": 2}, 100, 1, 2, 0),
        ({"pool": 2}, 1, 1, 1, 0),
        ({"pool": 20}, 100, 1, 8, 0),
        ({"pool": (1, 5)}, 100, 1, 5, 0),
        ({"gpus": 1}, 100, 1, 2, 6),
        ({"gpus": 0.5}, 100, 1, 4, 4),
        ({"gpus": 1, "decode_cpus": 2}, 100, 1, 2, 3),
        ({"gpus": 0.25}, 100, 1, 7, 1),
        ({"gpus": 1}, 3, 1, 2, 3),
    ],
)
def test_the_pool_fits_the_machines(
    fields: dict[str, Any], count: int, nodes: int, actors: int, tasks: int
) -> None:
    made = layout(Resources(**fields), count, Machines(nodes, 8.0 * nodes, 2.0 * nodes))
    assert (made.actors, made.decode_tasks) == (actors, tasks)
    assert made.kind == ("split" if "gpus" in fields else "fused")


def test_workers_take_shards_in_turns() -> None:
    assert makespan([5, 1, 1, 1], 2) == 5
    assert makespan([1, 1, 1, 5], 2) == 6
    assert makespan([4, 3, 2, 1], 1) == 10
    assert makespan([4, 3], 9) == 4
    assert makespan([], 2) == 0


def test_a_fused_run_is_start_up_and_the_slowest_worker() -> None:
    made = Layout("fused", 2, 1.0, 0.0)
    found = forecast(made, [100, 100, 100, 500], SPEED, plan=0.5, joins=False)
    assert found.work == pytest.approx(60)  # one worker has 100 and then 500, 0.1 s each
    assert found.tail == pytest.approx(60 - 40)
    assert found.startup["plan"] == 0.5
    assert found.startup["ray"] == pytest.approx(1.0 + RAY_WAITS + 4.0 * RAY_INIT)
    assert found.startup["model"] == 10.0
    assert found.seconds == pytest.approx(sum(found.startup.values()) + 60 + FINISH)
    assert found.bottleneck == "encode" and "encode" in found.advice
    joined = forecast(made, [100, 100, 100, 500], SPEED, plan=0.5, joins=True)
    assert found.seconds - joined.seconds == pytest.approx(RAY_WAITS + 4.0 * (RAY_INIT - JOIN))


def test_a_split_run_is_its_slower_side() -> None:
    made = Layout("split", 1, 1.0, 1.0, decode_tasks=2, decode_cpus=1.0)
    samples = [1000.0] * 10
    found = forecast(made, samples, SPEED, plan=0.0, joins=False)
    assert found.work == pytest.approx(600)  # 10,000 times 0.06 on one GPU; decoding takes 200
    assert found.bottleneck == "encode" and "GPU" in found.advice
    quick = replace(SPEED, stages=SPEED.stages | {"encode": 0.001})
    found = forecast(made, samples, quick, plan=0.0, joins=False)
    assert found.work == pytest.approx(200)
    assert found.bottleneck == "decode" and "CPUs for each GPU" in found.advice


def test_a_small_run_is_mostly_start_up() -> None:
    found = forecast(Layout("fused", 2, 1.0, 0.0), [10, 10], SPEED, plan=0.1, joins=False)
    assert found.bottleneck == "startup" and "start-up" in found.advice


def test_cpus_without_shards_are_said() -> None:
    made = layout(Resources(), 2, Machines(1, 8.0, 0.0))
    found = forecast(made, [1e5, 1e5], SPEED, plan=0.1, joins=False)
    assert "6 CPUs have no shard" in found.advice


def test_first_fragments_only_tell_of_the_warm_up() -> None:
    def fragment(samples: int, seconds: float) -> Timed:
        return Timed(0, 0, 1, samples, samples, {"encode": seconds})

    imports = {"ray": 1.0, "data": 2.0, "mmray": 3.0}
    one = Seen(imports, 4.0, fragments=[fragment(10, 5.0), fragment(10, 1.0), fragment(30, 3.0)])
    other = Seen(imports, 6.0, fragments=[fragment(10, 3.0), fragment(10, 1.0)])
    speed = speed_of([one, other])
    assert speed.stages["encode"] == pytest.approx(0.1)
    assert (speed.load, speed.warm_up) == (5.0, pytest.approx(3.0))
    alone = speed_of([replace(other, fragments=[fragment(10, 3.0)])])
    assert (alone.stages["encode"], alone.warm_up) == (pytest.approx(0.3), 0.0)


def test_a_probe_draws_from_all_over_the_source() -> None:
    assert spread(3, 16) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
    assert cpus_here() >= 1


@pytest.fixture
def result() -> PlanResult:
    example = {"source_uri": "/a.tar", "source_key": "k", "stage": "decode"}
    example |= {"error_type": "BadImage", "message": "no picture"}
    return PlanResult.model_validate(
        {
            "job": "embed",
            "status": "work",
            "shards": {"total": 9, "finished": 5, "changed": 1, "removed": 0, "left": 4},
            "rows": {"value": 12345, "estimate": True},
            "fragments": {"value": 7, "estimate": False},
            "rows_skipped": 300,
            "rows_quarantined": 2,
            "bytes_per_row": 2048.0,
            "layout": {"kind": "split", "nodes": 2, "actors": 3, "cpus": 1.0, "gpus": 1.0}
            | {"decode_tasks": 4, "decode_cpus": 1.0},
            "probe": {"processes": 1, "device": "cpu", "seconds": 9.0, "samples": 64, "read": 128}
            | {"stages": {"encode": 0.0125}, "quarantined": 1, "examples": [example]},
            "startup": {"ray": 5.0},
            "work": 100.0,
            "seconds": 105.0,
            "node_hours": 0.0583,
            "cost": 1.5,
            "bottleneck": "encode",
            "advice": "more GPUs",
            "notes": ["there is no GPU here"],
        }
    )


def test_people_see_what_is_an_estimate(result: PlanResult) -> None:
    facts = cli._facts(result)
    assert facts["shards"] == "4 of 9 have work left (5 finished, 1 changed)"
    assert facts["left"] == "~12,345 rows in 7 fragments, ~2.0 KiB each"
    assert "2 of them in quarantine" in facts["done"]
    assert facts["layout"].startswith("split, 4 decode tasks of 1 CPU feed 3 actors")
    assert "encode 12.50 ms" in facts["probe"]
    assert "BadImage: no picture" in facts["quarantined"]
    assert facts["time"] == "~1 min 45 s" and facts["cost"].startswith("~1.50")
    assert facts["note"] == "there is no GPU here"
    done = cli._facts(result.model_copy(update={"status": "nothing", "notes": []}))
    assert list(done) == ["shards", "done", "left"] and done["left"] == "nothing to do"


@pytest.mark.parametrize(
    ("words", "field"), [("encoder.kind=nosuch", "encoder"), ("source.uri=/none/a.tar", None)]
)
def test_a_wrong_spec_exits_2(tmp_path: Path, words: str, field: str | None) -> None:
    app = typer.Typer()
    app.command()(cli.plan)
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(runs.embed_spec("/none/b.tar", str(tmp_path / "store"))))
    done = CliRunner().invoke(app, [str(path), "--json", "--set", words])
    line = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, line["status"], line["job"]) == (2, "refused", "embed")
    assert field is None or line["field"].startswith(field)


def spec_of(source: dict[str, Any], tmp_path: Path) -> EmbedSpec:
    return load_spec(runs.embed_spec("", str(tmp_path / "store")) | {"source": source})


def work_of(spec: EmbedSpec) -> list[Work]:
    found = open_source(spec.source, STORAGE, Limits()).shards()
    return [Work(shard, 0, shard.size) for shard in found]


def fragments(spec: EmbedSpec, work: list[Work], rows: int, most: int) -> list[Timed]:
    """The first fragments of each piece of work, as a probe reads them."""
    source = open_source(spec.source, STORAGE, Limits(), Cut(rows))
    found = []
    for place, one in enumerate(work):
        for number, each in enumerate(source.read(one.shard, one.start, one.stop, set())):
            if number == most:
                break
            count = len(each.samples)
            found.append(Timed(place, each.span.start, each.span.stop, count, count, {}))
    return found


def test_files_are_counted(tmp_path: Path) -> None:
    for name, data in shards.sample_files(30).items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    spec = spec_of({"kind": "files", "uri": str(tmp_path / "in")}, tmp_path)
    found = left.count(spec, STORAGE, work_of(spec))
    assert found is not None
    assert (sum(found.samples), found.exact) == (30, True)


@pytest.fixture
def parquet(tmp_path: Path) -> EmbedSpec:
    (tmp_path / "in").mkdir()
    for number in range(8):
        table = pa.table({"caption": [f"a caption {i}" for i in range(10 + number)]})
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet", row_group_size=4)
    return spec_of({"kind": "parquet", "uri": str(tmp_path / "in")}, tmp_path)


def test_parquet_is_counted_by_its_footers(parquet: EmbedSpec, tmp_path: Path) -> None:
    work = work_of(parquet)
    work[0] = replace(work[0], start=4)
    found = left.count(parquet, STORAGE, work)
    assert found is not None and found.exact
    assert found.samples == [6, *range(11, 18)]
    (tmp_path / "in" / "3.parquet").write_bytes(b"PAR1 torn")
    torn = left.count(parquet, STORAGE, work)
    assert torn is not None and torn.samples[3] == 1  # its one error


def test_beyond_the_cap_footers_stand_for_others(
    parquet: EmbedSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(left, "MOST", 4)
    found = left.count(parquet, STORAGE, work_of(parquet))
    assert found is not None and not found.exact and "4 files" in found.note
    assert found.samples == [10, 10, 12, 12, 14, 14, 16, 16]


@pytest.mark.parametrize("kind", ["webdataset", "jsonl"])
@pytest.mark.parametrize("packed", [False, True])
def test_of_bytes_samples_are_estimated(kind: str, packed: bool, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        count, first = 40 + 40 * number, 1000 * number
        data, name = shards.sample_tar(count, first=first), f"{number}.tar"
        if kind == "jsonl":
            words = (shards.caption(seed) for seed in range(first, first + count))
            data = b"".join(b'{"caption": "%s"}\n' % each.encode() for each in words)
            name = f"{number}.jsonl"
        path = tmp_path / "in" / (name + ".gz" * packed)
        path.write_bytes(shards.gzipped(data) if packed else data)
    spec = spec_of({"kind": kind, "uri": str(tmp_path / "in")}, tmp_path)
    work = work_of(spec)
    assert left.count(spec, STORAGE, work) is None
    found = left.estimate(STORAGE, work, fragments(spec, work, rows=16, most=2))
    assert not found.exact
    assert sum(found.samples) == pytest.approx(400, rel=0.3 if packed else 0.1)
    assert found.samples[3] > 2 * found.samples[0]
    assert ("guessed" in found.note) == packed
    half = [replace(one, start=one.shard.size // 2) for one in work]
    if not packed:
        rest = left.estimate(STORAGE, half, fragments(spec, work, rows=16, most=2))
        assert sum(rest.samples) == pytest.approx(sum(found.samples) / 2, rel=0.01)


def test_one_gzipped_fragment_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(shards.gzipped(shards.sample_tar(20)))
    spec = spec_of({"kind": "webdataset", "uri": str(tmp_path / "a.tar.gz")}, tmp_path)
    work = work_of(spec)
    found = left.estimate(STORAGE, work, fragments(spec, work, rows=64, most=2))
    assert sum(found.samples) == pytest.approx(20, rel=0.05)
    assert found.bytes_per_sample is not None and math.isfinite(found.bytes_per_sample)


def test_rows_of_a_store_are_counted(tmp_path: Path) -> None:
    whole = shard("a")
    new = new_store(tmp_path)
    receipts = (part(new, whole, [(0, 300)]), part(new, whole, [(300, SIZE)]))
    committer(new).commit([Change(receipts=receipts)])
    spec = spec_of({"kind": "store", "uri": new.uri}, tmp_path / "other")
    work = work_of(spec)
    found = left.count(spec, STORAGE, work)
    assert found is not None
    assert (found.samples, found.exact) == ([SIZE / 10], True)
    rest = left.count(spec, STORAGE, [replace(work[0], start=300)])
    assert rest is not None
    assert (rest.samples, rest.exact) == ([(SIZE - 300) / 10], False)


def test_what_run_refuses_plan_refuses(tmp_path: Path) -> None:
    spec = spec_of({"kind": "webdataset", "uri": str(tmp_path / "none" / "*.tar")}, tmp_path)
    with pytest.raises(RefusedError, match="none"):
        plan(spec)
    with pytest.raises(RefusedError, match="none"):
        plan(spec.model_dump(mode="json"))
    with pytest.raises(SpecError, match="price"):
        plan(spec, price=-1)
    with pytest.raises(SpecError, match="nodes"):
        plan(spec, nodes=0)
    assert not (tmp_path / "store").exists()
