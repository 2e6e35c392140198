"""Where the axes of charts end, and where their ticks are: at round values."""

import math
from collections.abc import Sequence


def times(end: float) -> list[float]:
    """Round moments from 0 to `end` seconds, at most six."""
    seconds = (0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)
    step = next((each for each in seconds if end / each <= 5), math.ceil(end / 18000) * 3600)
    return [step * index for index in range(int(end / step + 1e-9) + 1)]


def scale(highest: float) -> tuple[float, list[float]]:
    """A round upper end for an axis that begins at 0, and two or three ticks below it."""
    highest = max(highest, 1e-9)
    unit = 10.0 ** math.floor(math.log10(highest))
    step = next(each * unit for each in (0.25, 0.5, 1.0, 2.5, 5.0) if highest / (each * unit) <= 4)
    count = math.ceil(highest / step - 1e-9)
    return step * count, [step * each for each in range(1, count + 1)]


def recalls(lowest: float) -> tuple[float, list[float]]:
    """A round lower end for an axis that goes up to 1, a little below `lowest`, and its ticks."""
    span = max(1.02 * (1 - lowest), 0.002)
    step = _step(span, 5)
    count = math.ceil(span / step)
    return 1 - step * count, [1 - step * each for each in range(count)]


def speeds(low: float, high: float) -> list[float]:
    """Round values from `low` to `high` for an axis of logarithms, at most six."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside: list[float] = []
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = (digit * 10.0**power for power in decades for digit in digits)
        inside = [each for each in found if low <= each <= high]
        if len(inside) <= 6:
            break
    return inside[:: math.ceil(len(inside) / 6) or 1] or even(low, high, 3)


def even(low: float, high: float, most: int) -> list[float]:
    """Round values from `low` to `high`, about `most`."""
    step = _step(high - low, most)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [step * each for each in range(first, last + 1)]


def digits(ticks: Sequence[float]) -> int:
    """How many digits behind the point tell the ticks apart, two or more."""
    step = abs(ticks[0] - ticks[1]) if len(ticks) > 1 else 0.1
    return max(2, -math.floor(math.log10(step) + 1e-9))


def _step(span: float, most: int) -> float:
    """The least round step of which no more than `most` fit into `span`."""
    unit = 10.0 ** math.floor(math.log10(span / most))
    return next(each * unit for each in (1, 2, 5, 10) if span / (each * unit) <= most + 1e-9)
