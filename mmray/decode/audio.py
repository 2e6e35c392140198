"""Sound bytes to the mono windows that a model hears.

Samples are held once: they are mixed down, resampled and cut into windows while they are decoded.
A sound that lost its end is refused, never passed on shorter than it was.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream

from mmray.decode.container import Media, bad, opened
from mmray.decode.mono import Piece, mixed, resampled
from mmray.decode.sniff import after_id3
from mmray.errors import BadSample

# A last window shorter than this tells a model nothing.
_SHORTEST = 0.1
_RATES = (1_000, 768_000)
# Float sound overshoots full scale by a little and is clipped; this far out it is no -1..1 sound.
_LOUDEST = 8.0
# ffmpeg's declared durations are its own estimates where a header has none.
_ESTIMATED = ("mp3", "aac")
# Here ffmpeg drops damaged pages and frames and only complains, so a complaint is an error.
_DROPS_DAMAGE = ("flac", "ogg", "matroska", "wav")


@dataclass(frozen=True, slots=True)
class AudioTransform:
    """How a model wants its sound: part of its fingerprint. Sound comes mono, float32, -1..1."""

    rate: int
    """Hz."""
    window: float
    """Seconds: the longest window that the model is given."""

    def to_json(self) -> dict[str, Any]:
        """What the fingerprint is made of."""
        return {"rate": self.rate, "window": round(self.window, 6)}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a sound."""

    start: float
    """Seconds in the sound."""
    stop: float
    samples: np.ndarray
    """float32 [n], n at most rate * window."""


def decode_audio(
    data: bytes, transform: AudioTransform, *, max_seconds: float, optional: bool = False
) -> list[Window]:
    """Decode one sound, or the sound track of a video, to consecutive windows.

    Windows are `transform.window` seconds at `transform.rate` Hz, mono: the mean of the channels.
    A last one under 0.1 s is dropped unless it is the only one. `optional`: a video without sound
    gives no windows. Raises `BadSample` and nothing else for bad bytes: `EmptyMember`,
    `UnreadableAudio`, `NoAudio`, `SilentAudio` (all zero), `EmptyAudio` (no samples),
    `TruncatedAudio`, `OversizedAudio` (longer than `max_seconds`, declared or found) and
    `OutOfMemory`.
    """
    with opened(data, "Audio") as media:
        stream = next(iter(media.container.streams.audio), None)
        if stream is None:
            if optional:
                return []
            raise BadSample("NoAudio", f"the {media.kind} has no sound stream")
        _check_header(media, stream, max_seconds)
        tally = _Tally(max_seconds)
        pieces = tally.counted(mixed(_frames(media, stream, tally)))
        windows = _windows(resampled(pieces, transform.rate), transform)
        _check_whole(media, stream, data, tally)
    if not tally.samples:
        raise BadSample("EmptyAudio", "the sound has no samples")
    if tally.peak == 0:
        raise BadSample("SilentAudio", f"all {tally.samples} samples are zero")
    if not windows:
        message = f"its {tally.samples} samples are too few for one at {transform.rate} Hz"
        raise BadSample("EmptyAudio", message)
    return windows


class _Tally:
    """What has been decoded so far; stops a sound that is too long or no sound."""

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self.fault: str | None = None
        self.packets = 0
        self.samples = 0
        self.seconds = 0.0
        self.peak = 0.0

    def counted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for rate, samples in pieces:
            self.samples += len(samples)
            self.seconds += len(samples) / rate
            if self.seconds > self.max_seconds:
                raise _oversized("goes on after", self.seconds, self.max_seconds)
            peak = max(float(samples.max()), -float(samples.min()))
            if not np.isfinite(peak):
                where = f"in the second before {self.seconds:.1f} s"
                raise BadSample("UnreadableAudio", f"has samples that are not finite, {where}")
            if peak > _LOUDEST:
                message = f"has samples as large as {peak:g}, and full scale is 1"
                raise BadSample("UnreadableAudio", message)
            self.peak = max(self.peak, peak)
            yield rate, samples


def _oversized(what: str, seconds: float, limit: float) -> BadSample:
    return BadSample("OversizedAudio", f"{what} {seconds:.1f} s, limits.seconds={limit:g}")


def _check_header(media: Media, stream: AudioStream, max_seconds: float) -> None:
    if stream.codec_context is None:
        raise BadSample("UnreadableAudio", "its sound is of a codec that ffmpeg has no decoder for")
    rate = stream.codec_context.sample_rate
    if rate and not _RATES[0] <= rate <= _RATES[1]:
        message = f"declares {rate} Hz; {_RATES[0]} to {_RATES[1]} can be resampled"
        raise BadSample("UnreadableAudio", message)
    declared = _declared(media, stream)
    if declared is not None and declared > max_seconds:
        raise _oversized("declares", declared, max_seconds)


