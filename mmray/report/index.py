"""The page of an index: how good it is at which speed, and what it answers.

Of the report's metrics, `recall`, `queries_per_second`, `rows` and `bytes` stand at its top, and
`min_recall` and `k` in the chart; the others are listed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmray.report import charts
from mmray.report.checks import checks
from mmray.report.document import Figure, document, facts, report_header, report_title, value
from mmray.report.near import neighbours
from mmray.report.plain import lost, measured, run_facts
from mmray.report.times import pair, stages
from mmray.report.vectors import Inspection
from mmray.report.wording import label, metric
from mmray.report.words import duration, escape, number, plural, section

if TYPE_CHECKING:
    from mmray.report import Report

TOP = ("recall", "queries_per_second", "rows", "bytes")
"""Metrics that are figures of the header."""
SHOWN = frozenset({*TOP, "min_recall", "k"})
SETTINGS = 12
"""Settings that are listed at once; the rest unfolds."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What one setting of the search gives."""

    label: str
    """Such as `nprobe 16`."""
    recall: float
    queries_per_second: float
    chosen: bool = False


def index_page(
    report: "Report",
    curve: Sequence[CurvePoint],
    facts_of_index: Mapping[str, str],
    inspection: Inspection,
) -> str:
    """The page, complete and in UTF-8.

    Args:
        report: what the build did and measured.
        curve: the settings that were tried.
        facts_of_index: names and values about the index, plain text.
        inspection: the health of its vectors and what is near what, where it was looked at.
    """
    told = {name for name in report.metrics if label(name) in facts_of_index}
    timed = stages(report) if report.stages else ""
    curved = _curve(report, curve)
    sections = (
        pair(curved, timed) if curved and timed else curved + timed,
        _settings(curve),
        neighbours(inspection) if inspection.spaces else "",
        checks(inspection) if inspection.checks else "",
        facts("Index", ((name, value(each)) for name, each in facts_of_index.items())),
        measured(report, SHOWN | told),
        *lost(report),
        run_facts(report),
    )
    return document(report_title(report), report_header(report, _figures(report)), sections)


def _figures(report: "Report") -> list[Figure]:
    figures = []
    floor = _number(report, "min_recall")
    for name in TOP:
        if (found := report.metrics.get(name)) is None:
            continue
        recall = name == "recall"
        low = recall and floor is not None and isinstance(found, float) and found < floor
        figures.append((_recall(report) if recall else label(name), metric(name, found), low))
    return [*figures, ("Build time", duration(report.seconds), False)]


def _recall(report: "Report") -> str:
    k = report.metrics.get("k")
    return f"Recall@{k}" if k is not None else "Recall"


def _number(report: "Report", name: str) -> float | None:
    found = report.metrics.get(name)
    return float(found) if isinstance(found, int | float) else None


def _curve(report: "Report", curve: Sequence[CurvePoint]) -> str:
    floor = _number(report, "min_recall")
    if not (chart := charts.trade_off(curve, floor)):
        return ""
    least = "" if floor is None else f"; at least {floor:g} was asked for"
    words = f"by queries per second, on a log scale{least}"
    return section(f"{_recall(report)} and speed", words, chart)


def _settings(curve: Sequence[CurvePoint]) -> str:
    """A table of what was tried, the quickest last."""
    if not curve:
        return ""
    points = sorted(curve, key=lambda each: each.queries_per_second)
    body = _table(points)
    if len(points) > SETTINGS:
        top = _table([each for each in points if each.chosen])
        body = f"{top}<details><summary>All {len(points):,}</summary>{body}</details>"
    return section("Settings tried", plural(len(points), "setting"), body)


def _table(points: Sequence[CurvePoint]) -> str:
    rows = "".join(map(_row, points))
    return (
        '<table class="numbers"><thead><tr><th>Setting</th><th>Recall</th>'
        f"<th>Queries/s</th></tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(point: CurvePoint) -> str:
    kind = ' class="strong"' if point.chosen else ""
    mark = ' <span class="status">chosen</span>' if point.chosen else ""
    return (
        f"<tr{kind}><td>{escape(point.label)}{mark}</td><td>{point.recall:.3f}</td>"
        f"<td>{number(round(point.queries_per_second, 1))}</td></tr>"
    )
