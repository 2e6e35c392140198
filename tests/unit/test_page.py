"""The page: everything is in it, nothing from elsewhere, and foreign text stays text."""

import re
from dataclasses import replace
from typing import Any

import pytest

from mmray.report import Report, media
from mmray.report.document import POLICY
from mmray.report.page import render
from mmray.report.vectors import SOUND_BYTES, Inspection, Item, Neighbours, Space, VectorCheck
from mmray.report.words import duration, moment, number, size
from tests.unit.page import HOSTILE, Page, assert_safe
from tests.unit.test_report import example, report

SECTIONS = [
    "Throughput",
    "Stage seconds",
    "Vectors",
    "Nearest pictures",
    "Bad samples by reason",
    "Shards",
    "Run",
]
UNSEEN = [each.replace("pictures", "neighbours") for each in SECTIONS]
"""Of a page without vectors."""


def vectors(caption: str = "A red apple.", jpeg: bytes | None = b"\xff\xd8jpeg") -> Inspection:
    items = [Item(str(n), f"key-{n}", caption, jpeg, 0.9 - n / 10) for n in range(7)]
    return Inspection(
        rows=40,
        of=100,
        checks=(
            VectorCheck("image", 40, 2, 512, 0.9995, 1.0004, 0.31, 42.5),
            VectorCheck("text", 40, 0, 384, 1.0, 1.0, 0.99, 1.2, warnings=("Collapsed: alike",)),
        ),
        spaces=(Space("image", rows_of(items, 8)),),
    )


def rows_of(items: list[Item], count: int) -> tuple[Neighbours, ...]:
    return tuple(Neighbours(items[0], tuple(items[1:])) for _ in range(count))


def sounds(size: int = 300, mime: str = "audio/ogg", jpeg: bytes | None = None) -> Inspection:
    """One picture space, then a space of six rows of sounds."""
    items = [Item(str(n), f"key-{n}", "A cow.", jpeg, 0.9, b"s" * size, mime) for n in range(7)]
    return replace(vectors(), spaces=(*vectors().spaces, Space("audio", rows_of(items, 6))))


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
        "while reading",
        "1 · 100%",
        "mmray store replay /data/out SPEC",
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
    assert_safe(text)
    assert text.count("alert(1)") > 20


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = render(full(), vectors())
    assert_safe(text)
    assert not re.search(r"https?://", text)


def test_everything_in_quarantine() -> None:
    text = render(
        full(rows_read=5, rows_written=0, rows_quarantined=5, stages={}, timeline=[(1.0, 0)])
    )
    assert "0 written and 5 in quarantine" in text
    assert "5 samples, 100% of those read" in text
    assert "No stage ran" in text
    assert Page(text).words["h2"] == UNSEEN


def test_bad_samples_stand_by_reason_the_most_frequent_first() -> None:
    text = render(
        full(
            rows_read=1000,
            rows_written=987,
            rows_quarantined=13,
            errors={"EmptyMember": 4, "UnreadableImage": 9},
            examples=[
                example(source_key="nothing", stage="decode"),
                example(source_key="empty"),
                example(error_type="UnreadableImage", source_key="torn", message="is not an image"),
            ],
        )
    )
    page = Page(text)
    assert [each for each in page.words["h3"] if each[0].isupper()] == [
        "UnreadableImage",
        "EmptyMember",
    ]
    assert "13 samples, 1.3% of those read" in text
    reasons = text.split("<h3>UnreadableImage</h3>")[1].split("</section>")[0]
    first, second = reasons.split("<h3>EmptyMember</h3>")
    for words in (
        "9 · 69%",
        "while reading",
        "<details open>",
        "1 example<",
        "torn",
        "not an image",
    ):
        assert words in first
    assert "nothing" not in first
    for words in ("4 · 31%", "while decoding or reading", "<details>", "2 examples<", "nothing"):
        assert words in second


def test_many_reasons_are_folded_and_one_without_an_example_still_counts() -> None:
    errors = {f"Reason{n:02d}": 50 - n for n in range(15)}
    bad = sum(errors.values())
    text = render(full(rows_read=bad, rows_written=0, rows_quarantined=bad, errors=errors))
    page = Page(text)
    shown = [each for each in page.words["h3"] if each.startswith("Reason")]
    assert shown == list(errors)
    assert text.index("Reason11<") < text.index("3 more reasons") < text.index("Reason12<")
    assert "<table>" not in text


