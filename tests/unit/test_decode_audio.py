"""Every kind of sound that a crawl holds, every way to be none, and every way to lose the end."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from mmray.decode.audio import AudioTransform, Window, decode_audio
from mmray.decode.ends import missing_end
from mmray.decode.mono import resampled
from mmray.decode.sniff import sniff
from mmray.errors import BadSample
from tests import media

HEARS = AudioTransform(16_000, 5.0)
AS_IT_IS = AudioTransform(16_000, 1.0)

# Format: what its encoder takes, the seconds of padding that it may leave, and ffmpeg's demuxer.
FORMATS: dict[str, tuple[dict[str, Any], float, str]] = {
    "wav": ({"rate": 22_050, "channels": 2}, 0.0, "wav"),
    "flac": ({"rate": 44_100, "channels": 2}, 0.0, "flac"),
    "ogg": ({"rate": 44_100, "channels": 2}, 0.01, "ogg"),
    "opus": ({"rate": 48_000}, 0.001, "ogg"),
    "mp3": ({"rate": 44_100, "channels": 2}, 0.001, "mp3"),
    "m4a": ({"rate": 44_100}, 0.05, "mov"),
    "aac": ({"rate": 44_100}, 0.1, "aac"),
    "webm": ({"rate": 48_000}, 0.01, "matroska"),
}
# Those in which a lost end can be found; raw AAC has neither a length nor an end.
LENGTHS = [name for name in FORMATS if name != "aac"]


def decode(data: bytes, transform: AudioTransform = HEARS, **options: Any) -> list[Window]:
    return decode_audio(data, transform, **{"max_seconds": 60.0, **options})


def joined(windows: list[Window]) -> np.ndarray:
    return np.concatenate([window.samples for window in windows])


def refusal(data: bytes, transform: AudioTransform = HEARS, **options: Any) -> BadSample:
    with pytest.raises(BadSample) as caught:
        decode(data, transform, **options)
    return caught.value


def pitch(samples: np.ndarray, rate: int) -> float:
    """Hz of the strongest tone."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))


@pytest.mark.parametrize("format", FORMATS)
def test_a_tone_keeps_its_pitch_and_length(format: str) -> None:
    options, padding, demuxer = FORMATS[format]
    data = media.sound(3.0, format=format, hz=440.0, **options)
    assert sniff(data) == demuxer
    windows = decode(data)
    samples = joined(windows)
    assert len(windows) == 1
    assert samples.dtype == np.float32
    assert pitch(samples, 16_000) == pytest.approx(440.0, abs=0.5)
    assert 3.0 - padding <= windows[0].stop <= 3.0 + padding
    assert 0.45 < np.abs(samples[8_000:40_000]).max() < 0.55


@pytest.mark.parametrize("window", [0.25, 0.7, 1.0, 2.5])
def test_windows_tile_the_sound(window: float) -> None:
    data = media.sound(2.5, 16_000)
    whole = media.wave(2.5, 16_000)[:, 0]
    windows = decode(data, AudioTransform(16_000, window))
    size = round(16_000 * window)
    assert [len(w.samples) for w in windows[:-1]] == [size] * (len(windows) - 1)
    assert windows[0].start == 0.0
    assert all(one.stop == other.start for one, other in zip(windows, windows[1:], strict=False))
    assert windows[-1].stop == 2.5
    assert np.abs(joined(windows) - whole).max() < 1e-4


def test_a_last_sliver_is_dropped_unless_it_is_all() -> None:
    assert [w.stop for w in decode(media.sound(2.09), AS_IT_IS)] == [1.0, 2.0]
    assert [w.stop for w in decode(media.sound(2.1), AS_IT_IS)] == [1.0, 2.0, 2.1]
    assert [w.stop for w in decode(media.sound(0.05), AS_IT_IS)] == [0.05]
    assert [len(w.samples) for w in decode(media.sound(1 / 16_000), AS_IT_IS)] == [1]


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 8, 16])
@pytest.mark.parametrize("sample", ["u8", "s16", "s24", "s32", "f32", "f64"])
def test_mono_is_the_mean_of_the_channels(channels: int, sample: str) -> None:
    wave = media.wave(0.5, 16_000, channels, seed=channels)
    mono = joined(decode(media.wav(wave, 16_000, sample), AS_IT_IS))
    step = {"u8": 1 / 100, "s16": 1e-4}.get(sample, 1e-6)
    assert np.abs(mono - wave.mean(axis=1)).max() < step


