"""What every encoder promises, held against every entry of the table."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmray.encoders import KINDS, EncodeOptions, Encoder, EncoderSpec, describe, load_encoder
from mmray.encoders.families import FAMILIES
from mmray.specs.common import (
    CombinedEncoder,
    HfEncoder,
    ImportEncoder,
    JointEncoder,
    PackagedEncoder,
)
from tests import tinyjoint, tinymodels

PACKAGED = ("minilm", "efficientnet-lite0", "zeroshot", "speech")
ENTRIES = [
    *(f"hf {name}" for name in FAMILIES),
    *(f"packaged {name}" for name in PACKAGED),
    "import Toy",
    "import Listener",
    "import Watcher",
    "joint conv+recurrent",
    "joint video+recurrent",
    "joint vit+bert+whisper",
    "combined clip+wav2vec2",
]
OPTIONS = EncodeOptions(dtype="float32")

TEXTS = [
    "cat",
    "a photo of the large red house with a small tree and a dog in the blue house",
    "a dog",
    "the",
    "a small cat on the house",
    "cat " * 60,
]


def test_every_kind_has_entries() -> None:
    assert {entry.split()[0] for entry in ENTRIES} == set(KINDS)


@pytest.mark.parametrize("entry", ENTRIES)
def test_contract(entry: str, tmp_path: Path) -> None:
    spec = spec_of(entry, tmp_path)
    card = describe(spec, OPTIONS)
    encoder = load_encoder(spec, card, "cpu", OPTIONS)
    assert encoder.card == card
    assert len(card.fingerprint) == 32
    assert set(card.fingerprint) <= set("0123456789abcdef")
    assert json.loads(json.dumps(card.details))
    if card.image is not None:
        check_images(encoder, card.image.size)
    if "text" in card.dims:
        check_texts(encoder)
    if card.audio is not None:
        check_audios(encoder, card.audio.rate)
    if card.video is not None:
        check_videos(encoder, card.video.size)
    assert (card.audio is None) == ("audio" not in card.dims)
    assert (card.video is None) == ("video" not in card.dims)
    check_fingerprint(entry, spec, tmp_path)


def check_images(encoder: Encoder, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 255, (*size, 3), np.uint8) for _ in range(5)]
    rows = encoder.encode_images(images)
    check_rows(rows, len(images), encoder.card.dims["image"])
    assert np.array_equal(rows, encoder.encode_images(images))
    alone = np.concatenate([encoder.encode_images([image]) for image in images])
    check_same(rows, alone)
    assert encoder.encode_images([]).shape == (0, encoder.card.dims["image"])


def check_texts(encoder: Encoder) -> None:
    rows = encoder.encode_texts(TEXTS)
    check_rows(rows, len(TEXTS), encoder.card.dims["text"])
    assert np.array_equal(rows, encoder.encode_texts(TEXTS))
    alone = np.concatenate([encoder.encode_texts([text]) for text in TEXTS])
    check_same(rows, alone)
    assert not np.allclose(rows[0], rows[1])
    assert encoder.encode_texts([]).shape == (0, encoder.card.dims["text"])


def check_audios(encoder: Encoder, rate: int) -> None:
    rng = np.random.default_rng(4)
    lengths = (rate, rate // 2, 1, rate, 333, rate // 2, rate + 77)
    waves = [(rng.normal(size=length) / 10).astype(np.float32) for length in lengths]
    rows = encoder.encode_audios(waves)
    check_rows(rows, len(waves), encoder.card.dims["audio"])
    assert np.array_equal(rows, encoder.encode_audios(waves))
    alone = np.concatenate([encoder.encode_audios([wave]) for wave in waves])
    assert np.allclose(rows, alone, atol=1e-5, rtol=1e-5)
    assert len(np.unique(rows.round(6), axis=0)) == len(waves)
    assert encoder.encode_audios([]).shape == (0, encoder.card.dims["audio"])


def check_videos(encoder: Encoder, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    lengths = (3, 1, 2, 3, 40)
    videos = [[rng.integers(0, 255, (*size, 3), np.uint8) for _ in range(n)] for n in lengths]
    rows = encoder.encode_videos(videos)
    check_rows(rows, len(videos), encoder.card.dims["video"])
    assert np.array_equal(rows, encoder.encode_videos(videos))
    alone = np.concatenate([encoder.encode_videos([video]) for video in videos])
    check_same(rows, alone)
    assert len(np.unique(rows.round(6), axis=0)) == len(videos)
    assert encoder.encode_videos([]).shape == (0, encoder.card.dims["video"])


def check_rows(rows: np.ndarray, count: int, dim: int) -> None:
    assert rows.shape == (count, dim)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()


def check_same(one: np.ndarray, other: np.ndarray) -> None:
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.99999
    assert np.allclose(one, other, atol=1e-4, rtol=1e-4)


def check_fingerprint(entry: str, spec: EncoderSpec, tmp_path: Path) -> None:
    """The same files elsewhere agree; each thing that changes a vector changes the fingerprint."""
    base = describe(spec, OPTIONS).fingerprint
    seen = {base}

    def differs(other: EncoderSpec, options: EncodeOptions = OPTIONS) -> None:
        mark = describe(other, options).fingerprint
        assert mark not in seen
        seen.add(mark)

    card = describe(spec, OPTIONS)
    faster = replace(OPTIONS, batch_images=3, batch_tokens=99, batch_audios=2, threads=1)
    assert describe(spec, faster).fingerprint == base
    if isinstance(spec, ImportEncoder):
        differs(spec.model_copy(update={"options": {"delay": 0.5}}))
        differs(spec.model_copy(update={"model": "tests.toys:OtherToy"}))
        return
    if isinstance(spec, CombinedEncoder):
        check_combined_fingerprint(spec, base)
        return
    differs(spec, replace(OPTIONS, dtype="bfloat16"))
    differs(spec, replace(OPTIONS, dtype="auto"))
    if "text" in card.dims:
        differs(spec, replace(OPTIONS, max_tokens=5))
    if isinstance(spec, JointEncoder):
        checkpoint = spec.model_copy(update={"model": str(tmp_path / "copy")})
        shutil.copytree(spec.model, checkpoint.model)
        assert describe(checkpoint, OPTIONS).fingerprint == base
        change_one_weight(Path(checkpoint.model))
        differs(checkpoint)
        return
    if not isinstance(spec, HfEncoder):
        return
    copy = HfEncoder(kind="hf", model=str(tmp_path / "copy"))
    shutil.copytree(spec.model, copy.model)
    assert describe(copy, OPTIONS).fingerprint == base
    family = FAMILIES[entry.split()[1]]
    if family.pooling is not None and "audio" not in card.dims:
        other = "mean" if family.pooling == "cls" else "cls"
        differs(copy.model_copy(update={"pooling": other}))
    change_one_weight(Path(copy.model))
    differs(copy)
    if "image" in card.dims:
        change_image_mean(Path(copy.model))
        differs(copy)
    if card.audio is not None:
        change_extractor(Path(copy.model))
        differs(copy)


def check_combined_fingerprint(spec: CombinedEncoder, base: str) -> None:
    """It is that of the parts, whatever their order."""
    swapped = spec.model_copy(update={"of": spec.of[::-1]})
    assert describe(swapped, OPTIONS).fingerprint == base
    assert describe(spec, replace(OPTIONS, dtype="bfloat16")).fingerprint != base
    for part in spec.of:
        before = describe(spec, OPTIONS).fingerprint
        assert isinstance(part, HfEncoder)
        change_one_weight(Path(part.model))
        assert describe(spec, OPTIONS).fingerprint != before


def change_one_weight(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = sorted(folder.glob("model*.safetensors"))[-1]
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.dtype is torch.float32)
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def change_image_mean(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["image_mean"][0] += 0.01
    path.write_text(json.dumps(settings))


def change_extractor(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    name = {"Clap": "fft_window_size", "Whisper": "n_fft", "Wav2Vec2": "do_normalize"}
    kind = settings["feature_extractor_type"].removesuffix("FeatureExtractor")
    settings[name[kind]] = not settings["do_normalize"] if kind == "Wav2Vec2" else 512
    path.write_text(json.dumps(settings))


def spec_of(entry: str, tmp_path: Path) -> EncoderSpec:
    kind, name = entry.split()
    if kind == "hf":
        return HfEncoder(kind="hf", model=str(tinymodels.build(name, tmp_path / "model")))
    if kind == "packaged":
        return PackagedEncoder.model_validate({"kind": "packaged", "model": name})
    if kind == "combined":
        folders = [tinymodels.build(part, tmp_path / part) for part in name.split("+")]
        parts = tuple(HfEncoder(kind="hf", model=str(folder)) for folder in folders)
        return CombinedEncoder(kind="combined", of=parts)
    if kind == "joint":
        return JointEncoder(kind="joint", model=str(joint_folder(name, tmp_path)))
    return ImportEncoder(kind="import", model=f"tests.toys:{name}")


def joint_folder(name: str, tmp_path: Path) -> Path:
    """A checkpoint: small networks alone, or a pretrained one for each modality."""
    if name == "conv+recurrent":
        towers = {"image": tinyjoint.CONV, "text": tinyjoint.RECURRENT, "audio": tinyjoint.CONV}
    elif name == "video+recurrent":
        towers = {"video": tinyjoint.RECURRENT, "text": tinyjoint.CONV}
    else:
        places = zip(("image", "text", "audio"), name.split("+"), strict=True)
        folders = {each: tinymodels.build(part, tmp_path / part) for each, part in places}
        towers = {each: {"kind": "hf", "model": str(at)} for each, at in folders.items()}
    return tinyjoint.save(tmp_path / "joint", towers)
