"""The page of an index: its figures, the curve with the chosen setting and the floor, its facts."""

import re
from typing import Any

import pytest

from mmray.report import Report, axes
from mmray.report.charts import trade_off
from mmray.report.index import CurvePoint, index_page
from mmray.report.vectors import Inspection
from tests.unit.page import HOSTILE, Page, assert_safe
from tests.unit.test_page import vectors
from tests.unit.test_report import report

METRICS = {
    "recall": 0.9531,
    "k": 10,
    "min_recall": 0.95,
    "queries_per_second": 4310.4,
    "rows": 12345,
    "bytes": 3 * 2**20,
    "threads": 2,
    "kind": "ivf_flat",
}
CURVE = [
    CurvePoint("nprobe 4", 0.84, 9000.0),
    CurvePoint("nprobe 16", 0.96, 4500.0, chosen=True),
    CurvePoint("nprobe 64", 0.99, 1200.0),
    CurvePoint("nprobe 1", 0.3, 30000.0),
]


def built(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "job": "index",
        "rows_written": 10,
        "rows_quarantined": 0,
        "errors": {},
        "examples": [],
        "stages": {"train": 1.0, "add": 2.5},
        "metrics": METRICS,
        "outputs": {"index": "s3://b/indexes/clip", "version": 3},
    }
    return report(**{**values, **changes})


def points(chart: str) -> list[tuple[float, float]]:
    """Of the line: across in thousandths, down in percent."""
    found = re.search(r'<polyline class="line" points="([^"]+)"', chart)
    assert found
    pairs = (each.split(",") for each in found[1].split())
    return [(float(x), float(y)) for x, y in pairs]


def test_what_the_page_shows() -> None:
    text = index_page(built(), CURVE, {"Kind": "ivf_flat", "Factory": "IVF64,Flat"}, vectors())
    page = Page(text)
    assert page.words["h1"] == ["clip"]
    assert page.words["h2"] == [
        "Recall@10 and speed",
        "Stage seconds",
        "Settings tried",
        "Nearest pictures",
        "Vectors",
        "Index",
        "Measured",
        "Run",
    ]
    figures = list(zip(page.words["dt"][:5], page.words["dd"][:5], strict=True))
    assert figures == [
        ("Recall@10", "0.953"),
        ("Queries per second", "4,310"),
        ("Rows", "12,345"),
        ("Size", "3 MiB"),
        ("Build time", "4 s"),
    ]
    for words in (
        "10 rows read in 4 s, all of them added.",
        "add is the bottleneck",
        "at least 0.95 was asked for",
        "IVF64,Flat",
        "s3://b/indexes/clip (version 3)",
    ):
        assert words in text
    assert text.count("ivf_flat") == 1, "a metric that is among the facts isn't told again"
    assert "Threads" in page.words["dt"] and "Min recall" not in page.words["dt"]


def test_a_build_alone() -> None:
    page = Page(index_page(built(stages={}, metrics={}, timeline=[]), [], {}, Inspection()))
    assert page.words["h2"] == ["Run"]
    assert page.words["dt"][0] == "Build time"


def test_a_recall_below_the_floor_is_bad_news() -> None:
    for recall, kind in ((0.94, "bad"), (0.96, "good")):
        text = index_page(built(metrics={**METRICS, "recall": recall}), [], {}, Inspection())
        assert f'<div class="{kind}"><dt>Recall@10</dt><dd>{recall:.3f}</dd>' in text


def test_rows_that_were_left_out() -> None:
    lost = built(rows_written=8, rows_filtered=2, filtered={"no vector": 2})
    text = index_page(lost, CURVE, {}, Inspection())
    assert "2 rows, 20% of those read<" in text
    assert "in the store" not in text


def test_the_chart_goes_down_to_the_right() -> None:
    chart = trade_off(CURVE, 0.95)
    spots = points(chart)
    assert spots == sorted(spots)
    assert [y for _, y in spots] == sorted(y for _, y in spots)
    assert len(spots) == 3, "a setting far below the floor isn't drawn"
    assert len(points(trade_off(CURVE, None))) == 4
    assert len(points(trade_off(CURVE, 1.0))) == 4
    one, two, three = (x for x, _ in spots)
    # By logarithms: 1,200 to 4,500 is further than 4,500 to 9,000.
    assert two - one > three - two > 0


