"""A checkpoint of a train job, opened: a folder here, or an `s3://` uri.

In object storage its manifest names every file with its size and SHA-256. So little is fetched to
look into a checkpoint: its JSON and its tokenizers, while the weights' digests come from the
manifest. They are fetched themselves only to be loaded, once for each machine.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mmray.encoders.fingerprint import digest
from mmray.encoders.folder import WEIGHTS_INDEX, read_json, read_shapes, weight_files, weight_names
from mmray.encoders.joint_config import TOKENIZERS
from mmray.errors import RefusedError
from mmray.storage import MissingBucket, Storage, blobs, is_s3, join
from mmray.storage.blobs import File

MODEL_TYPE = "mmray-joint"

_POINTER, _MANIFEST, _MODEL = "checkpoint.json", "manifest.json", "model"
"""Of an output, and of a checkpoint: as `mmray.train.checkpoints` writes them."""
_CONFIG = "config.json"
_BEST = re.compile(r"checkpoints/step-\d{8}")
_BESIDE_WEIGHTS = (".json", ".txt", ".model")
"""Endings of configs and tokenizers. Nothing else is fetched but safetensors."""
_NAME_ONE = "name the output of a train job, or the `model` folder of one of its checkpoints"

_Files = TypeAdapter(list[File])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder on this machine, as far as its JSON files say."""

    folder: Path
    config: dict[str, Any]
    weights: list[Path]
    """Not there where a checkpoint of object storage was only looked into."""
    known: tuple[str, ...] | None = None
    """SHA-256 of the weights, where a manifest says them."""

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

    def digests(self) -> list[str]:
        """SHA-256 of each file of weights: from the manifest, else from the files themselves."""
        return [digest(path) for path in self.weights] if self.known is None else [*self.known]


@contextmanager
def opened(model: str, storage: Storage, *, whole: bool = True) -> Iterator[Checkpoint]:
    """A checkpoint as a folder on this machine, until the end of the context.

    Args:
        model: the output of a train job, which stands for the best of its checkpoints, or the
            `model` folder of a checkpoint.
        storage: reaches it where it is an `s3://` uri.
        whole: fetch the weights too; else they are only looked for.

    Raises:
        RefusedError: it is missing, torn, changed, of another architecture, or has weights that run
            code when opened.
        StorageError: storage stayed broken.
    """
    uri = storage.normalise(model)
    if not is_s3(uri):
        yield open_checkpoint(uri)
        return
    uri, files = _listed(uri, storage)
    with blobs.scratch() as folder:
        blobs.lay_out(storage, uri, [f for f in files if f.path.endswith(_BESIDE_WEIGHTS)], folder)
        config = _config(folder, uri)
        names = weight_names({f.path for f in files}, read_json(folder, WEIGHTS_INDEX), uri)
        weights = [file for name in names for file in files if file.path == name]
        paths = [folder / name for name in names]
        if whole:
            blobs.lay_out(storage, uri, weights, folder)
            _check_weights(paths, config, uri)
        else:
            for file in weights:
                blobs.require(storage, uri, file)
        yield Checkpoint(folder, config, paths, tuple(file.sha256 for file in weights))


def open_checkpoint(model: str) -> Checkpoint:
    """Look into a checkpoint folder on this machine. Raises what `opened` raises."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise RefusedError(f"no checkpoint folder at {model}")
    pointer = read_json(folder, _POINTER)
    if pointer is not None:
        folder = folder / _best(pointer, str(folder / _POINTER)) / _MODEL
    elif (folder / "_mmray").is_dir() and not (folder / _CONFIG).is_file():
        raise RefusedError(_none_yet(model))
    config = _config(folder, str(folder))
    weights = weight_files(folder)
    _check_weights(weights, config, str(folder))
    return Checkpoint(folder, config, weights)


def _listed(uri: str, storage: Storage) -> tuple[str, list[File]]:
    """The `model` folder that `uri` stands for, and its files as the manifest names them."""
    try:
        pointer = _read(storage, join(uri, _POINTER))
        if pointer is not None:
            uri = join(uri, _best(pointer, join(uri, _POINTER)), _MODEL)
        place = join(uri.rpartition("/")[0], _MANIFEST)
        manifest = _read(storage, place) if uri.endswith(f"/{_MODEL}") else None
        if manifest is None:
            raise RefusedError(_no_manifest(uri, storage))
    except (MissingBucket, PermissionError) as error:
        raise RefusedError(str(error)) from error
    try:
        named = _Files.validate_python(manifest.get("files"))
    except ValidationError:
        raise RefusedError(f"{place} is torn, or no manifest of a checkpoint") from None
    # Paths are below the output; a checkpoint that was copied elsewhere has none.
    split = [(each, each.path.partition(f"/{_MODEL}/")[2]) for each in named]
    return uri, [replace(file, path=path) for file, path in split if path]


def _no_manifest(uri: str, storage: Storage) -> str:
    """Why there is no checkpoint at `uri`, in words."""
    config = _read(storage, join(uri, _CONFIG))
    if config is not None and config.get("model_type") != MODEL_TYPE:
        return _other(uri, config)
    if config is not None:
        return f"no {_MANIFEST} beside {uri}, so that its files can't be checked: {_NAME_ONE}"
    if next(storage.list(join(uri, "_mmray")), None) is not None:
        return _none_yet(uri)
    return f"no checkpoint at {uri}: {_NAME_ONE}"


def _none_yet(where: str) -> str:
    return f"{where} has no checkpoint yet: its training has not begun to learn"


def _read(storage: Storage, uri: str) -> dict[str, Any] | None:
    """A JSON object, or `None` where there is none. Raises RefusedError where it isn't whole."""
    try:
        content = json.loads(storage.read_bytes(uri))
    except MissingBucket:
        raise
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RefusedError(f"{uri} isn't JSON: {error}") from error
    if not isinstance(content, dict):
        raise RefusedError(f"{uri} doesn't hold a JSON object")
    return content


def _best(pointer: dict[str, Any], where: str) -> str:
    best = pointer.get("best")
    if not isinstance(best, str) or not _BEST.fullmatch(best):
        raise RefusedError(f"{where} names no checkpoint")
    return best


def _config(folder: Path, where: str) -> dict[str, Any]:
    config = read_json(folder, _CONFIG)
    if config is None:
        raise RefusedError(f"no {_CONFIG} in {where}: not a whole checkpoint")
    if config.get("model_type") != MODEL_TYPE:
        raise RefusedError(_other(where, config))
    for name, kind in (("towers", dict), ("dim", int)):
        if not isinstance(config.get(name), kind):
            raise RefusedError(f"{where}: its {_CONFIG} lacks {name!r}")
    return config


def _other(where: str, config: dict[str, Any]) -> str:
    found = config.get("model_type")
    return f"{where} holds a model of type {found!r}, not a joint one; kind: hf takes others"


def _check_weights(paths: list[Path], config: dict[str, Any], where: str) -> None:
    """Refuse files that are shorter than their headers say, torn copies, and other models'."""
    from safetensors import SafetensorError, safe_open

    for path in paths:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            words = f"{join(where, path.name)} isn't a whole safetensors file: {error}"
            raise RefusedError(words) from error
    shapes = replace(read_shapes(paths), where=where)
    for name in config["towers"]:
        if shapes.axis(f"towers.{name}.projection.weight", 0) != config["dim"]:
            raise RefusedError(f"{where}: its weights are of another dim than its {_CONFIG}")
