"""A sample's bytes become what training keeps of it: arrays, a text, labels and its group.

A modality that the sample lacks is absent; one that is there and can't be decoded makes the sample
a bad one. Of a sound the first window is taken, as long as the model hears at once.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np

from mmray.decode.audio import AudioTransform, decode_audio
from mmray.decode.image import ImageTransform, decode_image
from mmray.decode.text import decode_text
from mmray.decode.video import decode_video
from mmray.errors import BadSample
from mmray.sources import Sample
from mmray.specs.embed import VideoOptions
from mmray.specs.train import TrainSpec

NO_GROUP = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One sample, decoded."""

    id: str
    own: int
    """Hash of the id, 63 bits."""
    group: int = NO_GROUP
    """Hash of its group, 63 bits."""
    text: str | None = None
    category: str | None = None
    number: float | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    """`image`: uint8 [h, w, 3]; `audio`: float32 [n]; `video`: uint8 [f, h, w, 3]; `text`: str."""


class Decoder:
    """Decodes samples as a spec and its towers want them."""

    def __init__(
        self,
        spec: TrainSpec,
        images: Mapping[str, ImageTransform],
        audio: AudioTransform | None,
    ) -> None:
        self._spec, self._images, self._audio = spec, images, audio
        self._towers = tuple(spec.model.towers)
        heads = spec.model.heads
        self._class = None if heads.classify is None else heads.classify.label
        self._number = None if heads.regress is None else heads.regress.label
        grouped_by_text = spec.data.split.group == spec.data.text
        self._reads_text = "text" in self._towers or heads.caption is not None or grouped_by_text

    def __call__(self, sample: Sample) -> Row | None:
        """The row of a sample; None where it has nothing that a tower takes. Raises BadSample."""
        metadata, spec = sample.metadata, self._spec
        text = self._text(sample) if self._reads_text else None
        inputs = self._inputs(sample)
        if text is not None and "text" in self._towers:
            inputs["text"] = text
        if not inputs:
            return None
        group = NO_GROUP
        if spec.data.split.group is not None:
            by_text = spec.data.split.group == spec.data.text
            value = text if by_text else metadata.get(spec.data.split.group)
            group = NO_GROUP if value is None else hashed(str(value))
        return Row(
            sample.id,
            hashed(sample.id),
            group,
            text,
            _category(metadata, self._class),
            _number(metadata, self._number),
            inputs,
        )

    def _inputs(self, sample: Sample) -> dict[str, Any]:
        limits, members = self._spec.limits, sample.members
        found: dict[str, Any] = {}
        if "image" in self._towers and "image" in members:
            found["image"] = decode_image(
                members["image"], self._images["image"], max_pixels=limits.pixels
            )
        if "audio" in self._towers and "audio" in members:
            assert self._audio is not None
            windows = decode_audio(members["audio"], self._audio, max_seconds=limits.seconds)
            found["audio"] = windows[0].samples
        if "video" in self._towers and "video" in members:
            options = VideoOptions(count=self._spec.data.frames)
            frames = decode_video(members["video"], self._images["video"], options, limits)
            found["video"] = np.stack([frame.pixels for frame in frames])
        return found

    def _text(self, sample: Sample) -> str | None:
        """As the embed job finds a sample's text."""
        name = self._spec.data.text
        data = sample.members.get("text") if name == "caption" else None
        if data is None:
            value = sample.metadata.get(name)
            if value is None:
                return None
            if not isinstance(value, str):
                raise BadSample("WrongType", f"{name!r} is {value!r:.80}, not a text")
            data = value.encode(errors="surrogatepass")
        return decode_text(data, max_chars=self._spec.limits.characters)


def hashed(text: str) -> int:
    """63 bits of a text's hash."""
    found = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(found) >> 1


def _category(metadata: Mapping[str, Any], name: str | None) -> str | None:
    value = None if name is None else metadata.get(name)
    if value is None or isinstance(value, str | int):
        return None if value is None else str(value)
    raise BadSample("WrongType", f"{name!r} is {value!r:.80}, not a class")


def _number(metadata: Mapping[str, Any], name: str | None) -> float | None:
    value = None if name is None else metadata.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadSample("WrongType", f"{name!r} is {value!r:.80}, not a number")
    return float(value)
