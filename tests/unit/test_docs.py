"""The pages can't go stale: what is generated is current; rooms, targets and fields are named."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmray.encoders import EncodeOptions, describe
from mmray.specs import KINDS, spec_schema
from mmray.specs.common import ImportEncoder
from tests import shards

ROOT = Path(__file__).parents[2]


def test_the_reference_is_current() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def field_paths(schema: dict[str, Any], node: dict[str, Any], prefix: str = "") -> Iterator[str]:
    if "$ref" in node:
        yield from field_paths(schema, schema["$defs"][node["$ref"].split("/")[-1]], prefix)
    for key in ("oneOf", "anyOf", "allOf"):
        for each in node.get(key, []):
            yield from field_paths(schema, each, prefix)
    for name, value in node.get("properties", {}).items():
        yield prefix + name
        yield from field_paths(schema, value, f"{prefix}{name}.")


@pytest.mark.parametrize("kind", KINDS)
def test_every_spec_field_is_in_the_reference(kind: str) -> None:
    page = (ROOT / "docs/reference.md").read_text()
    paths = set(field_paths(schema := spec_schema(kind), schema))
    assert len(paths) > 10
    assert sorted(path for path in paths if f"`{path}`" not in page) == []


def test_the_model_of_ones_own_in_the_docs_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs/extending.md").read_text()
    (block,) = re.findall(r'^```python title="my_models.py"\n(.*?)^```$', page, re.M | re.S)
    (tmp_path / "my_models.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    card = describe(ImportEncoder(kind="import", model="my_models:Colours"), EncodeOptions())
    assert card.dims == {"image": 12}
    model = importlib.import_module("my_models").Colours()
    pictures = [shards.pixels(seed, (64, 64)) for seed in range(3)]
    assert model.encode_images(pictures).shape == (3, 12)


@pytest.mark.parametrize(
    "page", ["README.md", "docs/embed.md", "docs/search.md", "docs/quickstart.md"]
)
def test_specs_that_pages_name_exist(page: str) -> None:
    named = set(re.findall(r"\bjobs/[\w-]+\.yaml", (ROOT / page).read_text()))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md"])
def test_every_room_is_on_the_map(page: str) -> None:
    text = (ROOT / page).read_text()
    rooms = [
        path.stem
        for path in (ROOT / "mmray").iterdir()
        if path.suffix in ("", ".py") and not path.name.startswith("_") and path.name != "py.typed"
    ]
    assert [room for room in rooms if not re.search(rf"\b{room}\b", text)] == []


def test_every_make_target_is_phony_and_explained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    explained = set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE))
    assert targets == phony == explained
    assert {"setup", "demo", "test", "soak", "lint", "docs", "bench"} <= targets


def test_constraints_pin_every_dependency_and_nothing_local() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    pinned = {plain(line) for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for group in project["optional-dependencies"].values() for each in group]
    wanted = {plain(each) for each in [*project["dependencies"], *extras]} - {"mmray"}
    assert sorted(wanted - pinned) == []


def plain(requirement: str) -> str:
    """The normalised name of a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
