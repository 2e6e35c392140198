"""Encoders from a folder in the Hugging Face layout, or a pinned hub id.

`examine` decides everything from files, without torch; `load` only carries it out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmray.decode.image import ImageTransform
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.extractors import Extractor, read_extractor
from mmray.encoders.families import (
    Family,
    check_extractor,
    check_image_size,
    find_family,
    text_limit,
    vector_dims,
)
from mmray.encoders.fingerprint import digest, essential, fingerprint
from mmray.encoders.folder import (
    TOKENIZER_FILES,
    TensorShapes,
    find_folder,
    read_json,
    read_shapes,
    weight_files,
)
from mmray.encoders.preprocessing import read_transform
from mmray.encoders.sentences import SentenceSettings, read_sentence_settings
from mmray.errors import RefusedError, SpecError
from mmray.specs.common import HfEncoder

if TYPE_CHECKING:
    from mmray.encoders.towers import TowerEncoder
    from mmray.models.forward import Wiring

# Tokenizers without a limit of their own say so with an astronomical number.
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class HfModel:
    """All that is decided of a model before it's loaded."""

    folder: Path
    family: Family
    model_type: str
    dims: dict[str, int]
    pooling: str | None
    image: ImageTransform | None
    max_tokens: int | None
    text_positions: int | None
    lower_case: bool
    details: dict[str, Any]
    extractor: Extractor | None = None

    @property
    def kind(self) -> str:
        """The `family` of `mmray.models.forward.Wiring`."""
        if self.extractor is not None:
            if self.pooling is None:
                return "clap"
            return "whisper" if self.extractor.pads else "wave"
        if self.pooling is None:
            return "joint"
        return "image" if self.image is not None else "text"

    @property
    def hop(self) -> int:
        """Samples between two columns of the spectrogram that it takes; 0 where it takes none."""
        settings = {} if self.extractor is None else self.extractor.settings
        return int(settings.get("hop_length", 0))

    def card(self, name: str) -> EncoderCard:
        """The card; `name` is what the user called the model."""
        return EncoderCard(
            fingerprint=fingerprint(self.details),
            dims=self.dims,
            image=self.image,
            max_tokens=self.max_tokens,
            name=f"{self.model_type} ({name})",
            details=self.details,
            audio=None if self.extractor is None else self.extractor.transform,
        )


def describe(spec: HfEncoder, options: EncodeOptions) -> EncoderCard:
    """The card of a model folder or hub id. Raises `SpecError` or `RefusedError`."""
    folder = find_folder(spec.model, spec.revision)
    return examine(folder, spec.pooling, options).card(spec.model)


def load(spec: HfEncoder, card: EncoderCard, device: str, options: EncodeOptions) -> "TowerEncoder":
    """Load what `card` describes on `device`."""
    folder = find_folder(spec.model, spec.revision)
    return build(examine(folder, spec.pooling, options), card, device, options)


def examine(folder: Path, pooling: str | None, options: EncodeOptions) -> HfModel:
    """Read a model's files, weights included, and settle how it's run."""
    config = read_json(folder, "config.json")
    if config is None:
        raise RefusedError(f"no config.json in {folder}: not a model in the Hugging Face layout")
    family = find_family(config.get("model_type"), str(folder))
    paths = weight_files(folder)
    shapes = read_shapes(paths)
    dims = vector_dims(family, shapes)
    sentence = read_sentence_settings(folder) if "text" in dims else SentenceSettings()
    pooling = _pooling(family, str(config["model_type"]), pooling, sentence, shapes)
    image = read_transform(folder) if "image" in dims else None
    if image is not None:
        check_image_size(family, shapes, image.size)
    extractor = None if family.extractor is None else read_extractor(folder, family.extractor)
    if extractor is not None:
        check_extractor(family, shapes, extractor)
    positions = text_limit(family, shapes)
    max_tokens = _max_tokens(folder, positions, sentence, options.max_tokens)
    details = {
        "format": 1,
        "model_type": config["model_type"],
        "weights": [digest(path) for path in paths],
        "config": essential(config),
        "image": None if image is None else image.to_json(),
        "tokenizer": _tokenizer(folder) if "text" in dims else None,
        "pooling": pooling,
        "max_tokens": max_tokens,
        "lower_case": sentence.lower_case,
        "dtype": options.dtype,
    }
    if extractor is not None:  # not a null for others, whose fingerprints are older than sound
        details["audio"] = extractor.to_json()
    return HfModel(
        folder,
        family,
        str(config["model_type"]),
        dims,
        pooling,
        image,
        max_tokens,
        positions,
        sentence.lower_case,
        details,
        extractor,
    )


