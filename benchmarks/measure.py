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


def pairs(
    count: int, ours: Callable[[], float], peer: Callable[[], float]
) -> tuple[float, dict[str, Any]]:
    """Run the two sides in turns; the median of ours / peer, and the raw numbers.

    Which side goes first changes from pair to pair, so that a machine that warms up favours none.
    """
    ratios, raw = [], {"ours": [], "peer": []}  # type: ignore[var-annotated]
    for number in range(count):
        sides = [("ours", ours), ("peer", peer)]
        for name, run in sides if number % 2 == 0 else reversed(sides):
            raw[name].append(round(run(), 3))
        ratios.append(raw["ours"][-1] / raw["peer"][-1])
        say(f"  pair {number + 1}: {raw['ours'][-1]:g} against {raw['peer'][-1]:g}")
    raw["ratios"] = [round(ratio, 3) for ratio in ratios]
    return statistics.median(ratios), raw


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


def wait_until_calm(most: float = 1.5, patience: float = 120.0) -> None:
    """Wait until the machine has little else to do; says so when it doesn't come."""
    deadline = time.monotonic() + patience
    while os.getloadavg()[0] > most and time.monotonic() < deadline:
        time.sleep(2)
    if os.getloadavg()[0] > most:
        say(f"  the machine is busy (load {os.getloadavg()[0]:.1f}): figures may be off")


def line(figure: Figure) -> str:
    """A figure as one line of JSON."""
    return json.dumps(asdict(figure) | {"met": figure.met})


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
