"""Vectors of sounds beside the forward pass of the libraries that the models come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch

from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.encoders.speech import TRANSFORM
from mmray.models.speech import Voice, load, louder, partial_starts
from mmray.specs.common import HfEncoder, PackagedEncoder
from tests import tinymodels

EXACT = EncodeOptions(dtype="float32")


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(11)
    return [(rng.normal(size=length) / 10).astype(np.float32) for length in lengths]


def encoder_of(folder: Path) -> Any:
    spec = HfEncoder(kind="hf", model=str(folder))
    return load_encoder(spec, describe(spec, EXACT), "cpu", EXACT)


def theirs(folder: Path) -> tuple[Any, Any]:
    """The library's own model and feature extractor of `folder`."""
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoFeatureExtractor.from_pretrained(folder)


@pytest.mark.parametrize("name", ["clap", "clap-fused"])
def test_clap(name: str, tmp_path: Path) -> None:
    folder = tinymodels.build(name, tmp_path)
    encoder = encoder_of(folder)
    model, extractor = theirs(folder)
    waves = noise(3000, 16000, 9000)
    ours = encoder.encode_audios(waves)
    for wave, row in zip(waves, ours, strict=True):
        inputs = extractor(wave, sampling_rate=8000, return_tensors="pt")
        inputs["is_longer"][:] = False  # with fusion, the library calls one of them longer by lot
        with torch.inference_mode():
            wanted = model.get_audio_features(**inputs).pooler_output[0]
        assert np.allclose(row, wanted.numpy(), atol=1e-5)


