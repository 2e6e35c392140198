"""From the model of a train spec to the `config.json` of a joint model, without torch.

All that a checkpoint must know of a tower is settled here, from the files of the model that it
begins with: shapes, pooling, pixels, sound, tokens. So a checkpoint needs none of them later.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmray.decode.audio import AudioTransform
from mmray.decode.image import ImageTransform
from mmray.encoders import speech
from mmray.encoders.card import EncodeOptions
from mmray.encoders.families import FAMILIES
from mmray.encoders.fingerprint import essential
from mmray.encoders.folder import TOKENIZER_FILES, find_folder, read_json, weight_files
from mmray.encoders.hf import HfModel, examine
from mmray.encoders.packaged import LITE0_FEATURES, LITE0_TRANSFORM, examine_minilm, lite0_weights
from mmray.errors import RefusedError, SpecError
from mmray.specs.joint import (
    Caption,
    ConvTower,
    HfDecoder,
    HfTower,
    ModelSpec,
    PackagedTower,
    RecurrentTower,
    Tuned,
)
from mmray.specs.train import TrainOptions

TOKENIZERS = "tokenizers"
"""Folder of a checkpoint with a folder for each tokenizer: `text`, `caption`."""

_SIZES = {"last_n": 2, "lora": 8, "adalora": 8, "prefix": 8}
_SMALL_RATE = 16_000
TAKE_PREFIX = frozenset({"bert", "roberta", "xlm-roberta"})
"""Text models that take the keys and values of places before the text."""
DECODERS_TAKE_PREFIX = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral"}
    | {"opt", "phi", "phi3", "qwen2", "qwen3", "smollm3"}
)
"""Language models that do; a test goes over them."""


@dataclass(frozen=True, slots=True)
class Labels:
    """What the training split says of labels."""

    classes: Sequence[str] = ()
    mean: float = 0.0
    spread: float = 1.0
    """Standard deviation of the numbers; never 0."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A joint model before it's built."""

    config: dict[str, Any]
    """Keyword arguments of `JointConfig`."""
    sources: dict[str, Path] = field(default_factory=dict)
    """Modality (or `caption`) to the folder, or packaged file, that its values come from."""
    tokenizers: dict[str, Path] = field(default_factory=dict)
    """`text` and `caption` to the folder of a tokenizer; those of bytes have none."""

    def copy_tokenizers(self, checkpoint: Path) -> None:
        """Put the tokenizers' files into a checkpoint folder."""
        for name, folder in self.tokenizers.items():
            into = checkpoint / TOKENIZERS / name
            into.mkdir(parents=True, exist_ok=True)
            for file in (*TOKENIZER_FILES, "tokenizer_config.json", "config.json"):
                if (folder / file).is_file():
                    shutil.copyfile(folder / file, into / file)


def settle(spec: ModelSpec, train: TrainOptions, labels: Labels) -> Settled:
    """Look into the towers' files. Raises `SpecError` for a field that can't be right, and
    `RefusedError` for files that are missing, unsafe or unknown."""
    settled = Settled({})
    towers = {}
    for modality, tower in spec.towers.items():
        if isinstance(tower, ConvTower | RecurrentTower):
            towers[modality] = _small(modality, tower)
        elif isinstance(tower, PackagedTower) and tower.model != "minilm":
            towers[modality] = _packaged(modality, tower, settled)
        else:
            towers[modality] = _hf(modality, tower, settled)
    settled.config.update(
        dim=spec.dim,
        towers=towers,
        fusion=spec.fusion.model_dump(mode="json"),
        heads=_heads(spec, labels, settled),
        dropout=spec.dropout,
        modality_dropout=train.modality_dropout,
        augment=train.augment.model_dump(),
        adversarial=None if train.adversarial is None else train.adversarial.model_dump(),
    )
    return settled


