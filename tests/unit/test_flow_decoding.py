"""Decoding: sound and video become windows and frames, filters count, secrets are masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.flow.batch import Batch
from mmray.flow.decoding import Decoder
from mmray.flow.encoding import encode, pooled
from mmray.flow.repeats import Repeats
from mmray.sources.fragment import Fragment, Sample, Span
from mmray.specs import EmbedSpec, load_spec
from mmray.specs.common import ImportEncoder
from tests import media, shards

ALL = ("image", "text", "audio", "video")
LISTENER = ImportEncoder(kind="import", model="tests.toys:Listener")


def spec_of(**changes: Any) -> EmbedSpec:
    base = {
        "job": "embed",
        "source": {"kind": "webdataset", "uri": "/x/*.tar"},
        "encoder": LISTENER.model_dump(),
        "store": {"uri": "/x/store"},
    }
    return load_spec(base | changes)


def decoded(samples: list[Sample], modalities: tuple[str, ...] = ALL, **changes: Any) -> Batch:
    spec = spec_of(**changes)
    decoder = Decoder(spec, modalities, describe(LISTENER, EncodeOptions()))
    return decoder(Fragment(Span("0" * 16, "0" * 8, 0, 9), samples), "/x/a.tar", previews=2)


def sample(key: str = "k", metadata: dict[str, Any] | None = None, **members: bytes) -> Sample:
    return Sample("/x/a.tar", key, "etag", dict(members), metadata or {}, "0" * 32)


def toy() -> Any:
    options = EncodeOptions()
    return load_encoder(LISTENER, describe(LISTENER, options), "cpu", options)


def test_windows_are_pooled_by_their_length() -> None:
    batch = decoded([sample(audio=media.sound(5.0))])
    (waves,) = batch.inputs["audio"]
    assert [len(wave) for wave in waves] == [16000, 16000, 8000]
    encoder = toy()
    each = encoder.encode_audios(waves)
    each /= np.linalg.norm(each, axis=1, keepdims=True)
    mean = (2 * each[0] + 2 * each[1] + each[2]) / 5
    encode(batch, encoder, normalize=True)
    vector = batch.vectors["audio"][0]
    assert vector is not None
    assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
    assert batch.vectors["image"] == [None]


def test_pooling_is_the_plain_mean_where_vectors_keep_their_length() -> None:
    pieces = [[np.zeros(4), np.zeros(4)], [np.zeros(2)]]
    out = pooled(lambda all: np.arange(len(all) * 2).reshape(-1, 2), pieces, normalize=False)
    assert out.tolist() == [[1, 2], [4, 5]]


def test_windows_may_be_rows() -> None:
    one = sample("a", {"caption": "hi"}, audio=media.sound(5.0), text=b"hi")
    batch = decoded([one], audio={"windows": "rows"}, keep=["caption"])
    assert [each.source_key for each in batch.samples] == ["a#t=0,2", "a#t=2,4", "a#t=4,5"]
    assert batch.columns["start_seconds"] == [0, 2, 4]
    assert batch.columns["stop_seconds"] == [2, 4, 5]
    assert batch.columns["caption"] == ["hi"] * 3
    assert batch.inputs["text"] == ["hi", None, None]
    assert [len(wave) for (wave,) in batch.inputs["audio"]] == [16000, 16000, 8000]
    assert len({each.id for each in batch.samples}) == 3
    assert not any(each.members for each in batch.samples)


def test_frames_may_be_rows_and_carry_the_sound_track_once() -> None:
    film = media.film(16, sound=True)
    batch = decoded([sample(video=film)], video={"frames": "rows", "count": 4}, thumbnails=32)
    assert [each.source_key for each in batch.samples] == [
        f"k#t={at}" for at in ("0.25", "0.75", "1.25", "1.75")
    ]
    assert [each is not None for each in batch.inputs["audio"]] == [True, False, False, False]
    assert all(frames[0].shape == (32, 32, 3) for frames in batch.inputs["video"])
    assert batch.columns["thumbnail"][0].startswith(b"\xff\xd8")


def test_a_video_has_frames_and_sound() -> None:
    batch = decoded([sample(video=media.film(16, sound=True)), sample(video=media.film(16))])
    assert [len(frames) for frames in batch.inputs["video"]] == [8, 8]
    heard, silent = batch.inputs["audio"]
    assert sum(map(len, heard)) == pytest.approx(16000, rel=0.1)
    assert silent is None
    assert [each.error for each in batch.samples] == [None, None]
    assert all(shown.jpeg for shown in batch.previews)


def test_frames_are_as_the_encoder_wants_those_of_a_video() -> None:
    watcher = ImportEncoder(kind="import", model="tests.toys:Watcher")
    spec = spec_of(encoder=watcher.model_dump())
    decoder = Decoder(spec, ("image", "video"), describe(watcher))
    seen = sample(image=shards.picture(1), video=media.film(16))
    batch = decoder(Fragment(Span("0" * 16, "0" * 8, 0, 1), [seen]), "/x/a.tar")
    assert batch.inputs["image"][0].shape == (32, 32, 3)
    assert [frame.shape for frame in batch.inputs["video"][0]] == [(16, 16, 3)] * 8


def test_the_sound_track_can_be_left_out() -> None:
    batch = decoded([sample(video=media.film(16, sound=True))], video={"sound": False})
    assert batch.inputs["audio"] == [None]


def test_a_sound_that_cannot_be_decoded_quarantines_its_sample_alone() -> None:
    good, bad = sample("a", audio=media.sound(1)), sample("b", audio=b"RIFF nonsense")
    batch = decoded([good, bad])
    assert batch.samples[0].error is None
    assert batch.samples[1].error is not None
    assert batch.samples[1].error.type == "UnreadableAudio"
    assert encode(batch, toy(), normalize=True) == 1


def test_filters_leave_out_and_count() -> None:
    samples = [
        sample(str(n), {"score": n / 10}, image=shards.picture(n, (64, 48 if n else 16)))
        for n in range(10)
    ]
    batch = decoded(
        samples, ("image",), filter={"metadata": {"score": {"max": 0.65}}, "min_side": 32}
    )
    assert [each.source_key for each in batch.samples] == ["1", "2", "3", "4", "5", "6"]
    assert batch.filtered == {"metadata.score": 3, "min_side": 1}
    assert len(batch.inputs["image"]) == 6


def test_kept_text_and_errors_are_masked() -> None:
    samples = [
        sample("a", {"caption": "mail ann@example.org now"}, image=shards.picture(1)),
        sample("b", {"caption": "x", "n": "ann@example.org"}, image=shards.picture(2)),
    ]
    keep = {"caption": "string", "n": "int"}
    batch = decoded(samples, ("image",), keep=keep, redact=["email"])
    assert batch.columns["caption"][0] == "mail <email> now"
    error = batch.samples[1].error
    assert error is not None
    assert "n" in error.message
    assert "ann@" not in error.message
    assert "ann@" not in batch.previews[0].caption


@pytest.mark.parametrize("by", ["exact", "perceptual"])
def test_duplicates_are_dropped_within_and_across_batches(by: str) -> None:
    repeats = Repeats(spec_of(duplicates={"by": by}).duplicates)  # type: ignore[arg-type]

    def run(seeds: list[int], first: int) -> Batch:
        samples = [
            sample(str(first + place), image=shards.picture(seed, (96, 96)))
            for place, seed in enumerate(seeds)
        ]
        batch = decoded(samples, ("image",), duplicates={"by": by})
        repeats.before(batch)
        encode(batch, toy(), normalize=True)
        repeats.after(batch)
        return batch

    one = run([1, 2, 1, 3], 0)
    assert [each.source_key for each in one.samples] == ["0", "1", "3"]
    assert one.filtered == {"duplicate": 1}
    assert len(one.vectors["image"]) == 3
    two = run([3, 4, 1], 10)
    assert [each.source_key for each in two.samples] == ["11"]
    assert two.filtered == {"duplicate": 2}
    assert [each.source_key for each in run([1, 2], 0).samples] == ["0", "1"]  # made again: itself


def test_duplicates_are_marked_with_the_row_they_repeat() -> None:
    options = {"by": "exact", "action": "mark"}
    repeats = Repeats(spec_of(duplicates=options).duplicates)  # type: ignore[arg-type]
    same = media.sound(1)
    batch = decoded([sample(key, audio=same) for key in "abc"], ("audio",), duplicates=options)
    repeats.before(batch)
    encode(batch, toy(), normalize=True)
    repeats.after(batch)
    first = batch.samples[0].id
    assert batch.columns["duplicate_of"] == [None, first, first]


def test_nothing_is_dropped_for_a_row_that_failed() -> None:
    repeats = Repeats(spec_of(duplicates={}).duplicates)  # type: ignore[arg-type]
    picture = shards.picture(1)
    batch = decoded([sample(key, image=picture) for key in "ab"], ("image",), duplicates={})
    repeats.before(batch)

    class Fails:
        def __init__(self) -> None:
            self.calls = 0

        def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
            self.calls += 1
            if self.calls < 3:  # the two together, then the first alone
                raise RuntimeError("no")
            return np.ones((len(images), 4), np.float32)

        encode_texts = encode_audios = encode_images

    encode(batch, Fails(), normalize=True)  # type: ignore[arg-type]
    repeats.after(batch)
    assert [each.error is None for each in batch.samples] == [False, True]
    assert batch.filtered == {}
