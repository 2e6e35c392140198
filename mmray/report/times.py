"""The sections on where a run's time went."""

from typing import TYPE_CHECKING

from mmray.report import charts
from mmray.report.words import duration, escape, section

if TYPE_CHECKING:
    from mmray.report import Report


def throughput(report: "Report") -> str:
    """Rows per second over the run."""
    chart = charts.throughput(report.timeline)
    if not chart:
        chart = '<p class="note">No rows were committed, so there is no curve.</p>'
    return section("Throughput", "rows per second between commits", chart)


def stages(report: "Report") -> str:
    """Seconds of each stage, and those before the first row."""
    total = sum(report.stages.values())
    if total > 0:
        words = {
            name: f"{duration(seconds)} · {seconds / total:.0%}"
            for name, seconds in report.stages.items()
        }
        body = charts.bars(report.stages, report.bottleneck, words)
    else:
        body = '<p class="note">No stage ran.</p>'
    slow = f"{escape(report.bottleneck)} is the bottleneck" if report.bottleneck else ""
    start = ", ".join(f"{escape(k)} {duration(v)}" for k, v in report.startup.items())
    start = f'<p class="note">Start-up: {start}.</p>' if start else ""
    return section("Stage seconds", slow or "summed over workers", body + start)


def pair(left: str, right: str) -> str:
    """Two sections side by side where the window is wide enough."""
    return f'<div class="pair">{left}{right}</div>'
