"""A checkpoint of a train job as an encoder: text, pictures and sound in one space.

The card comes from the checkpoint's own files, without torch. Where a model has no image tower but
one for video, a picture is a video of one frame. The output of a train job stands for the best of
its checkpoints.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import digest, essential, fingerprint
from mmray.encoders.folder import TOKENIZER_FILES, read_json, read_shapes, weight_files
from mmray.encoders.joint_config import TOKENIZERS, audio_of, image_of
from mmray.errors import RefusedError, SpecError
from mmray.specs.common import JointEncoder

if TYPE_CHECKING:
    from torch import nn

    from mmray.encoders.towers import TowerEncoder
    from mmray.models.devices import Placement
    from mmray.models.joint.model import JointModel

MODEL_TYPE = "mmray-joint"
_BEST = re.compile(r"checkpoints/step-\d{8}")
_TRAINING = frozenset({"modality_dropout", "augment", "adversarial", "dropout"})


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder, as far as its JSON files say."""

    folder: Path
    config: dict[str, Any]
    weights: list[Path]

    @property
    def towers(self) -> dict[str, dict[str, Any]]:
        """Modality to settings."""
        found: dict[str, dict[str, Any]] = self.config["towers"]
        return found

    @property
    def sees(self) -> str | None:
        """The tower that pictures go through."""
        return next((each for each in ("image", "video") if each in self.towers), None)

    @property
    def tokenizers(self) -> dict[str, Path]:
        """`text` and `caption` to the folders of their tokenizers; bytes have none."""
        root = self.folder / TOKENIZERS
        return {each.name: each for each in sorted(root.glob("*")) if each.is_dir()}


def open_checkpoint(model: str) -> Checkpoint:
    """Look into a checkpoint folder. Raises `RefusedError` for one that is missing, torn, of
    another architecture, or has weights that run code when opened."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise RefusedError(f"no checkpoint folder at {model}")
    folder = _best(folder)
    config = read_json(folder, "config.json")
    if config is None:
        raise RefusedError(f"no config.json in {folder}: not a whole checkpoint")
    found = config.get("model_type")
    if found != MODEL_TYPE:
        raise RefusedError(
            f"{folder} holds a model of type {found!r}, not a joint one; kind: hf takes others"
        )
    weights = weight_files(folder)
    _check_weights(weights)
    shapes = read_shapes(weights)
    try:
        for modality in config["towers"]:
            if shapes.axis(f"towers.{modality}.projection.weight", 0) != config["dim"]:
                raise RefusedError(f"{folder}: its weights are of another dim than its config.json")
    except (KeyError, TypeError) as error:
        raise RefusedError(f"{folder}: its config.json lacks {error}") from error
    return Checkpoint(folder, config, weights)


def _best(folder: Path) -> Path:
    """The model of the best checkpoint, where `folder` is the output of a train job."""
    pointer = read_json(folder, "checkpoint.json")
    if pointer is None:
        return folder
    best = pointer.get("best")
    if not isinstance(best, str) or not _BEST.fullmatch(best):
        raise RefusedError(f"{folder / 'checkpoint.json'} names no checkpoint")
    return folder / best / "model"


def describe(spec: JointEncoder, options: EncodeOptions) -> EncoderCard:
    """The card of a checkpoint folder. Raises `SpecError` or `RefusedError`."""
    checkpoint = open_checkpoint(spec.model)
    towers, sees = checkpoint.towers, checkpoint.sees
    heard = audio_of(towers["audio"]) if "audio" in towers else None
    max_tokens = _max_tokens(checkpoint, options)
    served = [name for name, there in (("image", sees), ("audio", heard)) if there]
    details = {
        "format": 1,
        "model_type": MODEL_TYPE,
        "weights": [digest(path) for path in checkpoint.weights],
        "config": {
            key: value
            for key, value in essential(checkpoint.config).items()
            if key not in _TRAINING
        },
        "tokenizer": _tokenizer(checkpoint),
        "max_tokens": max_tokens,
        "dtype": options.dtype,
    }
    return EncoderCard(
        fingerprint=fingerprint(details),
        dims=dict.fromkeys(
            [*served, *(["text"] if "text" in towers else [])], checkpoint.config["dim"]
        ),
        image=None if sees is None else image_of(towers[sees]),
        max_tokens=max_tokens,
        name=f"joint ({spec.model})",
        details=details,
        audio=heard,
    )


def load(
    spec: JointEncoder, card: EncoderCard, device: str, options: EncodeOptions
) -> "TowerEncoder":
    """Load a checkpoint on `device`, with its adapters folded in. Imports torch."""
    import torch

    from mmray.encoders import towers
    from mmray.encoders.joint_inputs import audio_rules, text_rules, tokenizer_of
    from mmray.models.devices import place
    from mmray.models.joint.checkpoint import load as load_model

    checkpoint = open_checkpoint(spec.model)
    model = load_model(checkpoint.folder)
    model.merge_adapters()
    placement = place(device, options.dtype)
    _settle(model, placement)
    built: dict[str, Any] = dict(model.towers.items())
    image = text = audio = None
    if checkpoint.sees is not None and card.image is not None:
        image = towers.ImageTower(built[checkpoint.sees].see, card.image, placement, options)
    if "text" in built:
        reader = built["text"]

        def read(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            seen = torch.ones_like(ids) if mask is None else mask
            vectors: torch.Tensor = reader.project(reader.network(ids, seen))
            return vectors

        rules = text_rules(reader.settings)
        rules = towers.TextRules(card.max_tokens or rules.limit, rules.pad_to, rules.lower_case)
        tokenizer = tokenizer_of(checkpoint.tokenizers.get("text"))
        text = towers.TextTower(read, tokenizer, placement, options, rules)
    if "audio" in built:
        hearer = built["audio"]

        def hear(features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            vectors: torch.Tensor = hearer.project(hearer.network(features, lengths))
            return vectors

        audio = towers.AudioTower(hear, audio_rules(hearer.settings), placement, options)
    return towers.TowerEncoder(card, image, text, audio)


def _settle(model: "JointModel", placement: "Placement") -> None:
    """Move the model to where it runs. Only large networks hold weights of 16 bits."""
    whole: nn.Module = model
    whole.requires_grad_(False).to(placement.device)
    for tower in model.towers.values():
        network: Any = tower
        if not network.new and network.settings["family"] != "voice":
            placement.settle(network.network)


def _max_tokens(checkpoint: Checkpoint, options: EncodeOptions) -> int | None:
    text = checkpoint.towers.get("text")
    if text is None:
        return None
    limit, asked = int(text["text"]["limit"]), options.max_tokens
    if asked is not None and asked > limit:
        raise SpecError("text.max_length", f"{asked} tokens, but the model has room for {limit}")
    return asked or limit


def _tokenizer(checkpoint: Checkpoint) -> dict[str, Any] | None:
    text = checkpoint.towers.get("text")
    if text is None:
        return None
    folder = checkpoint.tokenizers.get("text")
    if folder is None:
        if text["text"]["tokenizer"] != "bytes":
            raise RefusedError(f"no tokenizer in {checkpoint.folder / TOKENIZERS / 'text'}")
        return {"bytes": 1}
    files = {name: digest(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    return files | {"config": essential(read_json(folder, "tokenizer_config.json") or {})}


def _check_weights(paths: list[Path]) -> None:
    """Refuse a file that is shorter than its header says: a torn copy."""
    from safetensors import SafetensorError, safe_open

    for path in paths:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise RefusedError(f"{path} isn't a whole safetensors file: {error}") from error
