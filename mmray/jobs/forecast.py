"""From a probe's seconds to a run's: how many workers there will be, and how long they take.

Plain arithmetic. A shard is one worker's work, so uneven shards leave workers idle at the end, and
more workers than shards help nobody.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmray.flow.pool import fitting
from mmray.specs.common import Resources

STAGES = ("read", "decode", "encode", "write")

# What a run waits for beside imports, which a probe measures. Most of it is Python starting on the
# same cores, so it is a multiple of the time to import Ray, Ray Data and mmray. Two cores that were
# idle import in 1.7 s and take 5.8 s for `ray.init`; kept busy by others, 9 s and 20 to 26 s.
RAY_WAITS = 2.0
"""Seconds of `ray.init` that no processor shortens."""
RAY_INIT = 2.2
JOIN = 0.3
"""To connect to a cluster that is there."""
ACTORS = 1.0
"""Until Ray Data has its actors."""
FINISH = 2.0
"""Seconds from the last part to the end: the last commit, Ray's shutdown, the report."""


@dataclass(frozen=True, slots=True)
class Machines:
    """What all nodes have together."""

    nodes: int
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Who does what; `decode_tasks` is 0 where each actor does all stages."""

    kind: Literal["fused", "split"]
    actors: int
    cpus: float
    """Of each actor."""
    gpus: float
    decode_tasks: int = 0
    decode_cpus: float = 0.0
    idle_cpus: float = 0.0
    """CPUs that find no shard to work on."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a probe measured: seconds of one worker."""

    stages: Mapping[str, float]
    """For each sample, by stage."""
    imports: Mapping[str, float]
    load: float
    warm_up: float
    """What the first fragment took more than later ones."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds of a run."""

    startup: Mapping[str, float]
    """`plan`, `ray`, `workers` (their imports) and `model`, one after another."""
    work: float
    """While workers are busy; the tail is in it."""
    tail: float
    """Of `work`: what uneven shards cost."""
    finish: float
    bottleneck: str
    """A stage, or `startup`."""
    advice: str

    @property
    def seconds(self) -> float:
        """From the start to the end."""
        return sum(self.startup.values()) + self.work + self.finish


def layout(resources: Resources, shards: int, machines: Machines) -> Layout:
    """The pool that a run makes for `shards` pieces of work, as `mmray.flow.drive` does."""
    _, most = resources.pool_range
    split = bool(resources.gpus)
    room = fitting(resources, machines.cpus, machines.gpus)
    # A pool that is asked for by number may not fit: what doesn't waits until the others are done.
    actors = min(room, shards if most is None else most)
    if shards == 1:
        actors = 1
    left = machines.cpus - actors * resources.cpus
    if not split:
        idle = left if actors == shards < room else 0.0
        return Layout("fused", actors, resources.cpus, 0.0, idle_cpus=max(idle, 0.0))
    tasks = max(1, min(int(left / resources.decode_cpus), shards))
    idle = left - tasks * resources.decode_cpus if tasks == shards else 0.0
    return Layout(
        "split",
        actors,
        resources.cpus,
        resources.gpus,
        decode_tasks=tasks,
        decode_cpus=resources.decode_cpus,
        idle_cpus=max(idle, 0.0),
    )


def makespan(costs: Sequence[float], workers: int) -> float:
    """Seconds until workers that take pieces in turns have done all of them."""
    if workers >= len(costs):
        return max(costs, default=0.0)
    busy = [0.0] * workers
    for cost in costs:
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy)


def forecast(
    made: Layout, samples: Sequence[float], speed: Speed, *, plan: float, joins: bool
) -> Forecast:
    """The seconds of a run over shards with so many `samples` left.

    `plan` are the seconds that planning took; `joins`: Ray is there and need not be started.
    """
    startup = _startup(speed, plan, joins)
    each = {stage: speed.stages.get(stage, 0.0) for stage in STAGES}
    total = sum(samples)
    if made.kind == "fused":
        per_sample = sum(each.values())
        work = makespan([count * per_sample for count in samples], made.actors)
        even = total * per_sample / min(made.actors, max(len(samples), 1))
        slowest = max(each, key=each.__getitem__)
    else:
        ahead, behind = each["read"] + each["decode"], each["encode"] + each["write"]
        decoding = makespan([count * ahead for count in samples], made.decode_tasks)
        encoding = total * behind / made.actors
        work = max(decoding, encoding)
        even = max(total * ahead / made.decode_tasks, encoding)
        side = ("read", "decode") if decoding > encoding else ("encode", "write")
        slowest = max(side, key=each.__getitem__)
    before = sum(startup.values()) + FINISH
    advice = _advice(made, slowest, startup_share=before / max(before + work, 1e-9))
    if work < before:
        slowest = "startup"
    return Forecast(startup, work, max(work - even, 0.0), FINISH, slowest, advice)


def _startup(speed: Speed, plan: float, joins: bool) -> dict[str, float]:
    ray, data = speed.imports.get("ray", 0.0), speed.imports.get("data", 0.0)
    imports = sum(speed.imports.values())
    return {
        "plan": plan,
        "ray": ray + (imports * JOIN if joins else RAY_WAITS + imports * RAY_INIT),
        # The driver imports Ray Data first, then each worker does.
        "workers": data + imports * ACTORS + data + speed.imports.get("mmray", 0.0),
        "model": speed.load + speed.warm_up,
    }


_MORE = {
    "read": "storage nearer to the workers, or more workers that read at once",
    "decode": "more CPUs",
    "encode": "more CPUs, or a GPU (resources.gpus)",
    "write": "a store nearer to the workers",
}
_MORE_SPLIT = _MORE | {
    "decode": "more CPUs for each GPU",
    "encode": "more or faster GPUs",
}


def _advice(made: Layout, slowest: str, startup_share: float) -> str:
    if startup_share > 0.5:
        return f"start-up is {startup_share:.0%} of the run: a run with more samples pays it once"
    if made.idle_cpus >= made.cpus:
        idle = f"{made.idle_cpus:g} CPUs have no shard to work on"
        return f"{idle}: more, smaller shards would use them"
    more = (_MORE if made.kind == "fused" else _MORE_SPLIT)[slowest]
    return f"{slowest} is the bottleneck; what helps: {more}"
