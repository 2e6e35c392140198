"""Filters leave out what they know not to pass, each for a reason with a name."""

from __future__ import annotations

from typing import Any

import pytest

from mmray.errors import SpecError
from mmray.sources.fragment import Sample
from mmray.specs.embed import Condition, FilterOptions
from mmray.transforms.filters import Filter, check
from tests import shards

ENGLISH = "Two people are walking on the beach at sunset"
GERMAN = "Zwei Menschen gehen bei Sonnenuntergang am Strand spazieren"


def sample(picture: bytes | None = None, **metadata: Any) -> Sample:
    members = {} if picture is None else {"image": picture}
    return Sample("s3://b/0.tar", "0", "etag", members, metadata)


def reason(
    options: dict[str, Any], text: str | None = None, given: Sample | None = None
) -> str | None:
    return Filter(FilterOptions(**options), "caption").reason(given or sample(), text)


def passes(value: Any, **condition: Any) -> bool:
    found = reason({"metadata": {"field": condition}}, given=sample(field=value))
    assert found in (None, "metadata.field")
    return found is None


def test_without_options_everything_passes() -> None:
    assert reason({}) is None
    assert Filter(FilterOptions(), "caption").wanted == frozenset()


@pytest.mark.parametrize(
    ("condition", "good", "bad"),
    [
        ({"min": 5}, [5, 5.0, 6, 1e300, float("inf")], [4, 4.99, -1, float("nan"), "6", True]),
        ({"max": 0.5}, [0.5, 0, -3, 10**400 * -1], [0.51, 10**400, "0.1", False, float("nan")]),
        ({"min": 1, "max": 3}, [1, 2, 3], [0, 4, [2], {"a": 2}]),
        ({"one_of": ["cc0", "cc-by"]}, ["cc0", "cc-by"], ["CC0", "", 0, ["cc0"]]),
        ({"one_of": [1, 2.5]}, [1, 1.0, 2.5], ["1", True, 2]),
        ({"one_of": [True]}, [True], [1, 1.0, False, "true"]),
        ({"one_of": []}, [], ["", 0]),
        ({"none_of": ["nsfw", 0]}, ["ok", 1, False, ""], ["nsfw", 0, 0.0, ["ok"]]),
        ({"min": 1, "none_of": [7]}, [1, 8], [7, 0]),
        ({}, ["", 0, False, "x"], [["x"]]),
    ],
)
def test_conditions(condition: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not passes(value, **condition)] == []
    assert [value for value in bad if passes(value, **condition)] == []
    assert not passes(None, **condition)
    assert reason({"metadata": {"field": condition}}) == "metadata.field"


def test_every_condition_must_hold_and_the_first_that_does_not_is_named() -> None:
    options = {"metadata": {"score": {"min": 5}, "licence": {"one_of": ["cc0"]}}}
    assert reason(options, given=sample(score=6, licence="cc0")) is None
    assert reason(options, given=sample(score=4, licence="x")) == "metadata.score"
    assert reason(options, given=sample(score=6, licence="x")) == "metadata.licence"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("abc", None),
        ("abcde", None),
        ("猫猫猫", None),
        ("ab", "min_characters"),
        ("", "min_characters"),
        (None, "min_characters"),
        ("abcdef", "max_characters"),
    ],
)
def test_length_of_text(text: str | None, found: str | None) -> None:
    assert reason({"min_characters": 3, "max_characters": 5}, text) == found


def test_no_text_is_not_too_long() -> None:
    assert reason({"max_characters": 5}, None) is None


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_shorter_side(format: str) -> None:
    picture = shards.picture(1, (64, 48), format)
    assert reason({"min_side": 48}, given=sample(picture)) is None
    assert reason({"min_side": 49}, given=sample(picture)) == "min_side"


def test_the_side_is_read_from_the_header_alone() -> None:
    picture = shards.picture(1, (640, 480))
    assert reason({"min_side": 481}, given=sample(picture[:1_000])) == "min_side"