def test_the_chosen_setting_and_the_floor_stand_out() -> None:
    chart = trade_off(CURVE, 0.95)
    page = Page(chart)
    assert page.count("circle", "chosen") == 1
    assert page.count("circle", "dot") == 2
    assert page.count("line", "floor") == 1
    assert page.count("span", "floor") == 1
    assert "<b>nprobe 16</b> 0.960 at 4,500/s" in chart
    assert "nprobe 4: 0.840 at 9,000/s" in page.words["title"]
    assert page.count("line", "floor") and not Page(trade_off(CURVE, None)).count("line", "floor")
    floor = re.search(r'y1="([\d.]+)" y2="[\d.]+" class="floor"', chart)
    assert floor
    (_, above), (_, chosen), (_, below) = points(chart)
    assert above < chosen < float(floor[1]) < below


def test_the_line_joins_only_the_best() -> None:
    worse = CurvePoint("nprobe 5", 0.9, 3000.0)
    chart = trade_off([*CURVE, worse], 0.95)
    assert len(points(chart)) == 3
    assert Page(chart).count("circle", "dot") == 3


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [CurvePoint("exact", 1.0, 120.0, chosen=True)],
        [CurvePoint("a", 0.5, 100.0), CurvePoint("b", 0.9, 100.0)],
        [CurvePoint("a", 0.5, 0.0), CurvePoint("b", 0.9, 100.0)],
    ],
)
def test_one_speed_is_no_curve(curve: list[CurvePoint]) -> None:
    assert trade_off(curve, 0.95) == ""
    text = index_page(built(), curve, {}, Inspection())
    assert ("Settings tried" in Page(text).words["h2"]) == bool(curve)


@pytest.mark.parametrize("low", [0.0, 0.5, 0.99, 0.9999, 1.0])
@pytest.mark.parametrize("fast", [1.01, 10.0, 1e6])
def test_any_curve_is_drawn_inside(low: float, fast: float) -> None:
    curve = [CurvePoint("a", 1.0, 3.0), CurvePoint("b", low, 3.0 * fast, chosen=True)]
    chart = trade_off(curve, None)
    spots = re.findall(r'c[xy]="([^"]+)%"', chart)
    spots += re.findall(r'style="(?:top|left):([^%]+)%"', chart)
    assert len(spots) > 8
    assert all(-0.01 <= float(each) <= 100.01 for each in spots)


def test_many_settings_are_folded() -> None:
    curve = [CurvePoint(f"nprobe {n}", n / 50, 5000.0 / n, n == 40) for n in range(1, 41)]
    text = index_page(built(), curve, {}, Inspection())
    assert text.index('<tr class="strong"><td>nprobe 40') < text.index("All 40")
    assert text.index("All 40") < text.index("<td>nprobe 7<")
    assert text.count("<td>nprobe 7<") == 1


def test_hostile_text_stays_text() -> None:
    curve = [CurvePoint(HOSTILE, 0.9 + n / 100, 100.0 * n + 1, n == 1) for n in range(3)]
    metrics = {**METRICS, HOSTILE: HOSTILE}
    hostile = built(metrics=metrics, outputs={HOSTILE: HOSTILE}, encoder={"name": HOSTILE})
    text = index_page(hostile, curve, {HOSTILE: HOSTILE}, vectors(caption=HOSTILE))
    assert_safe(text)
    assert text.count("alert(1)") > 20


def test_axes_are_round() -> None:
    low, ticks = axes.recalls(0.84)
    assert low == pytest.approx(0.8)
    assert ticks == pytest.approx([1.0, 0.95, 0.9, 0.85])
    assert [axes.digits(axes.recalls(each)[1]) for each in (0.1, 0.84, 0.97, 0.999)] == [2, 2, 2, 4]
    assert axes.speeds(430, 16_000) == [500, 1000, 2000, 5000, 10_000]
    assert axes.speeds(1, 1e9) == [1, 100, 1e4, 1e6, 1e8]
    assert axes.speeds(31, 34) == [31, 32, 33, 34]
    assert axes.even(0.95, 1.0, 5) == pytest.approx([0.95, 0.96, 0.97, 0.98, 0.99, 1.0])