def _declared(media: Media, stream: AudioStream) -> float | None:
    """Seconds that the header promises; `None` where ffmpeg would only estimate them."""
    if media.kind in _ESTIMATED:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return media.container.duration / 1e6 if media.container.duration is not None else None


def _check_whole(media: Media, stream: AudioStream, data: bytes, tally: _Tally) -> None:
    """Refuse a sound of which less came out than its header promises."""
    if media.kind == "flac":
        promised = _flac_samples(data)
        _promise("samples", promised, tally.samples, tally)
        if promised and promised == tally.samples:
            tally.fault = None  # what follows the last one is a tag, or padding
    elif media.kind == "mp3":
        _promise("frames", _mp3_frames(data), tally.packets, tally)
    elif media.kind == "mov":
        # Encoders pad, and players cut the padding: only a real gap counts.
        declared = _declared(media, stream) or 0.0
        if tally.seconds < declared * 0.98 - 0.25:
            message = f"declares {declared:.2f} s and has {tally.seconds:.2f} s"
            raise BadSample("TruncatedAudio", message)
    if tally.fault:
        raise _damaged(tally)


def _promise(what: str, promised: int, found: int, tally: _Tally) -> None:
    if found < promised:
        fault = f": {tally.fault}" if tally.fault else ""
        message = f"declares {promised} {what} and has {found}{fault}"
        raise BadSample("TruncatedAudio", message)


def _flac_samples(data: bytes) -> int:
    """Samples that STREAMINFO promises, 36 bits of it (RFC 9639, 8.2); 0: unknown."""
    at = after_id3(data) + 8
    return int.from_bytes(data[at + 13 : at + 18], "big") & (1 << 36) - 1


def _mp3_frames(data: bytes) -> int:
    """Frames that a Xing or Info tag in the first frame promises; 0: there is no such tag."""
    start = after_id3(data)
    first = data[start : start + 50]
    at = max(first.find(b"Xing"), first.find(b"Info"))
    tag = data[start + at : start + at + 12]
    if at < 0 or len(tag) < 12 or not tag[7] & 1:
        return 0
    return int.from_bytes(tag[8:], "big")


def _frames(media: Media, stream: AudioStream, tally: _Tally) -> Iterator[AudioFrame]:
    """Decoded frames. An error with frames after it is damage; one at the end is left in
    `tally.fault`, since the end may be missing, or be no sound at all."""
    media.hear(stream)
    if media.kind == "flac":
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    head = b""
    for packet in media.container.demux(stream):
        fault: str | None = None
        try:
            frames = stream.codec_context.decode(packet)
        except av.FFmpegError as error:
            frames, fault = [], media.words(error)
        if frames and tally.fault and tally.packets:
            raise _damaged(tally)
        tally.fault = None if frames else tally.fault
        if media.said and not fault and media.kind in _DROPS_DAMAGE:
            fault = media.words()
        if fault and not tally.fault:
            tally.fault, head = fault, bytes(packet)[:2] if packet.size else b""
        tally.packets += bool(packet.size and not fault)
        media.said.clear()
        yield from frames
    if tally.fault and media.kind in _ESTIMATED:
        # Tags and other junk may follow the last MPEG frame; half a frame may not.
        if head[:1] == b"\xff":
            raise BadSample("TruncatedAudio", f"its last frame is not whole: {tally.fault}")
        tally.fault = None


def _damaged(tally: _Tally) -> BadSample:
    return bad("Audio", f"{tally.fault}, after {tally.seconds:.1f} s")


def _windows(pieces: Iterable[np.ndarray], transform: AudioTransform) -> list[Window]:
    size = max(1, round(transform.rate * transform.window))
    windows: list[Window] = []
    held: list[np.ndarray] = []
    count = start = 0

    def close() -> None:
        nonlocal held, count, start
        samples = np.concatenate(held)
        np.clip(samples, -1.0, 1.0, out=samples)
        stop = start + count
        windows.append(Window(start / transform.rate, stop / transform.rate, samples))
        held, count, start = [], 0, stop

    for piece in pieces:
        rest = piece
        while count + len(rest) >= size:
            take = size - count
            held.append(rest[:take])
            count, rest = size, rest[take:]
            close()
        if len(rest):
            held.append(rest)
            count += len(rest)
    if count and (not windows or count >= _SHORTEST * transform.rate):
        close()
    return windows
