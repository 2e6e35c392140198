"""A model's folder in the Hugging Face layout: finding it, and refusing what isn't safe to load.

Nothing here imports torch or transformers. Only safetensors count as weights: a pickled file runs
code when it's opened, so it's refused by name.
"""

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmray.errors import RefusedError, SpecError

WEIGHTS_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)


def find_folder(model: str, revision: str | None) -> Path:
    """The local folder of `model`: itself, or the pinned snapshot of a hub id.

    A snapshot is downloaded unless `HF_HUB_OFFLINE` is set, and never with pickled files. Raises
    `SpecError` for a hub id without a pinned commit, `RefusedError` when nothing is found.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(model):
        raise RefusedError(f"no model folder at {model}")
    if revision is None or not _COMMIT.fullmatch(revision):
        message = f"a hub id needs a full commit hash, so that {model} stays the same model"
        raise SpecError("encoder.revision", message)
    return _snapshot(model, revision)


def _snapshot(model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "1_Pooling/*.json"]
    try:
        found = snapshot_download(
            model,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=["onnx/*", "openvino/*", "*.bin"],
        )
    except Exception as error:  # the hub client raises its own, requests' and OS errors
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        message = f"can't get {model} at {revision} from the hub{offline}: {error}"
        raise RefusedError(message) from error
    return Path(found)


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in `folder/name`, or `None` where there is no such file."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RefusedError(f"{path} isn't JSON: {error}") from error
    if not isinstance(content, dict):
        raise RefusedError(f"{path} doesn't hold a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, in the order of their names."""
    there = {path.name for path in folder.glob("*") if path.is_file()}
    index = None if _WEIGHTS in there else read_json(folder, WEIGHTS_INDEX)
    return [folder / name for name in weight_names(there, index, str(folder))]


def weight_names(there: Collection[str], index: Mapping[str, Any] | None, where: str) -> list[str]:
    """Names of the safetensors files that hold the weights, in their order.

    Args:
        there: names of the files in the folder.
        index: its `model.safetensors.index.json`, where there is one.
        where: the folder, for people.
    """
    if _WEIGHTS in there:
        return [_WEIGHTS]
    if index is None:
        raise RefusedError(_no_weights(there, where))
    names = sorted(set(index.get("weight_map", {}).values()))
    missing = [name for name in names if name not in there]
    if missing or not names:
        listed = ", ".join(missing)
        raise RefusedError(f"{where}/{WEIGHTS_INDEX} names missing weights: {listed}")
    return names


@dataclass(frozen=True, slots=True)
class TensorShapes:
    """Name and shape of every tensor of a model, from the headers of its weight files."""

    shapes: dict[str, tuple[int, ...]]
    where: str

    def has(self, ending: str) -> bool:
        """Whether a tensor's name ends so: checkpoints differ in what they put in front."""
        return self._find(ending) is not None

    def axis(self, ending: str, axis: int) -> int:
        """One axis of a tensor. Raises `RefusedError` when the weights lack it."""
        shape = self._find(ending)
        if shape is None or not -len(shape) <= axis < len(shape):
            raise RefusedError(f"the weights in {self.where} lack {ending}: not the whole model")
        return shape[axis]

    def _find(self, ending: str) -> tuple[int, ...] | None:
        for name, shape in self.shapes.items():
            if name == ending or name.endswith("." + ending):
                return shape
        return None


def read_shapes(paths: list[Path]) -> TensorShapes:
    """Read the headers of safetensors files; the tensors themselves stay on disk.

    Header: 8 bytes little-endian length, then that many bytes of JSON (safetensors format).
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if not 0 < length < path.stat().st_size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            shapes |= {name: tuple(tensor["shape"]) for name, tensor in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RefusedError(f"{path} isn't a safetensors file: {error}") from error
    return TensorShapes(shapes, str(paths[0].parent))


def _no_weights(there: Collection[str], where: str) -> str:
    pickled = sorted(name for name in there if name.endswith(_PICKLES))
    if not pickled:
        return f"no {_WEIGHTS} in {where}"
    return (
        f"{where} has only weights that run code when opened ({', '.join(pickled)}): "
        "convert them to safetensors"
    )
