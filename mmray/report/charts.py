"""The page's charts as inline SVG. Drawn in percent, so that nothing but their width changes
with the window: lines keep their weight and labels, which are HTML, their size."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mmray.report import axes
from mmray.report.words import duration, escape, number, rate

if TYPE_CHECKING:
    from mmray.report.index import CurvePoint

MAX_STEPS = 160

Point = tuple[float, int]


def throughput(timeline: Sequence[Point]) -> str:
    """Rows per second over the run, one step from commit to commit; empty without any row.

    Args:
        timeline: seconds since the start and rows so far, at each commit.
    """
    steps = _steps(timeline)
    if not steps:
        return ""
    end = steps[-1][1]
    top, ticks = axes.scale(max(height for _, _, height in steps))
    points = []
    for start, stop, height in steps:
        y = 100 - 100 * height / top
        points += [f"{1000 * start / end:.1f},{y:.2f}", f"{1000 * stop / end:.1f},{y:.2f}"]
    line = " ".join(points)
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{y:.2f}" y2="{y:.2f}" class="grid"/>'
        for y in (100 - 100 * tick / top for tick in ticks)
    )
    labels = "".join(
        f'<span style="top:{100 - 100 * tick / top:.2f}%">{number(tick)}</span>' for tick in ticks
    )
    times = "".join(
        f'<span style="left:{100 * at / end:.2f}%">{duration(at)}</span>' for at in axes.times(end)
    )
    peak = max(height for _, _, height in steps)
    return (
        '<figure class="chart"><div class="plot">'
        f'<div class="ylabels" aria-hidden="true">{labels}</div>'
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="Rows per second over {duration(end)}, at most {rate(peak)}">'
        f'{grid}<polygon class="area" points="0,100 {line} 1000,100"/>'
        f'<polyline class="line" points="{line}"/></svg></div>'
        f'<div class="xlabels" aria-hidden="true">{times}</div></figure>'
    )


def trade_off(points: Sequence["CurvePoint"], floor: float | None) -> str:
    """Recall (up) against queries per second (to the right, by their logarithm): each setting is a
    dot, the line joins the best ones; empty with fewer than two speeds.

    Settings that are far from good enough aren't drawn, so that the others stand apart.

    Args:
        points: what was measured.
        floor: the least recall that is good enough, a dashed line.
    """
    found = _near(sorted((each for each in points if _speed(each) > 0), key=_speed), floor)
    if len(found) < 2 or _speed(found[0]) == _speed(found[-1]):
        return ""
    lowest = min(each.recall for each in found)
    low, ticks = axes.recalls(lowest if floor is None else min(lowest, floor))
    plane = _Plane(low, math.log10(_speed(found[0])), math.log10(_speed(found[-1])))
    spots = [(plane.across(_speed(each)), plane.down(each.recall), each) for each in found]
    line = " ".join(
        f"{10 * x:.1f},{y:.2f}"
        for place, (x, y, _) in enumerate(spots)
        if all(y < later[1] for later in spots[place + 1 :])
    )
    levels, labels = _levels(plane, ticks, floor)
    speeds = "".join(
        f'<span style="left:{plane.across(speed):.2f}%">{number(speed)}/s</span>'
        for speed in axes.speeds(*plane.ends)
    )
    return (
        '<figure class="chart"><div class="plot tall">'
        f'<div class="ylabels" aria-hidden="true">{labels}</div>'
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">'
        f'{levels}<polyline class="line" points="{line}"/></svg>'
        f'<svg class="dots" role="img" aria-label="Recall of {len(found)} settings, from '
        f'{_rate_of(found[0])} to {_rate_of(found[-1])}">'
        f"{''.join(_dot(*spot) for spot in spots)}</svg>"
        f"{''.join(_chosen(*spot) for spot in spots if spot[2].chosen)}"
        f'</div><div class="xlabels free" aria-hidden="true">{speeds}</div></figure>'
    )


def histogram(bins: Sequence[tuple[float, int]], word: str) -> str:
    """How often each score was found; empty without any.

    Args:
        bins: lower end and count of each bin, of one width.
        word: what is counted, in the plural.
    """
    found = sorted(each for each in bins if each[1] > 0)
    if not found:
        return ""
    starts = sorted({start for start, _ in bins})
    width = min((b - a for a, b in pairwise(starts)), default=0.01)
    low, high = starts[0], starts[-1] + width
    top, ticks = axes.scale(max(count for _, count in found))

    def across(score: float) -> float:
        return 100 * (score - low) / (high - low)

    columns = "".join(
        f'<rect class="column" x="{10 * across(start) + 1:.2f}" y="{100 - 100 * count / top:.2f}" '
        f'width="{max(1.0, 1000 * width / (high - low) - 2):.2f}" height="{100 * count / top:.2f}">'
        f"<title>{start:.3g}: {count:,} {escape(word)}</title></rect>"
        for start, count in found
    )
    heights = [100 - 100 * tick / top for tick in ticks]
    labels = "".join(
        f'<span style="top:{y:.2f}%">{number(tick)}</span>'
        for y, tick in zip(heights, ticks, strict=True)
    )
    scores = "".join(
        f'<span style="left:{across(score):.2f}%">{score:.3g}</span>'
        for score in axes.even(low, high, 5)
    )
    total = sum(count for _, count in found)
    return (
        '<figure class="chart"><div class="plot">'
        f'<div class="ylabels" aria-hidden="true">{labels}</div>'
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{total:,} {escape(word)} by score, from {low:.3g} to {high:.3g}">'
        f"{''.join(_level(y, 'grid') for y in heights)}{columns}</svg></div>"
        f'<div class="xlabels free" aria-hidden="true">{scores}</div></figure>'
    )


def bars(values: Mapping[str, float], strong: str | None, words: Mapping[str, str]) -> str:
    """Horizontal bars, in the order given.

    Args:
        values: name to length.
        strong: the name that stands out.
        words: name to what stands behind its bar.
    """
    longest = max(values.values(), default=0.0) or 1.0
    rows = []
    for name, value in values.items():
        kind = "bar strong" if name == strong else "bar"
        rows.append(
            f'<div class="{kind}"><span class="name">{escape(name)}</span>{bar(value / longest)}'
            f'<span class="value">{escape(words[name])}</span></div>'
        )
    return f'<div class="bars">{"".join(rows)}</div>'


def bar(share: float) -> str:
    """One bar on its track; `share` is 0 to 1."""
    width = max(100 * share, 0.4 if share > 0 else 0.0)
    return (
        '<svg aria-hidden="true"><rect class="track" width="100%" height="100%" rx="2"/>'
        f'<rect class="fill" width="{width:.2f}%" height="100%" rx="2"/></svg>'
    )


def _steps(timeline: Sequence[Point]) -> list[tuple[float, float, float]]:
    """Start, stop and rows per second of each step; short ones are joined."""
    steps: list[tuple[float, float, float]] = []
    if not timeline or timeline[-1][1] <= 0 or timeline[-1][0] <= 0:
        return steps
    least = timeline[-1][0] / MAX_STEPS
    start, rows = 0.0, 0
    for at, total in timeline:
        if at - start >= least or (at, total) == timeline[-1]:
            if at > start:
                steps.append((start, at, max(0.0, (total - rows) / (at - start))))
            start, rows = at, total
    return steps


def _rate_of(point: "CurvePoint") -> str:
    """`0.953 at 4,310/s`."""
    return f"{point.recall:.3f} at {number(round(_speed(point), 1))}/s"


def _speed(point: "CurvePoint") -> float:
    return point.queries_per_second


@dataclass(frozen=True, slots=True)
class _Plane:
    """Where things are in the plot, in percent from its left and its top."""

    low: float
    """The recall at the bottom; the top is 1."""
    slowest: float
    """By its logarithm, as the next."""
    quickest: float

    def across(self, speed: float) -> float:
        left, right = map(math.log10, self.ends)
        return 100 * (math.log10(speed) - left) / (right - left)

    def down(self, recall: float) -> float:
        return 100 * (1 - recall) / (1 - self.low)

    @property
    def ends(self) -> tuple[float, float]:
        """The speeds at the left and the right: dots keep off the edges."""
        margin = 0.06 * (self.quickest - self.slowest)
        return 10 ** (self.slowest - margin), 10 ** (self.quickest + margin)


def _levels(plane: _Plane, ticks: Sequence[float], floor: float | None) -> tuple[str, str]:
    """The grid's lines with the floor's, and their labels; the floor's stands before a tick's."""
    lines = "".join(_level(plane.down(tick), "grid") for tick in ticks)
    labels = "".join(
        f'<span style="top:{plane.down(tick):.2f}%">{tick:.{axes.digits(ticks)}f}</span>'
        for tick in ticks
        if floor is None or abs(plane.down(tick) - plane.down(floor)) > 5
    )
    if floor is not None:
        lines += _level(plane.down(floor), "floor")
        labels += f'<span class="floor" style="top:{plane.down(floor):.2f}%">{floor:g}</span>'
    return lines, labels


def _near(points: Sequence["CurvePoint"], floor: float | None) -> Sequence["CurvePoint"]:
    """Those that miss no more than four times what may be missed, and the chosen ones."""
    if floor is None or floor >= 1:
        return points
    near = [each for each in points if each.chosen or each.recall >= 1 - 4 * (1 - floor)]
    return near if len(near) > 1 else points


def _level(y: float, kind: str) -> str:
    return f'<line x1="0" x2="1000" y1="{y:.2f}" y2="{y:.2f}" class="{kind}"/>'


def _dot(x: float, y: float, point: "CurvePoint") -> str:
    kind, radius = ("chosen", 6.5) if point.chosen else ("dot", 3.5)
    return (
        f'<circle class="{kind}" cx="{x:.2f}%" cy="{y:.2f}%" r="{radius}">'
        f"<title>{escape(point.label)}: {_rate_of(point)}</title></circle>"
    )


def _chosen(x: float, y: float, point: "CurvePoint") -> str:
    """Words beside the dot: above it to the right, or below it to the left, where no line runs."""
    place = f"left:{x:.2f}%" if x < 50 else f"right:{100 - x:.2f}%"
    side = "after" if x < 50 else "before"
    return (
        f'<span class="pick {side}" style="{place};top:{y:.2f}%"><b>{escape(point.label)}</b> '
        f"{_rate_of(point)}</span>"
    )
