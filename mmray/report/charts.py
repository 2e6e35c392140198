"""The page's charts as inline SVG. Drawn in percent, so that nothing but their width changes
with the window: lines keep their weight and labels, which are HTML, their size."""

import math
from collections.abc import Mapping, Sequence

from mmray.report.words import duration, escape, number, rate

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
    top, ticks = _scale(max(height for _, _, height in steps))
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
        f'<span style="left:{100 * at / end:.2f}%">{duration(at)}</span>' for at in _times(end)
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


def _times(end: float) -> list[float]:
    """Round moments from 0 to `end` seconds, at most six."""
    seconds = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
    step = next((each for each in seconds if end / each <= 5), math.ceil(end / 18000) * 3600)
    return [step * index for index in range(int(end / step + 1e-9) + 1)]


def _scale(highest: float) -> tuple[float, list[float]]:
    """A round upper end for an axis and two or three ticks below it."""
    highest = max(highest, 1e-9)
    unit = 10.0 ** math.floor(math.log10(highest))
    step = next(each * unit for each in (0.25, 0.5, 1.0, 2.5, 5.0) if highest / (each * unit) <= 4)
    count = math.ceil(highest / step - 1e-9)
    return step * count, [step * each for each in range(1, count + 1)]
