"""A checkpoint as an encoder: one space, the trained model's own vectors, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.encoders.joint_config import Labels, settle
from mmray.encoders.joint_folder import open_checkpoint
from mmray.encoders.joint_inputs import ByteTokenizer, JointInputs
from mmray.errors import RefusedError, SpecError
from mmray.models.joint import checkpoint
from mmray.models.joint.batch import JointBatch
from mmray.models.joint.config import JointConfig
from mmray.specs.common import JointEncoder
from mmray.specs.joint import ModelSpec
from mmray.specs.train import TrainOptions
from tests import tinyjoint, tinymodels
from tests.tinyjoint import CAPTION, CONV, RECURRENT

torch.set_num_threads(1)
OPTIONS = EncodeOptions(dtype="float32")
TEXTS = ["a red cat", "the house", "Dog"]


def spec_of(folder: Path) -> JointEncoder:
    return JointEncoder(kind="joint", model=str(folder))


def test_training_and_embedding_give_the_same_vectors(tmp_path: Path) -> None:
    """Through adapters, tokenizers, extractors and padding; normalised, of one length."""
    parts = {"image": "dinov2", "text": "bert", "audio": "wav2vec2"}
    folders = {part: tinymodels.build(name, tmp_path / name) for part, name in parts.items()}
    towers: dict[str, Any] = {
        part: {"kind": "hf", "model": str(folder)} for part, folder in folders.items()
    }
    towers["text"] |= {"train": "lora"}
    found = tinyjoint.settled(towers, {"contrastive": {}})
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0)
    inputs = JointInputs(found.config, found.tokenizers)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (*inputs.images["image"].size, 3), np.uint8) for _ in range(3)]
    waves = tinyjoint.waves(3)
    batch = JointBatch(
        {
            "image": inputs.pictures(images),
            "text": inputs.texts(TEXTS),
            "audio": inputs.sounds(waves),
        },
        {part: torch.ones(3, dtype=torch.bool) for part in parts},
    )
    tinyjoint.learn(model.train(), batch, 3)
    wanted = model.eval().encode(batch).vectors
    checkpoint.save(model, tmp_path / "joint")
    found.copy_tokenizers(tmp_path / "joint")
    for folder in folders.values():
        for file in folder.iterdir():  # a checkpoint is whole without them
            file.unlink()
    spec = spec_of(tmp_path / "joint")
    card = describe(spec, OPTIONS)
    assert card.dims == {"image": 16, "text": 16, "audio": 16}
    encoder = load_encoder(spec, card, "cpu", OPTIONS)
    rows = {
        "image": encoder.encode_images(images),
        "text": encoder.encode_texts(TEXTS),
        "audio": encoder.encode_audios(waves),
    }
    for part, vectors in rows.items():
        assert np.allclose(vectors, wanted[part].detach().numpy(), atol=1e-5), part
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_it_searches_across_modalities(tmp_path: Path) -> None:
    """Trained on pictures with texts, it finds each picture by its text."""
    found = tinyjoint.settled({"image": CONV, "text": CONV}, {"contrastive": {}})
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0).train()
    inputs = JointInputs(found.config, {})
    images = [np.full((16, 16, 3), (80 * i, 200 - 60 * i, 40), np.uint8) for i in range(3)]
    there = {part: torch.ones(3, dtype=torch.bool) for part in ("image", "text")}
    batch = JointBatch({"image": inputs.pictures(images), "text": inputs.texts(TEXTS)}, there)
    tinyjoint.learn(model, batch, 60, 1e-2)
    checkpoint.save(model, tmp_path / "joint")
    spec = spec_of(tmp_path / "joint")
    for dtype in ("float32", "bfloat16"):
        options = EncodeOptions(dtype=dtype)  # type: ignore[arg-type]
        encoder = load_encoder(spec, describe(spec, options), "cpu", options)
        scores = encoder.encode_texts(TEXTS) @ encoder.encode_images(images).T
        assert scores.argmax(1).tolist() == [0, 1, 2]


def test_frames_go_through_the_video_tower_where_there_is_no_other(tmp_path: Path) -> None:
    folder = tinyjoint.save(tmp_path / "joint", {"video": RECURRENT, "text": CONV})
    spec = spec_of(folder)
    card = describe(spec, OPTIONS)
    assert card.dims == {"image": 16, "text": 16, "video": 16}
    frame = np.full((16, 16, 3), 99, np.uint8)
    encoder = load_encoder(spec, card, "cpu", OPTIONS)
    model = checkpoint.load(folder)
    inputs = JointInputs(open_checkpoint(str(folder)).config, {})
    batch = JointBatch({"video": inputs.videos([[frame]])}, {"video": torch.ones(1).bool()})
    wanted = model.encode(batch).vectors["video"].detach().numpy()
    assert np.allclose(encoder.encode_images([frame]), wanted, atol=1e-6)
    assert np.allclose(encoder.encode_videos([[frame]]), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["conv", "recurrent"])
def test_pictures_and_videos_have_towers_of_their_own(kind: str, tmp_path: Path) -> None:
    """A video is the vector that was trained, of all its frames, not a mean of pictures'."""
    film = {**CONV, "kind": kind, "side": 24}
    folder = tinyjoint.save(tmp_path / "joint", {"image": CONV, "video": film, "text": CONV})
    spec = spec_of(folder)
    card = describe(spec, OPTIONS)
    assert card.dims == {"image": 16, "text": 16, "video": 16}
    assert card.image is not None and card.image.size == (16, 16)
    assert card.video is not None and card.video.size == (24, 24)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (16, 16, 3), np.uint8) for _ in range(3)]
    videos = [[rng.integers(0, 255, (24, 24, 3), np.uint8) for _ in range(n)] for n in (4, 1, 30)]
    inputs = JointInputs(open_checkpoint(str(folder)).config, {})
    there = {part: torch.ones(3, dtype=torch.bool) for part in ("image", "video")}
    batch = JointBatch({"image": inputs.pictures(images), "video": inputs.videos(videos)}, there)
    wanted = checkpoint.load(folder).encode(batch).vectors
    encoder = load_encoder(spec, card, "cpu", OPTIONS)
    for part, rows in (
        ("image", encoder.encode_images(images)),
        ("video", encoder.encode_videos(videos)),
    ):
        assert np.allclose(rows, wanted[part].detach().numpy(), atol=1e-5), part
    with pytest.raises(ValueError, match="expected uint8 .*24, 24"):
        encoder.encode_videos([[images[0]]])
    with pytest.raises(ValueError, match="a video has no frames"):
        encoder.encode_videos([[]])


