"""The page of a search: query and hits are there, in order, and foreign text stays text."""

import re

import pytest

from mmray.report import hits as hits_module
from mmray.report.hits import Shown, hits_page
from tests.unit.page import HOSTILE, Page, assert_safe

JPEG = b"\xff\xd8jpeg"
ABOUT = {"index": "s3://b/indexes/clip", "Rows": "1,234", "Where": ""}


def hit(n: int, score: float | None = None, **more: object) -> Shown:
    given = {"caption": f"A sheep, {n}.", "facts": {"category": "mammals"}, "jpeg": JPEG}
    return Shown(f"id-{n}", 0.8 - n / 10 if score is None else score, **{**given, **more})  # type: ignore[arg-type]


def widths(text: str) -> list[float]:
    """Of the score bars, in percent."""
    return [float(each) for each in re.findall(r'class="fill" width="([\d.]+)%"', text)]


def test_words_then_hits_then_facts() -> None:
    text = hits_page("clip", [], "a baby sheep", [hit(0), hit(1), hit(2)], ABOUT)
    page = Page(text)
    assert page.words["title"] == ["a baby sheep · clip"]
    assert page.words["h1"] == ["a baby sheep"]
    assert page.words["h2"] == ["Hits", "About"]
    assert "in clip" in page.words["p"]
    assert "3 hits" in page.words["span"]
    assert [each for each in page.words["p"] if each.startswith("A sheep")] == [
        "A sheep, 0.",
        "A sheep, 1.",
        "A sheep, 2.",
    ]
    for rank, score in (("1", "0.800"), ("2", "0.700"), ("3", "0.600")):
        assert rank in page.words["span"] and score in page.words["span"]
    assert widths(text) == [100.0, 87.5, 75.0]
    assert page.count("img", "pic") == page.count("li", "item") == 3
    assert page.words["dt"] == ["category"] * 3 + ["Index", "Rows"], "an empty fact is left out"
    assert page.words["code"] == ["s3://b/indexes/clip"]


def test_pictures_of_the_query_stand_at_the_top() -> None:
    query = [Shown("q1", jpeg=JPEG, facts={"as": "like"}), Shown("q2", caption="No picture.")]
    text = hits_page("clip", query, "", [hit(0)], {})
    page = Page(text)
    assert page.words["h1"] == ["clip"]
    top = text[: text.index("</header>")]
    assert 'class="asked"' in top
    assert top.count("<img") == 1 and top.count("no picture") == 1
    assert "No picture." in top and "q1" in top and "like" in top
    assert page.words["h2"] == ["Hits"]


def test_a_hit_without_a_picture_has_its_place() -> None:
    text = hits_page("clip", [], "x", [hit(0), hit(1, jpeg=None)], {})
    assert Page(text).count("img") == 1
    assert text.count("no picture") == 1
    assert '<ol class="hits">' in text


def test_without_pictures_hits_are_lines() -> None:
    text = hits_page("notes", [Shown("q", caption="said")], "", [hit(0, jpeg=None)], {})
    assert 'class="hits lines"' in text and 'class="asked lines"' in text
    assert "no picture" not in text


def test_no_hits() -> None:
    page = Page(hits_page("clip", [], "x", [], ABOUT))
    assert "Nothing in the index answers this query." in page.words["p"]
    assert "0 hits" in page.words["span"]


def test_a_hit_without_a_caption_shows_its_id() -> None:
    text = hits_page("clip", [], "x", [hit(0, caption="", facts={})], {})
    assert '<p class="id mono" title="id-0">id-0</p>' in text
    assert '<p class="cap">' not in text


@pytest.mark.parametrize(
    ("scores", "shown", "bars"),
    [
        ((0.5, 0.0, -0.25), ["0.500", "0.000", "-0.250"], [100.0, 0.0, 0.0]),
        ((-0.1, -0.2), ["-0.100", "-0.200"], [0.0, 0.0]),
        ((1234.5, 617.25), ["1,234", "617"], [100.0, 50.0]),
    ],
)
def test_any_score_has_a_bar(scores: list[float], shown: list[str], bars: list[float]) -> None:
    text = hits_page("i", [], "x", [hit(n, score) for n, score in enumerate(scores)], {})
    assert widths(text) == bars
    assert [each for each in Page(text).words["span"] if each in shown] == shown


def test_many_facts_are_folded() -> None:
    facts = {f"column{n}": f"value{n}" for n in range(5)} | {"empty": ""}
    text = hits_page("clip", [], "x", [hit(0, facts=facts)], {})
    assert text.index("value2") < text.index("2 more") < text.index("value3")
    assert "empty" not in text


def test_pictures_have_a_limit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hits_module, "PAGE_PICTURE_BYTES", 3000)
    text = hits_page("clip", [], "x", [hit(n, jpeg=b"j" * 900) for n in range(4)], {})
    assert Page(text).count("img") == 2
    assert text.count("not kept") == 2


def test_hostile_text_stays_text() -> None:
    mine = Shown(HOSTILE, 0.5, HOSTILE, {HOSTILE: HOSTILE}, JPEG)
    text = hits_page(HOSTILE, [mine], HOSTILE, [mine], {HOSTILE: HOSTILE})
    assert_safe(text)
    assert text.count("alert(1)") > 10
    hits_page("\udce9", [], "a\0b", [Shown("\udce9", 1.0)], {}).encode()
