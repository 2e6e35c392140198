"""How ffmpeg opens bytes that nobody vouches for, and what it said when it could not.

Only from memory, only with the demuxer that the first bytes choose, and with nothing outside
opened: whatever a container points to is refused.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NoReturn

import av
from av.container import InputContainer
from av.stream import Discard, Stream

from mmray.decode.ends import missing_end
from mmray.decode.sniff import KNOWN, Kind, sniff
from mmray.errors import BadSample

Noun = Literal["Audio", "Video"]
Said = list[tuple[int, str, str]]

# How ffmpeg says that an index or a header promised more bytes than there are, and that a picture
# is larger than it was told to allow.
_FAULTS = {
    "partial file": "Truncated",
    "ended prematurely": "Truncated",
    "moov atom not found": "Truncated",
    "says: End of file": "Truncated",
    "max pixel count": "Oversized",
}
# What ffmpeg may decode, while it opens a sound, of a picture that is in there too.
_COVER_PIXELS = 2**26
_KEPT = 8
# Opening a 16-bit stereo WAV would take most of its time: ffmpeg looks for DTS that poses as PCM.
_DEMUXER: dict[Kind, dict[str, str]] = {"wav": {"max_probe_packets": "1", "max_size": "65536"}}

# What ffmpeg says goes into the messages of bad samples, never to standard error. Repeats are
# kept: PyAV would tell them with the next sample's.
av.logging.set_level(av.logging.ERROR)
av.logging.set_skip_repeated(False)
logging.getLogger("libav").addHandler(logging.NullHandler())
logging.getLogger("libav").propagate = False


@dataclass(frozen=True, slots=True)
class Media:
    """An opened container. `said` is what ffmpeg has complained about, the oldest first."""

    container: InputContainer
    kind: Kind
    said: Said

    def hear(self, stream: Stream) -> None:
        """Have packets of `stream` alone read, and decoded by one thread: actors share cores."""
        for other in self.container.streams:
            if other is not stream:
                other.discard = Discard.all
        stream.codec_context.thread_count = 1
        self.said.clear()

    def forget(self) -> None:
        """Keep only the last complaints: a broken stream makes millions."""
        del self.said[:-_KEPT]

    def words(self, error: Exception | None = None) -> str:
        """What went wrong last, in ffmpeg's own words."""
        return _words(self.said, error)


@contextmanager
def opened(data: bytes, noun: Noun, *, max_pixels: int = _COVER_PIXELS) -> Iterator[Media]:
    """Open `data`; every failure inside, ffmpeg's included, becomes a `BadSample`.

    Raises `EmptyMember`, `Unreadable...` (no known container, or damaged), `Truncated...` (the
    container's own structure says that its end is missing), `Oversized...` (a picture over
    `max_pixels`, which binds the decoders that ffmpeg opens itself to find out what the streams
    are) and `OutOfMemory`.
    """
    if not data:
        raise BadSample("EmptyMember", f"the {noun.lower()} has no bytes")
    kind = sniff(data)
    if kind is None:
        message = f"not of a known format ({KNOWN}): starts with {data[:16]!r}"
        raise BadSample(f"Unreadable{noun}", message)
    if gap := missing_end(data, kind):
        raise BadSample(f"Truncated{noun}", gap)
    with av.logging.Capture() as said:
        try:
            with av.open(
                BytesIO(data),
                "r",
                format=kind,
                options={"max_pixels": str(max_pixels)},
                container_options=_DEMUXER.get(kind),
                metadata_errors="replace",
                io_open=_refuse,
            ) as container:
                yield Media(container, kind, said)
        except BadSample:
            raise
        except MemoryError:
            message = f"no memory to decode {len(data)} bytes"
            raise BadSample("OutOfMemory", message) from None
        except (av.FFmpegError, ValueError, LookupError, ArithmeticError) as error:
            # Numbers in a damaged header lead our own arithmetic astray too.
            words = f"{_words(said, error)} ({kind}, {len(data)} bytes)"
            raise bad(noun, words) from error


def bad(noun: Noun, words: str) -> BadSample:
    """The bad sample that ffmpeg's words tell of."""
    faults = [fault for sign, fault in _FAULTS.items() if sign in words]
    return BadSample(f"{(*faults, 'Unreadable')[0]}{noun}", words)


def _words(said: Said, error: Exception | None) -> str:
    told = said[-1][2].strip() if said else ""
    name = getattr(error, "strerror", None) or (str(error) if error else "")
    if told and name:
        return f"ffmpeg says: {told} ({name})"
    return f"ffmpeg says: {told or name or type(error).__name__}"


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise ValueError(f"the file points outside itself, to {url!r}")