def build(model: HfModel, card: EncoderCard, device: str, options: EncodeOptions) -> "TowerEncoder":
    """Load an examined model on `device`. Imports torch."""
    from mmray.encoders import towers
    from mmray.models.backbones import load_backbone, load_tokenizer
    from mmray.models.devices import place

    placement = place(device, options.dtype)
    backbone = load_backbone(model.folder, wiring_of(model))
    placement.settle(backbone.module)
    image = text = audio = None
    if backbone.image is not None and model.image is not None:
        image = towers.ImageTower(backbone.image, model.image, placement, options)
    if backbone.text is not None and model.max_tokens is not None:
        rules = towers.TextRules(
            limit=model.max_tokens,
            pad_to=model.text_positions if model.family.pads_to_limit else None,
            lower_case=model.lower_case,
        )
        tokenizer = load_tokenizer(model.folder)
        text = towers.TextTower(backbone.text, tokenizer, placement, options, rules)
    if backbone.audio is not None and model.extractor is not None:
        extractor = model.extractor
        heard = towers.AudioRules(extractor.transform, extractor.build(), extractor.pads)
        audio = towers.AudioTower(backbone.audio, heard, placement, options)
    return towers.TowerEncoder(card, image, text, audio)


def wiring_of(model: HfModel) -> "Wiring":
    """What decides how an examined model is built and run. Imports torch."""
    from mmray.models.forward import Wiring

    return Wiring(model.kind, model.pooling, bool(model.family.pooler), model.hop)


def _pooling(
    family: Family,
    model_type: str,
    asked: str | None,
    sentence: SentenceSettings,
    shapes: TensorShapes,
) -> str | None:
    if family.pooling is None:
        if asked is not None:
            message = f"{model_type} models pool by themselves; leave it out"
            raise SpecError("encoder.pooling", message)
        return None
    pooling = asked or sentence.pooling or family.pooling
    if "audio" in family.dims and pooling != "mean":
        raise SpecError("encoder.pooling", f"{model_type} models pool by mean only")
    if pooling == "pooler":
        if family.pooler is None:
            raise SpecError("encoder.pooling", f"{model_type} models have no pooler")
        if family.pooler and not shapes.has(family.pooler):
            message = f"the weights in {shapes.where} have no pooler; take cls or mean"
            raise SpecError("encoder.pooling", message)
    return pooling


def _max_tokens(
    folder: Path, positions: int | None, sentence: SentenceSettings, asked: int | None
) -> int | None:
    if positions is None:
        return None
    if asked is not None:
        if asked > positions:
            message = f"{asked} tokens, but the model has room for {positions}"
            raise SpecError("text.max_length", message)
        return asked
    said = sentence.max_tokens
    if said is None:
        limit = (read_json(folder, "tokenizer_config.json") or {}).get("model_max_length")
        said = int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else positions
    return min(said, positions)


def _tokenizer(folder: Path) -> dict[str, Any]:
    files = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        raise RefusedError(f"no tokenizer in {folder}")
    config = read_json(folder, "tokenizer_config.json") or {}
    return {name: digest(folder / name) for name in files} | {"config": essential(config)}
