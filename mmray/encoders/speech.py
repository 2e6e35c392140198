"""A voice's vector from resemblyzer's weights: who speaks, not what is said.

Two sounds of one speaker are near each other. Unlike resemblyzer, silence is not cut out first:
that takes a voice detector, and a vector that depends on it.
"""

from typing import TYPE_CHECKING

from mmray.decode.audio import AudioTransform
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import digest, fingerprint
from mmray.encoders.packaged import package_file

if TYPE_CHECKING:
    from pathlib import Path

    from mmray.encoders.towers import TowerEncoder

TRANSFORM = AudioTransform(rate=16_000, window=10.0)
_DIM = 256


def describe(options: EncodeOptions) -> EncoderCard:
    """The card. Raises `RefusedError` when the package is missing."""
    details = {
        "format": 1,
        "model_type": "speech",
        "weights": [digest(_weights())],
        "audio": TRANSFORM.to_json(),
        "dtype": options.dtype,
    }
    return EncoderCard(
        fingerprint=fingerprint(details),
        dims={"audio": _DIM},
        image=None,
        max_tokens=None,
        name="speech (packaged)",
        details=details,
        audio=TRANSFORM,
    )


def load(card: EncoderCard, device: str, options: EncodeOptions) -> "TowerEncoder":
    """Load the network on `device`. Imports torch."""
    import numpy as np

    from mmray.encoders.towers import AudioRules, AudioTower, TowerEncoder
    from mmray.models.devices import place
    from mmray.models.speech import load as load_voice

    # 16 bits would save little time of so small a network, whose recurrence adds up what they lose.
    placement = place(device, "float32" if options.dtype == "auto" else options.dtype)
    voice = load_voice(_weights())
    placement.settle(voice)
    rules = AudioRules(TRANSFORM, extract=np.stack, one_length=False)
    return TowerEncoder(card, audio=AudioTower(voice, rules, placement, options))


def _weights() -> "Path":
    # Without its needs: they are for what mmray does itself, and one of them compiles C.
    return package_file("resemblyzer", "pretrained.pt", "--no-deps resemblyzer==0.1.4")
