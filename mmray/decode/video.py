"""Video bytes to the frames that a model sees.

Which frames is decided on the packets' own times, before any is decoded, so that counts and
durations in headers need not be there nor true. A frame goes through the model's own image
geometry. See `mmray.decode.reel` for how few packets are decoded.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from mmray.decode.container import Media, opened
from mmray.decode.image import ImageTransform, transformed
from mmray.decode.reel import Reel, all_frames, frames_at, read_reel
from mmray.errors import BadSample
from mmray.specs.common import Limits
from mmray.specs.embed import VideoOptions

# Anticlockwise degrees to what undoes them.
_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
}
# A scene begins where small grey frames differ by so many of 255 levels on average: pans and
# moving things stay below it, cuts between unlike pictures are above. Fades are not seen.
_GREY_SIDE = 32
_CUT = 24.0


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame as a model sees it."""

    at: float
    """Seconds in the video; the first frame is at 0."""
    pixels: np.ndarray
    """uint8 [h, w, 3] of `ImageTransform.size`."""


def decode_video(
    data: bytes, transform: ImageTransform, options: VideoOptions, limits: Limits
) -> list[Frame]:
    """Decode the frames of a video that `options` ask for, in the order that they're shown in.

    `count` takes the frames shown at the middles of as many equal parts, `rate` one every
    1 / rate seconds from 0 on, `scene` the first of every scene; no more than `options.count` of
    them, evenly spread, and no frame twice. Frames are turned upright. Raises `BadSample` and
    nothing else for bad bytes: `EmptyMember`, `UnreadableVideo`, `NoVideo`, `EmptyVideo` (no
    frames), `TruncatedVideo`, `OversizedVideo` (over `limits.seconds`, or a frame over
    `limits.pixels`) and `OutOfMemory`.
    """
    with opened(data, "Video", max_pixels=_guard(limits)) as media:
        reel = read_reel(media, _checked_stream(media, limits))
        _check_seconds(reel.seconds, limits)
        return [
            Frame(reel.at(tick), transformed(_upright(frame, limits), transform))
            for tick, frame in frames_at(reel, _wanted(reel, options, limits))
        ]


def poster(data: bytes, side: int, limits: Limits) -> bytes:
    """A JPEG, its longer side at most `side` pixels, of the first frame that can be decoded.

    Raises `BadSample` as `decode_video` does.
    """
    with opened(data, "Video", max_pixels=_guard(limits)) as media:
        reel = read_reel(media, _checked_stream(media, limits))
        for _, frame in all_frames(reel):
            if not frame.is_corrupt:
                image = _upright(frame, limits)
                image.thumbnail((side, side))
                out = BytesIO()
                image.save(out, "JPEG", quality=85)
                return out.getvalue()
    raise BadSample("UnreadableVideo", "every frame is damaged")


def _guard(limits: Limits) -> int:
    """What decoders may allocate: they pad frames, so it is more than a frame may have."""
    return 2 * limits.pixels + 65_536


def _checked_stream(media: Media, limits: Limits) -> VideoStream:
    """The first stream that is a video, and no cover picture of a song."""
    streams = [s for s in media.container.streams.video if not _is_cover(s)]
    if not streams:
        raise BadSample("NoVideo", f"the {media.kind} has no video stream")
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise BadSample("UnreadableVideo", "it is of a codec that ffmpeg has no decoder for")
    _check_pixels("declares", context.width, context.height, limits)
    context.options = {"max_pixels": str(_guard(limits))}
    if stream.duration is not None and stream.time_base is not None:
        _check_seconds(float(stream.duration * stream.time_base), limits)
    elif media.container.duration is not None:
        _check_seconds(media.container.duration / 1e6, limits)
    return stream


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _check_seconds(seconds: float, limits: Limits) -> None:
    if seconds > limits.seconds:
        message = f"lasts {seconds:.1f} s, limits.seconds={limits.seconds:g}"
        raise BadSample("OversizedVideo", message)


def _check_pixels(what: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        message = f"{what} {width}x{height} pixels, more than limits.pixels={limits.pixels}"
        raise BadSample("OversizedVideo", message)


def _upright(frame: VideoFrame, limits: Limits) -> Image.Image:
    _check_pixels("has a frame of", frame.width, frame.height, limits)
    image = Image.fromarray(frame.to_ndarray(format="rgb24", threads=1))
    turn = _TURNS.get(round(frame.rotation / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)


def _wanted(reel: Reel, options: VideoOptions, limits: Limits) -> list[int]:
    """The ticks of the frames that `options` ask for, ascending."""
    if options.sample == "scene":
        scenes = _scenes(reel, limits)
        return [scenes[i] for i in _spread(len(scenes), options.count)]
    seconds = reel.seconds
    moments = (np.arange(options.count) + 0.5) * (seconds / options.count)
    if options.sample == "rate" and seconds * options.rate <= options.count:
        moments = np.arange(np.ceil(seconds * options.rate)) / options.rate
    # The frame shown at a moment is the last that isn't later; rounding must not miss one.
    shown = np.searchsorted(reel.times, moments + 1e-9, side="right") - 1
    return [reel.ticks[i] for i in np.unique(shown)]


def _spread(have: int, count: int) -> list[int]:
    """At most `count` of `have` places, evenly spread, the first one among them."""
    return [i * have // count for i in range(count)] if have > count else list(range(have))


def _scenes(reel: Reel, limits: Limits) -> list[int]:
    """The tick of each scene's first frame."""
    scenes: list[int] = []
    before: np.ndarray | None = None
    scaler = VideoReformatter()
    for tick, frame in all_frames(reel):
        _check_pixels("has a frame of", frame.width, frame.height, limits)
        small = scaler.reformat(
            frame, _GREY_SIDE, _GREY_SIDE, "gray", interpolation="AREA", threads=1
        )
        grey = small.to_ndarray().astype(np.int16)
        if before is None or np.abs(grey - before).mean() > _CUT:
            scenes.append(tick)
        before = grey
    return scenes