def test_a_replay_of_an_odd_uri_can_be_pasted_into_a_shell() -> None:
    text = render(full(outputs={"store": "/my stores/$(x)"}))
    assert "mmray store replay &#x27;/my stores/$(x)&#x27; SPEC" in text


def test_what_filters_left_out_has_a_section_of_its_own() -> None:
    text = render(
        full(
            rows_read=100,
            rows_written=59,
            rows_filtered=40,
            filtered={"min_side": 10, HOSTILE: 1, "duplicate": 29},
        )
    )
    page = Page(text)
    assert page.words["h2"] == [*UNSEEN[:5], "Left out", *UNSEEN[5:]]
    assert "59 written, 40 left out and 1 in quarantine" in text
    assert "40 samples, 40% of those read, not in the store" in text
    assert "29 · 72%" in text
    assert text.index(">duplicate<") < text.index(">min_side<")
    assert ("Left out", "40") in zip(page.words["dt"], page.words["dd"], strict=False)
    assert "Left out" not in render(full())


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
    assert Page(text).words["h2"] == UNSEEN


def test_metrics_do_not_change_the_page_of_a_store() -> None:
    assert render(full(metrics={"recall": 0.5})) == render(full())


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
    assert [size(n) for n in (0, 1023, 1024, 1_500_000, 999_999_999_999, 2**60)] == [
        "0 bytes",
        "1,023 bytes",
        "1 KiB",
        "1.4 MiB",
        "931 GiB",
        "1,048,576 TiB",
    ]
    assert moment("2025-11-22T01:16:00+02:00") == "21 November 2025, 23:16 UTC"
    assert moment("<b>") == "<b>"


# --- sound ----------------------------------------------------------------------------------------


def players(text: str) -> list[dict[str, str | None]]:
    return [attrs for tag, attrs in Page(text).tags if tag == "audio"]


def test_sounds_are_played_from_the_page_itself() -> None:
    text = render(full(), sounds())
    found = players(text)
    assert Page(text).words["h2"][3:6] == ["Nearest pictures", "Nearest sounds", SECTIONS[4]]
    assert len(found) == 6 * 7
    for attrs in found:
        assert attrs.keys() == {"controls", "preload", "aria-label", "src"}
        assert attrs["preload"] == "none"
        assert attrs["aria-label"] == "A cow."
        assert (attrs["src"] or "").startswith("data:audio/ogg;base64,c3Nz")
    assert "media-src data:;" in POLICY
    assert "3 more" in text, "the later space shows fewer rows at once"
    assert 'class="sounds"' in text


def test_pictures_stand_beside_sounds_that_have_them() -> None:
    text = render(full(), sounds(jpeg=b"\xff\xd8jpeg"))
    assert 'class="sounds pictured"' in text
    assert sum(tag == "img" for tag, _ in Page(text).tags) == (8 + 6) * 7


@pytest.mark.parametrize(
    "mime", ["text/html", "", "audio/ogg;x", 'audio/"onplay="alert(1)', HOSTILE]
)
def test_only_an_audio_type_is_played(mime: str) -> None:
    text = render(full(), sounds(mime=mime))
    assert players(text) == []
    assert "alert" not in text


def test_sounds_have_a_limit_each_and_together() -> None:
    assert players(render(full(), sounds(size=SOUND_BYTES + 1))) == []
    assert players(render(full(), sounds(size=0))) == []
    text = render(full(), sounds(size=SOUND_BYTES))
    assert len(players(text)) == media.PAGE_SOUND_BYTES // (SOUND_BYTES * 4 // 3 + 4)
    assert text.count("sound not kept") == 6 * 7 - len(players(text)) > 0
    assert len(text) < 3.3 * 1024 * 1024


def test_words_are_lines_even_where_rows_have_pictures() -> None:
    items = [Item(str(n), f"key-{n}", "A cow.", b"jpeg", 0.9) for n in range(7)]
    spaces = (Space("text", rows_of(items, 2)), Space("image", ()), Space("video", ()))
    text = render(full(), replace(vectors(), spaces=spaces))
    assert "<img" not in text
    assert Page(text).words["h2"][3:6] == ["Nearest texts", "Nearest pictures", "Nearest videos"]


def test_a_space_by_another_name_is_named() -> None:
    space = Space("<touch>", rows_of([Item("1", "k")] * 3, 1))
    assert "Nearest by &lt;touch&gt;" in render(full(), replace(vectors(), spaces=(space,)))