def test_pictures_that_decoding_will_refuse_pass_here() -> None:
    for data in (b"", b"just words", shards.picture(1)[:4], bytes(2_000)):
        assert reason({"min_side": 20_000}, given=sample(data)) is None
    limited = Filter(FilterOptions(min_side=100), "caption", max_pixels=1_000)
    assert limited.reason(sample(shards.picture(1, (64, 48))), None) is None
    assert reason({"min_side": 100}) is None  # no picture at all


@pytest.mark.parametrize(
    ("text", "languages", "found"),
    [
        (ENGLISH, ["en"], None),
        (ENGLISH, ["de", "en"], None),
        (ENGLISH.upper(), ["en"], None),
        (GERMAN, ["en"], "language"),
        (GERMAN, ["de"], None),
        ("Deux personnes marchent sur la plage au coucher du soleil", ["en", "de"], "language"),
        ("Dos personas caminan por la playa al atardecer", ["es"], None),
        ("Красная площадь в Москве зимой вечером", ["ru"], None),
        ("猫が窓辺で眠っている", ["ja"], None),
        ("猫が窓辺で眠っている", ["en"], "language"),
        (ENGLISH + " " + GERMAN * 10_000, ["en"], "language"),
        (None, ["en"], "language"),
    ],
)
def test_languages(text: str | None, languages: list[str], found: str | None) -> None:
    assert reason({"languages": languages}, text) == found


@pytest.mark.parametrize("text", ["", "a cat", "Hund", "12345", "🐈", "IMG_1234.jpg", "Wien 2012"])
@pytest.mark.parametrize("language", ["en", "de", "ja"])
def test_a_text_of_a_word_or_two_passes_every_language(text: str, language: str) -> None:
    assert reason({"languages": [language]}, text) is None


def test_what_costs_least_is_looked_at_first() -> None:
    options = {
        "metadata": {"score": {"min": 5}},
        "min_characters": 80,
        "min_side": 100,
        "languages": ["en"],
    }
    small = shards.picture(1)
    assert reason(options, GERMAN, sample(small)) == "metadata.score"
    assert reason(options, GERMAN, sample(small, score=5)) == "min_characters"
    assert reason(options, GERMAN * 2, sample(small, score=5)) == "min_side"
    assert reason(options, GERMAN * 2, sample(score=5)) == "language"


def test_wanted_names_the_fields_that_are_looked_at() -> None:
    metadata = {"score": Condition(min=1)}
    assert Filter(FilterOptions(metadata=metadata), "alt").wanted == {"score"}
    assert Filter(FilterOptions(min_side=3), "alt").wanted == frozenset()
    for options in ({"min_characters": 1}, {"max_characters": 9}, {"languages": ("en",)}):
        assert Filter(FilterOptions(metadata=metadata, **options), "alt").wanted == {"score", "alt"}


@pytest.mark.parametrize(
    ("options", "path", "words"),
    [
        ({"languages": ["en", "eng"]}, "filter.languages.1", "did you mean 'en'?"),
        ({"languages": ["EN"]}, "filter.languages.0", "did you mean 'en'?"),
        ({"languages": ["de-AT"]}, "filter.languages.0", "did you mean 'de'?"),
        ({"languages": ["klingon"]}, "filter.languages.0", "en, eo, es"),
        ({"min_characters": 9, "max_characters": 8}, "filter.min_characters", "above"),
        ({"metadata": {"a": {"min": 2, "max": 1}}}, "filter.metadata.a.min", "above"),
    ],
)
def test_filters_that_nothing_can_pass_are_refused(
    options: dict[str, Any], path: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        check(FilterOptions(**options))
    assert caught.value.path == path
    assert words in caught.value.message


def test_sound_filters_are_accepted() -> None:
    check(FilterOptions())
    check(FilterOptions(languages=("en", "de", "fr", "es", "it", "pt", "zh", "ja", "ar", "hi")))
    check(FilterOptions(min_characters=8, max_characters=8, metadata={"a": Condition(min=1)}))