def test_describe_needs_no_torch(tmp_path: Path) -> None:
    folder = tinyjoint.save(tmp_path / "joint", {"image": CONV, "text": CONV})
    code = (
        "import sys; from mmray.encoders import describe;"
        "from mmray.specs.common import JointEncoder;"
        f"card = describe(JointEncoder(kind='joint', model={str(folder)!r}));"
        "assert card.dims == {'image': 16, 'text': 16};"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_training_settings_are_not_in_the_fingerprint(tmp_path: Path) -> None:
    towers = {"image": CONV, "text": CONV}
    one = tinyjoint.save(tmp_path / "one", towers)
    other = tinyjoint.save(tmp_path / "other", towers, train={"modality_dropout": 0.3})
    marks = {describe(spec_of(folder), OPTIONS).fingerprint for folder in (one, other)}
    assert len(marks) == 1


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("gone", "no checkpoint folder"),
        ("no config", "not a whole checkpoint"),
        ("pickle", "weights that run code when opened"),
        ("torn", "isn't a whole safetensors file"),
        ("other", "of type 'vit', not a joint one"),
        ("dim", "another dim"),
        ("no tower", "lack towers.image.projection.weight"),
        ("fields", "its config.json lacks 'towers'"),
    ],
)
def test_refused(harm: str, message: str, tmp_path: Path) -> None:
    folder = tinyjoint.save(tmp_path / "joint", {"text": CONV, "image": CONV})
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if harm == "gone":
        folder = tmp_path / "nothing"
    elif harm == "no config":
        (folder / "config.json").unlink()
    elif harm == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif harm == "torn":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif harm == "other":
        folder = tinymodels.build("vit", tmp_path / "vit")
    elif harm == "dim":
        config["dim"] = 8
    elif harm == "no tower":
        other = tinyjoint.save(tmp_path / "less", {"text": CONV, "audio": CONV})
        weights.write_bytes((other / "model.safetensors").read_bytes())
    else:
        del config["towers"]
    if harm in ("dim", "fields"):
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match=message):
        describe(spec_of(folder), OPTIONS)


