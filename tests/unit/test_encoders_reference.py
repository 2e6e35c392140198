"""Our vectors beside those of the libraries that the models come from."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmray.decode.image import decode_image
from mmray.encoders import EncodeOptions, EncoderSpec, describe, load_encoder
from mmray.models.devices import cpu_has_bfloat16
from mmray.specs.common import HfEncoder, PackagedEncoder
from tests import tinymodels

EXACT = EncodeOptions(dtype="float32")

TEXTS = [
    "a cat",
    "a photo of the large red house with a small tree and a dog",
    "the dog in the house",
    "tree",
]

PROCESSORS = {
    "clip": "clip.image_processing_pil_clip:CLIPImageProcessorPil",
    "siglip": "siglip.image_processing_pil_siglip:SiglipImageProcessorPil",
    "vit": "vit.image_processing_pil_vit:ViTImageProcessorPil",
    "dinov2": "bit.image_processing_pil_bit:BitImageProcessorPil",
}


def jpegs(count: int = 6) -> list[bytes]:
    """Smooth pictures with fine grain, large enough to be decoded at a fraction of their size."""
    rng = np.random.default_rng(5)
    made = []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8))
        size = (1280, 853 + index) if index % 2 else (901 + index, 1400)
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        grain = (smooth + rng.normal(0, 5, smooth.shape)).clip(0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(grain).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def hf_processor(family: str, folder: Path) -> Any:
    module, name = PROCESSORS[family].split(":")
    kind = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    return kind.from_pretrained(folder)


def hf_model(folder: Path) -> Any:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(1) / norms)


def encoder_of(folder: Path, options: EncodeOptions = EXACT, **more: Any) -> Any:
    spec = HfEncoder(kind="hf", model=str(folder), **more)
    return load_encoder(spec, describe(spec, options), "cpu", options)


@pytest.mark.parametrize("family", PROCESSORS)
def test_images(family: str, tmp_path: Path) -> None:
    folder = tinymodels.build(family, tmp_path)
    encoder = encoder_of(folder)
    data = jpegs()
    ours = encoder.encode_images(
        [decode_image(item, encoder.card.image, max_pixels=10**8) for item in data]
    )
    pictures = [Image.open(io.BytesIO(item)) for item in data]
    pixels = hf_processor(family, folder)(pictures, return_tensors="pt")["pixel_values"]
    model = hf_model(folder)
    with torch.inference_mode():
        if family in ("clip", "siglip"):
            theirs = model.get_image_features(pixel_values=pixels).pooler_output
        else:
            theirs = model(pixel_values=pixels).last_hidden_state[:, 0]
    assert cosines(ours, theirs.numpy()).min() >= 0.999


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_texts_of_joint_models(family: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tinymodels.build(family, tmp_path)
    ours = encoder_of(folder).encode_texts(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    padding = "max_length" if family == "siglip" else "longest"
    inputs = tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        theirs = hf_model(folder).get_text_features(**inputs).pooler_output
    assert cosines(ours, theirs.numpy()).min() >= 0.99999


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert"])
def test_texts(family: str, pooling: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tinymodels.build(family, tmp_path)
    if family == "distilbert" and pooling == "pooler":
        return
    encoder = encoder_of(folder, pooling=pooling)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = hf_model(folder)
    for text, ours in zip(TEXTS, encoder.encode_texts(TEXTS), strict=True):
        limit = encoder.card.max_tokens
        inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            out = model(**inputs)
        states = out.last_hidden_state[0]
        wanted = {"mean": states.mean(0), "cls": states[0]}
        theirs = out.pooler_output[0] if pooling == "pooler" else wanted[pooling]
        assert np.allclose(ours, theirs.numpy(), atol=1e-5)


def test_minilm_is_sentence_transformers() -> None:
    st = pytest.importorskip("sentence_transformers")
    texts = [*TEXTS, "Straße 猫", "long " * 400, "  spaces around\n"]
    theirs = st.SentenceTransformer(str(tinymodels.minilm_folder()), device="cpu").encode(texts)
    spec = PackagedEncoder(kind="packaged", model="minilm")
    ours = load_encoder(spec, describe(spec, EXACT), "cpu", EXACT).encode_texts(texts)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    assert np.abs(ours - theirs).max() < 1e-4
    by_folder = HfEncoder(kind="hf", model=str(tinymodels.minilm_folder()))
    assert describe(spec, EXACT).fingerprint == describe(by_folder, EXACT).fingerprint


def test_folding_norms_changes_nothing() -> None:
    from mmray.encoders.packaged import LITE0_TRANSFORM, lite0_weights

    efficientnet = pytest.importorskip("efficientnet_lite_pytorch")
    network = efficientnet.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(torch.load(lite0_weights(), weights_only=True))
    spec = PackagedEncoder(kind="packaged", model="efficientnet-lite0")
    encoder = load_encoder(spec, describe(spec, EXACT), "cpu", EXACT)
    images = [decode_image(item, LITE0_TRANSFORM, max_pixels=10**8) for item in jpegs(2)]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        theirs = network.extract_features((pixels - 127) / 128).mean((2, 3)).numpy()
    assert np.allclose(encoder.encode_images(images), theirs, atol=1e-4)


@pytest.mark.parametrize("name", ["minilm", "efficientnet-lite0", "clip", "dinov2"])
def test_bfloat16_is_close_to_float32(name: str, tmp_path: Path) -> None:
    spec: EncoderSpec
    if name in ("minilm", "efficientnet-lite0"):
        spec = PackagedEncoder.model_validate({"kind": "packaged", "model": name})
    else:
        spec = HfEncoder(kind="hf", model=str(tinymodels.build(name, tmp_path)))
    rows = []
    for options in (EXACT, EncodeOptions(dtype="bfloat16")):
        card = describe(spec, options)
        encoder = load_encoder(spec, card, "cpu", options)
        if card.image is None:
            rows.append(encoder.encode_texts(TEXTS))
            continue
        transform = card.image
        images = [decode_image(item, transform, max_pixels=10**8) for item in jpegs()]
        rows.append(encoder.encode_images(images))
    assert cosines(*rows).mean() >= 0.999


def test_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmray.models import devices

    for fast, wanted in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda fast=fast: fast)
        assert devices.place("cpu", "auto").dtype is wanted
    assert devices.place("cpu", "float16").dtype is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert devices.place("cuda", "auto").dtype is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert devices.place("cuda:1", "auto").dtype is torch.bfloat16
    assert isinstance(cpu_has_bfloat16(), bool)


def test_zeroshot_knows_what_a_word_means() -> None:
    """The text of a class is nearest to the vectors of its own name."""
    from mmray.encoders.zeroshot import class_names

    spec = PackagedEncoder(kind="packaged", model="zeroshot")
    encoder = load_encoder(spec, describe(spec, EXACT), "cpu", EXACT)
    names = class_names()
    assert len(names) == 1000
    some = encoder.encode_texts(["goldfish", "a photo of a goldfish", "school bus"])
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    assert some[0] @ some[1] > some[0] @ some[2] + 0.3
