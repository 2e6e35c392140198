"""Lines over steps, for the page of a training: inline SVG in percent, as the other charts."""

import math
from collections.abc import Sequence

from mmray.report import axes
from mmray.report.words import escape, number

MOST = 400
"""Points of a line; of more, neighbours are averaged."""

Point = tuple[float, float]


def curve(points: Sequence[Point], word: str, unit: str = "step") -> str:
    """One line; empty with fewer than two finite points.

    Args:
        points: places on the x axis, rising, and values.
        word: what the values are, for those who can't see them.
        unit: what the places are.
    """
    found = _thinned([each for each in points if math.isfinite(each[1])])
    if len(found) < 2 or found[0][0] == found[-1][0]:
        return ""
    left, right = found[0][0], found[-1][0]
    low, high = min(y for _, y in found), max(y for _, y in found)
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    bottom, top = (0.0 if 0 <= low < 0.25 * high else low - margin), high + margin

    def across(x: float) -> float:
        return 100 * (x - left) / (right - left)

    def down(y: float) -> float:
        return 100 * (top - y) / (top - bottom)

    ticks = axes.even(bottom, top, 5)
    digits = axes.digits(ticks) if high < 100 else 0
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{down(y):.2f}" y2="{down(y):.2f}" class="grid"/>'
        for y in ticks
    )
    heights = "".join(f'<span style="top:{down(y):.2f}%">{y:.{digits}f}</span>' for y in ticks)
    places = "".join(
        f'<span style="left:{across(x):.2f}%">{number(x)}</span>' for x in axes.even(left, right, 6)
    )
    line = " ".join(f"{10 * across(x):.1f},{down(y):.2f}" for x, y in found)
    told = f"{word} from {found[0][1]:.4g} to {found[-1][1]:.4g} over {number(right)} {unit}s"
    return (
        '<figure class="chart"><div class="plot">'
        f'<div class="ylabels" aria-hidden="true">{heights}</div>'
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(told)}">{grid}<polyline class="line" points="{line}"/></svg></div>'
        f'<div class="xlabels free" aria-hidden="true">{places}</div></figure>'
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    width = math.ceil(len(points) / MOST) or 1
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]
