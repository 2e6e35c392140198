"""The whole job on real S3 with a Hugging Face model, as the command line runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mmray
from mmray.decode.image import decode_image
from mmray.encoders import EncodeOptions, describe, load_encoder
from mmray.specs.common import HfEncoder
from tests import runs, shards, tinymodels
from tests.conftest import TestServer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels.build("clip", tmp_path_factory.mktemp("clip"))


def mmray_json(*arguments: str) -> dict[str, object]:
    """The object on the last line of a command's standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "mmray", *arguments, "--json"],
        cwd=runs.ROOT,
        capture_output=True,
        timeout=runs.TIMEOUT,
        check=True,
    )
    result: dict[str, object] = json.loads(done.stdout.decode().splitlines()[-1])
    return result


def test_clip_on_s3(clip: Path, s3: TestServer, s3_env: dict[str, str], tmp_path: Path) -> None:
    prefix = s3.uri("clip")
    shards.put(prefix, shards.sample_shards(2, 20), s3.client())
    spec = runs.embed_spec(
        f"{prefix}/{{00000..00001}}.tar",
        f"{prefix}/store",
        encoder={"kind": "hf", "model": str(clip)},
        dtype="float32",
    )
    first = runs.run(spec, tmp_path)
    assert {"job", "status", "rows_read", "rows_written", "rows_skipped", "rows_quarantined"} <= (
        first.keys()
    )
    assert (first["status"], first["rows_written"]) == ("done", 40)
    again = runs.run(spec, tmp_path)
    assert (again["rows_read"], again["rows_skipped"]) == (0, 40)

    info = mmray_json("store", "info", f"{prefix}/store")
    assert info["rows"] == 40
    history = mmray_json("store", "history", f"{prefix}/store")
    assert history
    assert runs.verify(f"{prefix}/store")["problems"] == []
    assert len(runs.places(f"{prefix}/store", s3_env)) == 40

    row = mmray.open_store(f"{prefix}/store").to_arrow().to_pylist()[7]
    options = EncodeOptions(dtype="float32")
    spec_ = HfEncoder(kind="hf", model=str(clip))
    card = describe(spec_, options)
    encoder = load_encoder(spec_, card, "cpu", options)
    assert card.image is not None
    seed = int(row["source_key"])
    pixels = decode_image(shards.picture(seed), card.image, max_pixels=10**8)
    for column, vectors in (
        ("image_embedding", encoder.encode_images([pixels])),
        ("text_embedding", encoder.encode_texts([shards.caption(seed)])),
    ):
        alone = vectors[0] / np.linalg.norm(vectors[0])
        np.testing.assert_allclose(row[column], alone, atol=1e-5)


def test_a_damaged_store_is_found_out(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(shards.sample_tar(20))
    spec = runs.embed_spec(str(tmp_path / "x.tar"), str(tmp_path / "store"))
    runs.run(spec, tmp_path)
    part = next((tmp_path / "store" / "data").rglob("*.parquet"))
    orphan = part.with_name("part-" + "0" * 32 + ".parquet")
    orphan.write_bytes(part.read_bytes())
    whole = runs.verify(spec["store"]["uri"])
    assert whole["orphans"] == 1 and whole["problems"] == []
    part.unlink()
    assert runs.verify(spec["store"]["uri"], code=1)["problems"]