def test_clap_is_one_space_with_its_texts(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tinymodels.build("clap", tmp_path)
    texts = ["a cat", "a photo of the large red house with a small tree and a dog"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        wanted = theirs(folder)[0].get_text_features(**inputs).pooler_output
    assert np.allclose(encoder_of(folder).encode_texts(texts), wanted.numpy(), atol=1e-5)


def test_fused_clap_does_not_throw_dice(tmp_path: Path) -> None:
    encoder = encoder_of(tinymodels.build("clap-fused", tmp_path))
    waves = noise(3000, 16000, 9000, 16000)
    rows = []
    for seed in range(4):
        np.random.seed(seed)
        rows.append(encoder.encode_audios(waves))
    assert all(np.array_equal(rows[0], other) for other in rows[1:])


def test_whisper_is_the_mean_over_the_sound(tmp_path: Path) -> None:
    folder = tinymodels.build("whisper", tmp_path)
    model, extractor = theirs(folder)
    # A frame is 320 samples; one that the sound only begins counts too.
    frames = {32000: 100, 16000: 50, 16001: 51, 320: 1, 5: 1}
    waves = noise(*frames)
    ours = encoder_of(folder).encode_audios(waves)
    for wave, count, row in zip(waves, frames.values(), ours, strict=True):
        features = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
        assert features.shape == (1, 16, 200)
        with torch.inference_mode():
            states = model.encoder(features).last_hidden_state[0]
        assert states.shape == (100, 32)
        assert np.allclose(row, states[:count].mean(0).numpy(), atol=1e-5)


def test_whisper_drops_its_decoder(tmp_path: Path) -> None:
    from mmray.models.backbones import load
    from mmray.models.forward import Wiring

    folder = tinymodels.build("whisper", tmp_path)
    names = [name for name, _ in load(folder, Wiring("whisper")).named_parameters()]
    assert "conv1.weight" in names
    assert not [name for name in names if "decoder" in name]


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
def test_waves_are_the_mean_over_all_frames(name: str, tmp_path: Path) -> None:
    folder = tinymodels.build(name, tmp_path)
    model, extractor = theirs(folder)
    waves = [3 * wave + 0.2 for wave in noise(4000, 8000, 4000)]  # so that normalising shows
    ours = encoder_of(folder).encode_audios(waves)
    for wave, row in zip(waves, ours, strict=True):
        inputs = extractor(wave, sampling_rate=16000, return_tensors="pt")
        with torch.inference_mode():
            states = model(input_values=inputs.input_values).last_hidden_state[0]
        assert len(states) > 100
        assert np.allclose(row, states.mean(0).numpy(), atol=1e-5)


def test_a_sound_shorter_than_a_frame_is_filled_with_silence(tmp_path: Path) -> None:
    folder = tinymodels.build("wavlm", tmp_path)  # which doesn't normalise
    encoder = encoder_of(folder)
    (short,) = noise(7)
    # Convolutions of 10, 3 and 2 samples in steps of 5, 2 and 2 see 30 at least.
    filled = np.pad(short, (0, 23))
    assert np.allclose(encoder.encode_audios([short]), encoder.encode_audios([filled]), atol=1e-6)


@pytest.fixture(scope="module")
def voice() -> Voice:
    from mmray.encoders.packaged import package_file

    return load(package_file("resemblyzer", "pretrained.pt", "")).eval()


def slaney_filters() -> np.ndarray:
    """40 triangles on Slaney's scale over 0 to 8000 Hz, of equal area: [201, 40], by its formula.

    Linear below 1000 Hz with 200/3 Hz a mel; above, 27 mels for each factor of 6.4.
    """
    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, 42)
    hertz = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    bins = np.arange(201) * 16000 / 400
    filters = np.zeros((201, 40))
    for place, (low, middle, high) in enumerate(zip(hertz, hertz[1:], hertz[2:], strict=False)):
        rise, fall = (bins - low) / (middle - low), (high - bins) / (high - middle)
        filters[:, place] = np.maximum(0, np.minimum(rise, fall)) * 2 / (high - low)
    return filters


def by_hand(wave: np.ndarray) -> np.ndarray:
    """Power mel spectrogram [frames, 40] by numpy and scipy alone."""
    window = scipy.signal.get_window("hann", 400, fftbins=True)
    padded = np.pad(wave.astype(np.float64), 200)
    starts = range(0, len(padded) - 400 + 1, 160)
    frames = np.stack([padded[start : start + 400] * window for start in starts])
    return np.asarray((np.abs(np.fft.rfft(frames)) ** 2) @ slaney_filters())


def test_mel_by_the_formula(voice: Voice) -> None:
    (wave,) = noise(16000)
    ours = voice.mel(torch.from_numpy(wave)[None])[0].numpy()
    wanted = by_hand(wave)
    assert ours.shape == wanted.shape == (101, 40)
    assert np.allclose(ours, wanted, rtol=1e-4, atol=1e-7)


def test_loudness_is_only_raised() -> None:
    quiet, loud = noise(16000, 16000)
    quiet, loud = quiet / 100, loud * 2
    raised, kept = (louder(torch.from_numpy(wave)[None])[0].numpy() for wave in (quiet, loud))
    assert 20 * np.log10(np.sqrt(np.mean(raised**2))) == pytest.approx(-30, abs=1e-3)
    assert np.array_equal(kept, loud)


@pytest.mark.parametrize(
    ("samples", "starts"),
    [
        (1, [0]),
        (25_600, [0]),
        # The second partial is 1.6 seconds from second 0.8: 1.2 of them must be sound.
        (31_999, [0]),
        (32_000, [0, 80]),
        (160_000, list(range(0, 881, 80))),
    ],
)
def test_partials(samples: int, starts: list[int]) -> None:
    assert partial_starts(samples) == starts


def test_a_voice_is_the_mean_over_its_partials(voice: Voice) -> None:
    """The whole by hand: loudness, spectrogram, partials, and the network as published."""
    spec = PackagedEncoder(kind="packaged", model="speech")
    encoder = load_encoder(spec, describe(spec, EXACT), "cpu", EXACT)
    assert TRANSFORM.rate == 16_000
    for wave in noise(50_000, 7_000):
        loud = wave * max(1.0, 10 ** (-30 / 20) / np.sqrt(np.mean(wave**2)))
        starts = [0, 80, 160] if len(wave) == 50_000 else [0]
        padded = np.pad(loud, (0, max(0, (starts[-1] + 160) * 160 - len(loud))))
        mel = torch.from_numpy(by_hand(padded)).float()
        vectors = []
        for start in starts:
            with torch.inference_mode():
                _, (hidden, _) = voice.lstm(mel[None, start : start + 160])
                raw = torch.relu(voice.linear(hidden[-1]))[0]
            vectors.append((raw / raw.norm()).numpy())
        assert np.allclose(encoder.encode_audios([wave])[0], np.mean(vectors, axis=0), atol=1e-4)
