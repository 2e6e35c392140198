"""Killed when 90 % of the rows are committed, and started again: what is done twice."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import psutil
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from benchmarks import data, jobs
from benchmarks.measure import LIMIT, Figure, Options, say

PER_TAR = 200
DELAY = 0.02
"""Seconds a picture: two workers do 100 a second, so the job takes some minutes as real ones do.
What a kill costs is seconds of work, however long the job is."""


def figures(options: Options) -> list[Figure]:
    """The fraction of rows that were encoded twice."""
    tars = data.photo_tars(
        options.size(16_000, 2000), per_tar=PER_TAR, pool=2000, side=data.SMALL_SIDE
    )
    fractions, raw = [], []
    for _ in range(max(1, options.pairs - 1)):
        fraction, account = _kill_and_resume(tars)
        fractions.append(fraction)
        raw.append(account)
        say(f"  {account}")
    name = "resume: rows encoded again after a kill at 90 %"
    return [Figure(name, max(fractions), "<=", 0.05, unit="of rows", raw={"runs": raw})]


def _kill_and_resume(tars: list[str]) -> tuple[float, dict[str, float]]:
    counts = data.scratch("resume-counts")
    # Links of this run alone: opening one is noted by the name it was opened by.
    shards = _linked(tars, data.scratch("resume-shards"))
    options = {"delay": DELAY, "folder": str(counts)}
    encoder = {"kind": "import", "model": "benchmarks.toys:Counting", "options": options}
    spec = jobs.embed("resume", [str(shards)], encoder=encoder)
    store = Path(spec["store"]["uri"])
    total = len(tars) * PER_TAR

    process = jobs.start(spec)
    _wait_for_rows(store, round(0.9 * total), process)
    _kill(process)
    committed = _by_shard(store)
    before = _encoded(counts)
    with Opened(shards) as opened:
        report = jobs.run(spec).report
        names = opened.names()
    encoded = _encoded(counts)

    finished = {Path(uri).name for uri, rows in committed.items() if rows == PER_TAR}
    assert sum(_by_shard(store).values()) == total, "rows were lost or came twice"
    assert names, "no shard was opened: the watch does not work"
    read_again = sorted(finished & names)
    assert not read_again, f"finished shards were read again: {read_again}"
    account = {
        "rows": total,
        "committed at the kill": sum(committed.values()),
        "encoded before the kill": before,
        "encoded by the resumed run": encoded - before,
        "rows_skipped": report["rows_skipped"],
        "finished shards": len(finished),
        "shards opened by the resumed run": len(names),
        "finished shards opened": len(read_again),
        "seconds of the resumed run": report["seconds"],
    }
    return (encoded - total) / total, account


def _linked(tars: Iterable[str], folder: Path) -> Path:
    for tar in tars:
        (folder / Path(tar).name).hardlink_to(tar)
    return folder


def _wait_for_rows(store: Path, rows: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + LIMIT
    while sum(_by_shard(store).values()) < rows:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline, "the job is too slow"
        time.sleep(0.2)


def _by_shard(store: Path) -> dict[str, int]:
    """Committed rows of each shard."""
    try:
        table = DeltaTable(str(store))
    except TableNotFoundError:
        return {}
    rows: dict[str, int] = {}
    for uri, count in zip(
        *(
            table.get_add_actions(flatten=True).column(name).to_pylist()
            for name in ("min.source_uri", "num_records")
        ),
        strict=True,
    ):
        rows[uri] = rows.get(uri, 0) + count
    return rows


def _kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver and all of its Ray, as when the machine goes."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in family:
        each.kill()
    psutil.wait_procs(family, timeout=20)
    process.communicate()


def _encoded(counts: Path) -> int:
    return sum(int(path.read_text()) for path in counts.iterdir())


class Opened:
    """The names of the files of a folder that any process opens, told by the kernel (inotify)."""

    _IN_OPEN = 0x20
    _EVENT = struct.Struct("iIII")

    def __init__(self, folder: Path) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        self._file = self._library.inotify_init1(os.O_NONBLOCK)
        watch = self._library.inotify_add_watch(self._file, str(folder).encode(), self._IN_OPEN)
        if self._file < 0 or watch < 0:
            raise OSError(ctypes.get_errno(), "inotify can't watch", str(folder))

    def names(self) -> set[str]:
        """Names opened since the start; the kernel keeps up to 16,384 events for us."""
        found: set[str] = set()
        while True:
            try:
                events = os.read(self._file, 1 << 20)
            except BlockingIOError:
                return found - {""}
            while events:
                _, mask, _, length = self._EVENT.unpack_from(events)
                assert not mask & 0x4000, "more events than the kernel kept"
                name = events[self._EVENT.size : self._EVENT.size + length]
                found.add(name.rstrip(b"\0").decode())  # empty: the folder itself, listed
                events = events[self._EVENT.size + length :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
