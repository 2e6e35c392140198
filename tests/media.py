"""Small sounds and films drawn from a seed, in every container that mmray reads.

Everything is a pure function of its arguments. `wave` and `pictures` give what went in, so that a
test can hold what comes out against it.
"""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tests.shards import pixels

Samples = NDArray[np.float32]

# Format: ffmpeg's container and its encoder.
_SOUNDS = {
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "vorbis"),
    "opus": ("ogg", "libopus"),
    "mp3": ("mp3", "libmp3lame"),
    "m4a": ("ipod", "aac"),
    "aac": ("adts", "aac"),
    "mka": ("matroska", "libopus"),
    "webm": ("webm", "libopus"),
}
# Format: ffmpeg's container, its video encoder, and the encoder of its sound track.
_FILMS = {
    "mp4": ("mp4", "libx264", "aac"),
    "mov": ("mov", "libx264", "aac"),
    "mkv": ("matroska", "libx264", "aac"),
    "webm": ("webm", "libvpx-vp9", "libopus"),
    "avi": ("avi", "mpeg4", "libmp3lame"),
}
_QUICK = {
    "libx264": {"preset": "veryfast", "crf": "18"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
}
_WIDTHS = {"u8": 8, "s16": 16, "s24": 24, "s32": 32, "f32": 32, "f64": 64}


def wave(
    seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0, hz: float | None = None
) -> Samples:
    """Float32 [n, channels] within -0.5..0.5: a pure tone of `hz`, or three of the seed's own."""
    random = np.random.default_rng(seed)
    at = np.arange(round(seconds * rate)) / rate
    sound = np.empty((len(at), channels), np.float32)
    for channel in range(channels):
        tones = [hz] if hz else random.uniform(100, min(2_000, rate / 5), 3)
        phases = [0.0] if hz else random.uniform(0, 6.3, 3)
        waves = [np.sin(2 * np.pi * f * at + p) for f, p in zip(tones, phases, strict=True)]
        sound[:, channel] = 0.5 * sum(waves) / len(waves)
    return sound


def sound(
    seconds: float = 1.0,
    rate: int = 16_000,
    channels: int = 1,
    format: str = "wav",
    seed: int = 0,
    *,
    hz: float | None = None,
    samples: Samples | None = None,
    sample: str = "s16",
    **options: str,
) -> bytes:
    """An encoded sound: `wave` of the same arguments, or the given float32 [n, channels].

    `format` is wav, flac, ogg (Vorbis, two channels), opus, mp3, m4a, aac, mka or webm; opus takes
    8, 12, 16, 24 or 48 kHz. `sample` is a WAV's: u8, s16, s24, s32, f32 or f64. `options` are the
    encoder's.
    """
    data = wave(seconds, rate, channels, seed, hz) if samples is None else samples
    if format == "wav":
        return wav(data, rate, sample)
    container, codec = _SOUNDS[format]
    out = io.BytesIO()
    with av.open(out, "w", format=container, options={"fflags": "+bitexact"}) as target:
        feed(target, add_track(target, codec, rate, data.shape[1], **options), data, rate)
    return out.getvalue()


def wav(samples: Samples, rate: int, sample: str = "s16") -> bytes:
    """A WAV of float [n, channels]; values of float formats are written as they are."""
    bits = _WIDTHS[sample]
    if sample[0] == "f":
        body = samples.astype(f"<f{bits // 8}").tobytes()
    elif sample == "u8":
        body = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(samples.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i4")
        low_bytes = whole[..., None].view(np.uint8).reshape(*whole.shape, 4)[..., : bits // 8]
        body = low_bytes.tobytes()
    channels = samples.shape[1]
    block = channels * bits // 8
    tag = 3 if sample[0] == "f" else 1
    header = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)
    chunks = chunk(b"fmt ", header) + chunk(b"data", body)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def chunk(name: bytes, body: bytes) -> bytes:
    """A RIFF chunk, padded to an even length."""
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def pictures(
    frames: int, size: tuple[int, int] = (64, 48), *, cuts: Sequence[int] = (), seed: int = 0
) -> Iterator[NDArray[np.uint8]]:
    """uint8 [height, width, 3] frames: a scene is one of `shards.pixels` with a bar that moves.

    `cuts` are the numbers of the frames that begin a new scene; `size` is (width, height).
    """
    width = size[0]
    for number in range(frames):
        scene = sum(cut <= number for cut in cuts)
        picture = pixels(1_000 * seed + scene, size)
        left = number * 3 % width
        picture[:, left : left + max(2, width // 16)] = (number * 37) % 256
        yield picture


def film(
    frames: int = 8,
    size: tuple[int, int] = (64, 48),
    fps: int = 8,
    format: str = "mp4",
    sound: bool = False,
    cuts: Sequence[int] = (),
    seed: int = 0,
    *,
    codec: str | None = None,
    pixel_format: str = "yuv420p",
    gop: int = 12,
    times: Sequence[int] | None = None,
    rotation: int = 0,
    images: Sequence[NDArray[np.uint8]] | None = None,
    **options: str,
) -> bytes:
    """An encoded film of `pictures`, with a sound track of the same length if asked.

    `format` is mp4, mov, mkv, webm or avi. `times` are the frames' own times in milliseconds,
    `rotation` the degrees (anticlockwise) by which a player must turn it, `images` other pictures
    than the seed's. `options` are the encoder's.
    """
    container, video_codec, audio_codec = _FILMS[format]
    video_codec = codec or video_codec
    out = io.BytesIO()
    with av.open(out, "w", format=container, options={"fflags": "+bitexact"}) as target:
        encoder = {**_QUICK.get(video_codec, {}), **options}
        stream = target.add_stream(video_codec, rate=fps, options=encoder)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.gop_size = gop
        stream.thread_count = 1
        base = Fraction(1, fps) if times is None else Fraction(1, 1000)
        stream.time_base = stream.codec_context.time_base = base
        if rotation:
            stream.set_display_rotation(rotation)
        track = add_track(target, audio_codec, 48_000, 1) if sound else None
        for number, picture in enumerate(images or pictures(frames, size, cuts=cuts, seed=seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times[number] if times else number), base
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        if track is not None:
            feed(target, track, wave(frames / fps, 48_000, 1, seed), 48_000)
    return out.getvalue()


def add_track(target: Any, codec: str, rate: int, channels: int, **options: str) -> Any:
    """A sound track in an av output container."""
    layout = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 6: "5.1", 8: "7.1"}[channels]
    if codec == "vorbis":
        options["strict"] = "experimental"
    return target.add_stream(codec, rate=rate, layout=layout, options=options)


def feed(target: Any, stream: Any, samples: Samples, rate: int) -> None:
    """Encodes float [n, channels] into a track of an av output container."""
    # Interleaved: PyAV crashes on planar frames of 8 channels and more.
    for start in range(0, len(samples), 1_024):
        part = np.ascontiguousarray(samples[start : start + 1_024]).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(part, "flt", stream.codec_context.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        target.mux(stream.encode(frame))
    target.mux(stream.encode(None))


def open_ended(data: bytes) -> bytes:
    """An MP4 with its index first and sound and pictures "up to the end": a cut leaves all boxes
    whole, and only the index knows what is missing."""
    with tempfile.TemporaryDirectory() as folder:  # ffmpeg reads back what it has written
        path = f"{folder}/film.mp4"
        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        with (
            av.open(io.BytesIO(data)) as source,
            av.open(path, "w", format="mp4", options=options) as target,
        ):
            copies = {s.index: target.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.size:
                    packet.stream = copies[packet.stream.index]
                    target.mux(packet)
        with open(path, "rb") as file:
            moved = file.read()
    at = moved.rindex(b"mdat") - 4
    return moved[:at] + bytes(4) + moved[at + 4 :]
