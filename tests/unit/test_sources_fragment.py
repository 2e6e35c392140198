"""Spans, ids, cutting, and what assembling a sample makes of its files."""

import json
import pickle

import pytest

from mmray.errors import BadSample, SampleError
from mmray.sources.assemble import assemble
from mmray.sources.cut import Cut, cut_fragments
from mmray.sources.fragment import Sample, Shard, Span, object_shard, sample_id


def test_span_text_round_trips_and_sorts_by_start() -> None:
    spans = [Span("a" * 16, "b" * 8, start, start + 512) for start in (0, 512, 99_999, 1 << 39)]
    texts = [str(span) for span in spans]
    assert [Span.parse(text) for text in texts] == spans
    assert texts == sorted(texts)
    assert len(set(map(len, texts))) == 1


@pytest.mark.parametrize("text", ["", "a-b-c-d", "A" * 16 + "-" + "b" * 8 + "-0-0", "x" * 51])
def test_other_text_is_no_span(text: str) -> None:
    with pytest.raises(ValueError, match="not a fragment name"):
        Span.parse(text)


def test_ids_depend_on_place_alone() -> None:
    one = Sample("s3://b/a.tar", "k", "etag1", content_hash="x")
    two = Sample("s3://b/a.tar", "k", "etag2", {"image": b"1"})
    assert one.id == two.id == sample_id("s3://b/a.tar", "k")
    assert len(one.id) == 32
    again = Sample("s3://b/a.tar", "k", "etag1", ordinal=512)
    assert again.id == sample_id("s3://b/a.tar", "k@512")
    assert sample_id("a", "bc") != sample_id("ab", "c")


def test_an_empty_object_has_a_span_of_its_own() -> None:
    assert object_shard("/x.tar", "0-1", 0).size == 1


def shard() -> Shard:
    return object_shard("/x.tar", "e", 100)


def items(*places: int | None, size: int = 1) -> list[tuple[int | None, Sample]]:
    return [
        (place, Sample("/x.tar", str(i), "e", {"text": b"x" * size}))
        for i, place in enumerate(places)
    ]


def test_fragments_tile_the_range() -> None:
    found = list(cut_fragments(shard(), 0, 100, iter(items(10, 20, 30, 40, 50)), Cut(rows=2)))
    assert [(f.span.start, f.span.stop, len(f.samples)) for f in found] == [
        (0, 30, 2),
        (30, 50, 2),
        (50, 100, 1),
    ]


def test_fragments_are_cut_by_bytes_and_never_where_reading_cannot_start() -> None:
    stream = iter(items(0, None, None, 30, 40, size=10))
    found = list(cut_fragments(shard(), 0, 100, stream, Cut(rows=100, bytes=15)))
    assert [(f.span.start, f.span.stop, len(f.samples)) for f in found] == [
        (0, 30, 3),
        (30, 100, 2),
    ]


def test_no_sample_makes_one_error() -> None:
    [fragment] = cut_fragments(shard(), 0, 100, iter(()), Cut())
    [sample] = fragment.samples
    assert (fragment.span.start, fragment.span.stop) == (0, 100)
    assert sample.error is not None
    assert (sample.source_key, sample.error.type) == ("", "EmptyShard")


def test_text_and_metadata_become_one_caption() -> None:
    raw = {"text": "\ufeff a café\n".encode(), "json": b'{"caption": "other", "n": 1}'}
    sample = assemble("/x.tar", "k", "e", raw)
    assert sample.metadata == {"caption": "a café", "n": 1}
    assert sample.members == {"text": "a café".encode()}
    only_json = assemble("/x.tar", "k", "e", {"json": b'{"caption": "a cat"}'})
    assert only_json.members == {"text": b"a cat"}


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ({"image": b"1", "json": b"{"}, "BadMetadata"),
        ({"image": b"1", "json": b"[1]"}, "BadMetadata"),
        ({"image": b"1", "json": b"\xff{}"}, "BadMetadata"),
        ({"image": b"1", "json": b'{"a": "\\ud800"}'}, "BadMetadata"),
        ({"image": b"1", "json": b"[" * 100_000}, "BadMetadata"),
        ({"image": b"1", "json": b'{"a": ' + b"1" * 10_000 + b"}"}, "BadMetadata"),
        ({"image": b"1", "text": b"\xff\xfe"}, "BadText"),
        ({"json": b'{"label": 3}'}, "NoModality"),
        ({"json": b'{"caption": 3}'}, "NoModality"),
    ],
)
def test_bad_parts_are_named(raw: dict[str, bytes], kind: str) -> None:
    with pytest.raises(BadSample) as found:
        assemble("/x.tar", "k", "e", raw)
    assert found.value.error_type == kind
    assert len(SampleError.of("read", found.value).message) <= 500


def test_content_hash_follows_content() -> None:
    def hashed(**raw: bytes) -> str:
        return assemble("/x.tar", "k", "e", raw).content_hash

    base = hashed(image=b"1", json=b'{"a": 1, "b": 2}')
    assert len(base) == 32
    assert base == hashed(image=b"1", json=b'{"b": 2, "a": 1}')
    others = [
        hashed(image=b"1"),
        hashed(image=b"2", json=b'{"a": 1, "b": 2}'),
        hashed(audio=b"1", json=b'{"a": 1, "b": 2}'),
        hashed(image=b"1", json=json.dumps({"a": 1, "b": 3}).encode()),
        hashed(image=b"1", audio=b"2"),
        hashed(image=b"12"),
    ]
    assert len({base, *others}) == 7


def test_values_can_be_pickled() -> None:
    span = Span("a" * 16, "b" * 8, 0, 5)
    assert pickle.loads(pickle.dumps((span, shard()))) == (span, shard())
