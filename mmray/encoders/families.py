"""The Hugging Face model families that mmray can run, as one table.

Shapes are read from the weights themselves, by tensor name: a `config.json` leaves out whatever
equals a default of the class that wrote it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmray.encoders.folder import TensorShapes
from mmray.errors import RefusedError

TensorAxis = tuple[str, int]
"""The end of a tensor's name, and the axis to read."""


@dataclass(frozen=True, slots=True)
class Family:
    """What one `model_type` offers and where its shapes stand in the weights."""

    dims: Mapping[str, TensorAxis]
    pooling: str | None = None
    """Default pooling; `None`: the model joins image and text and pools by itself."""
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


def _bert_like(reserved: int = 0, pooler: str | None = "pooler.dense.weight") -> Family:
    return Family(
        dims={"text": ("embeddings.word_embeddings.weight", 1)},
        pooling="mean",
        pooler=pooler,
        text_positions="embeddings.position_embeddings.weight",
        reserved_positions=reserved,
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
}

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
