"""A fragment's bytes become a batch of arrays and texts; what can't be decoded keeps its place.

A sample is one row of the store, unless its windows or frames are to be rows of their own: then the
first of them also carries what else the sample has, and the keys tell their time (`KEY#t=10,20`, as
in W3C's media fragments).
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from mmray.decode.audio import AudioTransform, Window, decode_audio
from mmray.decode.image import decode_image, thumbnail
from mmray.decode.text import decode_text
from mmray.decode.video import Frame, decode_video
from mmray.encoders import EncoderCard
from mmray.errors import BadSample, SampleError
from mmray.flow.batch import Batch, Preview, added
from mmray.flow.previews import jpeg, preview
from mmray.sources.fragment import Fragment, Sample
from mmray.specs.common import ColumnType
from mmray.specs.embed import EmbedSpec
from mmray.transforms.duplicates import Duplicates
from mmray.transforms.filters import Filter
from mmray.transforms.redact import Redactor

_NOTHING_TO_HEAR = frozenset({"SilentAudio", "EmptyAudio"})


@dataclass(slots=True)
class _Row:
    """What becomes one row of the store."""

    sample: Sample
    inputs: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    key: bytes | None = None


class Decoder:
    """Decodes fragments as one spec and one encoder want them. One for each worker."""

    def __init__(self, spec: EmbedSpec, modalities: tuple[str, ...], card: EncoderCard) -> None:
        self._spec, self._modalities = spec, modalities
        self._image = card.image
        self._video = card.video or card.image
        self._audio = None if card.audio is None else windowed(card.audio, spec)
        self._filter = Filter(spec.filter, spec.text.column, max_pixels=spec.limits.pixels)
        self._duplicates = None if spec.duplicates is None else Duplicates(spec.duplicates)
        self._redact = Redactor(spec.redact) if spec.redact else None
        wants = (spec.filter.min_characters, spec.filter.max_characters, spec.filter.languages)
        self._reads_text = "text" in modalities or any(wants)

    def __call__(self, fragment: Fragment, shard_uri: str, previews: int = 0) -> Batch:
        """Decode the wanted modalities and kept metadata of every sample, and drop the raw bytes.

        The first `previews` samples that can be shown are kept small, for the report.
        """
        rows: list[_Row] = []
        filtered: dict[str, int] = {}
        shown: list[Preview] = []
        for sample in fragment.samples:
            try:
                found = self._rows(sample)
                if len(shown) < previews and not isinstance(found, str):
                    shown += preview(sample, self._spec, self._kept_text)
            except BadSample as error:
                sample.error = SampleError.of("decode", error)
                found = [_Row(sample)]
            sample.members = {}
            if isinstance(found, str):
                filtered = added(filtered, {found: 1})
            else:
                rows += found
        if self._redact is not None:
            for row in rows:
                _mask_error(row.sample, self._redact)
        return Batch(
            span=fragment.span,
            shard_uri=shard_uri,
            samples=[row.sample for row in rows],
            columns={n: [row.columns.get(n) for row in rows] for n in column_names(self._spec)},
            inputs={m: [row.inputs.get(m) for row in rows] for m in self._modalities},
            keys=[row.key for row in rows],
            filtered=filtered,
            previews=tuple(shown),
        )

    def _rows(self, sample: Sample) -> list[_Row] | str:
        """The rows of a sample, or why it is left out. Raises BadSample."""
        if sample.error is not None:
            return [_Row(sample)]
        spec = self._spec
        text = _text(sample, spec) if self._reads_text else None
        reason = self._filter.reason(sample, text)
        if reason is not None:
            return reason
        row = _Row(sample, columns=self._columns(sample))
        picture = sample.members.get("image")
        if "image" in self._modalities and picture is not None and self._image is not None:
            row.inputs["image"] = decode_image(picture, self._image, max_pixels=spec.limits.pixels)
        if "text" in self._modalities and text is not None:
            row.inputs["text"] = text
        frames, windows = self._frames(sample), self._windows(sample)  # a bad film is a bad film
        if spec.thumbnails:
            row.columns["thumbnail"] = self._thumbnail(sample, frames)
        rows = list(self._spread(row, windows, frames))
        if self._duplicates is not None:
            for each in rows:
                each.key = self._duplicates.key(each.sample, each.inputs)
        return rows

    def _windows(self, sample: Sample) -> list[Window]:
        spec = self._spec
        if "audio" not in self._modalities or self._audio is None:
            return []
        if "audio" in sample.members:
            sound = sample.members["audio"]
            return decode_audio(sound, self._audio, max_seconds=spec.limits.seconds)
        if "video" not in sample.members or not spec.video.sound:
            return []
        try:
            track = sample.members["video"]
            most = spec.limits.seconds
            return decode_audio(track, self._audio, max_seconds=most, optional=True)
        except BadSample as error:
            if error.error_type in _NOTHING_TO_HEAR:  # a silent film is no bad film
                return []
            raise

    def _frames(self, sample: Sample) -> list[Frame]:
        film = sample.members.get("video")
        if "video" not in self._modalities or film is None or self._video is None:
            return []
        return decode_video(film, self._video, self._spec.video, self._spec.limits)

    def _spread(self, row: _Row, windows: list[Window], frames: list[Frame]) -> Iterator[_Row]:
        """The row, or one for each window and frame that is to stand alone."""
        spec = self._spec
        apart: dict[str, tuple[str, list[Any], float, float]] = {}
        if spec.audio.windows == "rows":
            for each in windows:
                place = f"#t={_seconds(each.start)},{_seconds(each.stop)}"
                apart.setdefault(place, ("audio", [each.samples], each.start, each.stop))
        elif windows:
            row.inputs["audio"] = [each.samples for each in windows]
        if spec.video.frames == "rows":
            for frame in frames:
                place = f"#t={_seconds(frame.at)}"
                apart.setdefault(place, ("video", [frame.pixels], frame.at, frame.at))
        elif frames:
            row.inputs["video"] = [frame.pixels for frame in frames]
        if not apart:
            yield row
            return
        inputs = row.inputs
        for place, (modality, pieces, start, stop) in apart.items():
            sample = replace(row.sample, source_key=row.sample.source_key + place, members={})
            times = {"start_seconds": start, "stop_seconds": stop}
            yield _Row(sample, inputs | {modality: pieces}, row.columns | times)
            inputs = {}  # the first row alone carries what the sample has beside

    def _columns(self, sample: Sample) -> dict[str, Any]:
        return {
            name: self._kept(name, kind, sample.metadata.get(name))
            for name, kind in self._spec.keep.items()
        }

    def _thumbnail(self, sample: Sample, frames: list[Frame]) -> bytes | None:
        most = self._spec.limits.pixels
        if "image" in sample.members:
            return thumbnail(sample.members["image"], self._spec.thumbnails, max_pixels=most)
        if frames:
            return jpeg(frames[0].pixels, self._spec.thumbnails)
        return None

    def _kept(self, name: str, kind: ColumnType, value: Any) -> Any:
        """A metadata value as its column takes it; text columns hold other values as JSON."""
        if value is None:
            return None
        if kind == "string":
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            try:
                text.encode()
            except UnicodeEncodeError:
                raise BadSample("BadMetadata", f"{name!r} holds half a surrogate pair") from None
            return self._kept_text(text)
        whole = isinstance(value, int) and not isinstance(value, bool)
        fits = {
            "bool": isinstance(value, bool),
            "int": whole and abs(value) < 2**63,
            "float": isinstance(value, float) or (whole and abs(value) <= sys.float_info.max),
        }
        if not fits[kind]:
            raise BadSample("WrongType", f"{name!r} is {value!r:.80}, not of type {kind}")
        return float(value) if kind == "float" else value

    def _kept_text(self, text: str) -> str:
        return text if self._redact is None else self._redact(text)


def windowed(audio: AudioTransform, spec: EmbedSpec) -> AudioTransform:
    """The encoder's transform with the spec's length of a window."""
    return replace(audio, window=spec.audio.seconds or audio.window)


def column_names(spec: EmbedSpec) -> tuple[str, ...]:
    """Columns that decoding fills beside the base ones and the vectors."""
    names = [*spec.keep]
    if spec.thumbnails:
        names.append("thumbnail")
    if keeps_times(spec):
        names += ["start_seconds", "stop_seconds"]
    return tuple(names)


def keeps_times(spec: EmbedSpec) -> bool:
    """Whether rows may be windows or frames, which have a time."""
    return spec.audio.windows == "rows" or spec.video.frames == "rows"


def _text(sample: Sample, spec: EmbedSpec) -> str | None:
    data = sample.members.get("text") if spec.text.column == "caption" else None
    if data is None:
        value = sample.metadata.get(spec.text.column)
        if value is None:
            return None
        if not isinstance(value, str):
            raise BadSample("WrongType", f"{spec.text.column!r} is {value!r:.80}, not a text")
        data = value.encode(errors="surrogatepass")
    return decode_text(data, max_chars=spec.limits.characters)


def _mask_error(sample: Sample, redact: Redactor) -> None:
    if sample.error is not None:
        sample.error = replace(sample.error, message=redact(sample.error.message))


def _seconds(value: float) -> str:
    """`12.5`: milliseconds at most, without zeros at the end."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
