"""The page of a job that has none of its own, and the sections that such pages share: what was
measured, what was left out, what was written."""

from typing import TYPE_CHECKING

from mmray.report.document import (
    Figure,
    code,
    document,
    facts,
    report_header,
    report_title,
    value,
)
from mmray.report.reasons import bad_samples, left_out
from mmray.report.times import pair, stages, throughput
from mmray.report.wording import label, metrics, places, wording
from mmray.report.words import duration, escape, moment, number

if TYPE_CHECKING:
    from mmray.report import Report


def plain_page(report: "Report") -> str:
    """The page of a report alone, complete and in UTF-8."""
    timed = pair(throughput(report), stages(report)) if report.timeline else stages(report)
    sections = (
        timed if report.timeline or report.stages else "",
        measured(report),
        *lost(report),
        run_facts(report),
    )
    return document(report_title(report), report_header(report, _figures(report)), sections)


def measured(report: "Report", shown: frozenset[str] = frozenset()) -> str:
    """The job's metrics, but those that the page has shown; empty where there are none."""
    rows = [(words, value(told)) for name, words, told in metrics(report) if name not in shown]
    return facts("Measured", rows)


def lost(report: "Report") -> tuple[str, ...]:
    """What was put aside or left out, where anything was."""
    bad = bad_samples(report) if report.rows_quarantined else ""
    return bad, left_out(report) if report.filtered else ""


def run_facts(report: "Report") -> str:
    """The run's outputs and its name."""
    encoder = report.encoder
    rows = (
        ("Encoder", escape(encoder.get("name", ""))),
        ("Fingerprint", code(encoder.get("fingerprint", ""))),
        *((label(name), code(uri)) for name, uri in places(report).items()),
        ("Started", escape(moment(report.started))),
        ("Run", code(report.run_id)),
    )
    return facts("Run", rows)


def _figures(report: "Report") -> list[Figure]:
    words = wording(report.job)
    return [
        (words.written.capitalize(), number(report.rows_written), False),
        ("Per second", number(report.rows_per_second), False),
        ("Time", duration(report.seconds), False),
        *aside(report),
    ]


def aside(report: "Report") -> list[Figure]:
    """Counts that stand in the header where they aren't 0."""
    words = wording(report.job)
    counts = (
        (words.filtered.capitalize(), report.rows_filtered, False),
        ("In quarantine", report.rows_quarantined, True),
        ("Finished before", report.rows_skipped, False),
    )
    return [(name, number(count), bad) for name, count, bad in counts if count]
