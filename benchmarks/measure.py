"""Rates, pairs and figures: how every benchmark turns runs into one ratio.

A rate is taken once running: start-up and the last worker's tail are left out on both sides. The
two sides alternate, and the figure is the median of the pairs' ratios.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.quiet import MOST, Others, machine_seconds

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 600.0
"""Seconds that one run may take."""

Tick = tuple[float, int]
"""Seconds, and rows finished by then."""


@dataclass(frozen=True, slots=True)
class Options:
    """How much to run."""

    small: bool = False
    """Only see that everything runs: sizes at which the figures mean nothing."""
    pairs: int = 3

    def size(self, full: int, small: int) -> int:
        """`full`, or `small` in a smoke run."""
        return small if self.small else full


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number and what it should be."""

    name: str
    value: float
    sign: Literal[">=", "<="]
    target: float
    unit: str = "x"
    raw: dict[str, Any] = field(default_factory=dict)
    """What the value came from: rates in rows/s, seconds, bytes."""

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.sign == ">=" else self.value <= self.target


Runs = dict[str, list[float]]
"""Side to what each of its runs measured; `others`: cores that other programs kept busy."""


def rounds(count: int, sides: dict[str, Callable[[], float]]) -> Runs:
    """Run the sides in turns, `count` rounds of all.

    The order changes from round to round, so that a machine that warms up favours none. A round in
    which other programs kept the machine busy is run again, `count` times at most.
    """
    runs: Runs = {name: [] for name in (*sides, "others")}
    spare = count if count > 1 else 0
    while len(runs["others"]) < count:
        measured, cores = {}, 0.0
        for name in sorted(sides, reverse=len(runs["others"]) % 2 == 1):
            wait_until_calm(patience=180.0 if spare else 0.0)
            with Others() as others:
                measured[name] = sides[name]()
            cores = max(cores, others.cores)
        rates = ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
        say(f"  {rates}; {cores:.2f} cores to others")
        if cores > MOST and spare:
            spare -= 1
            say("    disturbed: once more")
            continue
        for name, value in (*measured.items(), ("others", cores)):
            runs[name].append(round(value, 3))
    return runs


def ratio(runs: Runs, peer: str = "peer") -> float:
    """The median of the rounds' ratios, ours over the peer's."""
    return statistics.median(a / b for a, b in zip(runs["ours"], runs[peer], strict=True))


def slope(ticks: Sequence[Tick], start: float = 0.0, stop: float = float("inf")) -> float:
    """Rows per second between two times: the least-squares line through the ticks in between."""
    inside = [tick for tick in ticks if start <= tick[0] <= stop]
    if len(inside) < 2:
        raise ValueError(f"{len(inside)} of {len(ticks)} ticks in the steady part: run it longer")
    times, rows = zip(*inside, strict=True)
    return statistics.linear_regression(times, rows).slope


def together(processes: Sequence[Sequence[Tick]]) -> float:
    """Rows per second of several processes, over the time in which all of them worked."""
    start = max(ticks[0][0] for ticks in processes)
    stop = min(ticks[-1][0] for ticks in processes)
    return sum(slope(ticks, start, stop) for ticks in processes)


class Peer:
    """A peer in a process of its own: `benchmarks.peers.NAME`, options in, JSON out."""

    def __init__(self, name: str, **options: Any) -> None:
        threads = {"OMP_NUM_THREADS": str(options["threads"])} if "threads" in options else {}
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.peers.{name}", json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | threads | {"HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
            text=True,
        )

    def result(self) -> Any:
        """What it printed last."""
        out, errors = self._process.communicate(timeout=LIMIT)
        if self._process.returncode:
            raise RuntimeError(f"{self.name} exited {self._process.returncode}\n{errors[-3000:]}")
        return json.loads(out.splitlines()[-1])


def ticks_of(result: Any) -> list[Tick]:
    """A peer's ticks from its JSON."""
    return [(float(seconds), int(rows)) for seconds, rows in result["ticks"]]


def machine() -> str:
    """The machine in words."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    flags = Path("/proc/cpuinfo").read_text()
    bf16 = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{len(names)} x {names[0] if names else platform.machine()}"
        f" ({', '.join(bf16) or 'no bf16'}), {memory:.0f} GiB, Linux {platform.release()}"
    )


def wait_until_calm(seconds: float = 3.0, patience: float = 180.0) -> None:
    """Wait until others have left the machine alone for some seconds; goes on when they don't."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        before = machine_seconds()
        time.sleep(seconds)
        if machine_seconds() - before <= 2 * MOST * seconds:
            return
    say("  the machine is busy: figures may be off")


def line(figure: Figure) -> str:
    """A figure as one line of JSON."""
    return json.dumps(asdict(figure) | {"met": figure.met})


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
