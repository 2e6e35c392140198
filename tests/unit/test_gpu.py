"""The CUDA path is the CPU path with another device: the same vectors, and out of memory halves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmray.encoders import EncodeOptions, Encoder, describe, load_encoder
from mmray.specs.common import HfEncoder, PackagedEncoder
from tests import media, shards, tinymodels

pytestmark = pytest.mark.gpu

TEXTS = ["a red house", "a photo of a small cat with a large tree", "blue"] * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build("clip", tmp_path_factory.mktemp("clip"))


def encoder(folder: Path, device: str, options: EncodeOptions) -> Encoder:
    spec = HfEncoder(kind="hf", model=str(folder))
    return load_encoder(spec, describe(spec, options), device, options)


def pictures(size: tuple[int, int], count: int = 20) -> list[np.ndarray]:
    return [shards.pixels(seed, (size[1], size[0])) for seed in range(count)]


@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.99999), ("auto", 0.999)])
def test_vectors_are_those_of_the_cpu(folder: Path, dtype: str, least: float) -> None:
    reference = encoder(folder, "cpu", EncodeOptions(dtype="float32"))
    options = EncodeOptions(dtype=dtype, batch_images=7, batch_tokens=64)  # type: ignore[arg-type]
    there = encoder(folder, "cuda", options)
    assert reference.card.image is not None
    images = pictures(reference.card.image.size)
    for ours, theirs in (
        (there.encode_images(images), reference.encode_images(images)),
        (there.encode_texts(TEXTS), reference.encode_texts(TEXTS)),
    ):
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        assert ((ours * theirs).sum(1) / lengths).min() >= least


def test_a_batch_that_does_not_fit_is_halved(folder: Path) -> None:
    import torch

    there = encoder(folder, "cuda", EncodeOptions(dtype="float32", batch_images=4096))
    assert there.card.image is not None
    images = pictures(there.card.image.size, 4) * 1024
    whole = there.encode_images(images[:4])
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (total - free + 128 * 2**20) / total))
    try:
        vectors = there.encode_images(images)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(vectors[:4], whole, atol=1e-4)
    assert len(vectors) == 4096


@pytest.mark.parametrize("name", ["clap", "whisper", "wavlm", "speech"])
@pytest.mark.parametrize(("dtype", "least"), [("float32", 0.9999), ("auto", 0.99)])
def test_sound_is_heard_alike(name: str, dtype: str, least: float, tmp_path: Path) -> None:
    if name == "speech":
        spec: HfEncoder | PackagedEncoder = PackagedEncoder(kind="packaged", model="speech")
    else:
        spec = HfEncoder(kind="hf", model=str(tinymodels.build(name, tmp_path / "model")))
    vectors = {}
    for device, precision in (("cpu", "float32"), ("cuda", dtype)):
        options = EncodeOptions(dtype=precision, batch_audios=3)  # type: ignore[arg-type]
        there = load_encoder(spec, describe(spec, options), device, options)
        assert there.card.audio is not None
        seconds = min(there.card.audio.window, 1.5)
        waves = [
            media.wave(seconds / (1 + seed % 2), there.card.audio.rate, seed=seed)[:, 0]
            for seed in range(7)
        ]
        vectors[device] = there.encode_audios(waves)
    ours, theirs = vectors["cuda"], vectors["cpu"]
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert ((ours * theirs).sum(1) / lengths).min() >= least
