"""Sounds and films that are odd or bad: tables of name -> bytes, reason and words of it.

The reason is a pattern of error types, empty for what is good.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np

from mmray.decode.sniff import after_id3
from tests import media
from tests.badpictures import JPEG, Case, animated


def wave(seconds: float = 0.5, **options: Any) -> np.ndarray:
    return media.wave(seconds, **options)


def wav_of(**fields: int) -> bytes:
    """A WAV of half a second with other values in its header."""
    data = bytearray(media.sound(0.5))
    places = {
        "tag": ("<H", 20), "channels": ("<H", 22), "rate": ("<I", 24), "block": ("<H", 32),
        "bits": ("<H", 34), "size": ("<I", 40),
    }  # fmt: skip
    for name, value in fields.items():
        form, place = places[name]
        struct.pack_into(form, data, place, value)
    return bytes(data)


def loud(value: float) -> bytes:
    samples = wave()
    samples[100:110] = value
    return media.wav(samples, 16_000, "f32")


def wav64() -> bytes:
    body = (wave() * 2**62).astype("<i8").tobytes()
    header = struct.pack("<HHIIHH", 1, 1, 16_000, 128_000, 8, 64)
    chunks = media.chunk(b"fmt ", header) + media.chunk(b"data", body)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def lying_flac() -> bytes:
    data = bytearray(media.sound(0.5, format="flac"))
    data[22:26] = (16_000_000).to_bytes(4, "big")
    return bytes(data)


def lying_mp3() -> bytes:
    data = bytearray(media.sound(1.0, 44_100, 2, "mp3"))
    at = max(data.find(b"Xing"), data.find(b"Info"))
    struct.pack_into(">I", data, at + 8, 1_000)
    return bytes(data)


def late_xing() -> bytes:
    """A Xing tag so late in the first frame that its number of frames lies beyond."""
    data = bytearray(media.sound(1.0, 44_100, 2, "mp3"))
    at = max(data.find(b"Xing"), data.find(b"Info"))
    data[at : at + 4] = b"\0" * 4
    first = after_id3(data)
    data[first + 44 : first + 48] = b"Xing"
    return bytes(data)


def lying_m4a(seconds: int) -> bytes:
    """Another length in all headers of the sound track."""
    data = bytearray(media.sound(1.0, 44_100, format="m4a"))
    at = data.index(b"mdhd")
    struct.pack_into(">I", data, at + 20, 44_100 * seconds)
    return bytes(data)


def cut(data: bytes, part: float) -> bytes:
    return data[: int(len(data) * part)]


def no_codec() -> bytes:
    """A codec of which nobody has heard."""
    return media.sound(0.5, 48_000, format="webm").replace(b"A_OPUS", b"A_ZZZZ")


NO_SOUND, TORN = "UnreadableAudio", "TruncatedAudio"
SILENCE = np.zeros((8_000, 1), np.float32)

SOUNDS: dict[str, Case] = {
    "one sample": (lambda: media.wav(wave()[5:6], 8_000), "", ""),
    "one sample of a higher rate": (
        lambda: media.wav(wave()[5:6], 16_000), "EmptyAudio", "too few for one at 8000 Hz"
    ),
    "11,025 Hz": (lambda: media.sound(0.5, 11_025), "", ""),
    "7 kHz": (lambda: media.sound(0.5, 7_000), "", ""),
    "8,123 Hz": (lambda: media.sound(0.5, 8_123), "", ""),
    "192 kHz": (lambda: media.sound(0.2, 192_000), "", ""),
    "384 kHz": (lambda: media.sound(0.1, 384_000), "", ""),
    "8-bit": (lambda: media.sound(0.5, sample="u8"), "", ""),
    "24-bit": (lambda: media.sound(0.5, sample="s24"), "", ""),
    "32-bit": (lambda: media.sound(0.5, sample="s32"), "", ""),
    "floats": (lambda: media.sound(0.5, sample="f32"), "", ""),
    "doubles": (lambda: media.sound(0.5, sample="f64"), "", ""),
    "64-bit": (wav64, "|" + NO_SOUND, ""),
    "8 channels": (lambda: media.sound(0.5, channels=8), "", ""),
    "16 channels": (lambda: media.sound(0.5, channels=16, sample="s24"), "", ""),
    "8 channels M4A": (lambda: media.sound(0.5, 48_000, 8, "m4a"), "", ""),
    "half of it silent": (lambda: media.wav(np.concatenate([SILENCE, wave()]), 16_000), "", ""),
    "a WAV from a pipe": (lambda: wav_of(size=0xFFFFFFFF), "", ""),
    "a film's sound": (lambda: media.film(8, sound=True), "", ""),
    "an MP3 with tags": (
        lambda: b"ID3\4\0\0\0\0\x0a\0" + bytes(1280) + media.sound(1.0, 44_100, 2, "mp3"), "", ""
    ),
    "an MP3 with a late tag": (late_xing, "|" + NO_SOUND, ""),
    "silent": (lambda: media.wav(SILENCE, 16_000), "SilentAudio", "8000 samples are zero"),
    "silent FLAC": (
        lambda: media.sound(samples=SILENCE, format="flac"), "SilentAudio", "samples are zero"
    ),
    "zero-length": (lambda: media.wav(SILENCE[:0], 16_000), "EmptyAudio", "no samples"),
    "NaN": (lambda: loud(np.nan), NO_SOUND, "not finite"),
    "infinity": (lambda: loud(-np.inf), NO_SOUND, "not finite"),
    "whole numbers as floats": (lambda: loud(30_000.0), NO_SOUND, "full scale"),
    "0 Hz": (lambda: wav_of(rate=0), NO_SOUND, "."),
    "200 Hz": (lambda: wav_of(rate=200), NO_SOUND, "declares 200 Hz"),
    "2 GHz": (lambda: wav_of(rate=2_000_000_000), NO_SOUND, "2000000000 Hz"),
    "no channels": (lambda: wav_of(channels=0, block=0), NO_SOUND, "."),
    "65,535 channels": (lambda: wav_of(channels=65_535), NO_SOUND, "."),
    "17 bits": (lambda: wav_of(bits=17), "|" + NO_SOUND, ""),
    "a format that nobody knows": (lambda: wav_of(tag=0x7777), NO_SOUND, "."),
    "more data declared": (lambda: wav_of(size=1_000_000), TORN, "1000044"),
    "a WAV without data": (lambda: media.sound(0.5)[:36], "EmptyAudio|UnreadableAudio", "."),
    "a WAV's first bytes": (lambda: media.sound(0.5)[:12], NO_SOUND, "."),
    "a torn WAV": (lambda: cut(media.sound(0.5), 0.5), TORN, "data"),
    "a torn FLAC": (lambda: cut(media.sound(1.0, format="flac"), 0.6), TORN, "declares"),
    "a torn OGG": (lambda: cut(media.sound(1.0, 44_100, 2, "ogg"), 0.6), TORN, "."),
    "a torn MP3": (lambda: cut(media.sound(1.0, 44_100, 2, "mp3"), 0.6), TORN, "declares"),
    "a torn M4A": (lambda: cut(media.sound(1.0, 44_100, format="m4a"), 0.6), TORN, "."),
    "a torn WEBM": (lambda: cut(media.sound(1.0, 48_000, format="webm"), 0.6), TORN, "segment"),
    "a FLAC that declares more": (lying_flac, TORN + "|OversizedAudio", "declares"),
    "an MP3 that declares more": (lying_mp3, TORN, "declares 1000 frames"),
    "an M4A that declares a day": (lambda: lying_m4a(86_400), "", ""),  # its index knows better
    "an M4A that declares nothing": (lambda: lying_m4a(0), "", ""),
    "too long": (lambda: media.sound(31.0, 8_000), "OversizedAudio", "limits.seconds=30"),
    "too long an AAC": (
        lambda: media.sound(31.0, 8_000, format="aac"), "OversizedAudio", "goes on after"
    ),
    "tags alone": (b"ID3\4\0\0\0\0\x0a\0" + bytes(1280), NO_SOUND, "."),
    "tags larger than the file": (b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100), NO_SOUND, "."),
    "a FLAC's header": (lambda: media.sound(0.5, format="flac")[:42], TORN + "|EmptyAudio", "."),
    "a codec that nobody knows": (no_codec, NO_SOUND, "."),
    "a film without sound": (lambda: media.film(2), "NoAudio", "no sound stream"),
    "a picture": (JPEG, NO_SOUND, "not of a known format"),
    "a WEBP": (lambda: animated("WEBP", 1), NO_SOUND, "not of a known format"),
}  # fmt: skip


def remuxed(
    data: bytes,
    format: str = "matroska",
    *,
    keep: Callable[[int], bool] = lambda number: True,
    time: Callable[[int], int] = lambda number: 125 * number,
    then: bytes = b"",
) -> bytes:
    """The packets of one film or two in another container: those to `keep`, at `time` (ms)."""
    out = io.BytesIO()
    number = 0
    with av.open(out, "w", format=format) as target:
        copy = None
        for part in (data, then):
            with av.open(io.BytesIO(part or data)) as source:
                stream = source.streams.video[0]
                copy = copy or target.add_stream_from_template(stream)
                for packet in source.demux(stream) if part else ():
                    if packet.size and keep(number):
                        packet.stream, packet.time_base = copy, Fraction(1, 1_000)
                        packet.pts = packet.dts = time(number)
                        target.mux(packet)
                    number += bool(packet.size)
        if copy is not None:
            target.start_encoding()
    return out.getvalue()


def film(frames: int = 6, format: str = "webm", **options: Any) -> bytes:
    if format == "webm" and "codec" not in options:
        options["codec"] = "libvpx"
    return media.film(frames, format=format, **options)


def sized(width: int, height: int) -> bytes:
    """An AVI whose header declares another size."""
    data = bytearray(media.film(4, format="avi"))
    struct.pack_into("<ii", data, data.index(b"strf") + 12, width, height)
    return bytes(data)


def huge_frames() -> bytes:
    """An AVI of JPEGs that declare another size."""
    data = media.film(4, format="avi", codec="mjpeg", pixel_format="yuvj420p")
    start, size = bytes.fromhex("ffc0001108"), struct.pack(">HH", 48, 64)
    return data.replace(start + size, start + struct.pack(">HH", 65_500, 65_500))


def box_sized(width: int, height: int) -> bytes:
    data = bytearray(media.film(4))
    struct.pack_into(">HH", data, data.index(b"avc1", 200) + 28, width, height)
    return bytes(data)


def rotten(data: bytes, start: float, size: int) -> bytes:
    at = int(len(data) * start)
    return data[:at] + np.random.default_rng(1).bytes(size) + data[at + size :]


NO_FILM, TORN_FILM, HUGE = "UnreadableVideo", "TruncatedVideo", "OversizedVideo"
SMALL, LARGE = (64, 48), (1_400, 1_000)

FILMS: dict[str, Case] = {
    "one frame": (lambda: media.film(1), "", ""),
    "2x2": (lambda: film(2, size=(2, 2)), "", ""),
    "odd sides": (lambda: film(2, size=(65, 49)), "", ""),
    "1,000x2": (lambda: film(2, size=(1_000, 2)), "", ""),
    "turned": (lambda: media.film(2, rotation=90), "", ""),
    "odd times": (lambda: media.film(5, format="mkv", times=[0, 1, 700, 701, 9_000]), "", ""),
    "negative times": (
        lambda: media.film(5, format="mkv", times=[-2_000 + 125 * i for i in range(5)]), "", ""
    ),
    "late times": (
        lambda: media.film(5, format="mkv", times=[10**7 + 125 * i for i in range(5)]),
        "|" + HUGE, "",
    ),
    "times that repeat": (lambda: remuxed(film(), time=lambda n: n // 2), "", ""),
    "one time for all": (lambda: remuxed(film(), time=lambda n: 0), "", ""),
    "no end declared": (lambda: media.open_ended(media.film(6)), "", ""),
    "a size that changes midway": (lambda: remuxed(film(), then=film(size=(96, 80))), "", ""),
    "a size that grows over the limit": (
        lambda: remuxed(film(), then=film(2, size=LARGE)), HUGE + "|" + NO_FILM, "."
    ),
    "without its keyframe": (
        lambda: remuxed(film(), keep=lambda n: n > 0), NO_FILM + "|EmptyVideo|", ""
    ),
    "H.264 without its keyframe": (
        lambda: remuxed(media.film(6), "mov", keep=lambda n: n > 0), NO_FILM + "|EmptyVideo|", ""
    ),
    "H.264 without a frame amid": (
        lambda: remuxed(media.film(6), keep=lambda n: n != 3), "|" + NO_FILM, ""
    ),
    "no frames": (
        lambda: remuxed(film(format="avi"), "avi", keep=lambda n: False), "EmptyVideo", "no frames"
    ),
    "no frames MKV": (
        lambda: remuxed(film(), keep=lambda n: False), "EmptyVideo|" + NO_FILM, "."
    ),
    "frames declared 65500x65500": (huge_frames, HUGE + "|" + NO_FILM, "."),
    "declared 100000x100000 AVI": (lambda: sized(100_000, 100_000), "", ""),  # frames know better
    "declared 65535x65535 MP4": (lambda: box_sized(65_535, 65_535), HUGE + "|", "."),
    "declared -1x-1": (lambda: sized(-1, -1), NO_FILM + "|" + HUGE + "|", ""),
    "declared 0x0": (lambda: sized(0, 0), NO_FILM + "|", ""),
    "too large a frame": (lambda: media.film(1, LARGE), HUGE, "limits.pixels=1000000"),
    "too long": (
        lambda: media.film(4, format="mkv", times=[0, 100, 200, 31_000]), HUGE, "limits.seconds=30"
    ),
    "sound alone": (lambda: media.sound(0.5), "NoVideo", "no video stream"),
    "sound alone in an M4A": (lambda: media.sound(0.5, 44_100, format="m4a"), "NoVideo", "."),
    "a torn MP4": (lambda: cut(media.film(12), 0.6), TORN_FILM, "."),
    "a torn WEBM": (lambda: cut(film(12), 0.6), TORN_FILM, "segment"),
    "a torn AVI": (lambda: cut(media.film(12, format="avi"), 0.6), TORN_FILM, "."),
    "an MP4 without its index": (
        lambda: media.film(12).replace(b"moov", b"free"), TORN_FILM, "'moov' box"
    ),
    "an MP4 whose end only the index misses": (
        lambda: cut(media.open_ended(media.film(40)), 0.5), TORN_FILM, "."
    ),
    "an MP4's first bytes": (lambda: media.film(2)[:40], NO_FILM + "|" + TORN_FILM, "."),
    "rot in an MP4": (lambda: rotten(media.film(24, (128, 96)), 0.4, 2_000), NO_FILM, "."),
    "rot in a WEBM": (
        lambda: rotten(film(24, size=(128, 96)), 0.5, 2_000), f"|{NO_FILM}|{TORN_FILM}", ""
    ),
    "torn sound in a film": (
        lambda: rotten(media.film(8, sound=True, format="mkv"), 0.7, 1_500),
        f"{NO_FILM}|{TORN_FILM}|{NO_SOUND}|{TORN}", ".",
    ),
    "a picture": (JPEG, NO_FILM, "not of a known format"),
    "an animated GIF": (lambda: animated("GIF"), NO_FILM, "not of a known format"),
}  # fmt: skip
