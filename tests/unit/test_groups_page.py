"""The page of near-duplicates: the largest groups first, some of them, and the scores of pairs."""

import re
from typing import Any

import pytest

from mmray.report import Report
from mmray.report import groups as groups_module
from mmray.report.charts import histogram
from mmray.report.groups import MAX_EACH, MAX_GROUPS, OPEN, Group, groups_page
from mmray.report.vectors import Item
from tests.unit.page import HOSTILE, Page, assert_safe
from tests.unit.test_report import report

JPEG = b"\xff\xd8jpeg"
BINS = [(0.95, 40), (0.96, 20), (0.97, 0), (0.98, 10), (0.99, 30)]


def found(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "job": "duplicates",
        "rows_read": 100,
        "rows_written": 70,
        "rows_quarantined": 0,
        "rows_filtered": 30,
        "filtered": {"near-duplicate": 30},
        "errors": {},
        "examples": [],
        "stages": {"search": 3.0, "group": 0.5},
        "metrics": {"threshold": 0.95, "groups": 12, "pairs": 1000},
        "outputs": {"keep": "/out/dups/keep.parquet", "drop": "/out/dups/drop.parquet"},
    }
    return report(**{**values, **changes})


def group(name: str, dropped: int, jpeg: bytes | None = JPEG, **more: Any) -> Group:
    copies = [
        Item(f"{name}-{n}", "key", f"Copy {n} of {name}.", jpeg, 0.99 - n / 1000, **more)
        for n in range(dropped)
    ]
    return Group(Item(name, "key", f"Kept {name}.", jpeg, **more), tuple(copies))


def test_what_the_page_shows() -> None:
    text = groups_page(found(), [group("small", 1), group("large", 3)], BINS)
    page = Page(text)
    assert page.words["h1"] == ["dups"]
    assert page.words["h2"] == ["Scores", "Stage seconds", "Near-duplicates", "Measured", "Run"]
    figures = list(zip(page.words["dt"][:4], page.words["dd"][:4], strict=True))
    assert figures == [("Rows kept", "70"), ("Groups", "12"), ("Dropped", "30"), ("Time", "4 s")]
    assert text.index("Kept large.") < text.index("Copy 2 of large.") < text.index("Kept small.")
    for words in (
        "100 rows compared in 4 s, 70 kept and 30 dropped.",
        "the largest 2 of 12 groups",
        "0.989",
        "/out/dups/keep.parquet",
    ):
        assert words in text
    assert page.count("img") == 6
    assert [each for each in page.words["span"] if each == "kept"] == ["kept"] * 2
    assert {"Threshold", "Pairs"} <= set(page.words["dt"])


def test_no_duplicates() -> None:
    alone = found(rows_written=100, rows_filtered=0, filtered={}, metrics={}, stages={})
    page = Page(groups_page(alone, [], []))
    assert page.words["h2"] == ["Near-duplicates", "Run"]
    assert "No two rows are that near to each other." in page.words["p"]


def test_other_reasons_are_told() -> None:
    more = found(filtered={"near-duplicate": 20, "no vector": 10})
    assert "Dropped" in Page(groups_page(more, [], [])).words["h2"]


def test_large_groups_and_many_of_them_are_cut() -> None:
    groups = [group(f"g{n}", 1) for n in range(MAX_GROUPS + 20)] + [group("big", 1000)]
    text = groups_page(found(metrics={"groups": 5}), groups, BINS)
    page = Page(text)
    assert page.count("div", "near") == MAX_GROUPS
    assert page.count("img") == 2 * (MAX_GROUPS - 1) + 1 + MAX_EACH
    assert f"and {1000 - MAX_EACH} more dropped" in text
    assert f"the largest {MAX_GROUPS} of {len(groups)} groups" in text
    assert f"{MAX_GROUPS - OPEN} more groups" in text
    assert text.index("Kept big.") < text.index("Kept g0.")


def test_pictures_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups_module, "PAGE_PICTURE_BYTES", 3000)
    text = groups_page(found(), [group("a", 5, b"j" * 900)], [])
    assert Page(text).count("img") == 2
    assert text.count("not kept") == 4


def test_sounds_are_played_and_words_are_lines() -> None:
    heard = groups_page(found(), [group("a", 2, None, audio=b"s" * 9, mime="audio/ogg")], [])
    assert Page(heard).count("audio") == 3
    said = groups_page(found(), [group("a", 2, None)], [])
    assert '<div class="texts">' in said and "<img" not in said


def test_the_histogram_has_a_column_for_each_bin_with_pairs() -> None:
    chart = histogram(BINS, "pairs")
    page = Page(chart)
    columns = [attrs for tag, attrs in page.tags if tag == "rect"]
    assert page.words["title"] == ["0.95: 40 pairs", "0.96: 20 pairs", "0.98: 10 pairs",
                                   "0.99: 30 pairs"]  # fmt: skip
    heights = [float(attrs["height"] or 0) for attrs in columns]
    assert heights == pytest.approx([100.0, 50.0, 25.0, 75.0])
    across = [float(attrs["x"] or 0) for attrs in columns]
    assert across == pytest.approx([1, 201, 601, 801])
    assert ">1<" in chart and ">0.95<" in chart


@pytest.mark.parametrize(
    "bins", [[(0.99, 1)], [(0.5, 3), (0.75, 10**9)], [(n / 1000, n) for n in range(1000)]]
)
def test_any_histogram_is_drawn_inside(bins: list[tuple[float, int]]) -> None:
    chart = histogram(bins, "pairs")
    Page(chart)
    assert "nan" not in chart
    spots = re.findall(r'style="(?:top|left):([^%]+)%"', chart)
    assert spots and all(-0.01 <= float(each) <= 100.01 for each in spots)


def test_no_pairs_no_histogram() -> None:
    assert histogram([], "pairs") == histogram([(0.9, 0)], "pairs") == ""


def test_hostile_text_stays_text() -> None:
    item = Item(HOSTILE, HOSTILE, HOSTILE, JPEG, 0.9)
    hostile = found(metrics={HOSTILE: HOSTILE}, outputs={HOSTILE: HOSTILE},
                    filtered={HOSTILE: 29, "b": 1}, stages={HOSTILE: 1.0})  # fmt: skip
    text = groups_page(hostile, [Group(item, (item,))], BINS)
    assert_safe(text)
    assert text.count("alert(1)") > 10
