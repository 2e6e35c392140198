"""Reads a Hugging Face processor file into an `ImageTransform`, without transformers.

A processor that does anything an `ImageTransform` can't say is refused, never approximated.
"""

from pathlib import Path
from typing import Any

from mmray.decode.image import ImageTransform, Resample
from mmray.encoders.folder import read_json
from mmray.errors import RefusedError

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_CLIP = {
    "size": {"shortest_edge": 224},
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "resample": 3,
    "image_mean": _CLIP_MEAN,
    "image_std": _CLIP_STD,
}
_SQUARE = {"size": {"height": 224, "width": 224}, "do_center_crop": False}

# What each class does where its file is silent; old files name a feature extractor instead.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": {**_SQUARE, "resample": 3, "image_mean": _HALF, "image_std": _HALF},
    "ViT": {**_SQUARE, "resample": 2, "image_mean": _HALF, "image_std": _HALF},
    "DINOv3ViT": {
        **_SQUARE,
        "resample": 2,
        "image_mean": _IMAGENET_MEAN,
        "image_std": _IMAGENET_STD,
    },
}
_SUFFIXES = ("Fast", "Pil", "ImageProcessor", "FeatureExtractor")

# Pillow's numbers of its filters.
_RESAMPLE: dict[int, Resample] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read_transform(folder: Path) -> ImageTransform:
    """The transform that `preprocessor_config.json` or `processor_config.json` in `folder` says.

    Raises `RefusedError` when there is no such file, or it asks for what mmray can't do.
    """
    raw = read_json(folder, "preprocessor_config.json")
    if raw is None:
        raw = (read_json(folder, "processor_config.json") or {}).get("image_processor")
    if not raw:
        raise RefusedError(f"no preprocessor_config.json in {folder}: how to resize is unknown")
    kind = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    name = kind
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    if name not in _DEFAULTS:
        known = ", ".join(f"{key}ImageProcessor" for key in _DEFAULTS)
        raise RefusedError(f"image processor {kind or '(unnamed)'} in {folder}; known: {known}")
    settings = _DEFAULTS[name] | {key: value for key, value in raw.items() if value is not None}
    try:
        return _transform(settings)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"the image processor in {folder} can't be used: {error}") from error


def _transform(settings: dict[str, Any]) -> ImageTransform:
    if not settings.get("do_resize", True) or settings.get("do_pad"):
        raise ValueError("it doesn't resize to a fixed shape")
    crops = bool(settings["do_center_crop"])
    mean, std = _normalisation(settings)
    resample = _RESAMPLE[int(settings["resample"])]
    size = settings["size"]
    if isinstance(size, int):  # before sizes were named, it meant the class's own kind of size
        size = {"shortest_edge": size} if crops else {"height": size, "width": size}
    if set(size) == {"shortest_edge"} and crops:
        edge, crop = int(size["shortest_edge"]), _height_width(settings["crop_size"])
        if max(crop) > edge:
            raise ValueError(f"it crops {crop} from a shortest edge of {edge}")
        return ImageTransform(
            crop, "shortest_edge", resize_to=edge, resample=resample, mean=mean, std=std
        )
    if set(size) == {"height", "width"}:
        shape = _height_width(size)
        if crops and _height_width(settings["crop_size"]) != shape:
            raise ValueError("it stretches the picture, then crops it")
        return ImageTransform(shape, "exact", resample=resample, mean=mean, std=std)
    raise ValueError(f"size {size} with do_center_crop {crops} gives no fixed shape")


def _height_width(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size["height"]), int(size["width"]))


def _normalisation(
    settings: dict[str, Any],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std for pixels scaled to 0..1, whatever the processor scales them to."""
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    unit = 1 / (255 * float(factor))
    if not settings.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (unit, unit, unit)
    return _scaled(settings["image_mean"], unit), _scaled(settings["image_std"], unit)


def _scaled(values: Any, unit: float) -> tuple[float, float, float]:
    red, green, blue = (round(float(value) * unit, 8) for value in values)
    return red, green, blue
