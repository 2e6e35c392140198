"""Reads a Hugging Face feature extractor's file without transformers, and runs it in the worker.

Only the settings that change features count, filled up with the class's own defaults, so that what
is hashed is exactly what is run. An extractor that does more is refused, never approximated.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmray.decode.audio import AudioTransform
from mmray.encoders.folder import read_json
from mmray.errors import RefusedError

ExtractorKind = Literal["Clap", "Whisper", "Wav2Vec2"]
Extract = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Windows of sound, float32 [n] each, to features of one shape, float32 [windows, ...]."""

# What each class of transformers does where its file is silent.
_DEFAULTS: dict[ExtractorKind, dict[str, Any]] = {
    "Clap": {
        "feature_size": 64,
        "sampling_rate": 48_000,
        "hop_length": 480,
        "max_length_s": 10,
        "fft_window_size": 1024,
        "frequency_min": 0.0,
        "frequency_max": 14_000.0,
        "truncation": "fusion",
        "padding": "repeatpad",
    },
    "Whisper": {
        "feature_size": 80,
        "sampling_rate": 16_000,
        "hop_length": 160,
        "chunk_length": 30,
        "n_fft": 400,
        "padding_value": 0.0,
    },
    "Wav2Vec2": {"sampling_rate": 16_000, "do_normalize": True},
}

# A setting with one value that mmray can run, and why.
_FIXED: dict[str, tuple[Any, str]] = {
    "dither": (0.0, "it adds noise, so no vector would come out twice"),
    "padding_side": ("right", "it pads in front of the sound"),
}

_POSITIVE = ("sampling_rate", "hop_length", "max_length_s", "chunk_length")

_WINDOWS: dict[ExtractorKind, str] = {"Clap": "max_length_s", "Whisper": "chunk_length"}
_NO_LIMIT_SECONDS = 30.0
"""Window of models that take any length: memory grows with its square."""


@dataclass(frozen=True, slots=True)
class Extractor:
    """One of transformers' feature extractors with all settings that change its features."""

    kind: ExtractorKind
    settings: dict[str, Any]

    @property
    def transform(self) -> AudioTransform:
        """The sound that it wants."""
        limit = _WINDOWS.get(self.kind)
        window = _NO_LIMIT_SECONDS if limit is None else float(self.settings[limit])
        return AudioTransform(rate=self.settings["sampling_rate"], window=window)

    @property
    def pads(self) -> bool:
        """Whether it brings every sound to the length of a window."""
        return self.kind in _WINDOWS

    @property
    def frames(self) -> int:
        """Columns of the spectrogram of a window; only where it `pads`."""
        transform = self.transform
        return round(transform.rate * transform.window) // int(self.settings["hop_length"])

    def to_json(self) -> dict[str, Any]:
        """All that changes features."""
        return {"extractor": self.kind, **self.transform.to_json(), **self.settings}

    def build(self) -> Extract:
        """The extractor as a function. Imports transformers."""
        import transformers

        made: Any = getattr(transformers, f"{self.kind}FeatureExtractor")(**self.settings)
        name = made.model_input_names[0]
        rate = self.settings["sampling_rate"]

        def extract(waves: Sequence[np.ndarray]) -> np.ndarray:
            features = made(list(waves), sampling_rate=rate, return_tensors="np")[name]
            return np.ascontiguousarray(features, np.float32)

        return extract


def read_extractor(folder: Path, kind: ExtractorKind) -> Extractor:
    """What `preprocessor_config.json` or `processor_config.json` in `folder` says.

    Raises `RefusedError` when there is no such file, it names another class than a model of this
    family takes, or it asks for what mmray can't do.
    """
    raw = read_json(folder, "preprocessor_config.json")
    if raw is None:
        raw = (read_json(folder, "processor_config.json") or {}).get("feature_extractor")
    if not raw:
        raise RefusedError(f"no preprocessor_config.json in {folder}: its sample rate is unknown")
    wanted = f"{kind}FeatureExtractor"
    found = raw.get("feature_extractor_type") or wanted  # older files of wav2vec2 don't say
    if found != wanted:
        raise RefusedError(f"feature extractor {found} in {folder}; this model takes {wanted}")
    try:
        for name, (value, why) in _FIXED.items():
            if raw.get(name, value) != value:
                raise ValueError(f"{name} is {raw[name]!r}: {why}")
        settings = {
            name: _cast(name, default if raw.get(name) is None else raw[name], default)
            for name, default in _DEFAULTS[kind].items()
        }
        if min(settings[name] for name in _POSITIVE if name in settings) <= 0:
            raise ValueError(f"{', '.join(_POSITIVE)} must be positive")
        return Extractor(kind, settings)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"the feature extractor in {folder} can't be used: {error}") from error


def _cast(name: str, value: Any, default: Any) -> Any:
    """`value` in the type of its default, so that 10 and 10.0 hash alike."""
    cast = type(default)(value)
    if cast != value:
        raise ValueError(f"{name} is {value!r}")
    return cast
