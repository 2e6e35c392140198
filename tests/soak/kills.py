"""Jobs that are killed at random moments, and the marks of parts that passed.

A part that passed leaves a mark under `out/soak`, so that `make soak` goes on where it was stopped;
`make soak ARGS=--soak-afresh` forgets the marks. They name the commit: another one starts over.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import runs
from tests.conftest import TestServer

MARKS = runs.ROOT / "out" / "soak"

Strike = Callable[[runs.Run], str]
"""Kills something of a run; what it was, or "" where there was nothing to kill."""


class Part:
    """A test of the soak tier that isn't run again once it passed."""

    def __init__(self, name: str, request: pytest.FixtureRequest) -> None:
        """Skips the test where it passed on this commit."""
        self._mark = MARKS / f"{name}-{_commit()}"
        if self._mark.exists() and not request.config.getoption("--soak-afresh"):
            pytest.skip(f"{name} passed before: {self._mark.read_text().strip()}")

    def passed(self, words: str) -> None:
        """Leave the mark."""
        MARKS.mkdir(parents=True, exist_ok=True)
        self._mark.write_text(f"{words}\n")


def job_with_kills(
    spec: runs.Spec, folder: Path, pause: Callable[[], float], strike: Strike, most: int
) -> list[str]:
    """Run the job until it is done, striking after each pause until `most` kills are made."""
    done: list[str] = []
    while True:
        run = runs.Run(spec, folder)
        while run.running and len(done) < most:
            wait = time.monotonic() + pause()
            while run.running and time.monotonic() < wait:
                time.sleep(0.02)
            if run.running:
                kind = strike(run)
                done += [kind] if kind else []
        if run.process.poll() == -signal.SIGKILL:
            continue
        run.finish()
        return done


def restart(server: TestServer, chance: random.Random) -> None:
    """Kill the server, and start it again some time later."""
    server.kill()
    time.sleep(chance.uniform(0, 3))
    server.start()


def _commit() -> str:
    """The commit under test, with a `+` where files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return described.stdout.strip()
