"""Several encoders as one: each serves the modalities that it takes, and no two take the same.

The parts share a row of the store, not a space: a text's vector is comparable with a picture's only
where one part gives both.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmray import encoders  # the module, whose table names this one: its functions are found later
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import fingerprint
from mmray.errors import SpecError
from mmray.specs.common import CombinedEncoder

if TYPE_CHECKING:
    from mmray.encoders import Encoder


def describe(spec: CombinedEncoder, options: EncodeOptions) -> EncoderCard:
    """The parts' cards as one.

    Raises what the parts raise, with paths such as `encoder.of.1.revision`, and `SpecError` where a
    part takes a modality that one before it takes.
    """
    cards = _describe_parts(spec, options)
    dims: dict[str, int] = {}
    details: dict[str, Any] = {"format": 1}
    for place, card in enumerate(cards):
        twice = sorted(dims.keys() & card.dims.keys())
        if twice:
            message = f"{card.name} takes {twice[0]}, as an encoder before it does"
            raise SpecError(f"encoder.of.{place}", message)
        dims |= card.dims
        # By what a part serves, not by its place: the order of parts changes no vector.
        serves = "+".join(card.modalities)
        details |= {f"{serves}: {name}": value for name, value in card.details.items()}
    return EncoderCard(
        fingerprint=fingerprint(details),
        dims=dims,
        image=next((card.image for card in cards if card.image is not None), None),
        max_tokens=next((card.max_tokens for card in cards if card.max_tokens is not None), None),
        name=" + ".join(card.name for card in cards),
        details=details,
        audio=next((card.audio for card in cards if card.audio is not None), None),
        video=next((card.video for card in cards if card.video is not None), None),
    )


def load(spec: CombinedEncoder, card: EncoderCard, device: str, options: EncodeOptions) -> "Parts":
    """Load every part on `device`."""
    cards = _describe_parts(spec, options)
    parts = [
        encoders.load_encoder(one, described, device, options)
        for one, described in zip(spec.of, cards, strict=True)
    ]
    return Parts(card, parts)


def _describe_parts(spec: CombinedEncoder, options: EncodeOptions) -> list[EncoderCard]:
    cards = []
    for place, one in enumerate(spec.of):
        try:
            cards.append(encoders.describe(one, options))
        except SpecError as error:
            head, _, tail = error.path.partition(".")
            path = f"encoder.of.{place}.{tail}" if head == "encoder" and tail else error.path
            raise SpecError(path, error.message) from error
    return cards


class Parts:
    """The loaded encoders, each asked for what its card has."""

    def __init__(self, card: EncoderCard, parts: Sequence["Encoder"]) -> None:
        self.card = card
        self._by = {modality: part for part in parts for modality in part.card.modalities}

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        """uint8 [h, w, 3] each, of `card.image.size`, to float32 [n, d]."""
        return self._part("image").encode_images(images)

    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Texts to float32 [n, d]."""
        return self._part("text").encode_texts(texts)

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        """float32 [samples] each to float32 [n, d]."""
        return self._part("audio").encode_audios(waves)

    def encode_videos(self, videos: list[list[np.ndarray]]) -> np.ndarray:
        """uint8 [h, w, 3] frames, of `card.video.size`, of each to float32 [n, d]."""
        return self._part("video").encode_videos(videos)

    def _part(self, modality: str) -> "Encoder":
        if modality not in self._by:
            raise ValueError(f"{self.card.name} takes no {modality}s")
        return self._by[modality]