@pytest.mark.parametrize("format", ["m4a", "opus"])
def test_eight_planar_channels(format: str) -> None:
    """PyAV itself crashes on these."""
    samples = joined(decode(media.sound(1.0, 48_000, 8, format, hz=440.0)))
    assert pitch(samples[1_600:], 16_000) == pytest.approx(440.0, abs=2)
    assert np.abs(samples[1_600:12_000]).max() > 0.3


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 12_345, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_gives_the_rounded_length(rate: int) -> None:
    samples = joined(decode(media.sound(1.0, rate, hz=440.0)))
    assert len(samples) == 16_000
    assert pitch(samples, 16_000) == pytest.approx(440.0, abs=1)


def test_pieces_do_not_change_the_resampling() -> None:
    wave = media.wave(1.0, 44_100)[:, 0]
    whole = np.concatenate(list(resampled([(44_100, wave)], 16_000)))
    parts = [(44_100, wave[i : i + 999].copy()) for i in range(0, len(wave), 999)]
    assert np.array_equal(np.concatenate(list(resampled(parts, 16_000))), whole)


def test_a_rate_that_changes_midway() -> None:
    one, other = media.wave(1.0, 44_100, hz=440.0)[:, 0], media.wave(1.0, 8_000, hz=440.0)[:, 0]
    samples = np.concatenate(list(resampled([(44_100, one), (8_000, other)], 16_000)))
    assert len(samples) == 32_000
    assert pitch(samples[16_000:], 16_000) == pytest.approx(440.0, abs=1)


def test_the_sound_track_of_a_film() -> None:
    film = media.film(16, sound=True)
    windows = decode(film)
    assert windows[-1].stop == pytest.approx(2.0, abs=0.05)
    assert decode(media.film(4), optional=True) == []
    assert refusal(media.film(4)).error_type == "NoAudio"


def test_the_same_bytes_give_the_same_samples() -> None:
    data = media.sound(2.0, 44_100, 2, "mp3")
    assert np.array_equal(joined(decode(data)), joined(decode(data)))


def test_no_sound() -> None:
    silent = np.zeros((8_000, 2), np.float32)
    opposite = media.wave(0.5) * np.array([[1, -1]], np.float32)
    assert refusal(b"").error_type == "EmptyMember"
    assert refusal(media.wav(silent[:0], 16_000)).error_type == "EmptyAudio"
    assert refusal(media.wav(silent, 16_000)).error_type == "SilentAudio"
    assert refusal(media.wav(silent, 16_000, "u8")).error_type == "SilentAudio"
    assert refusal(media.sound(samples=silent, format="flac")).error_type == "SilentAudio"
    assert refusal(media.wav(opposite, 16_000, "f32")).error_type == "SilentAudio"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 30_000.0])
@pytest.mark.parametrize("channels", [1, 2])
def test_numbers_that_are_no_sound(value: float, channels: int) -> None:
    wave = media.wave(0.5, channels=channels)
    wave[4_000, 0] = value
    error = refusal(media.wav(wave, 16_000, "f32"))
    assert error.error_type == "UnreadableAudio"
    assert ("full scale" if np.isfinite(value) and value < 1e38 else "s") in error.message


def test_an_overshoot_is_clipped() -> None:
    samples = joined(decode(media.wav(media.wave(0.5, hz=440.0) * 4, 16_000, "f32")))
    assert samples.max() == 1.0
    assert samples.min() == -1.0


@pytest.mark.parametrize("format", LENGTHS)
@pytest.mark.parametrize("part", [0.3, 0.6, 0.97])
def test_a_lost_end_is_found(format: str, part: float) -> None:
    data = media.sound(3.0, format=format, **FORMATS[format][0])
    decode(data)
    error = refusal(data[: int(len(data) * part)])
    assert error.error_type == "TruncatedAudio", error.message


@pytest.mark.parametrize("format", ["wav", "ogg", "m4a", "webm"])
def test_ends_are_found_without_decoding(format: str) -> None:
    data = media.sound(1.0, format=format, **FORMATS[format][0])
    kind = sniff(data)
    assert kind is not None
    assert missing_end(data, kind) is None
    assert missing_end(data[:-300], kind)


def test_an_ogg_that_ends_between_two_pages() -> None:
    data = media.sound(6.0, 44_100, 2, "ogg")
    last = data.rindex(b"OggS")
    error = refusal(data[:last])
    assert error.error_type == "TruncatedAudio"
    assert "does not end the stream" in error.message


