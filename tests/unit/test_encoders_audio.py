"""Encoders that hear: what they refuse, how windows share a batch, and parts combined into one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.decode.audio import AudioTransform
from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.encoders.batching import equal_batches
from mmray.encoders.towers import AudioRules, AudioTower
from mmray.errors import RefusedError, SpecError
from mmray.models.devices import place
from mmray.specs.common import CombinedEncoder, HfEncoder, ImportEncoder, PackagedEncoder
from tests import tinymodels

EXACT = EncodeOptions(dtype="float32")
HEARING = ("clap", "clap-fused", "whisper", "wav2vec2", "hubert", "wavlm")
ROOM = AudioTransform(rate=100, window=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tinymodels.build(name, tmp_path_factory.mktemp(name)) for name in HEARING}


@pytest.fixture
def changed(folders: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model's folder with other settings of its extractor."""

    def copied(family: str, **settings: Any) -> Path:
        folder = Path(shutil.copytree(folders[family], tmp_path / "copy", dirs_exist_ok=True))
        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return folder

    return copied


def hf(folder: Path, **more: Any) -> HfEncoder:
    return HfEncoder(kind="hf", model=str(folder), **more)


def noise(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    return [(rng.normal(size=length) / 10).astype(np.float32) for length in lengths]


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_the_card_says_what_sound_is_wanted(folders: dict[str, Path]) -> None:
    found = {name: describe(hf(folder)) for name, folder in folders.items()}
    assert found["clap"].dims == {"audio": 24, "text": 24}
    assert found["clap"].audio == AudioTransform(rate=8000, window=2.0)
    assert found["clap"].max_tokens == 16
    assert found["whisper"].dims == {"audio": 32}
    assert found["whisper"].audio == AudioTransform(rate=16000, window=2.0)
    for name in ("wav2vec2", "hubert", "wavlm"):
        assert found[name].dims == {"audio": 32}
        assert found[name].audio == AudioTransform(rate=16000, window=30.0)
    assert describe(PackagedEncoder(kind="packaged", model="speech")).audio == AudioTransform(
        rate=16000, window=10.0
    )


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("whisper", {"feature_extractor_type": "EncodecFeatureExtractor"}, "Encodec"),
        ("wav2vec2", {"feature_extractor_type": "WhisperFeatureExtractor"}, "Wav2Vec2Feature"),
        ("whisper", {"dither": 0.1}, "dither is 0.1"),
        ("whisper", {"padding_side": "left"}, "padding_side"),
        ("whisper", {"feature_size": 80}, "80 rows, the model takes 16"),
        ("whisper", {"chunk_length": 30}, "3000 columns, the model takes 200"),
        ("whisper", {"chunk_length": 2.5}, "chunk_length is 2.5"),
        ("clap", {"feature_size": 64}, "64 rows"),
        ("clap", {"truncation": "fusion"}, "rand_trunc"),
        ("clap", {"hop_length": 0}, "positive"),
        ("hubert", {"sampling_rate": "fast"}, "can't be used"),
    ],
)
def test_extractors_that_do_not_fit(
    changed: Callable[..., Path], family: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(RefusedError, match=said):
        describe(hf(changed(family, **settings)))


def test_where_the_extractors_settings_stand(changed: Callable[..., Path]) -> None:
    folder = changed("wav2vec2", padding_value=0)
    base = describe(hf(folder)).fingerprint
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    # Older files name no class, and leave out what is the class's default.
    path.write_text(json.dumps({"feature_size": 1}))
    assert describe(hf(folder)).fingerprint == base
    path.unlink()
    whole = folder / "processor_config.json"
    whole.write_text(json.dumps({"feature_extractor": settings}))
    assert describe(hf(folder)).fingerprint == base
    whole.unlink()
    with pytest.raises(RefusedError, match="sample rate is unknown"):
        describe(hf(folder))


def test_pooling_of_models_that_hear(folders: dict[str, Path]) -> None:
    for name in ("whisper", "wav2vec2", "hubert", "wavlm"):
        plain = describe(hf(folders[name])).fingerprint
        assert describe(hf(folders[name], pooling="mean")).fingerprint == plain
        for pooling in ("cls", "pooler"):
            with pytest.raises(SpecError, match=r"encoder\.pooling: .* by mean only"):
                describe(hf(folders[name], pooling=pooling))
    with pytest.raises(SpecError, match="pool by themselves"):
        describe(hf(folders["clap"], pooling="mean"))


def test_what_only_training_needs_may_be_missing(changed: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed("wav2vec2")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop("masked_spec_embed")
    save_file(tensors, path, {"format": "pt"})
    card = describe(hf(folder), EXACT)
    assert load_encoder(hf(folder), card, "cpu", EXACT).encode_audios(noise(800)).any()
    tensors.pop("encoder.layers.1.attention.k_proj.weight")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(RefusedError, match="no weights"):
        load_encoder(hf(folder), describe(hf(folder), EXACT), "cpu", EXACT)


def test_an_adapter_is_refused(changed: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = changed("wav2vec2")
    tensors = load_file(folder / "model.safetensors")
    tensors["adapter.layers.0.conv.weight"] = torch.zeros(64, 32, 3)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match="adapter"):
        describe(hf(folder))


@pytest.mark.parametrize("name", HEARING)
def test_bfloat16_is_close_to_float32(folders: dict[str, Path], name: str) -> None:
    spec = hf(folders[name])
    rows = []
    for options in (EXACT, EncodeOptions(dtype="bfloat16")):
        encoder = load_encoder(spec, describe(spec, options), "cpu", options)
        rows.append(encoder.encode_audios(noise(4000, 16000, 9000)))
    assert min(map(cosine, *rows)) > 0.999


def test_a_batch_holds_one_length() -> None:
    lengths = [5, 9, 5, 1, 9, 5, 9, 9]
    batches = equal_batches(lengths, 20)
    assert [[lengths[place] for place in batch] for batch in batches] == [
        [9, 9],
        [9, 9],
        [5, 5, 5],
        [1],
    ]
    assert sorted(place for batch in batches for place in batch) == list(range(8))
    assert equal_batches([50, 3], 20) == [[0], [1]]
    assert equal_batches([], 20) == []


def tower(
    seen: list[list[int]], options: EncodeOptions, *, one_length: bool = False, fits: int = 99
) -> AudioTower:
    """Its vectors are the first sample and the length of each wave."""

    def extract(waves: Any) -> np.ndarray:
        longest = 100 if one_length else len(waves[0])
        return np.stack([np.pad(wave, (0, longest - len(wave))) for wave in waves])

    def forward(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        seen.append(lengths.tolist())
        if len(features) > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return torch.stack([features[:, 0], lengths], 1)

    rules = AudioRules(ROOM, extract, one_length)
    return AudioTower(forward, rules, place("cpu", "float32"), options)


def waves_of(lengths: list[int]) -> list[np.ndarray]:
    return [np.full(length, place, np.float32) for place, length in enumerate(lengths)]


@pytest.mark.parametrize("one_length", [False, True])
def test_windows_keep_their_order(one_length: bool) -> None:
    lengths = [50, 100, 50, 7, 100, 50]
    seen: list[list[int]] = []
    small = EncodeOptions(batch_audios=2)
    rows = torch.cat(tower(seen, small, one_length=one_length).encode(waves_of(lengths)))
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows[:, 1].tolist() == lengths
    shared = [[50, 100], [50, 7], [100, 50]]
    assert seen == (shared if one_length else [[100, 100], [50, 50, 50], [7]])


def test_a_smaller_batch_of_windows_is_remembered() -> None:
    seen: list[list[int]] = []
    ears = tower(seen, EncodeOptions(batch_audios=8), fits=2)
    rows = torch.cat(ears.encode(waves_of([100] * 12)))
    assert rows[:, 0].tolist() == list(range(12))
    assert ears.budget == 200
    seen.clear()
    ears.encode(waves_of([100] * 4))
    assert [len(lengths) for lengths in seen] == [2, 2]


@pytest.mark.parametrize(
    "wave", [np.zeros(0, np.float32), np.zeros(101, np.float32), np.zeros(9), np.zeros((2, 9))]
)
def test_wrong_waves_are_an_error_not_a_vector(wave: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected float32 \[1 to 100\]"):
        tower([], EXACT).encode([wave])


def voice() -> Any:
    spec = PackagedEncoder(kind="packaged", model="speech")
    return load_encoder(spec, describe(spec, EXACT), "cpu", EXACT)


def vowel(pitch: float, formants: tuple[float, ...], seed: int, seconds: float = 3.0) -> np.ndarray:
    """A throat of one pitch and shape, wavering as a voice does: no person, but one speaker."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(16_000 * seconds)) / 16_000
    waver = np.interp(time, np.linspace(0, seconds, 12), rng.normal(1, 0.03, 12))
    phase = 2 * np.pi * np.cumsum(pitch * waver) / 16_000
    wave = np.zeros_like(time)
    for harmonic in range(1, int(6000 / pitch)):
        gain = sum(np.exp(-(((harmonic * pitch - at) / 150) ** 2)) for at in formants)
        wave += (gain + 0.02 / harmonic) * np.sin(harmonic * phase)
    loud = np.interp(time, np.linspace(0, seconds, 20), rng.uniform(0.3, 1, 20))
    return (0.1 * wave * loud / np.abs(wave).max()).astype(np.float32)


def test_a_voice_is_nearer_to_itself_than_to_another() -> None:
    low, high = (110.0, (600.0, 1100.0, 2500.0)), (230.0, (850.0, 1900.0, 3100.0))
    waves = [vowel(*low, seed=1), vowel(*low, seed=2), vowel(*high, seed=3), vowel(*high, seed=4)]
    one, same, other, again = voice().encode_audios(waves)
    apart = cosine(one, other)
    assert cosine(one, same) > apart + 0.1
    assert cosine(other, again) > apart + 0.1


def test_a_silent_window_of_a_sound_has_a_finite_vector() -> None:
    rows = voice().encode_audios([np.zeros(16_000, np.float32)])
    assert np.isfinite(rows).all()


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmray.encoders.packaged.find_spec", lambda name: None)
    with pytest.raises(RefusedError, match=r"pip install --no-deps resemblyzer==0\.1\.4"):
        describe(PackagedEncoder(kind="packaged", model="speech"))


def combined(*parts: Any) -> CombinedEncoder:
    return CombinedEncoder(kind="combined", of=parts)


def test_combined_parts_answer_for_what_they_take(folders: dict[str, Path]) -> None:
    toy = ImportEncoder(kind="import", model="tests.toys:Toy")
    spec = combined(toy, hf(folders["whisper"]))
    card = describe(spec, EXACT)
    assert card.dims == {"image": 16, "text": 16, "audio": 32}
    assert card.image is not None
    assert card.audio == AudioTransform(rate=16000, window=2.0)
    both = load_encoder(spec, card, "cpu", EXACT)
    ears = load_encoder(
        hf(folders["whisper"]), describe(hf(folders["whisper"]), EXACT), "cpu", EXACT
    )
    waves = noise(900, 20000)
    assert np.array_equal(both.encode_audios(waves), ears.encode_audios(waves))
    eyes = load_encoder(toy, describe(toy), "cpu", EXACT)
    assert np.array_equal(both.encode_texts(["a", "b"]), eyes.encode_texts(["a", "b"]))
    assert both.card.modalities == ("audio", "image", "text")
    with pytest.raises(ValueError, match="takes no texts"):
        load_encoder(
            wordless(folders), describe(wordless(folders), EXACT), "cpu", EXACT
        ).encode_texts(["a"])


def wordless(folders: dict[str, Path]) -> CombinedEncoder:
    lite = PackagedEncoder(kind="packaged", model="efficientnet-lite0")
    return combined(lite, hf(folders["whisper"]))


def toy_that_hears() -> ImportEncoder:
    return ImportEncoder(kind="import", model=f"{__name__}:Ears")


class Ears:
    fingerprint = "ears"
    dims = {"audio": 1}
    audio = ROOM

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        return np.asarray([[wave.mean()] for wave in waves], np.float32)


class NoTransform:
    fingerprint = "ears"
    dims = {"audio": 1}

    def encode_audios(self, waves: list[np.ndarray]) -> np.ndarray:
        return np.zeros((len(waves), 1), np.float32)


class NoMethod:
    fingerprint = "ears"
    dims = {"audio": 1}
    audio = ROOM


def test_imported_classes_that_hear() -> None:
    card = describe(toy_that_hears())
    assert card.audio == ROOM
    for name, said in (("NoTransform", "AudioTransform"), ("NoMethod", "encode_audios")):
        with pytest.raises(RefusedError, match=said):
            describe(ImportEncoder(kind="import", model=f"{__name__}:{name}"))


def test_two_parts_of_one_modality_are_refused(folders: dict[str, Path]) -> None:
    toy = ImportEncoder(kind="import", model="tests.toys:Toy")
    with pytest.raises(SpecError, match="takes text") as caught:
        describe(combined(toy, hf(folders["clap"])))
    assert caught.value.path == "encoder.of.1"


def test_a_parts_own_field_is_named_by_its_place(folders: dict[str, Path]) -> None:
    toy = ImportEncoder(kind="import", model="tests.toys:Toy")
    for part, path in (
        (hf(folders["whisper"], pooling="cls"), "encoder.of.1.pooling"),
        (HfEncoder(kind="hf", model="openai/whisper-tiny"), "encoder.of.1.revision"),
    ):
        with pytest.raises(SpecError) as caught:
            describe(combined(toy, part))
        assert caught.value.path == path


def test_a_part_that_is_not_the_drivers_is_named(changed: Callable[..., Path]) -> None:
    toy = ImportEncoder(kind="import", model="tests.toys:Toy")
    spec = combined(toy, hf(changed("wav2vec2")))
    card = describe(spec, EXACT)
    changed("wav2vec2", do_normalize=False)
    with pytest.raises(RefusedError, match="audio: audio differ"):
        load_encoder(spec, card, "cpu", EXACT)
