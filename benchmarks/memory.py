"""Peak memory of the whole process tree at ten times the input."""

from __future__ import annotations

import re
import statistics
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks import data, jobs
from benchmarks.measure import Figure, Options, ratio, rounds
from benchmarks.nearfree import ENCODER

POOL = 4000
SAMPLES = 2000
EVERY = 0.5


class Peak:
    """The largest proportional set size (PSS) of a process and all below it, looked at often.

    PSS splits shared pages among those who share them, so a sum over processes counts each once,
    Ray's shared memory too.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._root = psutil.Process(process.pid)
        self._over = threading.Event()
        self.bytes = 0
        self.series: list[int] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop looking; the peak in bytes."""
        self._over.set()
        self._thread.join()
        return self.bytes

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            with suppress(psutil.Error):
                family = [self._root, *self._root.children(recursive=True)]
                self.series.append(sum(pss(each.pid) for each in family))
                self.bytes = max(self.bytes, self.series[-1])


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 for a process that is gone."""
    with suppress(OSError):
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
        return int(found[1]) * 1024 if found else 0
    return 0


def figures(options: Options) -> list[Figure]:
    """Peak of a run over ten times the samples, over that of one."""
    samples = options.size(SAMPLES, 500)
    tars = data.photo_tars(10 * samples, per_tar=250, pool=min(POOL, 10 * samples))

    def peak(times: int) -> float:
        # Every tenth tar, so that both see the same mix.
        spec = jobs.embed("memory", tars[:: 10 // times], encoder=ENCODER, keep=["caption"])
        process = jobs.start(spec)
        watch = Peak(process)
        try:
            jobs.finish(process, spec)
        finally:
            watch.stop()
        late = watch.series[len(watch.series) // 2 :]
        (Path(spec["store"]["uri"]).parent / "late").write_text(str(statistics.median(late)))
        return watch.bytes / 2**20

    raw = rounds(options.pairs, {"ours": lambda: peak(10), "peer": lambda: peak(1)})
    return [
        Figure(
            "memory: peak at ten times the input",
            ratio(raw),
            "<=",
            1.1,
            raw={"ten times, MiB": raw["ours"], "once, MiB": raw["peer"]},
        )
    ]