def image_of(settings: dict[str, Any]) -> ImageTransform:
    """How a tower wants its pixels."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in settings["image"].items()
    }
    return ImageTransform(**fields)


def audio_of(settings: dict[str, Any]) -> AudioTransform:
    """How a tower wants its sound."""
    return AudioTransform(**settings["audio"]["transform"])


def _small(modality: str, tower: ConvTower | RecurrentTower) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "kind": tower.kind,
        "width": tower.width,
        "features": 2 * tower.width,
    }
    if modality in ("image", "video"):
        settings["image"] = asdict(ImageTransform(size=(tower.side, tower.side), resize="exact"))
    if modality == "audio":
        transform = AudioTransform(rate=_SMALL_RATE, window=tower.seconds)
        settings["audio"] = {"transform": asdict(transform), "extractor": None}
    if modality == "text":
        settings["text"] = {"limit": tower.tokens, "pad_to": None, "lower_case": False}
        settings["text"]["tokenizer"] = "bytes"
    return settings


def _packaged(modality: str, tower: PackagedTower, settled: Settled) -> dict[str, Any]:
    if tower.model == "speech":
        settled.sources[modality] = speech._weights()
        transform = {"transform": asdict(speech.TRANSFORM), "extractor": None}
        return {**_tuned(tower), "family": "voice", "features": 256, "audio": transform}
    settled.sources[modality] = lite0_weights()
    image = asdict(LITE0_TRANSFORM)
    return {**_tuned(tower), "family": "lite0", "features": LITE0_FEATURES, "image": image}


def _hf(modality: str, tower: HfTower | PackagedTower, settled: Settled) -> dict[str, Any]:
    path = f"model.towers.{modality}"
    if isinstance(tower, PackagedTower):
        model = examine_minilm(EncodeOptions())
    else:
        folder = _folder(tower.model, tower.revision, path)
        try:
            model = examine(folder, tower.pooling, EncodeOptions())
        except SpecError as error:
            raise SpecError(error.path.replace("encoder", path, 1), error.message) from error
    part = "image" if modality == "video" else modality
    if part not in model.dims:
        takes = ", ".join(sorted(model.dims))
        raise SpecError(f"{path}.model", f"{model.model_type} models take {takes}, not {modality}")
    _check_prefix(tower, model.model_type, TAKE_PREFIX, path)
    settled.sources[modality] = model.folder
    settings = {
        **_tuned(tower),
        "family": model.kind,
        "features": model.dims[part],
        "config": essential(read_json(model.folder, "config.json")),
        "pooling": model.pooling,
        "optional_pooler": bool(model.family.pooler),
    }
    return settings | _inputs(part, model, settings, settled)


def _inputs(
    part: str, model: HfModel, settings: dict[str, Any], settled: Settled
) -> dict[str, Any]:
    if part == "image":
        assert model.image is not None
        return {"image": asdict(model.image)}
    if part == "audio":
        assert model.extractor is not None
        extractor = {"kind": model.extractor.kind, "settings": model.extractor.settings}
        audio = {"transform": asdict(model.extractor.transform), "extractor": extractor}
        return {"audio": audio, "hop": model.hop}
    assert model.max_tokens is not None
    assert model.text_positions is not None
    settled.tokenizers["text"] = model.folder
    # A prefix takes places in front of the text.
    taken = settings["size"] if settings["train"] == "prefix" else 0
    text = {
        "limit": min(model.max_tokens, model.text_positions - taken),
        "pad_to": model.text_positions if model.family.pads_to_limit else None,
        "lower_case": model.lower_case,
        "tokenizer": "files",
    }
    return {"text": text}


def _heads(spec: ModelSpec, labels: Labels, settled: Settled) -> dict[str, dict[str, Any]]:
    heads: dict[str, dict[str, Any]] = {}
    for name in spec.heads.weights:
        head = getattr(spec.heads, name)
        heads[name] = head.model_dump(mode="json", exclude={"decoder"})
    if "classify" in heads:
        heads["classify"]["classes"] = list(labels.classes)
    if "regress" in heads:
        heads["regress"] |= {"mean": labels.mean, "spread": labels.spread}
    caption = spec.heads.caption
    if caption is not None:
        heads["caption"]["of"] = list(caption.of or [m for m in spec.towers if m != "text"])
        if isinstance(caption.decoder, HfDecoder):
            heads["caption"] |= _decoder(caption, caption.decoder, settled)
        else:
            heads["caption"]["decoder"] = "small"
    return heads


def _decoder(caption: Caption, decoder: HfDecoder, settled: Settled) -> dict[str, Any]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    path = "model.heads.caption.decoder"
    folder = _folder(decoder.model, decoder.revision, path)
    config = read_json(folder, "config.json")
    weight_files(folder)
    if config is None:
        raise RefusedError(f"no config.json in {folder}: not a model in the Hugging Face layout")
    end = config.get("eos_token_id")
    if not isinstance(end, int):
        raise RefusedError(f"{folder}: its config.json names no eos_token_id to end captions with")
    kind = str(config.get("model_type"))
    if kind in FAMILIES or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SpecError(f"{path}.model", f"{kind} models are no causal language models")
    _check_prefix(decoder, kind, DECODERS_TAKE_PREFIX, path)
    settings = {**_tuned(decoder), "decoder": "hf", "config": essential(config), "end": end}
    _check_room(caption, settings)
    settled.sources["caption"] = settled.tokenizers["caption"] = folder
    return settings


def _check_prefix(part: Tuned, model_type: str, takers: frozenset[str], path: str) -> None:
    if part.train == "prefix" and model_type not in takers:
        known = ", ".join(sorted(takers))
        message = f"{model_type} models can't be given a prefix; {known} can"
        raise SpecError(f"{path}.train", message)


def _check_room(caption: Caption, settings: dict[str, Any]) -> None:
    """A text has to fit into the decoder's positions, and what stands before it."""
    from transformers import AutoConfig

    values = dict(settings["config"])
    config: Any = AutoConfig.for_model(values.pop("model_type"), **values)
    room = getattr(config, "max_position_embeddings", None)
    before = caption.prefix + (settings["size"] if settings["train"] == "prefix" else 0)
    if room is not None and before + caption.max_length > room:
        raise SpecError(
            "model.heads.caption.max_length",
            f"{caption.max_length} tokens behind {before} places, but the decoder has room"
            f" for {room}",
        )


def _tuned(part: HfTower | PackagedTower | HfDecoder) -> dict[str, Any]:
    size = part.blocks or part.rank or _SIZES.get(part.train, 0)
    return {"kind": part.kind, "train": part.train, "size": size}


def _folder(model: str, revision: str | None, path: str) -> Path:
    try:
        return find_folder(model, revision)
    except SpecError as error:
        raise SpecError(f"{path}.revision", error.message) from error
