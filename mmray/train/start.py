"""What a training began with, as its output says it: read without torch, so that a run with nothing
to do takes no time."""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mmray.encoders.fingerprint import fingerprint
from mmray.errors import RefusedError
from mmray.specs.train import TrainSpec
from mmray.storage import Storage, join
from mmray.train.pinned import Pinned

FORMAT = 2
_OUTSIDE = ("resources", "storage", "errors", "output", "track")
"""Parts of a spec that don't change what is learned."""


class Start(BaseModel):
    """What a training began with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    fingerprint: str
    spec: dict[str, Any]
    """What is learned, as the spec says it."""
    pinned: Pinned
    train: int
    """Samples that are learned from."""
    test: int
    """Samples that are held out."""
    unknown_classes: int
    """Held-out samples of a class that no training sample has."""


def place_of(spec: TrainSpec) -> str:
    """Where it's written."""
    return join(spec.output, "_mmray", "train.json")


def learned(spec: TrainSpec) -> dict[str, Any]:
    """What a spec says of what is learned."""
    return spec.model_dump(mode="json", exclude=set(_OUTSIDE))


def fingerprint_of(spec: TrainSpec) -> str:
    """Its hash."""
    return fingerprint(learned(spec))


def begun_before(spec: TrainSpec, storage: Storage) -> Start | None:
    """What an earlier run of this spec began with. Raises RefusedError where it was another's."""
    try:
        found = json.loads(storage.read_bytes(place_of(spec)))
        if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
            raise RefusedError(
                f"{spec.output} holds a training of another version of mmray (its format is"
                f" {found['format']!r:.20}, not {FORMAT}); choose another output"
            )
        start = Start.model_validate(found)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValidationError as error:
        raise RefusedError(f"{place_of(spec)} is broken: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise RefusedError(f"{place_of(spec)} is broken: {error}") from error
    if start.fingerprint != fingerprint_of(spec):
        path, old, new = _difference(start.spec, learned(spec)) or ("", None, None)
        raise RefusedError(
            f"{spec.output} holds a training of another spec: its {path} is {old!r:.80}, not"
            f" {new!r:.80}; choose another output"
        )
    return start


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            inner = f"{path}.{name}" if path else name
            found = _difference(old.get(name), new.get(name), inner)
            if found is not None:
                return found
        return None
    return None if old == new else (path, old, new)
