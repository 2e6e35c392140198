"""A video's packets, and the decoding of chosen frames out of them.

All packets are read first, which decodes nothing: so times, length and keyframes are known from the
stream itself, whatever its header declares. Of a long video only the stretches from a keyframe to
a wanted frame are then decoded. The same bytes always give the same frames.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mmray.decode.container import Media, bad
from mmray.errors import BadSample

if TYPE_CHECKING:
    VideoPacket = Packet[VideoStream]
else:
    VideoPacket = Packet  # generic in PyAV's stubs only

_FALLBACK_FPS = 25.0
# Hours of film. A few bytes make a packet, and a packet takes hundreds: so memory stays bounded.
_MOST_PACKETS = 500_000


@dataclass(frozen=True, slots=True)
class Reel:
    """The packets of one video stream, in the order that they're decoded in.

    `ticks` are the frames' times in display order, in units of `tick` seconds. Where packets lack
    times or share them (`timed` is false), frames are counted instead, at the average rate.
    """

    media: Media
    stream: VideoStream
    packets: list[VideoPacket]
    ticks: list[int]
    tick: float
    timed: bool

    @property
    def seconds(self) -> float:
        """From the first frame until the last is gone."""
        return float(self.times[-1]) + self._last

    @property
    def times(self) -> np.ndarray:
        """Seconds of every frame, the first at 0, ascending."""
        return (np.asarray(self.ticks, np.float64) - self.ticks[0]) * self.tick

    @property
    def _last(self) -> float:
        """Seconds that the last frame is shown: as long as most are."""
        if len(self.ticks) < 2:
            return 1 / _FALLBACK_FPS
        return float(np.median(np.diff(self.ticks))) * self.tick

    def at(self, tick: int) -> float:
        """Seconds of a frame by its tick."""
        return (tick - self.ticks[0]) * self.tick


def read_reel(media: Media, stream: VideoStream) -> Reel:
    """Read all packets of `stream`. Raises `BadSample`: `EmptyVideo`, `TruncatedVideo`,
    `OversizedVideo` (more packets than any film has), `UnreadableVideo`."""
    media.hear(stream)
    packets: list[VideoPacket] = []
    for packet in media.container.demux(stream):
        if packet.is_corrupt:
            raise BadSample("TruncatedVideo", f"its packet {len(packets)} is not whole")
        if packet.size:
            packets.append(packet)
        if len(packets) > _MOST_PACKETS:
            raise BadSample("OversizedVideo", f"has more than {_MOST_PACKETS} frames")
        media.forget()
    # This demuxer skips what is damaged and only complains.
    if media.said and media.kind == "matroska":
        raise bad("Video", media.words())
    if not packets:
        raise BadSample("EmptyVideo", "the video has no frames")
    # A cut that copied its film leads up to the first frame with some that an edit list hides.
    shown = [packet for packet in packets if not packet.is_discard]
    if not shown:
        raise BadSample("EmptyVideo", "an edit list hides all of its frames")
    # Only this demuxer knows the number beforehand; edit lists may take a few frames away.
    is_whole = len(shown) == len(packets)
    if media.kind == "mov" and is_whole and len(packets) < stream.frames * 0.95 - 2:
        message = f"declares {stream.frames} frames and has {len(packets)}"
        raise BadSample("TruncatedVideo", message)
    pts = [packet.pts for packet in packets if packet.pts is not None]
    timed = len(set(pts)) == len(packets) and stream.time_base is not None
    if timed:
        assert stream.time_base is not None
        ticks = sorted(_shown(packet) for packet in shown)
        return Reel(media, stream, packets, ticks, float(stream.time_base), timed)
    rate = float(stream.average_rate or stream.guessed_rate or 0) or _FALLBACK_FPS
    return Reel(media, stream, packets, list(range(len(shown))), 1 / rate, timed)


def frames_at(reel: Reel, wanted: Iterable[int]) -> Iterator[tuple[int, VideoFrame]]:
    """The frames with these ticks, ascending, each with its tick.

    Where the decoder gives no frame for a tick, the one shown before it stands in, once. Raises
    `BadSample` (`UnreadableVideo`) for what can't be decoded or was decoded with errors.
    """
    missing = sorted(set(wanted))
    given: int | None = None
    before: tuple[int, VideoFrame] | None = None
    for tick, frame in _decoded(reel, _stretches(reel, missing), set(missing)):
        while missing and missing[0] < tick:
            missing.pop(0)
            if before is not None and before[0] != given:
                given = before[0]
                yield _sound(reel, *before)
        before = (tick, frame)
        if missing and missing[0] == tick:
            given = missing.pop(0)
            yield _sound(reel, tick, frame)
    if missing and before is not None and before[0] != given:
        yield _sound(reel, *before)


def all_frames(reel: Reel) -> Iterator[tuple[int, VideoFrame]]:
    """Every frame in the order that it is shown in, with its tick."""
    return _decoded(reel, [(0, len(reel.packets))], None)


def _sound(reel: Reel, tick: int, frame: VideoFrame) -> tuple[int, VideoFrame]:
    if frame.is_corrupt:
        message = f"its frame at {reel.at(tick):.2f} s is damaged: {reel.media.words()}"
        raise BadSample("UnreadableVideo", message)
    return tick, frame


def _stretches(reel: Reel, wanted: list[int]) -> list[tuple[int, int]]:
    """Ranges of packets to decode: from the keyframe before each wanted frame up to it."""
    if not reel.timed:
        return [(0, len(reel.packets))]
    place = {packet.pts: number for number, packet in enumerate(reel.packets)}
    keys = [number for number, packet in enumerate(reel.packets) if packet.is_keyframe]
    stretches: list[tuple[int, int]] = []
    for number in sorted(place[tick] for tick in wanted):
        tick = reel.packets[number].pts
        assert tick is not None
        # A keyframe that is shown later than the frame doesn't lead to it: the one before does.
        at = bisect_right(keys, number) - 1
        while at > 0 and _shown(reel.packets[keys[at]]) > tick:
            at -= 1
        start = keys[at] if at >= 0 else 0
        if stretches and start <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(stretches[-1][1], number + 1))
        else:
            stretches.append((start, number + 1))
    return stretches


def _shown(packet: VideoPacket) -> int:
    return packet.pts or 0


def _decoded(
    reel: Reel, stretches: list[tuple[int, int]], wanted: set[int] | None
) -> Iterator[tuple[int, VideoFrame]]:
    """Decode stretches of packets. Frames that nothing refers to and nobody wants are skipped."""
    context = reel.stream.codec_context
    context.skip_frame = "DEFAULT"
    context.open(strict=False)  # dav1d goes on with what it was opened with
    reel.media.said.clear()
    count = 0
    fault: str | None = None
    for start, stop in stretches:
        context.flush_buffers()
        for packet in (*reel.packets[start:stop], None):
            if reel.timed and wanted is not None and packet is not None:
                context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            try:
                frames = context.decode(packet)
            except av.FFmpegError as error:
                fault = reel.media.words(error)
                # A stream that was cut out of a longer one begins with what can't be decoded.
                if count:
                    raise bad("Video", f"{fault}, after {count} frames") from error
                continue
            reel.media.forget()
            for frame in frames:
                tick = frame.pts if reel.timed else count
                count += 1
                if tick is not None:
                    yield tick, frame
    if not count:
        raise bad("Video", fault) if fault else BadSample("EmptyVideo", "no frame comes out")
