"""Stores of samples, some of which end whatever process takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

import mmray
from mmray.store.verify import verify
from tests import runs, shards

SHARDS, PER_SHARD = 3, 80
RED = shards.encoded(Image.new("RGB", (40, 40), (255, 0, 0)), "JPEG")


def write_tars(folder: Path, other: dict[str, bytes], count: int = SHARDS) -> list[tuple[str, str]]:
    """Tars in which some members are others; the places that must be accounted for."""
    folder.mkdir()
    places = []
    for shard in range(count):
        entries: list[Any] = []
        for seed in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            entries += shards.members(f"{seed:06d}", seed)
            places.append((str(folder / f"{shard}.tar"), f"{seed:06d}"))
        entries = [(name, other.get(name, data)) for name, data in entries]
        (folder / f"{shard}.tar").write_bytes(shards.tar(entries))
    return sorted(places)


def spec_of(folder: Path, model: str, **changes: Any) -> runs.Spec:
    encoder = {"kind": "import", "model": f"tests.toys:{model}"}
    spec = runs.embed_spec(str(folder / "tars"), str(folder / "store"), encoder=encoder)
    return spec | {"errors": {"max_fraction": 0.05}} | changes


def quarantined(uri: str) -> dict[str, tuple[str, str]]:
    """Key to stage and error type."""
    rows = mmray.open_store(uri).quarantine.live().to_pylist()
    found = {row["source_key"]: (row["stage"], row["error_type"]) for row in rows}
    assert len(found) == len(rows)
    return found


def assert_whole(uri: str, places: list[tuple[str, str]]) -> None:
    assert runs.places(uri) == places
    assert verify(mmray.open_store(uri)).problems == []
