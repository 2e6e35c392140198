"""Which modalities a job encodes, and what an encoder can't do: settled before any work."""

from collections.abc import Callable, Collection
from typing import Any

from mmray.encoders import EncoderCard
from mmray.errors import SpecError
from mmray.flow.decoding import windowed
from mmray.specs import EmbedSpec
from mmray.transforms.filters import check as check_filter

ORDER = ("image", "text", "audio", "video")
"""Of the vectors in a row."""


def check(spec: EmbedSpec, card: EncoderCard) -> None:
    """Refuse what the encoder or the filters can't do. Raises SpecError."""
    able = _able(card)
    for index, wanted in enumerate(spec.modalities or ()):
        if wanted not in able:
            takes = f"{card.name} takes {', '.join(able)}, not {wanted!r}"
            raise SpecError(f"modalities.{index}", takes)
    if spec.audio.seconds is not None and card.audio is not None:
        most = card.audio.window
        if spec.audio.seconds > most:
            raise SpecError("audio.seconds", f"{card.name} takes windows of {most:g} s at most")
    sees = "image" in (able if spec.modalities is None else spec.modalities)
    if spec.duplicates is not None and spec.duplicates.by == "perceptual" and not sees:
        raise SpecError("duplicates.by", "perceptual needs pictures among the modalities")
    check_filter(spec.filter)


def modalities(
    spec: EmbedSpec, card: EncoderCard, seen: Collection[str] | Callable[[], Collection[str]]
) -> tuple[str, ...]:
    """The modalities to encode: those asked for, else the encoder's own.

    An encoder of images takes video too. Few sources have any, so its column is made only where it
    is among `seen`: what the store has already, or else what the first samples show.
    """
    able = _able(card)
    if spec.modalities is not None:
        return tuple(each for each in able if each in spec.modalities)
    if not callable(seen) and set(seen) <= set(able):
        return tuple(each for each in able if each in seen)
    if "video" in able and "video" not in (seen() if callable(seen) else ()):
        return tuple(each for each in able if each != "video") or able
    return able


def sampling(spec: EmbedSpec, card: EncoderCard, encoded: Collection[str]) -> dict[str, Any]:
    """How sound and video are cut, as far as vectors depend on it."""
    found: dict[str, Any] = {}
    if "audio" in encoded and card.audio is not None:
        seconds = windowed(card.audio, spec).window
        found["audio"] = {"windows": spec.audio.windows, "seconds": seconds}
    if "video" in encoded:
        options = spec.video.model_dump(mode="json", exclude={"sound"})
        found["video"] = options if spec.video.sample == "rate" else options | {"rate": None}
    return found


def dim_of(card: EncoderCard, modality: str) -> int:
    """Length of a modality's vector."""
    return card.dims[card.through(modality)]


def _able(card: EncoderCard) -> tuple[str, ...]:
    return tuple(each for each in ORDER if card.through(each) in card.dims)
