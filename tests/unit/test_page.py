"""The page: everything is in it, nothing from elsewhere, and foreign text stays text."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from mmray.report import Report
from mmray.report.page import POLICY, render
from mmray.report.vectors import Inspection, Item, Neighbours, VectorCheck
from mmray.report.words import duration, moment, number
from tests.unit.test_report import example, report

HOSTILE = "\"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>'&amp;"
SECTIONS = [
    "Throughput",
    "Stage seconds",
    "Vectors",
    "Nearest neighbours",
    "Quarantine",
    "Shards",
    "Run",
]
VOID = {"meta", "img", "rect", "line", "polyline", "polygon"}


class Page(HTMLParser):
    """What a browser would find; fails on tags that don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)


def vectors(caption: str = "A red apple.", jpeg: bytes | None = b"\xff\xd8jpeg") -> Inspection:
    items = [Item(str(n), f"key-{n}", caption, jpeg, 0.9 - n / 10) for n in range(7)]
    return Inspection(
        rows=40,
        of=100,
        checks=(
            VectorCheck("image", 40, 2, 512, 0.9995, 1.0004, 0.31, 42.5),
            VectorCheck("text", 40, 0, 384, 1.0, 1.0, 0.99, 1.2, warnings=("Collapsed: alike",)),
        ),
        space="image",
        neighbours=tuple(Neighbours(items[0], tuple(items[1:])) for _ in range(8)),
    )


def full(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "shards": {"total": 9, "finished": 3, "changed": 1, "removed": 120},
        "changed": ["s3://b/1.tar"],
        "removed": [f"s3://b/old/{n}.tar" for n in range(120)],
        "startup": {"plan": 0.4, "ray": 5.0},
        "encoder": {"name": "clip", "fingerprint": "f" * 32, "dims": {"image": 512}},
    }
    return report(**{**values, **changes})


def test_all_sections_are_there() -> None:
    text = render(full(), vectors())
    page = Page(text)
    assert page.words["h2"] == SECTIONS
    assert page.words["h1"] == ["out"]
    for words in (
        "10 samples read in 4 s, 9 written and 1 in quarantine. 21 November 2025, 23:16 UTC.",
        "encode is the bottleneck",
        "Collapsed: alike",
        "EmptyMember",
        "zero bytes",
        "120 removed (first 100)",
        "s3://b/1.tar",
        "f" * 32,
        "plan 0.4 s, ray 5 s",
        "effective directions",
        "0.80",
        "2 more",
    ):
        assert words in text
    assert sum(tag == "img" for tag, _ in page.tags) == 8 * 7


def test_hostile_text_stays_text() -> None:
    hostile = full(
        status="failed",
        message=HOSTILE,
        examples=[
            example(source_uri=HOSTILE, source_key=HOSTILE, error_type=HOSTILE, message=HOSTILE)
        ],
        errors={HOSTILE: 1},
        stages={HOSTILE: 1.0},
        startup={HOSTILE: 1.0},
        changed=[HOSTILE],
        encoder={"name": HOSTILE, "fingerprint": HOSTILE, "dims": {HOSTILE: 3}},
        outputs={"store": HOSTILE, "version": 1},
    )
    text = render(hostile, vectors(caption=HOSTILE))
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert text.count("alert(1)") > 20


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = render(full(), vectors())
    page = Page(text)
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attrs.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", text)
    policies = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert policies == [POLICY]


def test_everything_in_quarantine() -> None:
    text = render(
        full(rows_read=5, rows_written=0, rows_quarantined=5, stages={}, timeline=[(1.0, 0)])
    )
    assert "0 written and 5 in quarantine" in text
    assert "5 samples, 100% of those read" in text
    assert "No stage ran" in text
    assert Page(text).words["h2"] == SECTIONS


def test_nothing_to_do() -> None:
    text = render(
        full(
            rows_read=0,
            rows_written=0,
            rows_quarantined=0,
            rows_skipped=12,
            stages={},
            timeline=[],
            shards={},
            changed=[],
            removed=[],
        )
    )
    assert "Nothing to do: every sample was finished by an earlier run" in text
    assert "None changed and none was removed" in text
    assert Page(text).words["h2"] == SECTIONS


def test_an_empty_store() -> None:
    text = render(full(), Inspection())
    assert "No vectors were looked at" in text
    assert "too few vectors to compare" in text


def test_without_pictures_neighbours_are_lines_of_text() -> None:
    text = render(full(), vectors(jpeg=None))
    assert "<img" not in text
    assert 'class="texts"' in text
    assert text.count("A red apple.") == 8 * 7


def test_a_row_without_a_caption_shows_its_key() -> None:
    assert ">key-3<" in render(full(), vectors(caption=""))


@pytest.mark.parametrize(
    "timeline",
    [
        [(0.0, 5)],
        [(2.0, 10)],
        [(1.0, 5), (1.0, 7), (2.0, 10)],
        [(n / 10, n * 7) for n in range(5000)],
    ],
)
def test_any_timeline_makes_a_page_of_bounded_size(timeline: list[tuple[float, int]]) -> None:
    text = render(full(timeline=timeline))
    Page(text)
    assert len(text) < 40_000
    assert "nan" not in text


def test_words() -> None:
    assert [duration(s) for s in (0, 0.42, 5, 41.2, 187, 3600, 7400)] == [
        "0 s",
        "0.4 s",
        "5 s",
        "41 s",
        "3 min 7 s",
        "1 h",
        "2 h 3 min",
    ]
    assert [number(n) for n in (0, 0.25, 2.5, 42.5, 12345, 1234.6)] == [
        "0",
        "0.25",
        "2.5",
        "42.5",
        "12,345",
        "1,235",
    ]
    assert moment("2025-11-22T01:16:00+02:00") == "21 November 2025, 23:16 UTC"
    assert moment("<b>") == "<b>"