def test_an_mp4_whose_index_knows_of_more() -> None:
    data = media.open_ended(media.sound(4.0, 44_100, format="m4a"))
    assert decode(data)
    error = refusal(data[: len(data) * 2 // 3])
    assert error.error_type == "TruncatedAudio"
    assert "declares 4.00 s" in error.message


def test_a_film_that_lost_its_end_has_no_sound_either() -> None:
    data = media.film(16, sound=True)
    assert refusal(data[: len(data) // 2]).error_type == "TruncatedAudio"


def test_an_aac_stream_that_ends_in_a_frame() -> None:
    data = media.sound(2.0, 44_100, format="aac")
    assert refusal(data[: len(data) // 2 + 7]).error_type == "TruncatedAudio"


def test_a_wav_written_to_a_pipe_is_whole() -> None:
    data = bytearray(media.sound(1.0))
    for size in (0, 0x7FFFF024, 0xFFFFFFFF):
        struct.pack_into("<I", data, 40, size)
        assert decode(bytes(data))[-1].stop == 1.0


def test_tags_around_an_mp3_are_no_sound() -> None:
    data = media.sound(2.0, 44_100, 2, "mp3")
    plain = joined(decode(data))
    tagged = joined(decode(data + b"TAG" + b"x" * 125))
    assert np.array_equal(plain, tagged)
    assert np.array_equal(plain, joined(decode(id3(5_000) + data)))


def id3(size: int) -> bytes:
    return b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 127]) + bytes(size)


def test_a_flac_may_follow_an_id3_tag() -> None:
    data = media.sound(1.0, format="flac")
    assert np.array_equal(joined(decode(id3(300) + data)), joined(decode(data)))


@pytest.mark.parametrize("tail", [b"TAG" + b"x" * 125, b"APETAGEX" + bytes(56), bytes(4096)])
def test_what_follows_a_flac_is_no_sound(tail: bytes) -> None:
    data = media.sound(2.0, 44_100, 2, "flac")
    assert np.array_equal(joined(decode(data + tail)), joined(decode(data)))
    assert refusal(data[: len(data) - 3000] + tail).error_type == "TruncatedAudio"


@pytest.mark.parametrize("format", ["flac", "ogg", "mp3", "m4a", "webm"])
def test_damage_midway_is_no_shorter_sound(format: str) -> None:
    data = bytearray(media.sound(3.0, format=format, **FORMATS[format][0]))
    middle = len(data) * 2 // 3
    data[middle : middle + 900] = np.random.default_rng(1).bytes(900)
    error = refusal(bytes(data))
    assert error.error_type in ("UnreadableAudio", "TruncatedAudio")
    assert any(words in error.message for words in ("ffmpeg says", "declares", "page"))


def test_too_long_a_sound() -> None:
    data = media.sound(4.0)
    assert decode(data, max_seconds=4.0)
    declared = refusal(data, max_seconds=3.9)
    assert declared.error_type == "OversizedAudio"
    assert "declares 4.0 s" in declared.message
    assert "limits.seconds=3.9" in declared.message


def test_too_long_a_sound_that_declares_nothing() -> None:
    data = media.sound(20.0, 44_100, format="aac")
    error = refusal(data, max_seconds=5.0)
    assert error.error_type == "OversizedAudio"
    assert "goes on after" in error.message


def test_an_absurd_rate_is_refused_before_it_is_resampled() -> None:
    data = bytearray(media.sound(0.1))
    struct.pack_into("<I", data, 24, 2_000_000_000)
    assert refusal(bytes(data)).error_type == "UnreadableAudio"


PLAYLISTS = {
    "m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "concat": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 9 RTP/AVP 0\n",
    "dash": b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'></MPD>",
    "html": b"<html><body>404 Not Found</body></html>",
    "utf16": "text".encode("utf-16"),
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF",
    "webp": b"RIFF\x24\0\0\0WEBPVP8 ",
    "noise": np.random.default_rng(5).bytes(3_000),
    "short": b"RI",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_and_other_files_are_never_opened(name: str) -> None:
    error = refusal(PLAYLISTS[name])
    assert error.error_type == "UnreadableAudio"
    assert repr(PLAYLISTS[name][:16]) in error.message


def test_mutations_raise_nothing_else_and_say_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(7)
    for format in FORMATS:
        data = media.sound(0.5, format=format, **FORMATS[format][0])
        for number in range(12):
            bad = bytearray(data)
            start, size = int(random.integers(0, len(data))), int(random.integers(1, 500))
            bad[start : start + size] = b"" if number % 2 else random.bytes(size)
            with suppress(BadSample):
                decode(bytes(bad), optional=True)
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_tells_transforms_apart() -> None:
    assert AudioTransform(16_000, 5.0).to_json() == {"rate": 16_000, "window": 5.0}
