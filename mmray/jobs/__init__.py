"""Job kinds: a module each, whose `run(spec, *, limit, quiet)` wires the rooms and nothing else.

A module is imported when a job of its kind runs: it brings Ray with it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmray.report import Report
    from mmray.specs import JobSpec

JOBS = {
    "embed": "mmray.jobs.embed",
    "index": "mmray.jobs.index",
    "search": "mmray.jobs.search",
    "duplicates": "mmray.jobs.duplicates",
    "train": "mmray.jobs.train",
}
"""Job kind to the module that runs it."""


def run(spec: "JobSpec", *, limit: int | None = None, quiet: bool = False) -> "Report":
    """Run a job of any kind; see `mmray.run`."""
    report: Report = import_module(JOBS[spec.job]).run(spec, limit=limit, quiet=quiet)
    return report
