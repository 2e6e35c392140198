"""The Hugging Face model families that mmray can run, as one table.

Shapes are read from the weights themselves, by tensor name: a `config.json` leaves out whatever
equals a default of the class that wrote it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmray.encoders.extractors import Extractor, ExtractorKind
from mmray.encoders.folder import TensorShapes
from mmray.errors import RefusedError

TensorAxis = tuple[str, int]
"""The end of a tensor's name, and the axis to read."""


@dataclass(frozen=True, slots=True)
class Family:
    """What one `model_type` offers and where its shapes stand in the weights."""

    dims: Mapping[str, TensorAxis]
    pooling: str | None = None
    """Default pooling; `None`: the model joins two modalities and pools by itself."""
    pooler: str | None = None
    """A learned pooler's tensor; `""`: the model pools without weights; `None`: it has none."""
    image_positions: str | None = None
    """Position table of a model that takes one image size only."""
    patches: str | None = None
    """Patch convolution, whose last axis is the patch's side."""
    text_positions: str | None = None
    reserved_positions: int = 0
    """Rows of the text position table that no token can use."""
    pads_to_limit: bool = False
    """Trained on texts padded to the limit, so a shorter batch gives other vectors."""
    extractor: ExtractorKind | None = None
    """The feature extractor of a model that hears."""
    audio_bins: TensorAxis | None = None
    """Rows of the spectrogram that it takes."""
    audio_positions: str | None = None
    """Position table of a model that takes one length of sound only."""


def _bert_like(reserved: int = 0, pooler: str | None = "pooler.dense.weight") -> Family:
    return Family(
        dims={"text": ("embeddings.word_embeddings.weight", 1)},
        pooling="mean",
        pooler=pooler,
        text_positions="embeddings.position_embeddings.weight",
        reserved_positions=reserved,
    )


def _wav2vec2_like() -> Family:
    return Family(
        dims={"audio": ("feature_projection.projection.weight", 0)},
        pooling="mean",
        extractor="Wav2Vec2",
    )


FAMILIES: dict[str, Family] = {
    "clip": Family(
        dims={"image": ("visual_projection.weight", 0), "text": ("text_projection.weight", 0)},
        image_positions="vision_model.embeddings.position_embedding.weight",
        patches="vision_model.embeddings.patch_embedding.weight",
        text_positions="text_model.embeddings.position_embedding.weight",
    ),
    "siglip": Family(
        dims={"image": ("vision_model.head.probe", 2), "text": ("text_model.head.weight", 0)},
        image_positions="vision_model.embeddings.position_embedding.weight",
        patches="vision_model.embeddings.patch_embedding.weight",
        text_positions="text_model.embeddings.position_embedding.weight",
        pads_to_limit=True,
    ),
    "vit": Family(
        dims={"image": ("embeddings.cls_token", 2)},
        pooling="cls",
        pooler="pooler.dense.weight",
        image_positions="embeddings.position_embeddings",
        patches="embeddings.patch_embeddings.projection.weight",
    ),
    "dinov2": Family(dims={"image": ("embeddings.cls_token", 2)}, pooling="cls", pooler=""),
    "dinov3_vit": Family(dims={"image": ("embeddings.cls_token", 2)}, pooling="cls", pooler=""),
    "bert": _bert_like(),
    "roberta": _bert_like(reserved=2),
    "xlm-roberta": _bert_like(reserved=2),
    "mpnet": _bert_like(reserved=2),
    "distilbert": _bert_like(pooler=None),
    "clap": Family(
        dims={
            "audio": ("audio_projection.linear2.weight", 0),
            "text": ("text_projection.linear2.weight", 0),
        },
        text_positions="text_model.embeddings.position_embeddings.weight",
        reserved_positions=2,
        extractor="Clap",
        audio_bins=("audio_encoder.batch_norm.weight", 0),
    ),
    "whisper": Family(
        dims={"audio": ("encoder.conv1.weight", 0)},
        pooling="mean",
        extractor="Whisper",
        audio_bins=("encoder.conv1.weight", 1),
        audio_positions="encoder.embed_positions.weight",
    ),
    "wav2vec2": _wav2vec2_like(),
    "hubert": _wav2vec2_like(),
    "wavlm": _wav2vec2_like(),
}

_FUSION = "patch_embed.mel_conv2d.weight"
"""The weights with which a CLAP model takes four spectrograms of a sound instead of one."""

_ADAPTER = "adapter.layers.0.conv.weight"
"""Convolutions behind a wav2vec2-like encoder, which change the vectors' length."""

_NAFLEX = (
    "a siglip2 model of variable resolution (NaFlex) keeps each picture's aspect ratio, which "
    "mmray can't batch; take a fixed-resolution siglip2 (such as siglip2-base-patch16-224), "
    "whose model_type is siglip"
)


def find_family(model_type: object, where: str) -> Family:
    """The row of `model_type`. Raises `RefusedError`, naming the supported, when there is none."""
    if model_type == "siglip2":
        raise RefusedError(f"{where}: {_NAFLEX}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise RefusedError(f"{where}: model_type {model_type!r} is not supported; known: {known}")
    return FAMILIES[model_type]


def vector_dims(family: Family, shapes: TensorShapes) -> dict[str, int]:
    """Vector length of each modality."""
    return {name: shapes.axis(*place) for name, place in family.dims.items()}


def text_limit(family: Family, shapes: TensorShapes) -> int | None:
    """Most tokens the position table has room for; `None` for a model without text."""
    if family.text_positions is None:
        return None
    return shapes.axis(family.text_positions, 0) - family.reserved_positions


def check_image_size(family: Family, shapes: TensorShapes, size: tuple[int, int]) -> None:
    """Refuse a processor whose output the model's position table has no room for."""
    if family.image_positions is None or family.patches is None:
        return
    side = shapes.axis(family.patches, -1)
    wanted = (size[0] // side) * (size[1] // side)
    have = shapes.axis(family.image_positions, -2)
    if have not in (wanted, wanted + 1):  # one more for the class token, where there is one
        message = f"images of {size} make {wanted} patches, the model has {have} positions"
        raise RefusedError(f"{shapes.where}: {message}")


def check_extractor(family: Family, shapes: TensorShapes, extractor: Extractor) -> None:
    """Refuse a feature extractor whose features the model can't take."""
    settings = extractor.settings
    problem = None
    if family.audio_bins is not None:
        bins = shapes.axis(*family.audio_bins)
        if bins != settings["feature_size"]:
            problem = f"spectrograms of {settings['feature_size']} rows, the model takes {bins}"
    if family.audio_positions is not None:
        frames = 2 * shapes.axis(family.audio_positions, 0)  # its convolutions halve the length
        if frames != extractor.frames:
            problem = f"spectrograms of {extractor.frames} columns, the model takes {frames}"
    if settings.get("truncation") == "fusion" and not shapes.has(_FUSION):
        problem = "four spectrograms of a sound, the model takes one; it wants rand_trunc"
    if problem is not None:
        raise RefusedError(f"{shapes.where}: its feature extractor makes {problem}")
    if shapes.has(_ADAPTER):
        raise RefusedError(f"{shapes.where} has an adapter behind its encoder, unknown to mmray")