def test_lost_tokenizer_is_refused(tmp_path: Path) -> None:
    source = tinymodels.build("bert", tmp_path / "bert")
    found = tinyjoint.settled(
        {"text": {"kind": "hf", "model": str(source)}}, {"classify": {"label": "x"}}
    )
    model = checkpoint.create(JointConfig(**found.config), found.sources, 0)
    checkpoint.save(model, tmp_path / "joint")
    with pytest.raises(RefusedError, match="no tokenizer in"):
        describe(spec_of(tmp_path / "joint"), OPTIONS)
    with pytest.raises(SpecError, match="100 tokens, but the model has room for 24"):
        found.copy_tokenizers(tmp_path / "joint")
        describe(spec_of(tmp_path / "joint"), EncodeOptions(max_tokens=100))


@pytest.mark.parametrize(
    ("modality", "family", "tower", "path", "message"),
    [
        ("image", "bert", {}, "model.towers.image.model", "bert models take text, not image"),
        ("text", "bert", {"pooling": "cls", "train": "prefix"}, None, None),
        ("text", "clip", {"train": "prefix"}, "model.towers.text.train", "can't be given a prefix"),
        ("text", "clip", {"pooling": "cls"}, "model.towers.text.pooling", "pool by themselves"),
    ],
)
def test_settling_names_the_field(
    modality: str,
    family: str,
    tower: dict[str, Any],
    path: str | None,
    message: str,
    tmp_path: Path,
) -> None:
    folder = tinymodels.build(family, tmp_path / family)
    towers = {modality: {"kind": "hf", "model": str(folder), **tower}}
    if path is None:
        found = tinyjoint.settled(towers, {"classify": {"label": "x"}})
        # 24 positions, 8 of which the prefix takes.
        assert found.config["towers"]["text"]["text"]["limit"] == 16
        return
    with pytest.raises(SpecError, match=message) as caught:
        tinyjoint.settled(towers, {"classify": {"label": "x"}})
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("config", "caption", "path", "message"),
    [
        (
            {"model_type": "mamba"},
            {"decoder": {"train": "prefix"}},
            "decoder.train",
            "mamba models can't be given a prefix; gemma, ",
        ),
        ({"model_type": "bert"}, {}, "decoder.model", "bert models are no causal language models"),
        ({"model_type": "t5"}, {}, "decoder.model", "t5 models are no causal language models"),
        (
            {"model_type": "gpt2", "n_positions": 20},
            {"prefix": 4, "max_length": 17},
            "max_length",
            "17 tokens behind 4 places, but the decoder has room for 20",
        ),
        (
            {"model_type": "gpt2", "n_positions": 20},
            {"prefix": 4, "max_length": 10, "decoder": {"train": "prefix", "rank": 7}},
            "max_length",
            "10 tokens behind 11 places, but the decoder has room for 20",
        ),
    ],
)
def test_settling_a_decoder_names_the_field(
    config: dict[str, Any],
    caption: dict[str, Any],
    path: str,
    message: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 1, **config}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    decoder = {"kind": "hf", "model": str(tmp_path), **caption.pop("decoder", {})}
    with pytest.raises(SpecError, match=message) as caught:
        tinyjoint.settled({"image": CONV}, {"caption": {**caption, "decoder": decoder}})
    assert caught.value.path == f"model.heads.caption.{path}"


def test_hub_id_without_a_commit_names_its_tower() -> None:
    heads = {"classify": {"label": "x"}}
    spec = ModelSpec.model_validate(
        {"towers": {"text": {"kind": "hf", "model": "some/model"}}, "heads": heads}
    )
    with pytest.raises(SpecError) as caught:
        settle(spec, TrainOptions(), Labels(("a",)))
    assert caught.value.path == "model.towers.text.revision"


def test_bytes_are_tokens() -> None:
    tokenizer = ByteTokenizer()
    rows = tokenizer(["né", "", "x" * 50], max_length=8)["input_ids"]
    assert [tokenizer.decode(row) for row in rows] == ["né", "", "x" * 7]
    assert [row[-1] for row in rows] == [1, 1, 1]
    assert max(map(len, rows)) == 8


def test_captions_end_and_are_read_back() -> None:
    found = tinyjoint.settled({"image": CONV}, {"caption": CAPTION})
    inputs = JointInputs(found.config, {})
    ids, mask = inputs.captions(["a cat", None, "a very long caption indeed"])
    assert mask.sum(1).tolist() == [6, 0, 12]
    assert ids[0, 5] == ids[2, 11] == 1
    assert inputs.written(ids[0].tolist()) == "a cat"
    assert inputs.written(ids[2].tolist()) == "a very long"
