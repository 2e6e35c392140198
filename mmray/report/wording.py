"""How a report is told to people, on its page and in the terminal: what a job's rows are and what
becomes of them, what its metrics are called and how their values read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmray.report.words import duration, moment, number, plural, size

if TYPE_CHECKING:
    from mmray.report import Report

OWN = frozenset({"version", "report", "page"})
"""Outputs that say something about a place which another output names."""


@dataclass(frozen=True, slots=True)
class Wording:
    """What a job's counts are called."""

    one: str
    """What `rows_read` counts."""
    many: str
    read: str
    written: str
    filtered: str


USUAL = Wording("sample", "samples", "read", "written", "left out")
JOBS = {
    "index": Wording("row", "rows", "read", "added", "left out"),
    "search": Wording("query", "queries", "asked", "answered", "left out"),
    "duplicates": Wording("row", "rows", "compared", "kept", "dropped"),
    "train": Wording("sample", "samples", "read", "learned from", "left out"),
}
"""Jobs that aren't about samples."""


def wording(job: str) -> Wording:
    """The words of a job kind."""
    return JOBS.get(job, USUAL)


def sentence(report: "Report") -> str:
    """What the run did, in one sentence, and when: plain text."""
    words, when = wording(report.job), moment(report.started)
    if not report.rows_read:
        if report.status == "done" and report.rows_skipped:
            return f"Nothing to do: every {words.one} was finished by an earlier run. {when}."
        return f"No {words.one} was {words.read}. {when}."
    parts = [f"{report.rows_written:,} {words.written}"]
    parts += [f"{report.rows_filtered:,} {words.filtered}"] if report.rows_filtered else []
    parts += [f"{report.rows_quarantined:,} in quarantine"] if report.rows_quarantined else []
    kept = (
        f"{', '.join(parts[:-1])} and {parts[-1]}" if parts[1:] else f"all of them {words.written}"
    )
    read = f"{plural(report.rows_read, words.one, words.many)} {words.read}"
    return f"{read} in {duration(report.seconds)}, {kept}. {when}."


def metrics(report: "Report") -> Iterator[tuple[str, str, str]]:
    """Name, words for it, and value as people read it, of each metric: plain text."""
    for name, value in report.metrics.items():
        yield name, label(name), metric(name, value)


def label(name: str) -> str:
    """`Queries per second` of `queries_per_second`, `Train time` of `train_seconds`; `k` stays."""
    for unit, what in (("seconds", "time"), ("bytes", "size")):
        if (stem := name.removesuffix(unit)).endswith("_") or not stem:
            name = stem + what
    words = name.replace("_", " ").strip()
    return words if len(words) < 2 else words[0].upper() + words[1:]


def metric(name: str, value: float | int | str) -> str:
    """A metric's value: bytes, seconds and shares by their names and sizes."""
    if isinstance(value, str):
        return value
    unit = name.rpartition("_")[2]
    if unit == "bytes":
        return size(value)
    if unit == "seconds":
        return duration(value)
    # A recall of 0.996 isn't one of 1.0.
    return f"{value:.3f}" if isinstance(value, float) and abs(value) <= 1 else number(value)


def fills_store(report: "Report") -> bool:
    """Whether the store among the outputs is what the job wrote: others name the one they read."""
    return "store" in report.outputs and report.job not in JOBS


def places(report: "Report") -> dict[str, str]:
    """The outputs that are places, by name, with their versions: plain text.

    `version` is that of the index, else of the store, else of the first place; that of another
    place has its name: `store_version`.
    """
    outputs = report.outputs
    found = {name: str(uri) for name, uri in outputs.items() if name not in OWN}
    versioned = next((name for name in ("index", "store") if name in found), next(iter(found), ""))
    told = {}
    for name, uri in found.items():
        if name.removesuffix("_version") in found and name.endswith("_version"):
            continue
        version = outputs.get("version" if name == versioned else f"{name}_version")
        told[name] = uri if version is None else f"{uri} (version {version})"
    return told


def name_of(report: "Report") -> str:
    """What people call the run's output by: the last part of its uri that is no file."""
    outputs = {name: str(uri) for name, uri in report.outputs.items() if name not in OWN}
    first = ("store",) if fills_store(report) else ("output", "index")
    for name in (*first, *outputs):
        uri = outputs.get(name, "").rstrip("/")
        is_file = name not in first and "." in _last(uri)
        if last := _last(uri.rpartition("/")[0] if is_file else uri):
            return last
    return report.run_id


def _last(uri: str) -> str:
    return uri.rstrip("/").rpartition("/")[2]
