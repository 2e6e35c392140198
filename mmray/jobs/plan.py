"""`mmray plan`: what a job would do, how long it would take and what it would cost.

Nothing is written but the parts of a short probe, in a temporary folder. Numbers that were not
counted say so.
"""

import importlib
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmray.errors import SpecError
from mmray.flow.drive import cluster
from mmray.flow.plan import Plan
from mmray.jobs.embed import EmbedJob
from mmray.jobs.forecast import STAGES, Forecast, Layout, Machines, Speed, forecast, layout
from mmray.jobs.left import Left, count, estimate
from mmray.jobs.planned import Number, PlanResult, Probed
from mmray.jobs.probe import Limits, Seen, Timed, probe
from mmray.report import Example
from mmray.report.progress import progress
from mmray.specs import EmbedSpec, JobSpec, load_embed_spec
from mmray.specs.common import Resources

SHARDS = 16
"""That a probe draws fragments from, spread over those with work left."""
PROCESSES = 8
"""That a probe runs at the most, however many workers a run has on one machine."""
EXAMPLES = 5


def plan(
    spec: str | Path | Mapping[str, Any] | JobSpec,
    *,
    price: float | None = None,
    nodes: int | None = None,
    limits: Limits | None = None,
) -> PlanResult:
    """What a run of `spec` would do, on this machine or the cluster that the spec names.

    Args:
        spec: path of a YAML file, a mapping with the same fields, or what `load_spec` returned.
        price: of a node for an hour.
        nodes: machines like this one, or like the mean node of the spec's cluster.
        limits: of the probe.

    Raises:
        SpecError, RefusedError: the job can't start as asked.
        JobFailed: the encoder does not load, or storage stayed broken under the probe.
        StorageError: storage stayed broken.
    """
    if price is not None and not (price >= 0 and math.isfinite(price)):
        raise SpecError("price", f"must be a number of at least 0, not {price}")
    if nodes is not None and nodes < 1:
        raise SpecError("nodes", f"must be a positive number, not {nodes}")
    spec = load_embed_spec(spec, "plan")
    with progress(quiet=True) as show:
        job = EmbedJob(spec, None, show)
        found = job.look()
    work, planned = found.plan.work, job.startup["plan"]
    facts = _facts(spec, found.plan)
    if not work:
        none = Number(value=0, estimate=False)
        notes = _pruned(spec, found.plan)
        return PlanResult(**facts, status="nothing", rows=none, fragments=none, notes=notes)
    machines, joins = _machines(spec.resources, nodes)
    here = layout(spec.resources, len(work), Machines(1, cpus_here(), 1.0))
    processes = 1 if here.kind == "split" else min(here.actors, PROCESSES, len(work))
    drawn = spread(len(work), max(SHARDS, processes))
    begin = time.monotonic()
    seen = probe(job.stages(""), [work[place] for place in drawn], processes, limits or Limits())
    probed = _probed(seen, time.monotonic() - begin)
    left = count(spec, job.storage, work) or estimate(job.storage, work, _placed(seen, drawn))
    if here.kind == "split" and not joins:
        each = max(math.ceil(spec.resources.gpus), *(one.gpus for one in seen))
        machines = Machines(machines.nodes, machines.cpus, machines.nodes * each)
    made = layout(spec.resources, len(work), machines)
    expected = forecast(made, left.samples, speed_of(seen), plan=planned, joins=joins)
    hours = machines.nodes * expected.seconds / 3600
    return PlanResult(
        **facts | _expected(expected),
        status="work",
        rows=Number(value=round(sum(left.samples)), estimate=not left.exact),
        fragments=_fragments(left, seen),
        rows_per_sample=_rows_per_sample(seen),
        bytes_per_row=left.bytes_per_sample,
        layout=_layout(made, machines.nodes),
        probe=probed,
        node_hours=hours,
        cost=None if price is None else price * hours,
        notes=[
            *_pruned(spec, found.plan),
            *_notes(spec, left, probed, joins),
            *_fewer(processes, min(here.actors, len(work))),
        ],
    )


def _facts(spec: EmbedSpec, todo: Plan) -> dict[str, Any]:
    """What is known without a probe."""
    return {
        "job": spec.job,
        "shards": {
            "total": todo.shards,
            "finished": todo.finished_shards,
            "changed": len(todo.changed),
            "removed": len(todo.removed),
            "left": len({work.shard.key for work in todo.work}),
        },
        "rows_skipped": todo.skipped_rows,
        "rows_quarantined": todo.skipped_quarantined,
    }


def speed_of(seen: Sequence[Seen]) -> Speed:
    """Means over the processes of a probe; the first fragment of each only tells of its warm-up."""
    timed, warm = _steady(seen)
    samples = max(sum(each.samples for each in timed), 1)
    stages = {
        stage: sum(one.seconds.get(stage, 0.0) for one in timed) / samples for stage in STAGES
    }
    each_sample = sum(stages.values())
    extra = [
        max(sum(one.fragments[0].seconds.values()) - one.fragments[0].samples * each_sample, 0.0)
        for one in seen
        if warm and one.fragments
    ]
    number = len(seen)
    return Speed(
        stages=stages,
        imports={name: sum(one.imports[name] for one in seen) / number for name in seen[0].imports},
        load=sum(one.load for one in seen) / number,
        warm_up=sum(extra) / number,
    )


