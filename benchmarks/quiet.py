"""Whether a run had the machine for itself: the CPU time that went to programs not ours."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

EVERY = 1.0
MOST = 0.12
"""Cores that others may use on average; more disturbs what is measured."""


class Others:
    """Mean number of cores that others kept busy within the block."""

    def __init__(self) -> None:
        self.cores = 0.0
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        begun, busy, ours = time.monotonic(), machine_seconds(), 0.0
        before = family_seconds()
        while not self._over.wait(EVERY):
            now = family_seconds()
            # Of a process that ended, what it used since the last look counts as others'.
            ours += sum(seconds - before.get(pid, 0.0) for pid, seconds in now.items())
            before = now
            others = machine_seconds() - busy - ours
            self.cores = max(0.0, others / (time.monotonic() - begun))


def machine_seconds() -> float:
    """CPU seconds that all programs used since the machine started, waiting left out."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) / os.sysconf("SC_CLK_TCK")


def family_seconds() -> dict[int, float]:
    """CPU seconds of this process and all below it, by process id."""
    me = psutil.Process()
    found = {}
    for each in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            times = each.cpu_times()
            found[each.pid] = times.user + times.system
    return found
