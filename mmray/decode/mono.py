"""Decoded sound of any rate, sample format and channel count to mono float32 at one rate.

Works on pieces of about a second, so that numpy and ffmpeg, not Python, see the samples.
"""

from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame

Piece = tuple[int, np.ndarray]
"""Hz, and float32 [n] mono samples at that rate."""

_BATCH = 65_536
_FULL_SCALE = {"u8": 128.0, "s16": 32_768.0, "s32": 2.0**31, "flt": 1.0, "dbl": 1.0}


def mixed(frames: Iterable[AudioFrame]) -> Iterator[Piece]:
    """The mean of the channels; a sound may change its rate or channels on the way."""
    held: list[np.ndarray] = []
    kind, count = ("", 0, 0), 0
    for decoded in frames:
        frame = _readable(decoded)
        this = (frame.format.name, frame.layout.nb_channels, frame.sample_rate)
        if held and (this != kind or count >= _BATCH):
            yield kind[2], _mean(held, kind[0], kind[1])
            held, count = [], 0
        if frame.samples:
            held.append(frame.to_ndarray())
        kind, count = this, count + frame.samples
    if held:
        yield kind[2], _mean(held, kind[0], kind[1])


def resampled(pieces: Iterable[Piece], rate: int) -> Iterator[np.ndarray]:
    """Pieces at `rate` Hz: round(n * rate / source) samples in all; equal rates pass untouched."""
    resampler: av.AudioResampler | None = None
    source = rate
    for this, samples in pieces:
        if this != source:
            yield from _through(resampler, None, source)
            source = this
            resampler = None if this == rate else av.AudioResampler("flt", "mono", rate)
        if resampler is None:
            yield samples
        else:
            yield from _through(resampler, samples, source)
    yield from _through(resampler, None, source)


def _through(
    resampler: av.AudioResampler | None, samples: np.ndarray | None, rate: int
) -> Iterator[np.ndarray]:
    """What comes out for `samples`; `None` flushes what the filter still holds."""
    if resampler is None:
        return
    frame = None
    if samples is not None:
        frame = AudioFrame.from_ndarray(samples[None], "flt", "mono")
        frame.sample_rate = rate
    for out in resampler.resample(frame):
        yield out.to_ndarray()[0]


def _readable(frame: AudioFrame) -> AudioFrame:
    """PyAV 18 looks for a null after the plane pointers of a frame. With 8 planes and more there
    is none, and it crashes: such frames are interleaved by ffmpeg first."""
    if not frame.format.is_planar or frame.layout.nb_channels < 8:
        return frame
    packed = av.AudioResampler("flt", frame.layout, frame.sample_rate)
    return packed.resample(frame)[0]


def _mean(parts: list[np.ndarray], kind: str, channels: int) -> np.ndarray:
    data = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    rows = data if kind.endswith("p") else data.reshape(-1, channels).T
    plain = kind.removesuffix("p")
    # Samples that overflow or are not finite are the caller's to refuse, in better words.
    with np.errstate(over="ignore", invalid="ignore"):
        mono: np.ndarray = rows[0].astype(np.float32)
        for row in rows[1:]:
            mono += row
        if plain == "u8":
            mono -= 128.0 * channels
        mono *= np.float32(1 / (_FULL_SCALE[plain] * channels))
    return mono