def _steady(seen: Sequence[Seen]) -> tuple[list[Timed], bool]:
    """The fragments that count, and whether any but the first ones were there to count."""
    later = [timed for each in seen for timed in each.fragments[1:]]
    return later or [timed for each in seen for timed in each.fragments], bool(later)


def spread(length: int, most: int) -> list[int]:
    """At most `most` of the places below `length`, as far apart as may be."""
    number = min(length, most)
    return [place * length // number for place in range(number)]


def cpus_here() -> float:
    """The CPUs that Ray would find on this machine: the cores, as far as its group may use them."""
    cpus = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return float(max(min(cpus, int(quota) // int(period)), 1))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return float(cpus)


def _machines(resources: Resources, nodes: int | None) -> tuple[Machines, bool]:
    """The nodes, and whether Ray is running on them; Ray is asked only where it is."""
    ray = sys.modules.get("ray")
    there = bool(ray and ray.is_initialized())
    address = resources.address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local" and not there:
        number = nodes or 1
        return Machines(number, number * cpus_here(), 0.0), False
    with cluster(resources):
        running: Any = importlib.import_module("ray")
        total = running.cluster_resources()
        number = sum(bool(node["Alive"]) for node in running.nodes()) or 1
    scale = (nodes or number) / number
    cpus, gpus = total.get("CPU", 1.0) * scale, total.get("GPU", 0.0) * scale
    return Machines(nodes or number, cpus, gpus), True


def _placed(seen: Sequence[Seen], drawn: Sequence[int]) -> list[Timed]:
    """The fragments with the place of their work among all of it."""
    found = (timed for each in seen for timed in each.fragments)
    return [
        Timed(drawn[one.work], one.start, one.stop, one.samples, one.rows, one.seconds)
        for one in found
    ]


def _fragments(left: Left, seen: Sequence[Seen]) -> Number:
    """Fragments as large as the largest of the probe: they are cut by rows and by bytes."""
    full = max((timed.samples for each in seen for timed in each.fragments), default=1)
    return Number(value=sum(math.ceil(one / max(full, 1)) for one in left.samples), estimate=True)


def _rows_per_sample(seen: Sequence[Seen]) -> float:
    every = [timed for each in seen for timed in each.fragments]
    return sum(one.rows for one in every) / max(sum(one.samples for one in every), 1)


def _probed(seen: Sequence[Seen], took: float) -> Probed:
    bad = [row for each in seen for row in each.quarantined]
    return Probed(
        processes=len(seen),
        device="cuda" if any(each.gpus for each in seen) else "cpu",
        seconds=took,
        samples=sum(timed.samples for timed in _steady(seen)[0]),
        read=sum(timed.samples for each in seen for timed in each.fragments),
        stages=dict(speed_of(seen).stages),
        quarantined=len(bad),
        examples=[Example(**row) for row in bad[:EXAMPLES]],
    )


def _layout(made: Layout, nodes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": made.kind, "nodes": nodes, "actors": made.actors}
    found |= {"cpus": made.cpus, "gpus": made.gpus}
    if made.kind == "split":
        found |= {"decode_tasks": made.decode_tasks, "decode_cpus": made.decode_cpus}
    return found


def _expected(expected: Forecast) -> dict[str, Any]:
    return {
        "startup": dict(expected.startup),
        "work": expected.work,
        "tail": expected.tail,
        "finish": expected.finish,
        "seconds": expected.seconds,
        "bottleneck": expected.bottleneck,
        "advice": expected.advice,
    }


def _notes(spec: EmbedSpec, left: Left, probed: Probed, joins: bool) -> list[str]:
    notes = [left.note] if left.note else []
    if spec.resources.gpus and probed.device == "cpu":
        words = (
            "there is no GPU here: the probe ran on the CPU, and its encode time isn't the GPU's"
        )
        notes.append(words)
        if not joins:
            each = math.ceil(spec.resources.gpus)
            notes.append(f"each node is taken to have {each} GPU, as one actor wants")
    if joins:
        notes.append("the probe ran on this machine; the cluster's may be faster or slower")
    if spec.duplicates is not None or spec.dedupe != "none":
        notes.append("few duplicates meet in a probe: a run that finds more encodes less")
    allowed = spec.errors.max_fraction
    if probed.quarantined > allowed * probed.read:
        words = f"{probed.quarantined} of {probed.read} rows of the probe would be quarantined"
        notes.append(f"{words}: a run ends above errors.max_fraction = {allowed:g}")
    return notes


def _fewer(processes: int, workers: int) -> list[str]:
    if processes in (1, workers):
        return []
    return [f"the probe ran {processes} workers; a run has {workers} here, which slow each other"]


def _pruned(spec: EmbedSpec, todo: Plan) -> list[str]:
    if spec.on_removed == "report" or not todo.removed:
        return []
    return [
        f"the rows of {len(todo.removed):,} removed sources leave the store (on_removed: prune)"
    ]
