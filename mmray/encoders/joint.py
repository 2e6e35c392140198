"""A checkpoint of a train job as an encoder: text, pictures, sound and video in one space.

The card comes from the checkpoint's own files, without torch. Where a model has no image tower but
one for video, a picture is a video of one frame.
"""

from typing import TYPE_CHECKING, Any

from mmray.encoders.card import EncodeOptions, EncoderCard
from mmray.encoders.fingerprint import digest, essential, fingerprint
from mmray.encoders.folder import TOKENIZER_FILES, read_json
from mmray.encoders.joint_config import TOKENIZERS, audio_of, image_of
from mmray.encoders.joint_folder import MODEL_TYPE, Checkpoint, opened
from mmray.errors import RefusedError, SpecError
from mmray.specs.common import JointEncoder

if TYPE_CHECKING:
    from torch import nn

    from mmray.encoders.towers import TowerEncoder
    from mmray.models.devices import Placement
    from mmray.models.joint.model import JointModel

_TRAINING = frozenset({"modality_dropout", "augment", "adversarial", "dropout"})


def describe(spec: JointEncoder, options: EncodeOptions) -> EncoderCard:
    """The card of a checkpoint, here or in object storage.

    Raises `SpecError` or `RefusedError`, and `StorageError` where storage stayed broken.
    """
    with opened(spec.model, options.storage, whole=False) as checkpoint:
        return _card(spec, checkpoint, options)


def _card(spec: JointEncoder, checkpoint: Checkpoint, options: EncodeOptions) -> EncoderCard:
    towers, sees = checkpoint.towers, checkpoint.sees
    max_tokens = _max_tokens(checkpoint, options)
    details = {
        # 2: a video goes through its own tower as a whole.
        "format": 2 if "video" in towers else 1,
        "model_type": MODEL_TYPE,
        "weights": checkpoint.digests(),
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
        dims=dict.fromkeys([*towers, *(("image",) if sees else ())], checkpoint.config["dim"]),
        image=None if sees is None else image_of(towers[sees]),
        max_tokens=max_tokens,
        name=f"joint ({spec.model})",
        details=details,
        audio=audio_of(towers["audio"]) if "audio" in towers else None,
        video=image_of(towers["video"]) if "video" in towers else None,
    )


def load(
    spec: JointEncoder, card: EncoderCard, device: str, options: EncodeOptions
) -> "TowerEncoder":
    """Load a checkpoint on `device`, with its adapters folded in. Imports torch.

    Raises `RefusedError` where it isn't the card's any more: the best one may have changed.
    """
    with opened(spec.model, options.storage) as checkpoint:
        if checkpoint.known not in (None, tuple(card.details["weights"])):
            raise RefusedError(f"{spec.model} has become another checkpoint while it was loaded")
        return _load(checkpoint, card, device, options)


def _load(
    checkpoint: Checkpoint, card: EncoderCard, device: str, options: EncodeOptions
) -> "TowerEncoder":
    import torch

    from mmray.encoders import towers
    from mmray.encoders.joint_inputs import audio_rules, text_rules, tokenizer_of
    from mmray.models.devices import place
    from mmray.models.joint.checkpoint import load as load_model

    model = load_model(checkpoint.folder)
    model.merge_adapters()
    placement = place(device, options.dtype)
    _settle(model, placement)
    built: dict[str, Any] = dict(model.towers.items())
    image = text = audio = video = None
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
    if card.video is not None:
        watcher = built["video"]
        frames = towers.ImageTower(watcher.network, card.video, placement, options)
        video = towers.VideoTower(frames, watcher.watch, placement)
    return towers.TowerEncoder(card, image, text, audio, video)


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
